"""diffusers' own ControlNet pipelines on a backbone's networks: what our sampling is compared with."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from typing import TYPE_CHECKING, Any

import torch

from dp2osr.backbones.loading import cast

if TYPE_CHECKING:
    from dp2osr.backbones.base import Backbone, Prompt


class DiffusersSampler:
    """Samples as a user of diffusers does: its pipeline, all parts in the network's precision.

    Args:
        backbone: its networks and schedule are shared; the autoencoder is copied where its precision differs.
        controlnet: the one that steers.
    """

    def __init__(self, backbone: Backbone, controlnet: torch.nn.Module) -> None:
        vae = backbone.vae if backbone.dtype == torch.float32 else cast(deepcopy(backbone.vae), backbone.dtype)
        make, self.arguments = PIPELINES[backbone.kind]
        scheduler = backbone.sampling_scheduler(backbone.default_scheduler)
        self.pipeline = make(vae=vae, scheduler=scheduler, controlnet=controlnet, denoiser=backbone.denoiser)
        self.pipeline.set_progress_bar_config(disable=True)

    @torch.no_grad()
    def sample(
        self, image: torch.Tensor, prompt: Prompt, negative: Prompt | None, generators: list[torch.Generator], steps: int, guidance: float
    ) -> torch.Tensor:
        """Latents as the pipeline gives them, of len(generators) samples at once.

        Args:
            image: (1, 3, H, W) in [0, 1].
            prompt, negative: embeddings of one prompt each.
        """
        return self.pipeline(
            **self.arguments(image, prompt, negative), num_images_per_prompt=len(generators), generator=generators,
            num_inference_steps=steps, guidance_scale=guidance, height=image.shape[2], width=image.shape[3], output_type="latent",
        ).images  # fmt: skip


def _sd2_pipeline(vae: Any, scheduler: Any, controlnet: Any, denoiser: Any) -> Any:
    from diffusers import StableDiffusionControlNetPipeline

    return StableDiffusionControlNetPipeline(
        vae=vae, text_encoder=None, tokenizer=None, unet=denoiser, controlnet=controlnet, scheduler=scheduler, safety_checker=None,
        feature_extractor=None, requires_safety_checker=False,
    )  # fmt: skip


def _sd2_arguments(image: torch.Tensor, prompt: Prompt, negative: Prompt | None) -> dict[str, Any]:
    embeddings = {"prompt_embeds": prompt["encoder_hidden_states"]}
    if negative is not None:
        embeddings["negative_prompt_embeds"] = negative["encoder_hidden_states"]
    return {"image": image, **embeddings}


def _flux_pipeline(vae: Any, scheduler: Any, controlnet: Any, denoiser: Any) -> Any:
    from diffusers import FluxControlNetPipeline

    return FluxControlNetPipeline(
        vae=vae, text_encoder=None, tokenizer=None, text_encoder_2=None, tokenizer_2=None, transformer=denoiser, controlnet=controlnet,
        scheduler=scheduler,
    )  # fmt: skip


def _flux_arguments(image: torch.Tensor, prompt: Prompt, negative: Prompt | None) -> dict[str, Any]:
    return {
        "control_image": image * 2 - 1,  # a tensor is taken as it is
        "prompt_embeds": prompt["encoder_hidden_states"],
        "pooled_prompt_embeds": prompt["pooled_projections"],
    }


PIPELINES: dict[str, tuple[Callable[..., Any], Callable[..., dict[str, Any]]]] = {
    "sd2": (_sd2_pipeline, _sd2_arguments),
    "flux": (_flux_pipeline, _flux_arguments),
}
