"""`dp2o_naturalness`: a no-reference metric that tells photographs from what degradations, bicubic and SR models make of them.

A small head on pooled features of EfficientNet-Lite0, this project's own and no pyiqa metric. It learns orders, not scores: a photograph is
better than everything made of it, an image better than the same image distorted, and a mixture of photograph and sample lies between the
two (`naturalness_training.py`). Higher is better: 0 is the mean of bicubic's images and 1 that of photographs, of those trained on.
"""

from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors import safe_open
from torch import nn
from torch.nn import functional as F

from dp2osr.errors import UserError
from dp2osr.rewards.efficientnet import NETWORKS, Features

NETWORK = "efficientnet_lite0"
STAGES = 4  # strides 2 to 16: the coarsest says what is seen, not how natural it looks


class Head(nn.Module):
    """(B, D) pooled features → (B,) naturalness."""

    def __init__(self, size: int, width: int = 48) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(size))
        self.register_buffer("spread", torch.ones(size))
        self.register_buffer("zero", torch.zeros(()))
        self.register_buffer("one", torch.ones(()))
        self.drop = nn.Dropout(0.2)
        self.hidden, self.last = nn.Linear(size, width), nn.Linear(width, 1)

    def forward(self, pooled: torch.Tensor) -> torch.Tensor:
        hidden = F.gelu(self.hidden(self.drop((pooled - self.mean) / self.spread)))
        return (self.last(hidden).squeeze(1) - self.zero) / (self.one - self.zero)


class Naturalness(nn.Module):
    """(B, 3, H, W) in [0, 1] → (B,), higher is better. Differentiable with respect to the images; made for crops near 128 x 128."""

    def __init__(self, features: Features, head: Head) -> None:
        super().__init__()
        self.features, self.head = features, head.eval().requires_grad_(False)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.head(pool(self.features(images)))


def pool(maps: Sequence[torch.Tensor]) -> torch.Tensor:
    """Feature maps → (B, D): each channel's mean and spread over positions, of the finer stages."""
    parts = []
    for stage in maps[:STAGES]:
        parts += [stage.mean((2, 3)), (stage.var((2, 3), correction=0) + 1e-6).sqrt()]
    return torch.cat(parts, dim=1)


def pooled_size(channels: Sequence[int]) -> int:
    return 2 * sum(channels[:STAGES])


def load_naturalness(path: str | Path, features: Features | None = None) -> Naturalness:
    """A `Naturalness` from the head's safetensors file.

    Raises:
        UserError: the head is absent, damaged, of another shape, or was trained on other features.
    """
    features = features or Features(NETWORK)
    made_by = "scripts/train_naturalness.py makes it"
    if not Path(path).is_file():
        raise UserError(f"{path}: the head of dp2o_naturalness is not there; {made_by}")
    head = Head(pooled_size(features.channels))
    try:
        with safe_open(path, "pt") as file:
            state, about = {key: file.get_tensor(key).float() for key in file.keys()}, file.metadata() or {}  # noqa: SIM118 (no mapping)
        head.load_state_dict(state)
    except Exception as error:  # safetensors raises its own type
        raise UserError(f"{path}: not the head of dp2o_naturalness ({' '.join(str(error).split())[:160]}); {made_by}") from None
    expected = NETWORKS[features.name].content
    if about.get("features") != expected:
        raise UserError(f"{path}: was trained on the features {about.get('features')}, and {features.path} has {expected}; {made_by}")
    return Naturalness(features, head)
