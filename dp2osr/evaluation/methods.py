"""The methods to compare: their candidate stores and raw scores, checked against one another, and bicubic beside them."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from dp2osr.cli import named_folders
from dp2osr.errors import UserError, listed
from dp2osr.rewards.chosen import check_bounds
from dp2osr.rewards.table import SCORES, read_scores

if TYPE_CHECKING:
    import torch
    from PIL import Image

    from dp2osr.rewards.config import RewardConfig
    from dp2osr.rewards.metrics import MetricSuite
    from dp2osr.sampling.store import CandidateGroup, CandidateStore

RESERVED = ("bicubic", "GT", "LR", "reward")  # names of the report's own columns


@dataclass(frozen=True)
class Method:
    """One model's candidates and scores.

    Attributes:
        scores: {metric: (G, M) raw}, rows in the order of `image_ids`.
        gt_scores: {metric: (G,) raw}; NaN for FR metrics.
        metrics: {metric: {"lower_better": bool, "mode": "FR" | "NR", "options": dict}} as stored with the scores.
    """

    name: str
    folder: Path
    store: CandidateStore
    image_ids: list[str]
    scores: dict[str, np.ndarray]
    gt_scores: dict[str, np.ndarray]
    metrics: dict[str, dict[str, Any]]
    pyiqa: str

    @property
    def num_candidates(self) -> int:
        return next(iter(self.scores.values())).shape[1]


def parse_candidates(arguments: Iterable[str]) -> dict[str, Path]:
    """`["base=DIR", "policy=DIR"]` → {"base": Path, "policy": Path}; the first is the reference of every comparison."""
    return named_folders(arguments, "--candidates", "base=runs/base policy=runs/policy", RESERVED)


def load_methods(
    candidates: Iterable[str], config: RewardConfig, label_command: str | Callable[[Path], str], num_candidates: int | None = None
) -> tuple[list[Method], list[str]]:
    """Read and check every method.

    Args:
        candidates: NAME=DIR arguments.
        config: all its metrics must be in every method's scores.
        label_command: folder → the command that scores it, for errors; or that command with `{folder}` in its place.
        num_candidates: M; `None` for the smallest M among the methods.

    Returns:
        (list[Method] with the same images, metrics and M, list of notes for the reader).

    Raises:
        UserError: missing or incomplete scores, other images, other metrics or metric options, too few candidates.
    """
    command = label_command if callable(label_command) else lambda folder: label_command.replace("{folder}", shlex.quote(str(folder)))
    methods = [_load(name, folder, config, command(folder)) for name, folder in parse_candidates(candidates).items()]
    _check_same_images(methods)
    _check_same_options(methods)
    notes = [*_notes_on_metrics(methods), *_notes_on_settings(methods)]
    total, note = _common_candidates(methods, num_candidates)
    metrics = [name for name in methods[0].metrics if all(name in method.metrics for method in methods)]
    return [_restrict(method, metrics, total) for method in methods], notes + note


def _load(name: str, folder: Path, config: RewardConfig, command: str) -> Method:
    from dp2osr.sampling.store import CandidateStore

    store = CandidateStore(folder)
    path = folder / SCORES
    if not path.is_file():
        raise UserError(f"{path}: '{name}' has no scores yet; run: {command}")
    table = read_scores(path, config)
    unscored = sorted(set(store.ids()) ^ set(table.image_ids))
    if unscored:
        raise UserError(f"{path}: scores and candidate groups do not match ({listed(unscored)}); run: {command}")
    missing = [spec.name for spec in config.metrics if spec.name not in table.scores]
    if missing:
        raise UserError(f"{path}: the reward '{config.name}' needs {', '.join(missing)}, not in the scores of '{name}'; run: {command}")
    check_bounds(config, table, path, command)
    rewarded, odd = {spec.name for spec in config.metrics}, []
    for metric, values in table.scores.items():
        if not np.isfinite(values).all():
            row, candidate = np.argwhere(~np.isfinite(values))[0]
            where = f"{metric} is not finite for {table.image_ids[row]}, candidate {candidate}"
            if metric in rewarded:
                raise UserError(f"{path}: {where}; look at that image, then run: {command}, or take a reward without {metric}")
            print(f"warning: {path}: {where}; {metric} is left out of '{name}'", file=sys.stderr)
            odd.append(metric)

    def kept(of_metric: Mapping[str, Any]) -> dict[str, Any]:
        return {metric: value for metric, value in of_metric.items() if metric not in odd}

    about, version = kept(table.metadata["metrics"]), str(table.metadata.get("pyiqa", "unknown"))
    return Method(name, folder, store, list(table.image_ids), kept(table.scores), kept(table.gt_scores), about, version)


def _check_same_images(methods: Sequence[Method]) -> None:
    first = methods[0]
    for method in methods[1:]:
        here, there = set(first.image_ids), set(method.image_ids)
        sides = [f"only in '{owner.name}': {listed(sorted(ids))}" for owner, ids in ((first, here - there), (method, there - here)) if ids]
        if sides:
            raise UserError(f"{method.folder}: other images than {first.folder} ({'; '.join(sides)}); sample both from the same LR images")


def _check_same_options(methods: Sequence[Method]) -> None:
    first = methods[0]
    for method in methods[1:]:
        for name in first.metrics.keys() & method.metrics.keys():
            if first.metrics[name] != method.metrics[name]:
                told = f"{name} was computed with {method.metrics[name]}, in '{first.name}' with {first.metrics[name]}"
                raise UserError(f"{method.folder / SCORES}: {told}; label both with one reward config")


def _notes_on_metrics(methods: Sequence[Method]) -> list[str]:
    everywhere, notes = set.intersection(*(set(method.metrics) for method in methods)), []
    for method in methods:
        extra = sorted(set(method.metrics) - everywhere)
        if extra:
            notes.append(f"Left out, because not every method has it: {', '.join(extra)} (scored for {method.name}).")
    if len({method.pyiqa for method in methods}) > 1:
        found = ", ".join(f"{method.name}: {method.pyiqa}" for method in methods)
        notes.append(f"Scores come from different versions of pyiqa ({found}); label again with one.")
    return notes


COMPARABLE = (
    "model_hash", "vae_hash", "vae_tiling", "num_inference_steps", "guidance_scale", "scheduler", "seed", "upscale", "align_method",
    "prompt_source", "negative_prompt", "mixed_precision", "control_scale", "prompts", "tiling",
)  # fmt: skip


def _notes_on_settings(methods: Sequence[Method]) -> list[str]:
    """Settings of sampling that differ: then the comparison is not of the ControlNets alone, or not of the same noise."""
    notes = []
    for key in COMPARABLE:
        values = {method.name: method.store.settings.get(key) for method in methods}
        if len({str(value) for value in values.values()}) > 1:
            notes.append(f"Sampled with different {key}: " + ", ".join(f"{name} {value}" for name, value in values.items()) + ".")
    return notes


def _common_candidates(methods: Sequence[Method], wanted: int | None) -> tuple[int, list[str]]:
    """(M, notes)."""
    sizes = {method.name: method.num_candidates for method in methods}
    name = min(sizes, key=sizes.__getitem__)
    if wanted is not None and wanted > sizes[name]:
        told = f"'{name}' has {sizes[name]} candidates an image; sample more or ask for at most {sizes[name]}"
        raise UserError(f"--num_candidates {wanted}: {told}")
    total = wanted or sizes[name]
    if total < 2:
        raise UserError(f"{methods[0].folder}: {total} candidate an image; a spread within a group needs at least 2")
    if wanted is not None or len(set(sizes.values())) == 1:
        return total, []
    found = ", ".join(f"{name} {size}" for name, size in sizes.items())
    return total, [f"The methods have different numbers of candidates ({found}); the first {total} of each are compared."]


def _restrict(method: Method, metrics: Sequence[str], total: int) -> Method:
    """The common metrics and the first `total` seeds."""
    scores = {name: method.scores[name][:, :total] for name in metrics}
    of_gt = {name: method.gt_scores[name] for name in metrics if name in method.gt_scores}
    return replace(method, scores=scores, gt_scores=of_gt, metrics={name: method.metrics[name] for name in metrics})


# ---------------------------------------------------------------- GT and bicubic


def result_size(group: CandidateGroup) -> tuple[int, int]:
    """(width, height) of a group's candidates."""
    return round(group.lr.width * group.upscale), round(group.lr.height * group.upscale)


def read_gt(path: str | Path, group: CandidateGroup) -> Image.Image:
    """The GT as RGB PIL image. Raises UserError if it is not of the candidates' size."""
    from dp2osr.data.images import read_image

    image = read_image(path)
    width, height = result_size(group)
    if image.size != (width, height):
        raise UserError(
            f"{path}: GT is {image.width} x {image.height}, its candidates are {width} x {height}; give the GT that belongs to the LR image"
        )
    return image


def upsample_bicubic(group: CandidateGroup) -> Image.Image:
    """The LR image of a group at the candidates' size, RGB PIL image."""
    from PIL import Image

    return group.lr.resize(result_size(group), Image.Resampling.BICUBIC)


def suites_of(
    metrics: Mapping[str, Mapping[str, Any]],
    device: str | torch.device = "cpu",
    weights_dir: str | Path | None = None,
    imports: tuple[str, ...] = (),
) -> list[MetricSuite]:
    """The `MetricSuite`s, one a precision, that give a method's metrics anew, but for the user's columns.

    Args:
        metrics: of `Method`; imports: of the `RewardConfig`; the rest as `MetricSuite` has it.
    """
    from dp2osr.rewards.config import MetricSpec
    from dp2osr.rewards.metrics import MetricSuite

    by_precision: dict[str, list[MetricSpec]] = {}
    for name, entry in metrics.items():
        if not entry.get("column"):
            spec = MetricSpec(name, entry.get("options") or {}, imports=imports, draws=entry.get("draws", False))
            by_precision.setdefault(entry.get("precision", "fp32"), []).append(spec)
    return [MetricSuite(specs, device, precision=precision, weights_dir=weights_dir) for precision, specs in sorted(by_precision.items())]


def bicubic_scores(method: Method, gt_paths: Mapping[str, Path], suites: Sequence[MetricSuite]) -> dict[str, np.ndarray]:
    """Raw scores of the bicubic-upsampled LR image: {metric: (G,)}; `suites` of `suites_of` the method's metrics."""
    from tqdm import tqdm

    from dp2osr.data.images import pil_to_tensor

    rows = []
    for image_id in tqdm(method.image_ids, desc="score bicubic", unit="image"):
        group = method.store.read(image_id)
        gt = pil_to_tensor(read_gt(gt_paths[image_id], group))
        image = pil_to_tensor(upsample_bicubic(group))
        scores: dict[str, np.ndarray] = {}
        for suite in suites:
            scores |= suite.score(image[None], gt, image_id, candidates=["bicubic"])
        rows.append({name: float(values[0]) for name, values in scores.items()})
    return {name: np.array([row[name] for row in rows]) for name, about in method.metrics.items() if not about.get("column")}
