"""Where a policy changed the base's images, from two candidate folders to a figure, a table and a few sentences."""

from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image
from tqdm import tqdm

from dp2osr import stats
from dp2osr.data.images import pil_to_tensor, tensor_to_pil
from dp2osr.data.inputs import find_gt
from dp2osr.errors import UserError
from dp2osr.evaluation import plots
from dp2osr.evaluation.methods import parse_candidates, read_gt
from dp2osr.evaluation.pictures import detail_window, evenly_over
from dp2osr.evaluation.tables import csv_text, interval, markdown
from dp2osr.files import write_json, write_text
from dp2osr.outputs import check_output
from dp2osr.results import check_own_files, own_files
from dp2osr.sampling.decode import decode_group, load_decoder
from dp2osr.sampling.store import CandidateStore
from studies.locality import PERIOD, concentration, correlations, explained_by_filters, image_change, repetition

FILES = ("fig6.png", "fig6.svg", "locality.csv", "locality.md", "settings.json")
ZOOM = 64  # pixels: side of the window that the figure shows


def run_locality(args):
    """Write fig6.png, fig6.svg, locality.csv, locality.md and settings.json to `args.output_dir`, and print the table.

    Args:
        args: `LocalitySettings`.

    Raises:
        UserError: not two folders, of the same images and seeds, with GT.
    """
    check_output(args.output_dir)
    check_own_files(args.output_dir, FILES)
    folders = parse_candidates(args.candidates)
    if len(folders) != 2:
        raise UserError("--candidates: takes two folders, base=DIR policy=DIR")
    base, policy = (CandidateStore(folder) for folder in folders.values())
    ids = base.ids()
    if ids != policy.ids() or base.settings["seed"] != policy.settings["seed"]:
        raise UserError(f"{policy.folder}: other images or another seed than {base.folder}; a change is seen between the same seeds")
    count = min(args.num_candidates, *(store.settings["num_candidates"] for store in (base, policy)))
    gt_paths = find_gt(args.gt_path, ids)
    decoders = [load_decoder(store.settings) for store in (base, policy)]
    changes = []
    for image_id in tqdm(ids, desc="compare", unit="image"):
        groups = [store.read(image_id, range(count)) for store in (base, policy)]
        images = [
            decode_group(decoder, group, store.settings["align_method"])
            for decoder, group, store in zip(decoders, groups, (base, policy), strict=True)
        ]
        gt = pil_to_tensor(read_gt(gt_paths[image_id], groups[0]))
        changes.append(image_change(image_id, groups[0].lr, *images, gt))
    photographs = stats.photographs_of(ids, args.crop_suffix)
    weights = stats.bootstrap_weights(photographs, args.bootstrap, seed=0)
    found = {f"correlation of the change with: {name}": estimate for name, estimate in correlations(changes, weights).items()}
    found["share of the squared change in the tenth of the pixels that change most"] = concentration(changes, weights)
    found[f"share of the squared change that repeats every {PERIOD} pixels"] = repetition(changes, weights)
    filters = explained_by_filters(changes, photographs, weights)
    found |= {f"share of the squared change explained by {name}": value for name, value in filters.items()}

    output = Path(args.output_dir)
    output.mkdir(parents=True, exist_ok=True)
    told = {name: interval(value, signed=True) for name, value in found.items()}
    text = markdown(pd.DataFrame(told.items(), columns=["what", "mean [95 % interval over photographs]"]))
    rows = [(name, value.value, value.low, value.high) for name, value in found.items()]
    with own_files(output, FILES):
        write_text(output / "locality.md", text + "\n")
        write_text(output / "locality.csv", csv_text(pd.DataFrame(rows, columns=["what", "mean", "low", "high"])))
        write_json(output / "settings.json", {"flags": vars(args), "base": base.settings, "policy": policy.settings})
        draw(changes, output, args.num_shown)
    print(f"\n{text}\n\nfiles: {output}/fig6.png, fig6.svg, locality.md, locality.csv, settings.json")
    return found


def draw(changes, output, count):
    """LR, base, policy, GT, the change and the base's spread over seeds, of `count` images evenly over how much they changed."""
    order = np.argsort([-image.maps["change"].mean() for image in changes])
    chosen = [changes[index] for index in evenly_over(order, count)]
    windows = [_window(image) for image in chosen]
    white = [max(np.percentile(np.concatenate([window[place].ravel() for window in windows]), 99.5), 1e-6) for place in (4, 5)]
    titles = ["LR", "base", "policy", "GT", f"|policy − base|, white {white[0]:.3f}", f"over seeds, white {white[1]:.3f}"]
    size = (1.7 * len(titles), 1.75 * len(chosen) + 0.2)
    with plots.drawing(size, nrows=len(chosen), ncols=len(titles)) as (figure, panels):
        for row, image, window in zip(panels, chosen, windows, strict=True):
            for axes, picture, most in zip(row, window, [1, 1, 1, 1, *white], strict=True):
                axes.imshow(picture, cmap="gray", vmin=0, vmax=most, interpolation="nearest")
                axes.set(xticks=[], yticks=[])
            row[0].set_ylabel(image.image_id, fontsize=7, color=plots.MUTED)
        for axes, title in zip(panels[0], titles, strict=True):
            axes.set_title(title, fontsize=7)
        plots.save(figure, output / "fig6")


def _window(image):
    """LR, base, policy and GT in [0, 1], the change and the base's spread as they are, cut to the image's window of most detail."""
    gt = tensor_to_pil(image.gt)
    box = detail_window(gt, ZOOM) or (0, 0, *gt.size)
    lr = image.lr.resize(gt.size, Image.Resampling.NEAREST)
    pictures = [np.asarray(picture.crop(box)) / 255 for picture in (lr, tensor_to_pil(image.base), tensor_to_pil(image.policy), gt)]
    left, top, right, bottom = box
    return pictures + [image.maps[name][top:bottom, left:right] for name in ("change", "base spread over seeds")]
