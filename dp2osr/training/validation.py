"""Held-out validation by reward: the policy's candidates against the base's, same seeds, pooled normalisation."""

import sys
from copy import deepcopy

import numpy as np
from PIL import Image

from dp2osr.backbones import load_backbone
from dp2osr.backbones.loading import cast
from dp2osr.data.images import list_images, pil_to_tensor, read_image, tensor_to_pil
from dp2osr.errors import UserError
from dp2osr.evaluation import statistics
from dp2osr.evaluation.contact_sheet import draw_sheet
from dp2osr.rewards.config import for_new_images, load_reward_config
from dp2osr.rewards.metrics import MetricSuite
from dp2osr.rewards.reward import finite_groups_of, hybrid_reward, with_fixed_weights
from dp2osr.sampling.sampler import GroupSampler
from dp2osr.training.options import sampling_options


class RewardValidator:
    """Called with a policy, returns pooled rewards of held-out images and the gain G; `sheet` has the first `shown` of them as pictures.

    G as in `statistics.gain`.
    """

    def __init__(self, args, backbone, reference, control_scale=1.0, shown=6):
        self.config = for_new_images(load_reward_config(args.reward_config), "validation samples")
        self.suite = MetricSuite(self.config.metrics, device=backbone.device)
        self.count = args.validation_candidates
        paths = list_images(args.validation_image_path)
        truths = {path.stem: path for path in list_images(args.validation_gt_path)}
        lacking = [path.stem for path in paths if path.stem not in truths]
        if lacking:
            raise UserError(f"{args.validation_gt_path}: has no GT of {', '.join(lacking[:3])}")
        self.images = [(path.stem, read_image(path), pil_to_tensor(read_image(truths[path.stem]))) for path in paths]
        self.sampler = GroupSampler(sampling_options(args), backbone.device, backbone, reference)
        self.sampler.settings.control_scale = control_scale
        prompts = {self.sampler.args.negative_prompt, *(self.sampler.prompts(image_id, lr) for image_id, lr, _ in self.images)}
        self.sampler.embeddings = embed_prompts(prompts, backbone)
        self.shown = shown
        self.base, self.base_pictures = self.scores(reference)
        self.pictures = self.base_pictures
        finite = finite_groups_of(self.base, self.config)
        if not finite.any():
            raise UserError(f"{args.validation_image_path}: every image has a NaN or infinite score of the base; take another reward")
        told = {name: values[finite] for name, values in self.base.items()}
        self.config = with_fixed_weights(self.config, told, self.suite.lower_better)  # G must be one quantity over all steps

    def scores(self, controlnet):
        """{metric: (images, m)} raw scores of candidates sampled with `controlnet`, and the first candidate of the first images."""
        training, dtype = controlnet.training, self.sampler.backbone.dtype
        controlnet.eval()
        self.sampler.controlnet = controlnet if controlnet.dtype == dtype else cast(deepcopy(controlnet), dtype)  # as a user will run it
        rows, pictures = [], []
        for image_id, lr, gt in self.images:
            images = self.sampler.images(self.sampler.sample(image_id, lr, self.count))
            rows.append(self.suite.score(images, gt, image_id=image_id, strict=False))
            if len(pictures) < self.shown:
                pictures.append(tensor_to_pil(images[0]))
        controlnet.train(training)
        self.sampler.controlnet = None  # a copy in 16 bits need not lie about until the next time
        return {name: np.stack([row[name] for row in rows]) for name in rows[0]}, pictures

    def __call__(self, policy):
        """{"val_reward_mean", "val_reward_best", "val_reward_worst", "val_base_mean", "G"}; {} where no image has finite scores.

        A NaN of a metric does not end a training: its image is left out of this validation, and told.
        """
        scores, self.pictures = self.scores(policy)
        pooled = {name: np.concatenate([self.base[name], scores[name]], axis=1) for name in scores}
        finite = finite_groups_of(pooled, self.config)
        if not finite.all():
            odd = ", ".join(image_id for (image_id, *_), good in zip(self.images, finite, strict=True) if not good)
            print(f"\nwarning: validation: {odd}: a NaN or infinite score; left out of this validation", file=sys.stderr)
        if not finite.any():
            return {}
        pooled = {name: values[finite] for name, values in pooled.items()}
        base, tuned = np.split(hybrid_reward(pooled, self.suite.lower_better, self.config), 2, axis=1)
        return {
            "val_reward_mean": float(tuned.mean()),
            "val_reward_best": float(tuned.max(axis=1).mean()),
            "val_reward_worst": float(tuned.min(axis=1).mean()),
            "val_base_mean": float(base.mean()),
            "G": statistics.gain(tuned, base, None).value,
        }

    def sheet(self):
        """LR | base | policy | GT of the first images, as a PIL image."""
        rows = []
        for (_, lr, gt), base, policy in zip(self.images, self.base_pictures, self.pictures, strict=False):
            rows.append([lr.resize(base.size, Image.Resampling.NEAREST), base, policy, tensor_to_pil(gt)])
        return draw_sheet(rows, ["LR", "base", "policy", "GT"])


def embed_prompts(prompts, backbone):
    """{prompt: embedding} on the device of `backbone`, by text encoders that are gone when this returns."""
    text = load_backbone(backbone.source, backbone.device, backbone.dtype, parts=("text",))
    return {prompt: text.encode_prompts([prompt]) for prompt in prompts}
