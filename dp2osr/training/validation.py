"""Held-out validation by reward: the policy's candidates against the base's, same seeds, pooled normalisation."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping
from copy import deepcopy
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
from accelerate.utils import gather_object
from PIL import Image

from dp2osr import stats
from dp2osr.backbones import load_backbone
from dp2osr.backbones.loading import cast
from dp2osr.data.contact_sheet import draw_sheet
from dp2osr.data.images import pil_to_tensor, read_image, tensor_to_pil
from dp2osr.data.inputs import list_images
from dp2osr.errors import NonFiniteSamples, UserError, listed
from dp2osr.rewards.config import for_new_images
from dp2osr.rewards.metrics import MetricSuite, bounds_of, check_modes
from dp2osr.rewards.reward import finite_groups_of, hybrid_reward, with_fixed_weights
from dp2osr.sampling.sampler import GroupSampler
from dp2osr.training.validation_sampling import sampling_differences, sampling_options

if TYPE_CHECKING:
    from pathlib import Path

    import torch

    from dp2osr.backbones.base import Backbone
    from dp2osr.rewards.config import RewardConfig
    from dp2osr.sharing import Launch
from dp2osr.training.settings import TrainSettings

RESAMPLES = 2000  # of photographs, for the interval of G


class RewardValidator:
    """Called with a policy, returns pooled rewards of held-out images and the gain G; `sheet` has the first `shown` of them as pictures.

    G as in `stats.gain`. The base's own samples are drawn when it is called for the first time.

    Args:
        args: flags of training.
        backbone: of the training, without a text encoder.
        reference: the base's ControlNet.
        config: `RewardConfig`.
        settings: of the candidates: validation samples as they were sampled.
        launch: whose ranks validate together, each with a validator of its own; by default this process alone.

    Raises:
        UserError: images that cannot be read, have no GT or one of another size, all named; a metric that cannot be had.
    """

    def __init__(
        self,
        args: TrainSettings,
        backbone: Backbone,
        reference: torch.nn.Module,
        config: RewardConfig,
        settings: Mapping[str, Any],
        shown: int = 6,
        launch: Launch | None = None,
    ) -> None:
        assert args.validation_image_path and args.validation_gt_path
        options = sampling_options(args, settings, backbone)
        self.images = read_validation_images(args.validation_image_path, args.validation_gt_path, options.upscale)
        for line in sampling_differences(options, settings, backbone) if launch is None or launch.is_first else ():
            print(f"warning: validation: {line}", file=sys.stderr)
        config = for_new_images(config, "validation samples")
        self.config, self.reference, self.count, self.shown = config, reference, args.validation_candidates, shown
        self.suite = MetricSuite(config.metrics, device=backbone.device)
        check_modes(config, self.suite)
        self.sampler = GroupSampler(options, backbone.device, backbone, reference)
        guided = {self.sampler.args.negative_prompt} if self.sampler.args.guidance_scale > 1 else set()
        self.sampler.embeddings = embed_prompts(guided | {self.sampler.prompts(image_id, lr) for image_id, lr, _ in self.images}, backbone)
        self.base: dict[str, np.ndarray] = {}
        self.launch, self.rounds = launch or Launch({}), 0

    def start(self) -> None:
        """Sample and score the base; without a finite score there is nothing to compare with, and no validation."""
        self.base, self.base_pictures = self.scores(self.reference)
        self.pictures = self.base_pictures
        finite = finite_groups_of(self.base, self.config, self.gt_scores)
        if finite.any():
            told, of_gt = ({name: values[finite] for name, values in of.items()} for of in (self.base, self.gt_scores))
            self.config = with_fixed_weights(self.config, told, self.suite.lower_better, of_gt)  # G must be one quantity over all steps

    @cached_property
    def gt_scores(self) -> dict[str, np.ndarray]:
        """{NR metric: (images,) raw scores of the GT itself} of a reward that is bounded by them."""
        found = [bounds_of(self.config, self.suite, gt, image_id) for image_id, _, gt in self.images] if self.config.bounded else []
        return {name: np.concatenate([of_image[name] for of_image in found]) for name in self.config.bounded}

    def scores(self, controlnet: torch.nn.Module) -> tuple[dict[str, np.ndarray], list[Image.Image]]:
        """{metric: (images, m)} raw scores of candidates sampled with `controlnet`, and the first candidate of the first images.

        The ranks of the launch take the images one by one, and all get all results.
        """
        training, dtype = controlnet.training, self.sampler.backbone.dtype
        controlnet.eval()
        self.sampler.controlnet = controlnet if controlnet.dtype == dtype else cast(deepcopy(controlnet), dtype)  # as a user will run it
        self.rounds += 1
        found = {number: self.score(number) for number in self.launch.take(f"validation {self.rounds}", len(self.images))}
        found = {number: result for of_rank in gather_object([found]) for number, result in of_rank.items()}
        controlnet.train(training)
        self.sampler.controlnet = None  # a copy in 16 bits need not lie about until the next time
        rows, pictures = zip(*(found[number] for number in range(len(self.images))), strict=True)
        return {name: np.stack([row[name] for row in rows]) for name in rows[0]}, list(pictures[: self.shown])

    def score(self, number: int) -> tuple[dict[str, np.ndarray], Image.Image | None]:
        """({metric: (m,) raw scores} of an image's candidates, the first one if it is shown); NaN and grey if they are not finite."""
        image_id, lr, gt = self.images[number]
        try:
            images = self.sampler.images(self.sampler.sample(image_id, lr, self.count))
            scores, picture = self.suite.score(images, gt, image_id=image_id, strict=False), tensor_to_pil(images[0])
        except NonFiniteSamples:
            scores = {name: np.full(self.count, np.nan) for name in self.suite.modes}
            picture = Image.new("RGB", gt.shape[:0:-1], "grey")
        return scores, picture if number < self.shown else None

    def __call__(self, policy: torch.nn.Module) -> dict[str, float]:
        """{"val_reward_mean", "val_reward_best", "val_reward_worst", "val_base_mean", "G"}; {} where no image has finite scores.

        "G_low" and "G_high", the bounds of G's 95 % interval over photographs, are there where the images are of two or more.
        A NaN of a sample or a metric does not end a training: its image is left out of this validation, and that is said.
        """
        if not self.base:
            self.start()
        scores, self.pictures = self.scores(policy)
        pooled = {name: np.concatenate([self.base[name], scores[name]], axis=1) for name in scores}
        finite = finite_groups_of(pooled, self.config, self.gt_scores)
        if not finite.all() and self.launch.is_first:
            odd = listed([image_id for (image_id, *_), good in zip(self.images, finite, strict=True) if not good])
            told = "left out of this validation" if finite.any() else "none is left, this validation says nothing"
            print(f"\nwarning: validation: {odd}: a NaN or infinite score or sample; {told}", file=sys.stderr)
        if not finite.any():
            return {}
        pooled, of_gt = ({name: values[finite] for name, values in of.items()} for of in (pooled, self.gt_scores))
        base, tuned = np.split(hybrid_reward(pooled, self.suite.lower_better, self.config, of_gt), 2, axis=1)
        names = [image_id for (image_id, *_), good in zip(self.images, finite, strict=True) if good]
        weights = stats.bootstrap_weights(stats.photographs_of(names), RESAMPLES, seed=0)
        gain = stats.gain(tuned, base, weights)
        return {
            "val_reward_mean": float(tuned.mean()),
            "val_reward_best": float(tuned.max(axis=1).mean()),
            "val_reward_worst": float(tuned.min(axis=1).mean()),
            "val_base_mean": float(base.mean()),
            "G": gain.value,
            **({"G_low": gain.low, "G_high": gain.high} if np.isfinite(gain.low) else {}),
        }

    def sheet(self) -> Image.Image:
        """LR | base | policy | GT of the first images, as a PIL image."""
        rows = []
        for (_, lr, gt), base, policy in zip(self.images, self.base_pictures, self.pictures, strict=False):
            rows.append([lr.resize(base.size, Image.Resampling.NEAREST), base, policy, tensor_to_pil(gt)])
        return draw_sheet(rows, ["LR", "base", "policy", "GT"])


def read_validation_images(image_path: str | Path, gt_path: str | Path, upscale: float) -> list[tuple[str, Image.Image, torch.Tensor]]:
    """[(image id, LR as RGB PIL image, GT (3, H, W) in [0, 1])].

    Raises:
        UserError: images that cannot be read, without a GT, or with one that is not `upscale` times as large; all are named at once.
    """
    paths, truths = list_images(image_path), {path.stem: path for path in list_images(gt_path)}
    images, problems = [], []
    for path in paths:
        try:
            if path.stem not in truths:
                raise UserError(f"{path.name} has no GT of its name in {gt_path}")
            lr, gt = read_image(path), read_image(truths[path.stem])
            size = tuple(round(side * upscale) for side in lr.size)
            if gt.size != size:
                raise UserError(
                    f"{truths[path.stem]} is {gt.width} x {gt.height}, not {size[0]} x {size[1]}, {upscale:g} times its LR image"
                )
            images.append((path.stem, lr, pil_to_tensor(gt)))
        except UserError as error:
            problems.append(str(error))
    if problems:
        raise UserError(f"{image_path}: {len(problems)} of {len(paths)} validation images cannot be used: {listed(problems)}")
    return images


def embed_prompts(prompts: Iterable[str], backbone: Backbone) -> dict[str, dict[str, torch.Tensor]]:
    """{prompt: embedding} on the device of `backbone`, by text encoders that are gone when this returns."""
    text = load_backbone(backbone.source, backbone.device, backbone.dtype, parts=("text",))
    text.max_sequence_length = backbone.max_sequence_length
    return {prompt: text.encode_prompts([prompt]) for prompt in prompts}
