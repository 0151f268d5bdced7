"""The only place that knows what SD2 and FLUX do differently."""

from pathlib import Path

from dp2osr.backbones.loading import ModelSource
from dp2osr.config import read_json
from dp2osr.errors import UserError


def load_backbone(source, device="cpu", dtype=None, parts=("vae", "text", "denoiser"), kind=None):
    """The backbone in a diffusers folder or hub id, or of a `ModelSource`; which kind is read from its `model_index.json`.

    Raises:
        UserError: no such folder, a pipeline that is not supported, or not the `kind` that is wanted.
    """
    import diffusers
    import torch
    import transformers

    from dp2osr.backbones.flux import FluxBackbone
    from dp2osr.backbones.sd2 import SD2Backbone

    for library in (diffusers, transformers):  # a bar for each small part hides the bar that tells the time left
        library.utils.logging.disable_progress_bar()
    kinds = {"StableDiffusionPipeline": SD2Backbone, "FluxPipeline": FluxBackbone}
    source = source if isinstance(source, ModelSource) else ModelSource(str(source))
    path = source.path
    name = read_json(find_model_index(path, source.revision)).get("_class_name")
    if name not in kinds:
        raise UserError(f"{path}: is a {name}; supported are {', '.join(kinds)}")
    if kind and kinds[name].kind != kind:
        raise UserError(
            f"{path}: is a {name}, {kinds[name].kind}, where {kind} is wanted; give another model or use the script for {kinds[name].kind}"
        )
    return kinds[name](source, device, dtype or torch.float32, parts)


def model_source(args):
    """The `ModelSource` that the flags of `MODEL_FLAGS` name."""
    return ModelSource(
        args.pretrained_model_name_or_path, args.variant, args.revision, args.pretrained_vae_model_name_or_path, args.tokenizer_name
    )


def find_model_index(path, revision=None):
    """The `model_index.json` of a local folder or, if there is no such folder, of a hub model."""
    if Path(path).exists():
        index = Path(path) / "model_index.json"
        if not index.is_file():
            raise UserError(f"{path}: has no model_index.json; give the folder of a diffusers pipeline")
        return index
    from huggingface_hub import hf_hub_download

    try:
        return hf_hub_download(str(path), "model_index.json", revision=revision)
    except Exception as error:  # a bad name, no network, offline mode: all mean that it cannot be had
        raise UserError(f"{path}: neither a folder nor a reachable hub model ({' '.join(str(error).split())[:200]})") from None
