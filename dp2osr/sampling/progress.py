"""What sampling tells its user: what it will take, how far it is, what it has done."""

import sys
import time
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path

from tqdm import tqdm

from dp2osr.data.inputs import ImageFile
from dp2osr.errors import counted, listed
from dp2osr.sampling.defaults import describe_defaults
from dp2osr.sampling.estimate import check_cost
from dp2osr.sampling.memory import passes
from dp2osr.sampling.sampler import GroupSampler, unused_prompt
from dp2osr.sampling.speed import in_words
from dp2osr.sampling.strength import unused_base
from dp2osr.sharing import Launch


def say(launch: Launch, line: str | None) -> None:
    """Print a line to stderr, once for all ranks; nothing for None."""
    if line and launch.is_first:
        print(line, file=sys.stderr)


def say_settings(launch: Launch, sampler: GroupSampler, given_prompt: str | None, files: Sequence[ImageFile]) -> None:
    """Print what the flags left open, a --negative_prompt or a base that nobody reads, images without tags."""
    say(launch, f"note: {describe_defaults(sampler.filled)}" if sampler.filled else None)
    say(launch, unused_prompt(given_prompt, sampler))
    say(launch, unused_base(sampler.args))
    say(launch, sampler.prompts.check([file.id for file in files], sampler.args.prompt_file))


def say_cost(
    launch: Launch, sampler: GroupSampler, files: Sequence[ImageFile], counts: Mapping[str, int], save_images: bool = True
) -> None:
    """Print what the `files` will take, of which `counts` has the samples; `UserError` if memory does not suffice."""
    args = sampler.args
    for count in sorted(set(counts.values())):
        sizes = {file.name: file.size for file in files if counts.get(file.id) == count}
        lines = check_cost(
            sizes, sampler.backbone, sampler.controlnet, sampler.settings, args.upscale, count, args.batch_size,
            align_method=args.align_method, save_images=save_images, processes=launch.size, beside=launch.local_size,
        )  # fmt: skip
        for line in lines:
            say(launch, line)


class LaunchBar:
    """A bar over the network passes of all ranks, shown by one on each machine; it moves within that one's image.

    Args:
        files: `ImageFile`s that the launch looks after; counts: {image id: samples}.
    """

    def __init__(self, launch: Launch, sampler: GroupSampler, files: Sequence[ImageFile], counts: Mapping[str, int], title: str) -> None:
        self.launch, self.title = launch, title
        args = sampler.args

        @cache
        def passes_of(size: tuple[int, int], count: int) -> int:
            return passes(sampler.backbone, sampler.settings, size, args.upscale, count, args.batch_size)

        self.passes = {file.id: passes_of(file.size, counts[file.id]) for file in files}
        self.bar = tqdm(total=sum(self.passes.values()), unit="pass", desc=title, disable=launch.local_rank > 0, mininterval=2)
        self.images = 0  # that all ranks have done, as far as it is known here

    def __enter__(self) -> "LaunchBar":
        return self

    def __exit__(self, *_: object) -> None:
        self.bar.close()

    def begin(self) -> None:
        """An image is begun."""
        self.bar.set_postfix_str(f"image {self.images + 1}/{len(self.passes)}", refresh=False)

    def update(self, count: int) -> None:
        """So many passes more of this image."""
        self.bar.update(count)

    def end(self, image_id: str) -> None:
        """An image is done, here or by another job."""
        passed = self.launch.add(f"{self.title}/passes", self.passes[image_id])
        self.images = self.launch.add(f"{self.title}/images", 1)
        self.bar.update(passed - self.bar.n)


def summary(folder: str | Path, noun: str, made: int, kept: int, skipped: Mapping[Path, str], begun: float, each: int = 1) -> str:
    """The last line of a program: what was written, kept and passed over, and how long it took since `begun`, by `time.monotonic`.

    each: samples that are written of an image.
    """
    of_each = f" ({each} samples each)" if made and each > 1 else ""
    line = f"{folder}: {counted(made, noun)} written{of_each}, {kept} already there, in {in_words(time.monotonic() - begun)}"
    if skipped:
        line += f"; {counted(len(skipped), 'input')} skipped: {listed([f'{path.name} ({why})' for path, why in skipped.items()], 40)}"
    return line
