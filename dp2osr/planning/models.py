"""Models without their weights: the same classes from the same configuration, of tensors that have a shape and no memory."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import torch

from dp2osr.backbones.kinds import kind_of
from dp2osr.backbones.loading import ModelSource, cast, load_part
from dp2osr.errors import UserError
from dp2osr.files import read_yaml
from dp2osr.places import CONFIGS

PUBLISHED = CONFIGS / "models"


@dataclass(frozen=True)
class ConfigSource(ModelSource):
    """A base model of whose parts only the configuration is read: its networks are on the `meta` device.

    Args:
        published: parts → configuration, where the model is not on disk.
    """

    published: dict[str, Any] | None = None

    def pipeline(self) -> str | None:
        return self.published["_class_name"] if self.published is not None else super().pipeline()

    def load(self, cls: type[Any], name: str, **options: Any) -> Any:
        if name.startswith("tokenizer"):
            return super().load(cls, name) if self.published is None else BlankTokenizer(self.published[name]["model_max_length"])
        config = self.config(cls, name)
        if not issubclass(cls, torch.nn.Module):
            return cls.from_config(config)
        return self.network(cls, config, options.get("torch_dtype") or options.get("dtype"))

    def network(self, cls: type[Any], config: Any, dtype: Any) -> torch.nn.Module:
        """A network of a configuration; here without memory for its weights."""
        with torch.device("meta"):
            network = cls.from_config(config) if hasattr(cls, "from_config") else cls(cls.config_class.from_dict(config))
        return cast(network, dtype)

    def config(self, cls: type[Any], name: str) -> Any:
        if self.published is not None:
            return self.published[name]
        if hasattr(cls, "load_config"):
            return super().config(cls, name)
        return load_part(cls.config_class, self.path, name).to_dict()


class BlankTokenizer:
    """Gives every prompt `max_length` equal tokens, or as many as the model takes: enough to know what it costs to read them."""

    def __init__(self, model_max_length: int) -> None:
        self.model_max_length = model_max_length

    def __call__(self, prompts: Sequence[str], max_length: int | None = None, **_options: object) -> SimpleNamespace:
        return SimpleNamespace(input_ids=torch.zeros(len(prompts), max_length or self.model_max_length, dtype=torch.long))


@contextmanager
def fake_tensors() -> Iterator[None]:
    """Within, tensors have shapes and no memory. They are a CPU's: its attention, as a GPU's, keeps no matrix of all tokens by all."""
    from torch._subclasses.fake_tensor import FakeTensorMode

    with FakeTensorMode(allow_non_fake_inputs=True):
        yield


def to_fake(*networks: torch.nn.Module) -> None:
    """Move networks from the `meta` device to the CPU that `fake_tensors` pretends; call within it. Shared weights stay shared."""
    fakes: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}  # id of a tensor → itself, so that the id stays its own, and its fake

    def fake(tensor: torch.Tensor) -> torch.Tensor:
        if id(tensor) not in fakes:
            empty = torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype)
            is_parameter = isinstance(tensor, torch.nn.Parameter)
            fakes[id(tensor)] = tensor, torch.nn.Parameter(empty, tensor.requires_grad) if is_parameter else empty
        return fakes[id(tensor)][1]

    for module in (module for network in networks for module in network.modules()):
        for tensors in (module._parameters, module._buffers):
            tensors.update({name: fake(tensor) for name, tensor in tensors.items() if tensor is not None})


def read_published(kind: str) -> dict[str, Any]:
    """Configuration of the published model of a kind of backbone.

    Raises:
        UserError: there is none.
    """
    for path in sorted(PUBLISHED.glob("*.yaml")):
        config = read_yaml(path)
        if kind_of(config.get("_class_name")) == kind:
            return config
    raise UserError(f"{PUBLISHED}: has no model of kind {kind}")
