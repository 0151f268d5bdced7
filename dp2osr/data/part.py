"""A part of a folder of images: so many of them, evenly spaced."""

from collections.abc import Callable
from typing import TypeVar

from dp2osr.data.settings import PartSettings
from dp2osr.errors import UserError

T = TypeVar("T")


def evenly(paths: list[T], count: int | None, offset: int = 0) -> list[T]:
    """`count` of the sorted paths, evenly spaced, so that a part of a folder still holds every photograph; all if None.

    Offsets 0, 1, 2 ... give parts without a common path until all are used, if `count` divides their number.
    """
    if count is None or count >= len(paths):
        return paths
    return [paths[(index * len(paths) // count + offset) % len(paths)] for index in range(count)]


def part_of(args: PartSettings) -> Callable[[list[T]], list[T]]:
    """The choice of --max_images and --images_offset, as `find_inputs` takes it; `UserError` for an offset of nothing."""
    if args.images_offset and not args.max_images:
        raise UserError("--images_offset: shifts the choice of --max_images; give that too, or leave it out")
    return lambda files: evenly(files, args.max_images, args.images_offset)
