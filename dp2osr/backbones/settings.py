"""Which base model, and how it computes: the flags of every program that loads one."""

from dataclasses import dataclass
from typing import Annotated, Literal

from dp2osr.backbones.kinds import NAME
from dp2osr.cli import Settings
from dp2osr.fields import Natural, default_is


@dataclass(kw_only=True)
class ModelSettings(Settings):
    """The base model, its files, its precision and the run's seed."""

    pretrained_model_name_or_path: str
    """Base model: a diffusers folder or hub id."""
    variant: str | None = None
    """Read the base model's weights from files of this variant, as fp16 in *.fp16.safetensors."""
    revision: str | None = None
    """Branch, tag or commit of a base model on a hub."""
    pretrained_vae_model_name_or_path: Annotated[str | None, default_is("the base's own")] = None
    """Autoencoder from this folder or hub id."""
    tokenizer_name: Annotated[str | None, default_is("the base's own")] = None
    """CLIP tokenizer from this folder or hub id."""
    backbone: Annotated[Annotated[str, NAME] | None, default_is("what its folder says")] = None
    """What the base model must be."""
    mixed_precision: Annotated[Literal["no", "fp16", "bf16"] | None, default_is("the launcher's, else no")] = None
    """Compute precision; `accelerate launch --mixed_precision` says it too."""
    disable_tf32: bool = False
    """Compute float32 in full; by default GPUs that have TF32 use it in matrix products and convolutions."""
    seed: Natural = 0
    """Run seed: all randomness follows from it."""

    def expected_layers(self) -> dict[str, int | None]:
        """{name: blocks that the ControlNet must have}; empty where any will do."""
        return {}


@dataclass(kw_only=True)
class FluxSettings(ModelSettings):
    """What a FLUX ControlNet must be."""

    num_double_layers: Annotated[int | None, default_is("those of its file")] = None
    """Double blocks that the ControlNet must have."""
    num_single_layers: Annotated[int | None, default_is("those of its file")] = None
    """Single blocks that the ControlNet must have."""

    def expected_layers(self) -> dict[str, int | None]:
        return {"num_double_layers": self.num_double_layers, "num_single_layers": self.num_single_layers}
