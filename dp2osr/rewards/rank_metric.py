"""`dp2o_rank`: a small no-reference metric trained on photographs to rank the strength of distortions.

It is this project's own and no pyiqa metric. A convolutional network sees one image and predicts a quality, 1 for an
undistorted photograph and near 0 for a strongly distorted one; it was taught with ladders: one crop at rising strengths of
one distortion or chain of distortions (the idea of RankIQA: Liu, van de Weijer, Bagdanov 2017).
"""

import json
import math
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from torch import nn
from torch.nn import functional as F
from tqdm import tqdm

from dp2osr.data.crops import CropSource, to_tensor
from dp2osr.divergence import Divergence
from dp2osr.errors import UserError
from dp2osr.files import save_tensors
from dp2osr.outputs import check_output, refuse_inputs
from dp2osr.rewards.distortions import DISTORTIONS, MIN_CONTRAST, distort

# Weakest and strongest setting of a distortion; geometric in between (units: distortions.py).
STRENGTHS = {"blur": (0.4, 4.0), "noise": (2.0, 50.0), "jpeg": (92.0, 6.0), "downsampling": (1.2, 7.0)}
FLOOR = 0.1  # what the weakest distortion costs, so that an undistorted crop stands apart


class RankNetwork(nn.Module):
    """(B, 3, H, W) in [0, 1] → (B,) quality, higher is better. Mean and spread over positions make it free of the size."""

    def __init__(self, widths: Sequence[int] = (24, 32, 48, 48, 64, 64), strides: Sequence[int] = (2, 1, 2, 1, 2, 1)) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        channels = 6
        for width, stride in zip(widths, strides, strict=True):
            kernel = 3 if layers else 5
            layers += [nn.Conv2d(channels, width, kernel, stride, kernel // 2), nn.LeakyReLU(0.1)]
            channels = width
        self.features = nn.Sequential(*layers)
        self.head = nn.Sequential(nn.Linear(2 * channels, 64), nn.LeakyReLU(0.1), nn.Linear(64, 1))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        # Noise, blocking and lost detail are faint beside the picture: show the network its high frequencies, amplified.
        detail = images - F.avg_pool2d(images, 3, 1, 1, count_include_pad=False)
        features = self.features(torch.cat([(images - 0.5) / 0.25, detail / 0.05], dim=1)).flatten(2)
        pooled = torch.cat([features.mean(2), features.var(2, correction=0).add(1e-6).sqrt()], dim=1)
        return self.head(pooled).squeeze(1)


def load_rank_metric(path: str | Path) -> RankNetwork:
    """A `RankNetwork` from a safetensors file. UserError when the file is absent or of another network."""
    network = RankNetwork()
    try:
        network.load_state_dict({name: tensor.float() for name, tensor in load_file(path).items()})
    except Exception as error:  # safetensors raises its own type
        reason = " ".join(str(error).split())
        raise UserError(f"{path}: not the weights of dp2o_rank ({reason}); scripts/train_rank_metric.py makes them") from None
    return network.eval()


def strength_at(kind: str, level: float) -> float:
    """Setting of a distortion at `level` in [0, 1] of its range in `STRENGTHS`."""
    weakest, strongest = STRENGTHS[kind]
    return weakest * (strongest / weakest) ** level


def draw_chain(rng: np.random.Generator) -> list[tuple[str, float]]:
    """One distortion, or two or three in random order: list of (kind, share of the ladder's level in (0.3, 1])."""
    count = rng.choice([1, 2, 3], p=[0.7, 0.2, 0.1])
    kinds = rng.permutation(list(DISTORTIONS))[:count]
    return [(str(kind), 1.0 if count == 1 else float(rng.uniform(0.3, 1))) for kind in kinds]


def apply_chain(crop: np.ndarray, chain: Sequence[tuple[str, float]], level: float | None, seed: int) -> tuple[np.ndarray, float]:
    """(distorted crop, quality): the chain at `level` in [0, 1], or the crop itself and 1 for level None.

    The quality of a chain is the product of its members' qualities, (1 − FLOOR) · (1 − level).
    """
    if level is None:
        return crop, 1.0
    quality = 1.0
    for index, (kind, share) in enumerate(chain):
        crop = distort(crop, kind, strength_at(kind, share * level), np.random.default_rng((seed, index)))
        quality *= (1 - FLOOR) * (1 - share * level)
    return crop, quality


def draw_ladders(source: CropSource, seed: int, step: int, batch_size: int, rungs: int = 4) -> tuple[torch.Tensor, torch.Tensor]:
    """Each crop undistorted and at `rungs` − 1 rising strengths of one chain.

    Returns images (K · B, 3, s, s) in [0, 1], rung by rung (all undistorted crops first), and qualities (K, B).
    """
    rng = np.random.default_rng((seed, step, 1))
    ladders = []
    for index, (_, crop) in enumerate(source.draw(step, batch_size)):
        chain, levels = draw_chain(rng), np.sort(rng.uniform(0, 1, rungs - 1))
        if crop.std() >= MIN_CONTRAST:
            ladders.append([apply_chain(crop, chain, level, step * batch_size + index) for level in (None, *levels)])
    images = [ladder[rung][0] for rung in range(rungs) for ladder in ladders]
    return to_tensor(images), torch.tensor([[ladder[rung][1] for ladder in ladders] for rung in range(rungs)])


def rank_loss(predicted: torch.Tensor, quality: torch.Tensor) -> torch.Tensor:
    """Squared error of the quality + hinge on the order of every two rungs of a ladder, its margin half of the true difference.

    Args: (K, B) each, rungs from best to worst.
    """
    first, second = torch.triu_indices(len(quality), len(quality), offset=1)
    hinge = F.relu(0.5 * (quality[first] - quality[second]) - (predicted[first] - predicted[second]))
    return 0.5 * F.mse_loss(predicted, quality) + 2 * hinge.mean()


@torch.no_grad()
def pair_accuracy(network: RankNetwork, source: CropSource, batches: int = 8, batch_size: int = 32) -> float:
    """Share of held-out pairs (an undistorted crop and one rung, or two rungs of a ladder) that the network orders rightly."""
    right = []
    for step in range(batches):
        images, quality = draw_ladders(source, 1, step, batch_size)
        predicted = network(images).view_as(quality)
        first, second = torch.triu_indices(len(quality), len(quality), offset=1)
        right.append((predicted[first] > predicted[second]).float().mean().item())
    return round(float(np.mean(right)), 4)


def train_rank_metric(args: Any) -> dict[str, Any]:
    """Train a `RankNetwork` by the flags of `scripts/train_rank_metric.py` and write it (fp32 safetensors).

    Returns the held-out numbers, which the file's metadata holds too, and the seconds.
    """
    check_output(args.output, "--output", is_file=True)
    refuse_inputs(args.output, {"--train_dir": args.train_dir, "--val_dir": args.val_dir}, flag="--output")
    torch.manual_seed(args.seed)
    source, held_out = CropSource(args.train_dir, args.crop_size, args.seed), CropSource(args.val_dir, 128, args.seed + 1)
    network, steps = RankNetwork(), args.max_train_steps
    optimizer = torch.optim.AdamW(network.parameters(), lr=args.learning_rate, weight_decay=1e-4)
    scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, args.learning_rate, total_steps=steps, pct_start=0.1)
    divergence = Divergence(args.output)
    started, bar = time.time(), tqdm(range(steps), desc="train dp2o_rank", unit="step")
    for step in bar:
        images, quality = draw_ladders(source, args.seed, step, args.train_batch_size)
        loss = rank_loss(network(images).view_as(quality), quality)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        scheduler.step()
        divergence.see(step + 1, math.isfinite(loss.item()))
        if (step + 1) % 100 == 0:
            bar.set_postfix(loss=f"{loss.item():.4f}", held_out=pair_accuracy(network, held_out, batches=1))
    record = {
        "steps": steps,
        "batch_size": args.train_batch_size,
        "seed": args.seed,
        "pair_accuracy": pair_accuracy(network.eval(), held_out),
    }
    output = Path(args.output)
    output.parent.mkdir(parents=True, exist_ok=True)
    save_tensors(network.state_dict(), output, {"training": json.dumps(record)})
    return {**record, "seconds": round(time.time() - started)}
