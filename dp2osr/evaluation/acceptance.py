"""Whether a released model gives here what was published of it: a few images restored, scored, and set beside the published means."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd

from dp2osr.cli import field_names, refuse_ignored
from dp2osr.data.inputs import find_gt, list_images
from dp2osr.data.part import evenly
from dp2osr.errors import UserError, listed
from dp2osr.evaluation.image_comparison import load_protocol, run_image_evaluation
from dp2osr.evaluation.image_scores import protocol_specs
from dp2osr.evaluation.published import Published, load_published
from dp2osr.evaluation.settings import AcceptanceSettings, EvaluateSettings
from dp2osr.evaluation.tables import csv_text
from dp2osr.files import write_text
from dp2osr.outputs import check_output
from dp2osr.rewards.config import nearest
from dp2osr.sampling.settings import RestoreSettings

if TYPE_CHECKING:
    from dp2osr.evaluation.image_comparison import ImageTable


def run_acceptance(args: AcceptanceSettings) -> ImageTable:
    """Restore `args.num_images` images, score them, and print each metric's mean beside the published one.

    <output_dir>/lr.csv, gt.csv name the images; images/ has the results, table/ what `scripts/evaluate.py --images` writes.

    Raises:
        UserError: no such row in the published table, too few images, and what `restore_folder` and `run_image_evaluation` refuse.
    """
    from dp2osr.sampling.restore import restore_folder

    check_output(args.output_dir)
    refuse_ignored({"max_images"} if args.max_images else (), ("max_images",), "beside --num_images")
    published = load_published(args.published)
    if args.method not in published.methods:
        raise UserError(f"--method {args.method}: {args.published} has no such row{nearest(args.method, published.methods)}")
    protocol_specs(load_protocol(args.protocol), exclude=args.exclude_metrics)
    paths = list_images(args.image_path)
    if len(paths) < args.num_images:
        raise UserError(f"--num_images {args.num_images}: {args.image_path} has {len(paths)}; give fewer, or the folder of the whole set")
    chosen = evenly(paths, args.num_images)
    gt = find_gt(args.gt_path, [path.stem for path in chosen])
    output = Path(args.output_dir)
    output.mkdir(parents=True, exist_ok=True)
    write_manifest(output / "lr.csv", chosen)
    write_manifest(output / "gt.csv", gt.values())
    given = {name: value for name, value in asdict(args).items() if name in field_names(RestoreSettings)}
    restore_folder(RestoreSettings(**{**given, "image_path": str(output / "lr.csv"), "output_dir": str(output / "images")}))
    found = run_image_evaluation(evaluation_of(args, output))
    print("\n".join(compared(found, published, args.method)))
    return found


def evaluation_of(args: AcceptanceSettings, output: Path) -> EvaluateSettings:
    """The `EvaluateSettings` of the restored images; every image is a photograph of its own."""
    return EvaluateSettings(
        images=[f"{args.method}={output / 'images'}"],
        gt_path=str(output / "gt.csv"),
        output_dir=str(output / "table"),
        protocol=args.protocol,
        exclude_metrics=args.exclude_metrics,
        metrics_dir=args.metrics_dir,
        bootstrap=args.bootstrap,
        crop_suffix="",
    )


def write_manifest(path: Path, images: Iterable[Path]) -> None:
    """A manifest.csv of these images, as a program's --image_path or --gt_path."""
    write_text(path, csv_text(pd.DataFrame({"file": [str(image.absolute()) for image in images]})))


def compared(found: ImageTable, published: Published, method: str) -> list[str]:
    """Lines: each metric's mean here, its interval over the images, the published mean; then how many are within."""
    lines, outside, total = [f"{'metric':14} {'here':>9}   {'95 % interval':20}  {'published':>9}   {published.source}"], [], 0
    for metric in found.metrics:
        row, value = found.cell(method, metric), published.methods[method].get(metric)
        if value is None:
            continue
        total += 1
        low, high = row["mean_low"], row["mean_high"]
        is_within = math.isnan(low) or low <= value <= high
        outside += [] if is_within else [metric]
        interval = f"[{low:.4f}, {high:.4f}]"
        lines.append(f"{metric:14} {row['mean']:9.4f}   {interval:20}  {value:9.4f}{'' if is_within else '   outside'}")
    if not total:
        raise UserError(f"no metric that was scored is published of {method}; give the table's protocol (--protocol)")
    told = f"; outside: {listed(outside, 20)}" if outside else ""
    images = len(found.results.images)
    return [*lines, f"{method}: {total - len(outside)} of {total} published means lie in the interval over these {images} images{told}"]
