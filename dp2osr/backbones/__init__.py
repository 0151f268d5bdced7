"""The only place that knows what SD2 and FLUX do differently."""

from pathlib import Path

from dp2osr.errors import UserError


def load_backbone(path, device="cpu", dtype=None, parts=("vae", "text", "unet")):
    """The backbone in a diffusers folder or hub id; which kind is read from its `model_index.json`.

    Raises:
        UserError: no such folder, or a pipeline that is not supported.
    """
    import diffusers
    import torch
    import transformers
    from diffusers import DiffusionPipeline

    from dp2osr.backbones.sd2 import SD2Backbone

    for library in (diffusers, transformers):  # a bar for each small part hides the bar that tells the time left
        library.utils.logging.disable_progress_bar()
    kinds = {"StableDiffusionPipeline": SD2Backbone}
    if Path(path).exists() and not (Path(path) / "model_index.json").is_file():
        raise UserError(f"{path}: has no model_index.json; give the folder of a diffusers pipeline")
    try:
        name = DiffusionPipeline.load_config(str(path))["_class_name"]
    except Exception as error:
        raise UserError(f"{path}: neither a folder nor a reachable hub model ({' '.join(str(error).split())[:200]})") from None
    if name not in kinds:
        raise UserError(f"{path}: is a {name}; supported are {', '.join(kinds)}")
    return kinds[name](path, device, dtype or torch.float32, parts)
