"""Tables of texts as Markdown."""

from collections.abc import Collection, Iterable


def table(columns: Collection[object], rows: Iterable[Iterable[object]]) -> str:
    """A Markdown table with a line for each of `rows`; `|` within a cell is escaped."""
    lines = [" | ".join(str(cell).replace("|", r"\|") for cell in row) for row in (columns, ["---"] * len(columns), *rows)]
    return "\n".join(f"| {line} |" for line in lines)
