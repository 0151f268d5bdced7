"""The only place that knows what SD2 and FLUX do differently."""

import importlib

from dp2osr.backbones.kinds import KINDS, kind_of
from dp2osr.backbones.loading import ModelSource
from dp2osr.errors import UserError


def load_backbone(source, device="cpu", dtype=None, parts=("vae", "text", "denoiser"), kind=None):
    """The backbone in a diffusers folder or hub id, or of a `ModelSource`; which kind is read from its `model_index.json`.

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
    module, name = KINDS[found].implementation.split(":")
    return getattr(importlib.import_module(module), name)(source, device, dtype or torch.float32, parts)


def model_source(args):
    """The `ModelSource` that the flags of `model_flags` name."""
    return ModelSource(
        args.pretrained_model_name_or_path, args.variant, args.revision, args.pretrained_vae_model_name_or_path, args.tokenizer_name
    )
