"""A training's output folder: that it can be written, is no input, holds nothing of others, and which settings made what is in it."""

import shutil
import sys
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

from dp2osr.cli import field_names
from dp2osr.errors import UserError, listed
from dp2osr.files import as_json, keep_settings, put_back, read_json, write_json
from dp2osr.outputs import check_output, matches, refuse_inputs
from dp2osr.training.checkpoints import list_checkpoints
from dp2osr.training.settings import ValidationSettings

POLICY_FILES = (
    "config.json", "diffusion_pytorch_model.safetensors", "model.safetensors", "sampling_settings.json", "versions.json",
    "train_log.jsonl", "checkpoint-*.pt", "best", "samples",
)  # fmt: skip

# Settings that may differ when a run goes on: a hash stands for them, or they change nothing in the weights but, at most, when a run stops.
FREE_SETTINGS = (
    "config", "output_dir", "force", "report_to", "disable_tf32", "checkpointing_steps", "checkpoints_total_limit",
    "micro_batch_size", "gradient_checkpointing", "shard_optimizer",
    "pretrained_model_name_or_path", "reference_cache",
    "controlnet_model_name_or_path", "reference_controlnet_model_name_or_path", "candidates_dir", "scores", "candidates", "reward_config",
    "num_groups",
    *field_names(ValidationSettings),
)  # fmt: skip


def check_folder(output: str | Path, inputs: Mapping[str, str | Path | None], written: Collection[str], flag: str = "--output_dir") -> None:
    """Raise `UserError` unless a program may write to the folder `output`.

    Args:
        inputs: {flag: path or None}; a hub id is no path that exists, and is passed over.
        written: names, with wildcards, of the files and folders that it writes beside its settings.json.

    Raises:
        UserError: it cannot be written, is an input or would overwrite one, or holds such files without the settings.json of a run.
    """
    check_output(output, flag)
    refuse_inputs(output, inputs, written, flag)
    output = Path(output)
    if not (output / "settings.json").exists() and output.is_dir():
        foreign = sorted(path.name for path in output.iterdir() if matches(path.name, written))
        if foreign:
            raise UserError(
                f"{flag} {output}: holds {listed(foreign)}, which no run there has written (it has no settings.json); give another {flag}"
            )


def clear_parts(output: str | Path) -> None:
    """Remove what a killed run of this folder left half-written, and put its best policy back in its place."""
    put_back(Path(output) / "best")
    for path in Path(output).glob(".*.part"):
        shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)


def check_length(output: str | Path, steps: int) -> None:
    """Raise `UserError` where a run has more steps already than it is asked for."""
    newest = list_checkpoints(output)
    done = int(newest[0].stem.split("-")[1]) if newest else 0
    if done > steps:
        raise UserError(
            f"{output}: has {done} steps already, --max_train_steps {steps} is fewer; give {done} or more, or another --output_dir"
        )


def keep_run_settings(
    output: str | Path,
    settings: Mapping[str, Any],
    free: Collection[str],
    steady: bool,
    force: bool | None = None,
    also: Mapping[str, Callable[[], Any]] | None = None,
) -> None:
    """Write a run's settings, or check that those that are there are the same; steps may become more where the schedule is `steady`.

    Args:
        settings: with `max_train_steps`, and `lr_scheduler` if the program has a choice.
        free: names of settings that may differ.
        steady: whether a longer run begins as a shorter one does.
        force: value of --force; None for a program that has none.
        also: as in `dp2osr.files.keep_settings`.

    Raises:
        UserError: other settings; the ways out are named.
    """
    path, settings = Path(output) / "settings.json", as_json(settings)
    found: Any = read_json(path) if path.exists() else None
    there = found.get("max_train_steps") if isinstance(found, dict) else None
    other = there is not None and there != settings["max_train_steps"]
    grows = other and steady and found.get("lr_scheduler") == settings.get("lr_scheduler")
    way = "" if force is None else "or --force goes on with these"
    if other and not steady:
        reason = f"the rates of a {settings.get('lr_scheduler', 'cosine')} schedule depend on --max_train_steps"
        way = f"{way} ({reason})" if way else f"since {reason}"
    keep_settings(path, settings, (*free, "max_train_steps") if grows else free, bool(force), way, also)
    if grows:
        print(f"{output}: {there} steps become {settings['max_train_steps']}", file=sys.stderr)
        write_json(path, settings)
