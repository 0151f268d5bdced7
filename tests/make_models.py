"""Make the models that most tests run on: the embedded tiny models' classes and files, a tenth of the numbers, random.

    python tests/make_models.py        # -> tests/models

Their samples mean nothing. What a test says of pictures or of what a training gains is said of `preset/models`.
"""

import json
import shutil
from pathlib import Path

import torch
from diffusers import AutoencoderKL, ControlNetModel, FluxControlNetModel, FluxTransformer2DModel, UNet2DConditionModel

ROOT = Path(__file__).resolve().parents[1]
PRESET, MODELS = ROOT / "preset/models", ROOT / "tests/models"
SMALL_FLUX = {"attention_head_dim": 16, "axes_dims_rope": [4, 6, 6], "num_attention_heads": 2}
NETWORKS = {
    "sd2": ("unet", UNet2DConditionModel, {"block_out_channels": [8, 16, 32]}),
    "flux": ("transformer", FluxTransformer2DModel, {**SMALL_FLUX, "num_layers": 2, "num_single_layers": 2}),
}
CONTROLNETS = {
    "sd2": (ControlNetModel, {"block_out_channels": [8, 16, 32], "conditioning_embedding_out_channels": [4, 8, 8]}),
    "flux": (FluxControlNetModel, SMALL_FLUX),
}


def make(kind):
    """A base and a ControlNet of a kind."""
    torch.manual_seed(0)
    part, network, changes = NETWORKS[kind]
    base = MODELS / f"tiny-{kind}"
    shutil.rmtree(base, ignore_errors=True)
    shutil.copytree(PRESET / f"tiny-{kind}", base)
    save(network, PRESET / f"tiny-{kind}" / part, changes, base / part)
    save(AutoencoderKL, PRESET / f"tiny-{kind}/vae", {"block_out_channels": [4, 8, 8]}, base / "vae")
    controlnet, changes = CONTROLNETS[kind]
    shutil.rmtree(MODELS / f"c-tiny-{kind}", ignore_errors=True)
    save(controlnet, PRESET / f"c-tiny-{kind}", changes, MODELS / f"c-tiny-{kind}")
    for path in (PRESET / f"c-tiny-{kind}").iterdir():
        if not (MODELS / f"c-tiny-{kind}" / path.name).exists() and path.suffix == ".json":
            shutil.copy(path, MODELS / f"c-tiny-{kind}")


def save(network, like, changes, folder):
    """A network with the config of another but for `changes`, none of its layers at zero, in fp16."""
    config = {**json.loads((like / "config.json").read_text(encoding="utf-8")), **changes}
    made = network.from_config(config)
    with torch.no_grad():
        for parameter in made.parameters():
            if not parameter.any():  # what a ControlNet begins with
                parameter.normal_(0, 0.1)
    shutil.rmtree(folder, ignore_errors=True)
    made.half().save_pretrained(folder)


if __name__ == "__main__":
    for kind in NETWORKS:
        make(kind)
