"""Best of M: of an image's samples the one that a reward ranks first is written, and a table says how all were scored."""

import csv
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from dp2osr.cli import refuse_ignored
from dp2osr.data.images import pil_to_tensor, read_image
from dp2osr.data.inputs import SHOWN, ImageFile, examine
from dp2osr.device import compute_device, set_tf32
from dp2osr.errors import UserError, listed
from dp2osr.files import clear_parts, short_name, whole
from dp2osr.results import Results, check_own_files, own_files
from dp2osr.rewards.chosen import as_dict
from dp2osr.rewards.config import for_new_images, load_reward_config
from dp2osr.rewards.label import pair_gt
from dp2osr.rewards.metrics import MetricSuite, bad_score, bounds_of, check_modes
from dp2osr.rewards.reward import hybrid_reward
from dp2osr.rewards.settings import BestOfSettings
from dp2osr.sampling.restore import restore_folder
from dp2osr.sampling.side_by_side import restore_side_by_side

DEFAULT = "nr_only"  # needs neither GT nor a download
OF_BEST = ("reward_config", "gt_path", "metrics_dir")


def restore_images(args: BestOfSettings) -> None:
    """`restore_folder`, or with `compare_with` `restore_side_by_side`; with `keep` "best" the best sample of each image alone is written.

    Raises:
        UserError: as they; flags that do not go together, no such reward, a metric that cannot be had, GT that is missing or of
            another size, an image of which no sample has a finite score.
    """
    if args.keep == "all":
        refuse_ignored({name for name in OF_BEST if getattr(args, name) is not None}, OF_BEST, "without --keep best")
    if args.keep == "best" and args.sample_times == 1:
        raise UserError("--keep best: chooses among the samples of an image, and --sample_times is 1; give for example --sample_times 8")
    chooser = BestOf(args) if args.keep == "best" else None
    if args.compare_with:
        restore_side_by_side(args, args.compare_with, chooser)
    else:
        restore_folder(args, chooser)


class BestOf:
    """The `sampling.restore.Chooser` of a reward.

    Args:
        args: `BestOfSettings`.
    """

    def __init__(self, args: BestOfSettings) -> None:
        device = compute_device()
        set_tf32(device, args.disable_tf32)
        self.config = for_new_images(load_reward_config(args.reward_config or DEFAULT), "samples")
        self.gt_path, self.upscale, self.count = args.gt_path, args.upscale, args.sample_times
        if self.gt_path and not self.config.needs_gt:
            raise UserError(
                f"--gt_path: reward '{self.config.name}' compares nothing with a GT; leave it out, or give another --reward_config"
            )
        if not self.gt_path:
            pair_gt(None, [], {spec.name: "FR" for spec in self.config.fr}, self.config)
        self.suite = MetricSuite(self.config.metrics, device, weights_dir=args.metrics_dir)
        check_modes(self.config, self.suite)
        self.gt_paths: dict[str, Path] = {}
        self.table = f"best{args.suffix}.csv"

    @property
    def record(self) -> dict[str, Any]:
        """What decides the choice: the reward by its name and a hash of its content, and its content for the reader."""
        content = as_dict(self.config)
        decides = json.dumps([{**content, "name": None, "imports": None}, self.suite.describe()], sort_keys=True, default=str)
        return {"reward": f"{self.config.name} {short_name(decides)}", "reward_config": content}

    def announce(self) -> str:
        """A line on what is scored."""
        names = ", ".join(self.suite.modes)
        return f"the best of {self.count} samples an image is kept, by the reward {self.config.name} ({names}); scoring comes on top"

    def begin(self, files: Sequence[ImageFile]) -> None:
        """Find the GT of all images; `UserError` where one is missing or of another size than its results."""
        self.gt_paths = pair_gt(self.gt_path, [file.id for file in files], self.suite.modes)
        sizes = [found["size"] for found in examine(self.gt_paths.values())]
        wrong = []
        for file, size in zip(files, sizes, strict=False):
            asked = [round(side * self.upscale) for side in file.size]
            if list(size) != asked:
                wrong.append(f"{file.name} ({' x '.join(map(str, size))}, its results are {' x '.join(map(str, asked))})")
        if wrong:
            raise UserError(f"{self.gt_path}: the GT of {len(wrong)} images has another size than --upscale gives: {listed(wrong, SHOWN)}")

    def made_of(self, file: ImageFile) -> dict[str, str]:
        """What the choice reads beside the image: its GT's content."""
        return {"gt": ImageFile(self.gt_paths[file.id], file.id).content} if file.id in self.gt_paths else {}

    def __call__(self, image_id: str, images: torch.Tensor, seeds: Sequence[int]) -> tuple[int, dict[str, Any]]:
        """(number of the best of (M, 3, H, W) images in [0, 1], how all were scored, as JSON holds it).

        A sample with a NaN or infinite score is reported, and not chosen.
        """
        gt = pil_to_tensor(read_image(self.gt_paths[image_id])) if image_id in self.gt_paths else None
        scores = self.suite.score(images, gt, image_id, strict=False)
        finite = np.isfinite(list(scores.values())).all(axis=0)
        problems = [problem for name, values in scores.items() if (problem := bad_score(name, values, image_id))]
        if not finite.any():
            raise UserError(problems[0])
        for problem in problems:
            tqdm.write(f"warning: {problem}", file=sys.stderr)
        rewards = np.full(len(images), np.nan)
        told = {name: values[None, finite] for name, values in scores.items()}
        rewards[finite] = hybrid_reward(told, self.suite.lower_better, self.config, bounds_of(self.config, self.suite, gt, image_id))[0]
        best = int(np.nanargmax(rewards))
        columns = {**scores, "reward": rewards}
        cells = {name: [float(value) if np.isfinite(value) else None for value in values] for name, values in columns.items()}
        return best, {"sample": best, "seeds": list(seeds), "scores": cells}

    def check_table(self, results: Results) -> None:
        """Raise `UserError` where the table's name is taken by a file of the user's."""
        check_own_files(results.folder, [self.table])

    def finish(self, results: Results) -> str:
        """Write the table of all results of the folder that were chosen like this; returns a line that names it."""
        rows = []
        for name, record in sorted(results.records()):
            if results.is_of_these_settings(record) and "choice" in record and (results.folder / name).is_file():
                rows += rows_of(record)
        path = results.folder / self.table
        clear_parts(results.folder)
        with own_files(results.folder, [self.table]), whole(path) as part, part.open("w", newline="", encoding="utf-8") as file:
            table = csv.writer(file)
            table.writerow(["image", "sample", "seed", *self.suite.modes, "reward", "kept"])
            table.writerows(rows)
        return f"{path}: the scores of {len(rows)} samples"


def rows_of(record: dict[str, Any]) -> list[list[Any]]:
    """The rows of one image: its id, the sample's number and seed, its scores, whether it was kept; an empty cell for no finite score."""
    choice = record["choice"]
    scores = [["" if value is None else value for value in column] for column in choice["scores"].values()]
    image_id, numbers = record["input"]["id"], range(len(choice["seeds"]))
    return [[image_id, m, choice["seeds"][m], *(column[m] for column in scores), int(m == choice["sample"])] for m in numbers]
