"""The only place that knows what SD2 and FLUX do differently."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from dp2osr.backbones.kinds import KINDS, implementation_of, kind_of
from dp2osr.backbones.loading import ModelSource
from dp2osr.errors import UserError

if TYPE_CHECKING:
    from pathlib import Path

    import torch

    from dp2osr.backbones.base import Backbone
    from dp2osr.backbones.settings import ModelSettings


def load_backbone(
    source: ModelSource | str | Path,
    device: str | torch.device = "cpu",
    dtype: torch.dtype | None = None,
    parts: Sequence[str] = ("vae", "text", "denoiser"),
    kind: str | None = None,
    quantize: str | None = None,
) -> Backbone:
    """The backbone in a diffusers folder or hub id, or of a `ModelSource`; which kind is read from its `model_index.json`.

    `quantize`: "int8" or "nf4" for a denoiser that is so held (`backbones.quantization`).

    Raises:
        UserError: no such folder, a pipeline that is not supported, or not the `kind` that is wanted.
    """
    import diffusers
    import torch
    import transformers

    for library in (diffusers, transformers):  # a bar for each small part hides the bar that tells the time left
        library.utils.logging.disable_progress_bar()
    source = source if isinstance(source, ModelSource) else ModelSource(str(source))
    path, name = source.path, source.pipeline()
    found = kind_of(name)
    if found is None:
        raise UserError(f"{path}: is a {name}; supported are {', '.join(kind.pipeline for kind in KINDS.values())}")
    if kind and found != kind:
        raise UserError(f"{path}: is a {name}, {found}, where {kind} is wanted; give another model or use the script for {found}")
    return implementation_of(found)(source, device, dtype or torch.float32, parts, **({"quantize": quantize} if quantize else {}))


def set_text_length(backbone: Backbone, length: int | None) -> None:
    """Let prompts have `length` tokens (None: as many as before); `UserError` where the model's text encoder takes its own number."""
    if length and backbone.max_sequence_length is None:
        raise UserError(f"--max_sequence_length {length}: is not read with a base model of {backbone.kind}; leave it out")
    backbone.max_sequence_length = length or backbone.max_sequence_length


def model_source(args: ModelSettings) -> ModelSource:
    """The `ModelSource` that `ModelSettings` name."""
    return ModelSource(
        args.pretrained_model_name_or_path, args.variant, args.revision, args.pretrained_vae_model_name_or_path, args.tokenizer_name
    )
