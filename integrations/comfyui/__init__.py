"""Nodes for ComfyUI: load a base model with a ControlNet, restore images. All is done by `dp2osr.load(...).restore(...)`.

An IMAGE of ComfyUI is a (B, H, W, 3) float tensor in [0, 1].
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

if TYPE_CHECKING:
    import dp2osr

MODEL = "DP2OSR_MODEL"
LARGEST_SEED = 2**53 - 1  # that a browser's numbers hold
OWN = "0: the model's own"


class LoadModel:
    """A base model with a ControlNet."""

    CATEGORY = "DP2O-SR"
    DESCRIPTION = "Loads a Stable Diffusion 2 or FLUX base with a super-resolution ControlNet."
    RETURN_TYPES = (MODEL,)
    RETURN_NAMES = ("model",)
    FUNCTION = "load"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        """What ComfyUI shows: {"required": {name: (type, options)}, ...}."""
        base = "The base model: a diffusers folder or a hub id; or the folder of a trained policy, which knows its base."
        controlnet = "The ControlNet: a folder, a hub id, one safetensors file or a checkpoint. Empty where the base is a policy's folder."
        strength = "How much of a training's change is applied: 0 is the base, 1 the trained policy, above 1 goes on in its direction."
        precision = "Of the networks; on a CPU fp16 becomes no."
        return {
            "required": {
                "base": ("STRING", {"default": "", "tooltip": base}),
                "controlnet": ("STRING", {"default": "", "tooltip": controlnet}),
                "strength": ("FLOAT", {"default": 1.0, "min": 0.0, "max": 3.0, "step": 0.05, "tooltip": strength}),
            },
            "optional": {"precision": (["no", "fp16", "bf16"], {"default": "no", "tooltip": precision})},
        }

    def load(self, base: str, controlnet: str, strength: float, precision: str = "no") -> tuple[dp2osr.Model]:
        """The model; `UserError`, which ComfyUI shows, where there is none."""
        import dp2osr

        return (dp2osr.load(base, controlnet or None, policy_strength=strength, mixed_precision=precision),)  # type: ignore[arg-type]


class Restore:
    """SR images of a batch of images."""

    CATEGORY = "DP2O-SR"
    DESCRIPTION = "Restores and enlarges images. Each sample is another picture of the same image."
    RETURN_TYPES = ("IMAGE",)
    RETURN_NAMES = ("images",)
    OUTPUT_TOOLTIPS = ("All samples of the first image, then those of the next.",)
    FUNCTION = "restore"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        """What ComfyUI shows: {"required": {name: (type, options)}, ...}."""
        name = "Noise follows from the seed and this name: with a file's name, without its ending, the test programs give the same pixels."
        size = {"default": 4.0, "min": 0.25, "max": 16.0, "step": 0.25, "tooltip": "Size of the result over size of the image."}
        return {
            "required": {
                "model": (MODEL, {"tooltip": "From the loader."}),
                "image": ("IMAGE", {"tooltip": "Of any size; large ones are restored in tiles."}),
                "upscale": ("FLOAT", size),
                "steps": ("INT", {"default": 0, "min": 0, "max": 1000, "tooltip": f"Denoising steps. {OWN}."}),
                "guidance": ("FLOAT", {"default": 0.0, "min": 0.0, "max": 30.0, "step": 0.1, "tooltip": f"1 switches it off. {OWN}."}),
                "seed": ("INT", {"default": 0, "min": 0, "max": LARGEST_SEED, "tooltip": "Another seed gives another picture."}),
                "samples": ("INT", {"default": 1, "min": 1, "max": 64, "tooltip": "Pictures of each image, each from its own noise."}),
                "prompt": ("STRING", {"default": "", "multiline": True, "tooltip": "Words about the image; may be empty."}),
            },
            "optional": {"name": ("STRING", {"default": "image", "tooltip": name})},
        }

    def restore(
        self, model: dp2osr.Model, image: torch.Tensor, upscale: float, steps: int, guidance: float, seed: int, samples: int, prompt: str,
        name: str = "image",
    ) -> tuple[torch.Tensor]:  # fmt: skip
        """(B · samples, H', W', 3) float in [0, 1] of a (B, H, W, C) `image`, whose opacity, if it has one, is left out.

        The images of a batch are called `name_000`, `name_001`, ...; one alone is called `name`.
        """
        results = []
        for number, pixels in enumerate(as_bytes(image)):
            results += model.restore(
                pixels, upscale, samples, seed, image_id=f"{name}_{number:03d}" if len(image) > 1 else name, prompt=prompt or None,
                num_inference_steps=steps or None, guidance_scale=guidance or None, progress=progress_of(number, len(image)),
            )  # fmt: skip
        return (torch.from_numpy(np.stack([np.asarray(result) for result in results])).float() / 255,)


def as_bytes(image: torch.Tensor) -> np.ndarray:
    """(B, H, W, 3) uint8 of ComfyUI's floats."""
    return (image[..., :3].float().clamp(0, 1) * 255).round().to("cpu", torch.uint8).numpy()


def progress_of(number: int, count: int) -> Callable[[int, int], None] | None:
    """For `Model.restore`, of image `number` of `count`: moves ComfyUI's bar, and ends the work where it was cancelled."""
    try:
        from comfy.model_management import throw_exception_if_processing_interrupted
        from comfy.utils import ProgressBar
    except ImportError:  # outside ComfyUI
        return None
    bar = ProgressBar(count)

    def passed(done: int, total: int) -> None:
        throw_exception_if_processing_interrupted()
        bar.update_absolute(number * total + done, count * total)

    return passed


NODE_CLASS_MAPPINGS = {"DP2OSRLoadModel": LoadModel, "DP2OSRRestore": Restore}
NODE_DISPLAY_NAME_MAPPINGS = {"DP2OSRLoadModel": "DP²O-SR: load a model", "DP2OSRRestore": "DP²O-SR: restore"}
