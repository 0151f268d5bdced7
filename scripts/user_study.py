"""A blind user study on one page, and its votes as percentages.

    python scripts/user_study.py make --images SD2=runs/sr FLUX=runs/sr_flux --lr_path preset/test/lr --output runs/study/page.html
    python scripts/user_study.py count --key runs/study/page.key.json votes-*.json     # the files that participants send

The page shows an LR image beside the methods' results, in random order and without names, and gives each participant's votes as a file. It
needs no server. Keep the key: it alone tells which result is whose.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from dp2osr.cli import Settings, parse
from dp2osr.errors import run
from dp2osr.fields import Count, default_is, metavar


@dataclass(kw_only=True)
class MakeSettings(Settings):
    """Write the page and its key."""

    images: Annotated[list[str], metavar("NAME=DIR [NAME=DIR ...]")]
    """Two to nine methods' SR images, named as the LR images."""
    lr_path: str
    """Folder of the LR images."""
    output: str
    """The page, .html; its key is written beside it."""
    num_images: Annotated[Count | None, default_is("all")] = None
    """Images shown, drawn at random."""
    seed: int = 0
    """Of that draw."""
    question: str = "Which is the best restoration of the input?"
    """What participants are asked."""


@dataclass(kw_only=True)
class CountSettings(Settings):
    """Percentages with 95 % intervals."""

    votes: tyro.conf.Positional[Annotated[list[str], metavar("VOTES.json [VOTES.json ...]")]]
    """Files that participants downloaded."""
    key: str
    """The page's .key.json."""
    bootstrap: Count = 2000
    """Resamples for the intervals."""


def main():
    settings = parse({"make": MakeSettings, "count": CountSettings}, description=__doc__)
    from dp2osr.evaluation import user_study
    from dp2osr.evaluation.image_folders import parse_folders

    if isinstance(settings, MakeSettings):
        user_study.make_study(
            parse_folders(settings.images), settings.lr_path, settings.output, settings.num_images, settings.seed, settings.question
        )
        print(f"{settings.output}: open it in a browser, or send it; {Path(settings.output).with_suffix('.key.json')}: keep it")
    else:
        methods, everyone = user_study.read_votes(settings.votes, settings.key)
        print(user_study.votes_table(methods, everyone, settings.bootstrap))


if __name__ == "__main__":
    run(main)
