"""Weights from disk or hub, with one clear line where they are missing, broken or another model's."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dp2osr.backbones.locate import (
    fetch,
    find_model_file,  # noqa: F401 (other stages ask for it here)
    has_part,
    list_files,
    locate,
    part_files,
    used_weights,
)
from dp2osr.backbones.quantization import quantized
from dp2osr.errors import UserError, listed
from dp2osr.files import read_json

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class ModelSource:
    """Where the parts of a base model come from.

    Args:
        path: diffusers folder or hub id.
        variant: of its weight files: "fp16" reads `*.fp16.safetensors`.
        revision: branch, tag or commit of a hub model.
        vae: folder or hub id of another autoencoder (its weights, or a pipeline that has them under `vae/`).
        tokenizer: folder or hub id of another CLIP tokenizer (or of a pipeline that has one under `tokenizer/`).
    """

    path: str
    variant: str | None = None
    revision: str | None = None
    vae: str | None = None
    tokenizer: str | None = None

    def pipeline(self) -> str | None:
        """diffusers' name of the model's pipeline.

        Raises:
            UserError: neither a folder of a pipeline nor a hub model that can be reached.
        """
        return read_json(find_model_index(self.path, self.revision)).get("_class_name")

    def other(self, name: str) -> str | None:
        """Where a part comes from that is not the model's own, or None."""
        return {"vae": self.vae, "tokenizer": self.tokenizer}.get(name)

    def where(self, name: str) -> tuple[str, str | None]:
        """(path, subfolder) of a part."""
        other = self.other(name)
        if not other:
            return self.path, name
        return other, name if has_part(other, name) else None

    def variant_of(self, name: str) -> str | None:
        """Which variant of its weights a part is read from; tokenizers and schedules have none, another autoencoder its default."""
        return None if self.other(name) or _without_weights(name) else self.variant

    def load(self, cls: type[Any], name: str, **options: Any) -> Any:
        """The part `name`, an instance of `cls`.

        Raises:
            UserError: it is missing or broken.
        """
        variant = {"variant": self.variant_of(name)} if self.variant_of(name) else {}
        return self._read(cls, name, cls.from_pretrained, not _without_weights(name), **variant, **options)

    def config(self, cls: type[Any], name: str) -> Any:
        """The configuration of the part `name` without its weights.

        Raises:
            UserError: it is missing or broken.
        """
        return self._read(cls, name, cls.load_config, False)

    def _read(self, cls: type[Any], name: str, read: Callable[..., Any], weights: bool, **options: Any) -> Any:
        path, subfolder = self.where(name)
        revision = None if self.other(name) else self.revision
        files = part_files(list_files(path, revision), subfolder, self.variant_of(name), weights)
        return load_part(cls, path, subfolder, read, fetch(path, files, revision) if files else None, **options)


def load_denoiser(
    source: ModelSource, cls: type[Any], name: str, device: torch.device, dtype: torch.dtype, how: str | None = None
) -> torch.nn.Module:
    """The part `name` of a base model on `device`, in `dtype` or quantised as `how` says."""
    held = quantized(how, device, dtype)
    denoiser = source.load(cls, name, torch_dtype=dtype, **held)
    return denoiser if held else denoiser.to(device)


def _without_weights(name: str) -> bool:
    return name.startswith(("tokenizer", "scheduler"))


def find_model_index(path: str | Path, revision: str | None = None) -> Path:
    """The `model_index.json` of a local folder or, if there is no such folder, of a hub model.

    Raises:
        UserError: neither here nor on the hub or in its cache, or no pipeline.
    """
    if "model_index.json" not in list_files(path, revision):
        raise UserError(f"{path}: has no model_index.json; give the folder or hub id of a diffusers pipeline")
    return fetch(path, ["model_index.json"], revision) / "model_index.json"


def check_latents(source: ModelSource, vae_config: Mapping[str, Any], channels: int) -> None:
    """Raise `UserError` unless the autoencoder's latents have the `channels` that the diffusion model takes."""
    if vae_config["latent_channels"] != channels:
        path = source.where("vae")[0]
        raise UserError(
            f"{path}: is an autoencoder of {vae_config['latent_channels']} channels, {source.path} takes {channels}; give its own"
        )


def load_part(
    cls: type[Any],
    path: str | Path,
    subfolder: str | None,
    read: Callable[..., Any] | None = None,
    folder: Path | None = None,
    **options: Any,
) -> Any:
    """`cls.from_pretrained` (or another reader of it) with one clear line where a file is missing or broken.

    Args:
        path: of the model, as the user named it.
        folder: where its files lie, if not at `path`; None: a hub model without any for this part.
    """
    options = {**options, **({"subfolder": subfolder} if subfolder else {})}
    try:
        part = (read or cls.from_pretrained)(folder or path, **options)
        if hasattr(part, "get_vocab") and len(part) <= len(part.all_special_ids):  # transformers makes an empty one where files are missing
            raise ValueError("its vocabulary is missing")
        return part
    except Exception as error:  # from_pretrained raises OSError, ValueError, SafetensorError, RuntimeError, KeyError, ...
        where = f"{path}/{subfolder}" if subfolder else path
        raise UserError(
            f"{where}: {cls.__name__} cannot be loaded ({' '.join(str(error).split())[:300]}); check that the folder is complete"
        ) from None


def read_tensors(path: str | Path) -> dict[str, torch.Tensor]:
    """Tensors of one safetensors file, or of the policy in a training's checkpoint (.pt); UserError if it is missing or broken."""
    from safetensors.torch import load_file

    try:
        return _policy_of_checkpoint(path) if Path(path).suffix == ".pt" else load_file(path)
    except UserError:
        raise
    except Exception as error:  # SafetensorError, FileNotFoundError, OSError; of torch.load RuntimeError, KeyError, UnpicklingError
        kind = "checkpoint of a training" if Path(path).suffix == ".pt" else "safetensors file"
        raise UserError(f"{path}: not a readable {kind} ({' '.join(str(error).split())[:200]})") from None


def _policy_of_checkpoint(path: str | Path) -> dict[str, torch.Tensor]:
    import torch

    tensors = torch.load(path, weights_only=True, map_location="cpu", mmap=True)["policy"]
    if any(".lora_" in name for name in tensors):
        raise UserError(f"{path}: holds LoRA adapters; take the training's output folder, where they are merged")
    return tensors


def cast(network: torch.nn.Module, dtype: torch.dtype) -> torch.nn.Module:
    """`network.to(dtype)` without diffusers' warning of modules to be kept in fp32, of which these networks have none."""
    import torch

    return torch.nn.Module.to(network, dtype)


@dataclass(frozen=True)
class ControlNetFiles:
    """What a ControlNet is loaded from: a folder with its configuration (`config`), or else the tensors of one file.

    Args:
        path: as the user named it.
    """

    path: str | Path
    config: dict[str, Any] = field(default_factory=dict)
    folder: Path | None = None
    tensors: dict[str, torch.Tensor] = field(default_factory=dict)


def find_controlnet(path: str | Path, name: str) -> ControlNetFiles:
    """The `ControlNetFiles` of a folder, hub id, safetensors file or training's checkpoint; `name`: the class in a folder's config.

    Raises:
        UserError: not to be had, broken, or a folder of something else.
    """
    found = locate(path)
    if found and not found.is_dir():
        if found.suffix in (".bin", ".ckpt", ".pth"):
            raise UserError(
                f"{path}: pickled weights are not read; save them as a safetensors file, or give a diffusers folder that has them"
            )
        return ControlNetFiles(path, tensors=read_tensors(found))
    names = [file for file in list_files(path) if "/" not in file]
    config = read_json(fetch(path, ["config.json"]) / "config.json") if "config.json" in names else {}
    if config.get("_class_name", name) != name:
        raise UserError(f"{path}: is a {config['_class_name']}, not a {name}; give a ControlNet of this model")
    weights = used_weights(names) or [file for file in names if file.endswith(".safetensors")]
    if "_class_name" in config and weights and weights[0].startswith("diffusion_pytorch_model"):
        return ControlNetFiles(path, config, fetch(path, ["config.json", *part_files(names)]))
    if len(weights) == 1 and weights[0].endswith(".safetensors"):  # as the released files are: weights alone
        return ControlNetFiles(path, tensors=read_tensors(fetch(path, weights) / weights[0]))
    held = f"holds {listed(weights, 4)}, of which one must be named" if len(weights) > 1 else "holds no ControlNet"
    nested = f"; did you mean {path}/controlnet?" if found and has_part(path, "controlnet") else ""
    raise UserError(f"{path}: {held}; give the folder or hub id of a {name}, or one safetensors file{nested}")


def check_fit(
    path: str | Path, found: Mapping[str, int | list[int] | None], own: Mapping[str, int | list[int] | None], base: str | Path
) -> None:
    """Raise `UserError` unless a ControlNet has what the base model has; both sides are named.

    Args:
        found, own: {what: number, or list of numbers} of the ControlNet and of the base; what either does not say (None) is not compared.
        base: where the base model comes from.
    """
    differing = [what for what, value in own.items() if None not in (value, found.get(what)) and found[what] != value]
    if differing:
        theirs = " and ".join(f"{_numbers(found[what])} {what}" for what in differing)
        ours = " and ".join(_numbers(own[what]) for what in differing)
        raise UserError(f"{path}: is a ControlNet of {theirs}, the base {base} has {ours}; give the ControlNet of this base")


def _numbers(value: int | list[int] | None) -> str:
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)


def check_finite(network: torch.nn.Module, path: str | Path) -> None:
    """Raise `UserError` where a weight of `network`, loaded from `path`, is NaN or infinite, as it is after a training that diverged."""
    for name, tensor in network.state_dict().items():
        if tensor.numel() and tensor.is_floating_point() and not all(math.isfinite(bound) for bound in tensor.detach().aminmax()):
            precision = str(tensor.dtype).removeprefix("torch.")
            raise UserError(
                f"{path}: {name} holds NaN or infinity in {precision}; the weights are broken: give others, or another precision"
            )


def load_weights(module: torch.nn.Module, tensors: Mapping[str, torch.Tensor], path: str | Path) -> None:
    """Load the tensors of the file `path` into `module`, every key of it and no other."""
    own = module.state_dict()
    missing, unexpected = sorted(own.keys() - tensors.keys()), sorted(tensors.keys() - own.keys())
    misshapen = sorted(key for key in own.keys() & tensors.keys() if own[key].shape != tensors[key].shape)
    if missing or unexpected or misshapen:
        lists = {"missing": missing, "unexpected": unexpected, "of another shape": misshapen}
        report = [f"{len(keys)} {what} ({', '.join(keys[:3])}{', ...' if len(keys) > 3 else ''})" for what, keys in lists.items() if keys]
        raise UserError(f"{path}: does not fit this model: {'; '.join(report)}")
    module.load_state_dict(tensors)
