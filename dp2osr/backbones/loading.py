"""Weights from disk or hub, with one clear line where they are missing, broken or another model's."""

import math
from dataclasses import dataclass
from pathlib import Path

from dp2osr.config import read_json
from dp2osr.errors import UserError


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

    def pipeline(self):
        """diffusers' name of the model's pipeline.

        Raises:
            UserError: neither a folder of a pipeline nor a hub model that can be reached.
        """
        return read_json(find_model_index(self.path, self.revision)).get("_class_name")

    def other(self, name):
        """Where a part comes from that is not the model's own, or None."""
        return {"vae": self.vae, "tokenizer": self.tokenizer}.get(name)

    def where(self, name):
        """(path, subfolder) of a part."""
        other = self.other(name)
        if not other:
            return self.path, name
        return other, name if has_part(other, name) else None

    def options(self, name):
        """What `from_pretrained` must be told about the files of a part of the model itself."""
        if self.other(name):
            return {}
        variant = {"variant": self.variant} if self.variant and not name.startswith(("tokenizer", "scheduler")) else {}
        return {**variant, **({"revision": self.revision} if self.revision else {})}

    def load(self, cls, name, **options):
        """The part `name`, an instance of `cls`.

        Raises:
            UserError: it is missing or broken.
        """
        path, subfolder = self.where(name)
        return load_part(cls, path, subfolder, **self.options(name), **options)

    def config(self, cls, name):
        """The configuration of the part `name` without its weights.

        Raises:
            UserError: it is missing or broken.
        """
        path, subfolder = self.where(name)
        revision = {key: value for key, value in self.options(name).items() if key == "revision"}
        return load_part(cls, path, subfolder, cls.load_config, **revision)


def find_model_index(path, revision=None):
    """The `model_index.json` of a local folder or, if there is no such folder, of a hub model."""
    if Path(path).exists():
        index = Path(path) / "model_index.json"
        if not index.is_file():
            raise UserError(f"{path}: has no model_index.json; give the folder of a diffusers pipeline")
        return index
    from huggingface_hub import hf_hub_download

    try:
        return hf_hub_download(str(path), "model_index.json", revision=revision)
    except Exception as error:  # a bad name, no network, offline mode: all mean that it cannot be had
        raise UserError(f"{path}: neither a folder nor a reachable hub model ({' '.join(str(error).split())[:200]})") from None


def has_part(path, name):
    """Whether a local folder or a hub model holds a pipeline with the part `name`."""
    if Path(path).exists():
        return (Path(path) / name).is_dir()
    from huggingface_hub import file_exists

    try:
        return file_exists(str(path), "model_index.json")
    except Exception:  # no such model, no network: loading it will say so
        return False


def check_latents(source, vae_config, channels):
    """Raise `UserError` unless the autoencoder's latents have the `channels` that the diffusion model takes."""
    if vae_config["latent_channels"] != channels:
        path = source.where("vae")[0]
        raise UserError(
            f"{path}: is an autoencoder of {vae_config['latent_channels']} channels, {source.path} takes {channels}; give its own"
        )


def load_part(cls, path, subfolder, read=None, **options):
    """`cls.from_pretrained` (or another reader of it) with one clear line where a file is missing or broken."""
    options = {**options, **({"subfolder": subfolder} if subfolder else {})}
    try:
        part = (read or cls.from_pretrained)(path, **options)
        if hasattr(part, "get_vocab") and len(part) <= len(part.all_special_ids):  # transformers makes an empty one where files are missing
            raise ValueError("its vocabulary is missing")
        return part
    except Exception as error:  # from_pretrained raises OSError, ValueError, SafetensorError, RuntimeError, KeyError, ...
        where = f"{path}/{subfolder}" if subfolder else path
        raise UserError(
            f"{where}: {cls.__name__} cannot be loaded ({' '.join(str(error).split())[:300]}); check that the folder is complete"
        ) from None


def read_tensors(path):
    """Tensors of one safetensors file, or of the policy in a training's checkpoint (.pt); UserError if it is missing or broken."""
    from safetensors.torch import load_file

    try:
        return _policy_of_checkpoint(path) if Path(path).suffix == ".pt" else load_file(path)
    except UserError:
        raise
    except Exception as error:  # SafetensorError, FileNotFoundError, OSError; of torch.load RuntimeError, KeyError, UnpicklingError
        kind = "checkpoint of a training" if Path(path).suffix == ".pt" else "safetensors file"
        raise UserError(f"{path}: not a readable {kind} ({' '.join(str(error).split())[:200]})") from None


def count_parameters(path):
    """How many numbers the weights of a diffusers folder, or one safetensors file, hold, by its header; `UserError` if there are none."""
    from safetensors import SafetensorError, safe_open

    path = Path(path) / "diffusion_pytorch_model.safetensors" if Path(path).is_dir() else Path(path)
    try:
        with safe_open(path, "pt") as tensors:
            return sum(math.prod(tensors.get_slice(name).get_shape()) for name in tensors.keys())  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise UserError(f"{path}: its parameters cannot be counted ({' '.join(str(error).split())[:200]})") from None


def _policy_of_checkpoint(path):
    import torch

    tensors = torch.load(path, weights_only=True, map_location="cpu", mmap=True)["policy"]
    if any(".lora_" in name for name in tensors):
        raise UserError(f"{path}: holds LoRA adapters; take the training's output folder, where they are merged")
    return tensors


def cast(network, dtype):
    """`network.to(dtype)` without diffusers' warning of modules to be kept in fp32, of which these networks have none."""
    import torch

    return torch.nn.Module.to(network, dtype)


def controlnet_config(folder, name):
    """The configuration of a ControlNet's folder; UserError if it is none of the class `name`."""
    config = read_json(Path(folder) / "config.json")
    if config.get("_class_name") != name:
        raise UserError(f"{folder}: is a {config.get('_class_name')}, not a {name}; give a ControlNet of this model")
    return config


def load_weights(module, path):
    """Load one safetensors file into `module`, every key of it and no other."""
    tensors = read_tensors(path)
    own = module.state_dict()
    missing, unexpected = sorted(own.keys() - tensors.keys()), sorted(tensors.keys() - own.keys())
    misshapen = sorted(key for key in own.keys() & tensors.keys() if own[key].shape != tensors[key].shape)
    if missing or unexpected or misshapen:
        lists = {"missing": missing, "unexpected": unexpected, "of another shape": misshapen}
        report = [f"{len(keys)} {what} ({', '.join(keys[:3])}{', ...' if len(keys) > 3 else ''})" for what, keys in lists.items() if keys]
        raise UserError(f"{path}: does not fit this model: {'; '.join(report)}")
    module.load_state_dict(tensors)
