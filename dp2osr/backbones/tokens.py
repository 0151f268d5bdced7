"""From prompts to the token numbers that a text encoder takes."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch


def tokenize(tokenizer: Callable[..., Any], prompts: list[str], length: int) -> torch.Tensor:
    """(len(prompts), length) token numbers, padded; a prompt that is longer is cut, with a warning."""
    if max(len(tokenizer(prompt).input_ids) for prompt in prompts) > length:
        warnings.warn(f"a prompt has more than the {length} tokens that {type(tokenizer).__name__} takes; its end is cut off", stacklevel=2)
    return tokenizer(prompts, padding="max_length", max_length=length, truncation=True, return_tensors="pt").input_ids
