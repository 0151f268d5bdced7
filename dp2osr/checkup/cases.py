"""The models of a check: the published sizes with random weights, built on the device, or the tiny ones on disk."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from dp2osr.backbones import load_backbone
from dp2osr.backbones.base import Backbone, Prompt
from dp2osr.backbones.loading import ModelSource, cast
from dp2osr.cli import parse
from dp2osr.device import DTYPES
from dp2osr.places import CONFIGS, ROOT
from dp2osr.planning.models import ConfigSource, read_published
from dp2osr.planning.stages import PlannedModel
from dp2osr.sampling.defaults import with_defaults
from dp2osr.sampling.settings import GenerateSettings
from dp2osr.training.settings import TrainSettings


@dataclass(frozen=True)
class RandomSource(ConfigSource):
    """A base model whose networks are made from their configuration, on the device, with random weights of a fixed seed."""

    device: torch.device = torch.device("cpu")

    def network(self, cls: type[Any], config: Any, dtype: Any) -> torch.nn.Module:
        return random_network(cls, config, self.device, dtype)


def random_network(cls: type[Any], config: Any, device: torch.device, dtype: torch.dtype) -> torch.nn.Module:
    """A network of a configuration, made in place: 12 B parameters never are in float32, nor on the host."""
    before = torch.get_default_dtype()
    torch.manual_seed(0)
    torch.set_default_dtype(dtype)
    try:
        with torch.device(device):
            network: torch.nn.Module = cls.from_config(config)
    finally:
        torch.set_default_dtype(before)
    return cast(network, dtype)


@dataclass(frozen=True)
class Case:
    """A model that is checked, and the settings that it is run with.

    Args:
        name: in the tables.
        sampling, training: settings as its folder in `configs/` has them.
        published: the published configuration; None: the model is on disk.
        batch_sizes: candidates that are sampled together.
        precisions: of training on a GPU.
    """

    name: str
    sampling: GenerateSettings
    training: TrainSettings
    published: dict[str, Any] | None
    batch_sizes: tuple[int, ...]
    precisions: tuple[str, ...]

    def load(self, parts: Sequence[str], precision: str, device: torch.device) -> Backbone:
        """The backbone with these parts."""
        path = self.sampling.pretrained_model_name_or_path
        source = ModelSource(path) if self.published is None else RandomSource(path, published=self.published, device=device)
        return load_backbone(source, device, DTYPES[precision], parts)

    def controlnet(self, backbone: Backbone, dtype: torch.dtype) -> torch.nn.Module:
        """The tiny model's own; else a new one whose zero layers have been filled, since they would hide what it does."""
        if self.published is None:
            return backbone.load_controlnet(self.sampling.controlnet_model_name_or_path, dtype)
        torch.manual_seed(0)
        with torch.device(backbone.device):
            controlnet = backbone.new_controlnet()
        for parameter in controlnet.parameters():
            if parameter.dim() > 1 and not parameter.any():
                torch.nn.init.normal_(parameter, std=0.02)
        return cast(controlnet, dtype).eval()

    def prompts(self, precision: str, device: torch.device) -> list[Prompt]:
        """Embeddings of a prompt and of the negative one: random numbers, so that no text encoder is built."""
        blank = self.load(("tokenizers",), precision, device).blank_prompt()
        generator = torch.Generator().manual_seed(0)
        return [{name: torch.randn(each.shape, generator=generator).to(each) for name, each in blank.items()} for _ in range(2)]

    def sampling_of(self, backbone: Backbone) -> GenerateSettings:
        """Its sampling settings with the model's own defaults."""
        return with_defaults(self.sampling, backbone, ask=self.published is None)[0]

    def planned(self) -> PlannedModel:
        """The same model as plans take it."""
        return PlannedModel(self.sampling, (128, 128) if self.published else (32, 32), self.published)


# --model → (name, folder of settings, candidates together, precisions of training on a GPU)
FOLDERS: dict[str, list[tuple[str, str, tuple[int, ...], tuple[str, ...]]]] = {
    "tiny": [("tiny-sd2", "tiny_sd2/quickstart", (1, 4), ("no", "fp16")), ("tiny-flux", "tiny_flux/quickstart", (1, 4), ("no", "bf16"))],
    "sd2": [("sd2", "sd2_base", (1, 8, 32), ("bf16", "fp16"))],
    "flux": [("flux", "flux_dev", (1, 4, 16), ("bf16",))],
}


def cases_of(model: str, batch_sizes: Sequence[int] | None = None) -> list[Case]:
    """The `Case`s of a value of --model."""
    found = []
    for name, place, together, precisions in FOLDERS[model]:
        sampling: GenerateSettings = parse(GenerateSettings, ["--config", CONFIGS / place / "sample.yaml"])
        training: TrainSettings = parse(TrainSettings, ["--config", CONFIGS / place / "train.yaml"])
        published = None if model == "tiny" else read_published(str(sampling.backbone))
        if published is None:
            sampling.pretrained_model_name_or_path, sampling.controlnet_model_name_or_path = (
                str(ROOT / path) for path in (sampling.pretrained_model_name_or_path, sampling.controlnet_model_name_or_path)
            )
        found.append(Case(name, sampling, training, published, tuple(batch_sizes or together), precisions))
    return found


def photograph(side: int) -> Any:
    """A square picture of `side` pixels, PIL RGB: an embedded photograph, or a drawn one where there is none."""
    import numpy as np
    from PIL import Image

    paths = sorted(Path(ROOT, "preset/test/gt").glob("*.png"))
    if paths:
        return Image.open(paths[0]).convert("RGB").resize((side, side), Image.Resampling.LANCZOS)
    rows, columns = np.mgrid[0:side, 0:side] / side
    waves = [np.sin(40 * rows * columns + phase) + np.sign(np.sin(9 * columns + phase)) for phase in range(3)]
    return Image.fromarray(np.uint8(np.clip(128 + 50 * np.stack(waves, -1), 0, 255)))
