"""A contact sheet of candidate folders: one row an image, LR | bicubic | candidate 0 of each store | GT."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from PIL import Image

from dp2osr.data.contact_sheet import draw_sheet
from dp2osr.data.images import read_image, save_image, tensor_to_pil
from dp2osr.data.inputs import find_gt
from dp2osr.errors import UserError
from dp2osr.outputs import check_no_input, check_output
from dp2osr.results import check_own_files, own_files
from dp2osr.sampling.decode import decode_group, load_decoder
from dp2osr.sampling.store import CandidateStore, reading


def contact_sheet(
    candidates: Mapping[str, str | Path],
    gt_path: str | Path,
    output: str | Path,
    columns: int = 2,
    zoom: int = 1,
    image_ids: Sequence[str] | None = None,
) -> None:
    """Write the PNG `output`.

    Args:
        candidates: {title: candidate folder}, all of the same images.
        gt_path: GT images, by name.
        columns: images side by side.
        zoom: whole-number enlargement, nearest neighbour.
        image_ids: those that are shown, in this order; None for all.
    """
    check_output(output, "--output", is_file=True)
    stores = {title: CandidateStore(folder) for title, folder in candidates.items()}
    image_ids = image_ids or next(iter(stores.values())).ids()
    if not image_ids:
        raise UserError(f"{next(iter(stores.values())).folder}: holds no candidate group; run gen_candidates.py first")
    truths = find_gt(gt_path, image_ids)
    check_no_input(output, truths.values())
    check_own_files(Path(output).parent, [Path(output).name], "--output")
    decoders = {title: load_decoder(store.settings) for title, store in stores.items()}
    rows = []
    with reading(candidates.values(), "contact sheet"):
        for image_id in image_ids:
            gt = read_image(truths[image_id])
            pictures = []
            for title, store in stores.items():
                group = store.read(image_id)
                group.latents = group.latents[:1]
                pictures.append(tensor_to_pil(decode_group(decoders[title], group, store.settings["align_method"])[0]))
            lr = [group.lr.resize(gt.size, method) for method in (Image.Resampling.NEAREST, Image.Resampling.BICUBIC)]
            rows.append([*lr, *pictures, gt])
    Path(output).parent.mkdir(parents=True, exist_ok=True)
    with own_files(Path(output).parent, [Path(output).name], "--output"):
        save_image(draw_sheet(rows, ["LR", "bicubic", *stores, "GT"], columns, zoom), output)
