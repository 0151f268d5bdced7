"""Candidate folders of made-up scores, and the definitions of reward and gain as loops over them."""

import math

import numpy as np
import torch
from PIL import Image

from dp2osr.rewards.config import MetricSpec, RewardConfig
from dp2osr.rewards.table import write_scores
from dp2osr.sampling.store import CandidateGroup, CandidateStore

CONFIG = RewardConfig("small", [MetricSpec("psnr"), MetricSpec("gmsd")], [MetricSpec("piqe")])
METRICS = {
    "psnr": {"lower_better": False, "mode": "FR", "options": {}},
    "gmsd": {"lower_better": True, "mode": "FR", "options": {}},
    "piqe": {"lower_better": True, "mode": "NR", "options": {}},
    "ssim": {"lower_better": False, "mode": "FR", "options": {}},
    "entropy": {"lower_better": False, "mode": "NR", "options": {}},
}
SIDE = 32
IMAGE_IDS = [f"photo{i}_{crop:02d}" for i in range(4) for crop in range(2)]


def raw_scores(shift, total, seed, image_ids=IMAGE_IDS):
    """{metric: (G, M)}: `shift` moves every metric to its better side, in units of its spread."""
    rng = np.random.default_rng(seed)
    return {
        name: shift * (-1 if entry["lower_better"] else 1) + rng.normal(size=(len(image_ids), total)) for name, entry in METRICS.items()
    }


def write_table(folder, scores, image_ids=IMAGE_IDS, metrics=METRICS):
    total = next(iter(scores.values())).shape[1]
    rng = np.random.default_rng(9)
    columns = {"image_id": np.repeat(image_ids, total + 1), "candidate": np.tile([-1, *range(total)], len(image_ids))}
    for name, entry in metrics.items():
        gt = np.full((len(image_ids), 1), np.nan) if entry["mode"] == "FR" else rng.normal(size=(len(image_ids), 1))
        columns[name] = np.hstack([gt, scores[name]]).ravel()
    write_scores(folder / "scores.parquet", columns, {"pyiqa": "0", "metrics": metrics, "candidates": {}})


def write_method(folder, shift, total=6, seed=0, image_ids=IMAGE_IDS, metrics=METRICS):
    """A candidate folder whose latents are the pictures themselves, and its scores."""
    settings = {
        "model": "/home/somebody/models/tiny",
        "controlnet": folder.name,
        "align_method": "adain",
        "num_inference_steps": 20,
    }
    store = CandidateStore(folder, settings)
    rng = np.random.default_rng(seed)
    for image_id in image_ids:
        pictures_as_latents = torch.from_numpy(rng.random((total, 3, SIDE, SIDE)))
        lr = Image.fromarray(rng.integers(0, 256, (SIDE // 4, SIDE // 4, 3), dtype=np.uint8))
        store.write(CandidateGroup(image_id, pictures_as_latents, "", lr, list(range(total)), 4.0))
    write_table(folder, raw_scores(shift, total, seed, image_ids), image_ids, metrics)
    return folder


def naive_rewards(scores, config, lower_better):
    """The paper's sentence, one candidate at a time, normalised over the candidates of all methods."""
    rewards = {}
    for method in scores:
        groups, total = next(iter(scores[method].values())).shape
        rewards[method] = np.zeros((groups, total))
        for g in range(groups):
            for m in range(total):
                halves = []
                for specs in (config.fr, config.nr):
                    terms = []
                    for spec in specs:
                        pool = [value for other in scores for value in scores[other][spec.name][g]]
                        share = (scores[method][spec.name][g, m] - min(pool)) / (max(pool) - min(pool))
                        terms.append(1 - share if lower_better[spec.name] else share)
                    halves.append(sum(terms) / len(terms))
                rewards[method][g, m] = 0.5 * halves[0] + 0.5 * halves[1]
    return rewards


def naive_gain(policy, base):
    groups, total = base.shape
    difference = spread = 0.0
    for g in range(groups):
        difference += sum(policy[g]) / len(policy[g]) - sum(base[g]) / total
        mean = sum(base[g]) / total
        spread += math.sqrt(sum((value - mean) ** 2 for value in base[g]) / (total - 1))
    return difference / spread
