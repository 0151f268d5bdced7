"""What a visitor asks for, checked before anything is computed."""

from __future__ import annotations

import io
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from dp2osr.data.images import open_image, why_unreadable
from dp2osr.errors import UserError

MOST_PIXELS = 40e6  # of a result
MOST_SAMPLES, MOST_STEPS, MOST_STRENGTH = 32, 200, 1.5
NO_REWARD = "none"


@dataclass(frozen=True)
class Order:
    """Values of the page's fields.

    Attributes:
        path, name: of the upload on this machine, and as the visitor calls it.
        steps, guidance: None for the model's own.
        reward: a config of NR metrics, or `NO_REWARD`.
    """

    path: Path
    name: str
    model: str
    upscale: float = 4
    strength: float = 1
    samples: int = 1
    seed: int = 0
    steps: int | None = None
    guidance: float | None = None
    prompt: str = ""
    reward: str = NO_REWARD

    @property
    def image_id(self) -> str:
        """From which, with the seed, the samples follow: the file's name without its ending, as in the test programs."""
        return Path(self.name).stem or "image"

    def check(self) -> None:
        """Raise `UserError` where a number is out of the page's range; the API checks the rest."""
        for what, value, most in (
            ("samples", self.samples, MOST_SAMPLES), ("steps", self.steps, MOST_STEPS), ("policy strength", self.strength, MOST_STRENGTH)
        ):  # fmt: skip
            if value is not None and value > most:
                raise UserError(f"{what}: must be at most {most:g} here, not {value:g}")


def read_upload(path: Path, name: str, upscale: float) -> tuple[Image.Image, list[str]]:
    """(the image as the programs read a file, lines to tell). Of several frames the first is taken, as the programs do.

    Raises:
        UserError: no image, or a result above `MOST_PIXELS`; the visitor's name of the file stands in it.
    """
    content = io.BytesIO(path.read_bytes())  # errors name a file that is opened by its path, which is no visitor's business
    try:
        with Image.open(content) as file:
            size, frames = file.size, getattr(file, "n_frames", 1)
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise UserError(f"{name}: not a readable image ({why_unreadable(error)}); give a PNG, JPEG, WebP, BMP or TIFF") from None
    pixels = round(size[0] * upscale) * round(size[1] * upscale)
    if pixels > MOST_PIXELS:
        raise UserError(
            f"{name}: the result would have {pixels / 1e6:.0f} megapixels, and at most {MOST_PIXELS / 1e6:.0f} are made here; "
            "take a lower scale or a smaller image, or use the test program"
        )
    try:
        content.seek(0)
        image = open_image(content)
    except UserError as error:
        raise UserError(str(error).replace(str(content), name)) from None
    return image, [f"{name} has {frames} frames: the first one is taken"] if frames > 1 else []
