"""The reward of images, as the programs compute it for the candidates of one LR image."""

from __future__ import annotations

from collections.abc import Iterable
from os import PathLike, fspath
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

import numpy as np

from dp2osr.api.given_images import IN_MEMORY, GivenImage, image_id_of, opened, several
from dp2osr.api.wording import in_python, plain, refuse_unknown
from dp2osr.errors import UserError

if TYPE_CHECKING:
    import pandas as pd
    import torch

REWARD = "reward"  # the column beside the metrics


class Reward:
    """A reward config's metrics, built once.

    Args:
        name_or_yaml: a name in configs/rewards or the path of a YAML; "embedded" needs no download.
        device: as of `dp2osr.load`.
        metrics_dir: folder of `scripts/fetch_metrics.py`; what DP2OSR_METRICS_DIR says if None, else pyiqa's own places.
        batch_size: images scored together at most; it changes scores by rounding alone.
        disable_tf32: score in full float32 on GPUs that have TF32.

    Attributes:
        name: of the config.
        metrics: {metric: "FR" or "NR"}; FR metrics compare with the true image.
        lower_better: {metric: whether a lower score is the better one}.

    Raises:
        UserError: no such config or device, an unknown metric, or one whose weights are not here.

    Example:
        reward = dp2osr.Reward("nr_only")
        reward.score(["a.png", "b.png"])
    """

    def __init__(
        self, name_or_yaml: str | PathLike[str] = "embedded", device: str | torch.device | None = None,
        metrics_dir: str | PathLike[str] | None = None, *, batch_size: int = 8, disable_tf32: bool = False, **unknown: NoReturn,
    ) -> None:  # fmt: skip
        from dp2osr.api.model import chosen_device
        from dp2osr.device import set_tf32
        from dp2osr.rewards.batches import Batches
        from dp2osr.rewards.config import for_new_images, load_reward_config
        from dp2osr.rewards.metrics import MetricSuite, check_modes
        from dp2osr.rewards.settings import LabelSettings
        from dp2osr.rewards.weight_files import check_manifest

        refuse_unknown(unknown, Reward)
        if not isinstance(name_or_yaml, (str, PathLike)):
            raise UserError(f"name_or_yaml: {name_or_yaml!r} is neither a name in configs/rewards nor the path of a YAML")
        with in_python():
            folder = None if metrics_dir is None else fspath(metrics_dir)
            settings = LabelSettings(candidates_dir="-", batch_size=plain(batch_size), metrics_dir=folder)  # checks the number
            self._config = for_new_images(load_reward_config(fspath(name_or_yaml)), "these images")
            self.device, self._disable_tf32 = chosen_device(device), bool(disable_tf32)
            set_tf32(self.device, self._disable_tf32)
            if folder:
                check_manifest(folder)
            batches = Batches(settings.batch_size, self.device)
            self._suite = MetricSuite(self._config.metrics, self.device, batches, weights_dir=folder)
            check_modes(self._config, self._suite)
        self.name = self._config.name
        self.metrics = dict(self._suite.modes)
        self.lower_better = dict(self._suite.lower_better)

    def __repr__(self) -> str:
        return f"<dp2osr.Reward {self.name}: {', '.join(self.metrics)} on {self.device}>"

    def score(
        self, images: GivenImage | Iterable[GivenImage], gt: GivenImage | Iterable[GivenImage] | None = None, *, image_id: str = IN_MEMORY
    ) -> pd.DataFrame:
        """Raw scores of images and their reward, for which the images are one group: normalised over them (Sec. 4.1).

        A reward compares the images of one call alone. That of one image, or of equal ones, is 0.

        Args:
            images: one image or several, of one size: paths, PIL images, (H, W, 3) arrays of uint8, or one (M, H, W, 3) array.
                Transparency is put on white.
            gt: the true image, or one an image, of the same size; not needed by a reward without FR metrics.
            image_id: with the image's number it seeds metrics that draw random numbers.

        Returns:
            a row an image, a column a metric, and "reward" in [0, 1], the best the highest; float64.

        Raises:
            UserError: no image, an unreadable one, other sizes, FR metrics without `gt`, an image that a metric cannot score.

        Example:
            reward.score(model.restore("lr.png", samples=8), gt="gt.png").sort_values("reward")
        """
        import pandas as pd
        import torch

        from dp2osr.data.images import on_white, pil_to_tensor
        from dp2osr.device import set_tf32
        from dp2osr.rewards.metrics import bounds_of
        from dp2osr.rewards.reward import hybrid_reward

        with in_python():
            name = image_id_of(IN_MEMORY, image_id)
            full_reference = [metric for metric, mode in self.metrics.items() if mode == "FR"]
            if gt is None and full_reference:
                ways = "pass gt=, or take a reward of NR metrics alone, as dp2osr.Reward('nr_only')"
                raise UserError(f"reward '{self.name}': {', '.join(full_reference)} compare with the true image; {ways}")
            found = [on_white(opened(image, f"image {number}")) for number, image in enumerate(several(images))]
            if not found:
                raise UserError("images: is an empty list; give one image at least")
            check_one_size({f"image {number}": image.size for number, image in enumerate(found)})
            if gt is None and self._config.bounded:
                raise UserError(f"reward '{self.name}': is bounded by the true image's own scores; pass gt=")
            truths = self._truths(gt, len(found), found[0].size)
            set_tf32(self.device, self._disable_tf32)
            pixels = torch.stack([pil_to_tensor(image) for image in found])
            true_pixels = [pil_to_tensor(truth) for truth in truths]
            scores = self._scores(pixels, true_pixels, name)
            of_group = {metric: values[None] for metric, values in scores.items()}
            bounds = [bounds_of(self._config, self._suite, each, name) for each in true_pixels]
            of_gt = {metric: np.stack([each[metric] for each in bounds], axis=1) for metric in self._config.bounded}
            return pd.DataFrame({**scores, REWARD: hybrid_reward(of_group, self.lower_better, self._config, of_gt)[0]})

    def best(
        self, images: GivenImage | Iterable[GivenImage], gt: GivenImage | Iterable[GivenImage] | None = None, *, image_id: str = IN_MEMORY
    ) -> int:
        """The place, from 0, of the image with the highest reward; the first of several. Arguments and errors as of `score`.

        Example:
            images[reward.best(images, gt)].save("best.png")
        """
        return int(self.score(images, gt, image_id=image_id)[REWARD].to_numpy().argmax())

    def _truths(self, gt: GivenImage | Iterable[GivenImage] | None, count: int, size: tuple[int, int]) -> list:
        """No true image, one, or one an image, as PIL images."""
        from dp2osr.data.images import on_white

        if gt is None:
            return []
        given = several(gt)
        if len(given) not in (1, count):
            raise UserError(f"gt: are {len(given)} images for {count}; give one, or one an image")
        names = [image_name(each, "gt" if len(given) == 1 else f"gt {number}") for number, each in enumerate(given)]
        truths = [on_white(opened(each, "gt" if len(given) == 1 else f"gt {number}")) for number, each in enumerate(given)]
        for name, truth in zip(names, truths, strict=True):
            if truth.size != size:
                sizes = [" × ".join(map(str, each)) for each in (truth.size, size)]
                raise UserError(f"{name}: is {sizes[0]} pixels, the images are {sizes[1]}; give the true image of these")
        return truths

    def _scores(self, pixels: torch.Tensor, truths: list[torch.Tensor], image_id: str) -> dict[str, np.ndarray]:
        """{metric: (M,) raw scores} of (M, 3, H, W) images in [0, 1], as `MetricSuite.score` has them."""
        import torch

        if all(torch.equal(truth, truths[0]) for truth in truths):
            return self._suite.score(pixels, truths[0] if truths else None, image_id)
        scores = self._suite.score(pixels, None, image_id)  # the NR metrics
        fr = [metric for metric, mode in self.metrics.items() if mode == "FR"]
        each = [self._suite.score(pixels[number, None], truth, image_id, [number], fr) for number, truth in enumerate(truths)]
        scores |= {metric: np.concatenate([of_image[metric] for of_image in each]) for metric in fr}
        return {metric: scores[metric] for metric in self.metrics}


def image_name(image: object, otherwise: str) -> str:
    """A file's path, or what an image without one is called."""
    return str(Path(image)) if isinstance(image, (str, PathLike)) else otherwise


def check_one_size(sizes: dict[str, tuple[int, int]]) -> None:
    """Raise `UserError` unless all images have one size."""
    first, *others = sizes.items()
    for name, size in others:
        if size != first[1]:
            words = [f"{name} {' × '.join(map(str, size))}" for name, size in (first, (name, size))]
            raise UserError(f"images: are of different sizes ({', '.join(words)} pixels); a reward compares images of one size")
