"""Scoring in fp32, TF32 and bf16: seconds an image, and whether the order of the candidates stays."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from dp2osr.checkup.cases import photograph
from dp2osr.checkup.findings import NOTE, Findings
from dp2osr.checkup.machine import TimeLimit, free_unused, has_tf32, least_seconds
from dp2osr.device import set_tf32, without_tf32
from dp2osr.errors import UserError, is_device_fault
from dp2osr.rewards.batches import Batches
from dp2osr.rewards.config import MetricSpec, load_reward_config
from dp2osr.rewards.distortions import LEVELS, distort
from dp2osr.rewards.metrics import MetricSuite

if TYPE_CHECKING:
    from dp2osr.checkup.settings import CheckupSettings

FLOATS = ("fp32", "TF32", "bf16")
TOGETHER = 8  # images in a batch


def pictures(count: int, side: int) -> tuple[torch.Tensor, torch.Tensor]:
    """(GT (3, H, W), images (count, 3, H, W)) in [0, 1]: one photograph, and its distortions of growing strength."""
    gt, rng = np.asarray(photograph(side)), np.random.default_rng(0)
    images = []
    for place in range(count):
        kind = list(LEVELS)[place % len(LEVELS)]
        low, high = LEVELS[kind][0], LEVELS[kind][-1]
        images.append(distort(gt, kind, low + (high - low) * place / max(1, count - 1), rng))
    both = torch.from_numpy(np.stack([gt, *images])).permute(0, 3, 1, 2).float() / 255
    return both[0], both[1:]


def check_scoring(settings: CheckupSettings, findings: Findings, device: torch.device, limit: TimeLimit) -> None:
    """One line a metric, and one of all that could be scored."""
    on_cpu = device.type == "cpu"
    label = {"images": settings.scored_images or (6 if on_cpu else 16), "side": settings.scored_size or (128 if on_cpu else 512)}
    try:
        specs = load_reward_config(settings.reward_config).metrics
    except UserError as error:
        findings.add("scoring", {"metric": settings.reward_config, NOTE: f"failed: {error}"})
        return
    gt, images = pictures(label["images"], label["side"])
    for place, spec in enumerate(specs):
        share = limit.share(len(specs) - place)
        findings.attempt(
            "scoring", {"metric": spec.name, **label},
            partial(measure_metric, spec, images, gt, settings, device, share),
        )  # fmt: skip
    names = {spec.name for spec in specs}
    scored = [line for line in findings.tables["scoring"] if line["metric"] in names and "fp32, s" in line]
    sums = {name: sum(line[name] for line in scored) for name in (f"{each}, s" for each in FLOATS) if all(name in line for line in scored)}
    if scored:
        findings.add("scoring", {"metric": f"all {len(scored)}", **label, **sums})


def measure_metric(
    spec: MetricSpec, images: torch.Tensor, gt: torch.Tensor, settings: CheckupSettings, device: torch.device, limit: TimeLimit
) -> dict[str, Any]:
    """{column: value} of one metric; of a precision that fails, its own column says so."""
    from scipy.stats import kendalltau

    found: dict[str, Any] = {}
    scores: dict[str, np.ndarray] = {}
    for name in FLOATS:
        if name == "TF32" and not has_tf32(device):
            continue
        try:
            with without_tf32():
                set_tf32(device, disable=name != "TF32")
                suite = MetricSuite([spec], device, Batches(TOGETHER, device), "bf16" if name == "bf16" else "fp32", settings.metrics_dir)
                scores[name] = suite.score(images, gt, strict=False)[spec.name]  # kernels are chosen
                seconds = least_seconds(partial(suite.score, images, gt, strict=False), device, settings.repeats, limit.share(3))
        except Exception as error:
            if name == "fp32" or is_device_fault(error):
                raise
            found[f"{name}, s"], scores[name] = None, np.full(len(images), np.nan)
            found[f"{name}, why not"] = " ".join(str(error).split())[:120]
            free_unused(device)
            continue
        found[f"{name}, s"] = seconds / len(images)
        if name != "fp32":
            found[f"τ of {name}"] = float(kendalltau(scores["fp32"], scores[name]).statistic)
    return found
