"""Which images of a folder are taken: flags of several programs."""

from dataclasses import dataclass
from typing import Annotated

from dp2osr.cli import Settings
from dp2osr.fields import Count, Natural, NonNegative, default_is


@dataclass(kw_only=True)
class InputSettings(Settings):
    """How a folder of inputs is read."""

    recursive: bool = False
    """Take the images of sub-folders too."""
    skip_unreadable: Annotated[bool, default_is("stop")] = False
    """Go on without images that cannot be used; the end says how many."""
    adopt: bool = False
    """Take results without a record, from before there were records, as those of these settings."""


@dataclass(kw_only=True)
class PartSettings(InputSettings):
    """A part of a folder of inputs."""

    max_images: Annotated[Count | None, default_is("all")] = None
    """Take only this many images, evenly spaced over their sorted names."""
    images_offset: Natural = 0
    """With --max_images: take the images this many places later."""


@dataclass(kw_only=True)
class PairsSettings(InputSettings):
    """LR/GT pairs of photographs: `scripts/make_lr_pairs.py`."""

    image_path: str
    """Folder of HR images, any size and number."""
    output_dir: str
    """Gets gt/, lr/ and settings.json."""
    degradation: str = "resshift"
    """A name in configs/degradation or a YAML file."""
    crop_size: int = 0
    """Side of a GT crop, pixels; 0 = whole images, cut to the scale's multiple."""
    crops_per_image: int = 1
    """Crops an image, named <stem>_00, <stem>_01 ..."""
    min_detail: NonNegative = 0.0
    """Least RMS gradient of a crop, grey levels a pixel."""
    seed: Natural = 0
    """With an image's name it decides its crops and its degradation."""
    num_workers: int = 1
    """Processes; the pairs are the same for any number."""
