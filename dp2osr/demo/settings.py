"""Flags of the page: which models it offers, and where it listens."""

from dataclasses import dataclass, field
from typing import Annotated, Literal

from dp2osr.cli import Settings
from dp2osr.fields import Count, default_is, metavar


@dataclass(kw_only=True)
class DemoSettings(Settings):
    """A page in the browser that restores images: `scripts/demo.py`."""

    model: Annotated[
        list[str] | None, default_is("the tiny models, and runs/quickstart/policy if it is there"), metavar("NAME=BASE+CONTROLNET")
    ] = None
    """Models to choose from; the first is loaded at the start. NAME=FOLDER is a trained policy, which knows its base.
    NAME=BASE+POLICY+START names the ControlNet that a policy was trained from, where the policy's folder does not."""
    reward_config: Annotated[list[str], metavar("NAME_OR_YAML")] = field(default_factory=lambda: ["nr_only"])
    """Rewards to choose from, of NR metrics alone."""
    metrics_dir: Annotated[str | None, default_is("DP2OSR_METRICS_DIR, else pyiqa's own places")] = None
    """Folder of scripts/fetch_metrics.py with pyiqa's weights."""
    device: Annotated[str | None, default_is("this machine's accelerator, else its CPU")] = None
    """cpu, cuda, cuda:1 ..."""
    mixed_precision: Annotated[Literal["no", "fp16", "bf16"] | None, default_is("no")] = None
    """Compute precision, on GPUs."""
    server_name: str = "127.0.0.1"
    """Address to listen at; 0.0.0.0 lets other machines in."""
    server_port: Annotated[Count | None, default_is("the first free one from 7860 on")] = None
    """Port to listen at."""
    share: bool = False
    """Also open a public address by Gradio's servers, which is the one thing that needs the network."""
    keep_minutes: Count = 60
    """Uploaded and made files are removed after this time."""
    max_waiting: Count = 32
    """Requests that may wait; the next one is refused."""
