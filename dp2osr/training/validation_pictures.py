"""Validation pictures of a baseline: a handful of LR images, sampled with the weights as they are."""

from __future__ import annotations

from collections.abc import Iterable
from copy import deepcopy
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from PIL import Image

from dp2osr.backbones.loading import cast
from dp2osr.data.contact_sheet import draw_sheet
from dp2osr.data.images import read_image, save_image, tensor_to_pil
from dp2osr.data.inputs import list_images
from dp2osr.errors import NonFiniteSamples, UserError
from dp2osr.sampling.defaults import published_settings
from dp2osr.sampling.sampler import GroupSampler
from dp2osr.sampling.settings import GenerateSettings

if TYPE_CHECKING:
    from dp2osr.backbones.base import Backbone
    from dp2osr.training.baseline_settings import BaselineSettings
    from dp2osr.training.text import PromptBook


def read_validation(images: Iterable[str] | None, prompts: list[str] | None) -> list[tuple[str, Image.Image, str]]:
    """[(name, LR as RGB PIL image, prompt)] of files or folders; `prompts`: none, one for all, or one each.

    Raises:
        UserError: an image that cannot be read, another number of prompts.
    """
    paths = [found for path in images or () for found in list_images(path)]
    prompts = prompts or [""]
    if len(prompts) not in (1, len(paths)):
        raise UserError(f"--validation_prompt: {len(prompts)} prompts for {len(paths)} images; give one for all, or one each")
    prompts = prompts * len(paths) if len(prompts) == 1 else prompts
    return [(path.stem, read_image(path), prompt) for path, prompt in zip(paths, prompts, strict=True)]


class Pictures:
    """Called with a ControlNet, writes a sheet: LR | `num_validation_images` samples, a row an image, the same seeds every time.

    Args:
        images: as `read_validation` gives them.
        book: `PromptBook` that knows their prompts and the negative one.
        scale: size of the samples over that of LR.
    """

    def __init__(
        self, args: BaselineSettings, backbone: Backbone, images: list[tuple[str, Image.Image, str]], book: PromptBook, scale: int
    ) -> None:
        settings = published_settings(backbone)
        asked = {**settings, "negative_prompt": args.negative_prompt, "upscale": scale, "batch_size": args.num_validation_images}
        given = {name: getattr(args, name) for name in ("num_inference_steps", "guidance_scale") if getattr(args, name) is not None}
        options = GenerateSettings(
            pretrained_model_name_or_path=args.pretrained_model_name_or_path,
            controlnet_model_name_or_path=args.controlnet_model_name_or_path or args.pretrained_model_name_or_path,
            image_path=",".join(args.validation_image or ()),
            output_dir=args.output_dir,
            prompt_source="none",
            seed=args.seed,
            **{**asked, **given},
        )
        self.images, self.count, self.book = images, args.num_validation_images, book
        self.sampler = GroupSampler(options, backbone.device, backbone, controlnet=object())
        self.sampler.prompts.tags = {str(number): prompt for number, (_, _, prompt) in enumerate(images)}

    @torch.no_grad()
    def __call__(self, controlnet: torch.nn.Module, path: str | Path) -> None:
        dtype, rows = self.sampler.backbone.dtype, []
        self.sampler.controlnet = controlnet if controlnet.dtype == dtype else cast(deepcopy(controlnet), dtype)
        texts = {self.sampler.args.negative_prompt, *(prompt for _, _, prompt in self.images)}
        self.sampler.embeddings = {text: self.book.embed([self.book.texts.index(text)]) for text in texts}
        for number, (_, lr, _) in enumerate(self.images):
            try:
                pictures = [tensor_to_pil(image) for image in self.sampler.images(self.sampler.sample(str(number), lr, self.count))]
            except NonFiniteSamples:
                pictures = [Image.new("RGB", lr.size, "grey")] * self.count
            rows.append([lr.resize(pictures[0].size, Image.Resampling.NEAREST), *pictures])
        self.sampler.controlnet, self.sampler.embeddings = None, {}
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        save_image(draw_sheet(rows, ["LR", *["sample"] * self.count]), path)
