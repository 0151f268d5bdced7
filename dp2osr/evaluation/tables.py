"""Numbers as text, and tables of them: pandas frames of texts as Markdown and for the terminal."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from dp2osr.markdown import table

if TYPE_CHECKING:
    import pandas as pd

    from dp2osr.stats import Estimate


def number(value: float, beside: float | None = None) -> str:
    """Four decimals where a metric lives around 1, two where it lives around 20; a spread takes the decimals of the mean it is `beside`."""
    if math.isnan(value):
        return ""
    return f"{value:.2f}" if abs(value if beside is None else beside) >= 10 else f"{value:.4f}"


def with_spread(mean: float, std: float) -> str:
    """`0.3521 ± 0.0012`, or the mean alone where there is no spread."""
    return number(mean) + ("" if math.isnan(std) else f" ± {number(std, mean)}")


def interval(estimate: Estimate, digits: int = 2, signed: bool = False) -> str:
    """`0.45 [0.31, 0.58]`, without the brackets where there is no interval."""
    form = f"{{:{'+' if signed else ''}.{digits}f}}"
    if math.isnan(estimate.value):
        return "n/a"
    value = form.format(estimate.value)
    return value if math.isnan(estimate.low) else f"{value} [{form.format(estimate.low)}, {form.format(estimate.high)}]"


def fraction(place: float) -> str:
    """`1/16`, or the number where it is no fraction of 1."""
    return f"1/{1 / place:g}" if place < 1 and float(1 / place).is_integer() else f"{place:g}"


def bold_if_clear(text: str, estimate: Estimate) -> str:
    """Markdown: bold where the estimate's interval leaves zero out."""
    return f"**{text}**" if estimate.verdict != "unclear" else text


def with_direction(metric: str, metrics: pd.DataFrame) -> str:
    """`gmsd ↓`; `metrics` as `compare.Results` has them."""
    return f"{metric} {'↓' if metrics.loc[metric, 'lower_better'] else '↑'}"


def markdown(frame: pd.DataFrame) -> str:
    """A frame of texts as a Markdown table."""
    return table(list(frame.columns), frame.fillna("").values.tolist())


def aligned(frame: pd.DataFrame) -> str:
    """A frame of texts with columns padded to one width: the first two left, the rest right-aligned."""
    cells = [list(frame.columns), *frame.fillna("").values.tolist()]
    widths = [max(len(line[place]) for line in cells) for place in range(len(cells[0]))]
    lines = [
        "  ".join(text.ljust(width) if place < 2 else text.rjust(width) for place, (text, width) in enumerate(zip(line, widths))).rstrip()
        for line in cells
    ]
    return "\n".join([lines[0], "-" * max(map(len, lines)), *lines[1:]])


def csv_text(frame: pd.DataFrame, digits: int = 6, missing: str = "") -> str:
    """A frame as CSV; `missing` stands for NaN."""
    return frame.to_csv(index=False, float_format=f"%.{digits}g", na_rep=missing, lineterminator="\n")
