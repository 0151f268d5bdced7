"""TaylorSeer (Liu et al. 2025, arXiv 2503.06923): steps whose transformer blocks are forecast from what they gave before, by diffusers.

What an attention or feed-forward layer adds changes smoothly from step to step. At a forecast step its output is continued in a straight
line through the last two computed ones; embeddings, norms, what the ControlNet adds and the output layer are computed as ever.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

FORECAST = (r"transformer_blocks\.\d+\.(attn|ff|ff_context)", r"single_transformer_blocks\.\d+\.proj_out")
SKIPPED = (r"single_transformer_blocks\.\d+\.(attn|proj_mlp)",)  # all that `proj_out` reads
WARM_UP = 8  # the first of so many steps are all computed: there the outputs change most
FORECAST_THIRD = (2 * WARM_UP, 2)  # steps and interval with which the first two calls are computed and the third is forecast


def can_forecast(network: torch.nn.Module) -> bool:
    """Whether diffusers can forecast the blocks of a network: of transformers, not of UNets."""
    from diffusers.models.cache_utils import CacheMixin

    return isinstance(network, CacheMixin)


def warm_up(count: int) -> int:
    """How many of `count` steps come before the first that may be forecast."""
    return -(-count // WARM_UP)


def forecast_steps(count: int, interval: int) -> list[bool]:
    """Whether each of `count` steps is forecast: after the warm-up all but one of `interval`, as diffusers counts them."""
    start = warm_up(count)
    return [interval > 1 and step >= start and (step - start - 1) % interval != 0 for step in range(count)]


@contextmanager
def forecasting(network: torch.nn.Module, count: int, interval: int) -> Iterator[None]:
    """Within, each call of `network` is the next of `count` steps, forecast where `forecast_steps` says so; interval 1 changes nothing."""
    if interval == 1:
        yield
        return
    from diffusers import TaylorSeerCacheConfig

    config = TaylorSeerCacheConfig(
        cache_interval=interval, disable_cache_before_step=warm_up(count), taylor_factors_dtype=next(network.parameters()).dtype,
        cache_identifiers=list(FORECAST), skip_predict_identifiers=list(SKIPPED),
    )  # fmt: skip
    network.enable_cache(config)
    try:
        with network.cache_context("sampling"):
            yield
    finally:
        network.disable_cache()
