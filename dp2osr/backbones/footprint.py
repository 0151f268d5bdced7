"""How many numbers a network holds at the peak of a pass without gradient, from its configuration: what memory a tile takes.

The factors count the tensors that are alive at once in diffusers' blocks; `tests/test_estimate.py` holds them against a count of every
tensor, for the tiny models and for the published shapes.
"""

from collections.abc import Mapping
from typing import Any


def unet_numbers(config: Mapping[str, Any], embedding_channels: int, vae_scale: int) -> tuple[float, float]:
    """(a latent pixel and sample, a latent pixel of all samples together) of a UNet under its ControlNet.

    Args:
        config: the UNet's.
        embedding_channels: of the first convolution of the ControlNet's embedding, which works on the pixels of the image.
    """
    channels, layers = config["block_out_channels"], config["layers_per_block"]
    layers = layers if isinstance(layers, int) else max(layers)
    skips = channels[0] + sum(
        width * (layers + (0.25 if level + 1 < len(channels) else 0)) / 4**level for level, width in enumerate(channels)
    )
    work = []
    for level, (width, kind) in enumerate(zip(channels, config["down_block_types"], strict=True)):
        below = channels[min(level + 1, len(channels) - 1)]
        feed_forward = 23 * width if "CrossAttn" in kind else 0  # GEGLU: a projection of 8, its two halves' product of 4, beside the rest
        work.append(max(feed_forward, 4 * (below + width)) / 4**level)
    return 3 * skips + max(work), 3 * embedding_channels * vae_scale**2  # skips, residuals, and their sums


def transformer_numbers(config: Mapping[str, Any], blocks: int) -> int:
    """Of a FLUX transformer under a ControlNet of so many `blocks`: a token (of the text, or of 2 × 2 latent pixels) and sample."""
    width = config["num_attention_heads"] * config["attention_head_dim"]
    return width * (12 + 2 * blocks)  # a single block: its input, queries, keys, values, an MLP of four, both joined; residuals twice


def forecast_numbers(config: Mapping[str, Any]) -> int:
    """Of a FLUX transformer, a token and sample: the last output of each part that is forecast, and its change."""
    width = config["num_attention_heads"] * config["attention_head_dim"]
    return 2 * width * (2 * config["num_layers"] + config["num_single_layers"])  # attention and feed-forward; what joins both


def decoder_numbers(config: Mapping[str, Any]) -> float:
    """Of an autoencoder: a pixel that is decoded. The first block at a resolution still has the channels of the one below."""
    channels = config["block_out_channels"]
    return max(3 * max(channels[level : level + 2]) / 4**level for level in range(len(channels)))


def encoder_numbers(config: Mapping[str, Any]) -> int:
    """Of an autoencoder: a pixel that is encoded."""
    channels = config["block_out_channels"]
    return 5 * channels[0] + 3
