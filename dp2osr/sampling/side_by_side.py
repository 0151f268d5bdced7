"""Several ControlNets on one base: each restores the folder into a sub-folder of its own, and pictures show their results side by side."""

import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from PIL import Image

from dp2osr.data.contact_sheet import draw_sheet
from dp2osr.data.images import read_image, save_image
from dp2osr.data.inputs import ImageFile
from dp2osr.device import compute_device
from dp2osr.digests import digest
from dp2osr.errors import UserError
from dp2osr.files import clear_parts
from dp2osr.locks import Locks
from dp2osr.results import Results
from dp2osr.sampling.progress import summary
from dp2osr.sampling.restore import Chooser, Restoration, check_names, read_inputs, result_of
from dp2osr.sampling.sampler import GroupSampler
from dp2osr.sampling.settings import RestoreSettings
from dp2osr.sampling.strength import load_controlnet
from dp2osr.sharing import Launch

FLAG = "--compare_with"
COMPARISON = "comparison"  # the sub-folder of these pictures
ENDINGS = (".safetensors", ".pt", ".bin", ".ckpt")
NAMELESS = ("model", "diffusion_pytorch_model")  # names of weights in any ControlNet's folder
TITLE_SHARE = 24  # a picture's width over the height of its title


def restore_side_by_side(args: RestoreSettings, others: Sequence[str], chooser: Chooser | None = None) -> None:
    """`restore_folder` with the ControlNet of `args` and with each of the `others`, on a base that is loaded once, and the comparison.

    The results of a ControlNet are those that it gives alone, in the sub-folder of its name. All is checked before anything is sampled.

    Raises:
        UserError: as `restore_folder`, of any of them; a ControlNet that is named twice.
    """
    begun, output, launch = time.monotonic(), Path(args.output_dir), Launch()
    each = {
        label: replace(args, controlnet_model_name_or_path=path, output_dir=str(output / label))
        for label, path in labelled([args.controlnet_model_name_or_path, *others]).items()
    }
    own = [result_of(output / name) for name in (*each, COMPARISON)]
    files, skipped = read_inputs(args, launch, lambda path: any(is_own(path) for is_own in own))
    if chooser:
        chooser.begin(files)
    runs = {label: Restoration(one, Launch(), files, chooser) for label, one in each.items()}
    strips = Strips(output / COMPARISON, files, runs)
    device, first = compute_device(), None
    for run in runs.values():
        sampler = GroupSampler(run.args, device, process_size=args.process_size, like=first)
        run.survey(sampler, quiet=first is not None and sampler.filled == first.filled)
        sampler.controlnet, first = None, first or sampler  # one at a time is in memory
    for run in runs.values():
        sampler = run.sampler
        sampler.controlnet = load_controlnet(run.args, sampler.backbone, run.args.expected_layers())
        begun_here, made = time.monotonic(), run.make()
        if made is not None:
            print(summary(run.output, "image", made, len(files) - made, {}, begun_here, 1 if chooser else args.sample_times))
        sampler.controlnet = None
    if launch.is_last("side by side"):
        made = strips.draw()
        print(summary(strips.folder, "comparison", made, len(files) - made, skipped, begun))


def labelled(controlnets: Sequence[str]) -> dict[str, str]:
    """{name of its sub-folder and title: ControlNet}: the last part of its path or hub id, and those above it where two would be the same.

    Raises:
        UserError: a ControlNet that is named twice, or has the name of the comparison's sub-folder.
    """
    parts = [parts_of(path) for path in controlnets]
    labels: dict[str, str] = {}
    for path, own in zip(controlnets, parts, strict=True):
        others = [other for other in parts if other is not own]
        tails = ["_".join(own[-count:]) for count in range(1, len(own) + 1)]
        label = next((tail for count, tail in enumerate(tails, 1) if all("_".join(other[-count:]) != tail for other in others)), tails[-1])
        if label in labels:
            raise UserError(f"{FLAG} {path}: is the same ControlNet as {labels[label]}, or has its name; give each once")
        if label == COMPARISON:
            raise UserError(f"{FLAG}: {path} has the name of the pictures' sub-folder, {COMPARISON}; rename its folder")
        labels[label] = path
    return labels


def parts_of(path: str) -> list[str]:
    """The parts of a ControlNet's path or hub id that name it; `model.safetensors` is called by its folder."""
    place = Path(os.path.abspath(path) if os.path.exists(path) else path)
    parts = [part for part in place.parts if part not in (place.anchor, "..", ".")]
    if parts and place.suffix in ENDINGS:
        parts[-1] = place.stem
        if place.stem in NAMELESS and len(parts) > 1:
            parts.pop()
    return parts or [path.strip("./") or "controlnet"]


class Strips:
    """The pictures of the comparison: LR | each ControlNet's result, a row a sample, one PNG an image.

    Args:
        folder: where they go; runs: {title: `Restoration`} of the same `files`.

    Raises:
        UserError: names that cannot be, files of the user's of their names.
    """

    def __init__(self, folder: Path, files: Sequence[ImageFile], runs: Mapping[str, Restoration]) -> None:
        self.folder, self.files, self.runs = folder, files, runs
        suffix = next(iter(runs.values())).args.suffix
        self.names = {file.id: f"{file.folder}/{file.stem}{suffix}.png".lstrip("/") for file in files}
        self.results = Results(folder, {"program": "comparison"})
        check_names(list(self.names.values()))
        self.results.check_inputs(self.names.values(), [file.path for file in files])
        self.results.missing(dict.fromkeys(self.names.values(), {}))

    def draw(self) -> int:
        """Draw those that are missing, or whose results are others now; returns how many."""
        wanted = {self.names[file.id]: self.made_of(file) for file in self.files}
        missing, locks, made = set(self.results.missing(wanted)), Locks(self.folder), 0
        with locks.leaving():
            if missing:
                self.folder.mkdir(parents=True, exist_ok=True)
                locks.enter()
                clear_parts(self.folder)
            for file in self.files:
                name = self.names[file.id]
                if name not in missing:
                    continue
                with locks.held(file.id, wait=True):
                    if self.results.missing({name: wanted[name]}):  # another job may have drawn it meanwhile
                        with self.results.writing(name, wanted[name]) as part:
                            save_image(self.strip(file), part)
                        made += 1
        return made

    def made_of(self, file: ImageFile) -> dict[str, object]:
        """What a picture is made of, by content."""
        shown = {label: [digest(path) for path in paths] for label, paths in self.pictures_of(file).items()}
        return {"image": file.content, "id": file.id, "results": shown}

    def pictures_of(self, file: ImageFile) -> dict[str, list[Path]]:
        """{title: paths of the images that a ControlNet gave}."""
        return {label: [run.output / name for name in run.image_names(file)] for label, run in self.runs.items()}

    def strip(self, file: ImageFile) -> Image.Image:
        """The picture of one image."""
        columns = [[read_image(path) for path in paths] for paths in self.pictures_of(file).values()]
        size = columns[0][0].size
        lr = read_image(file.path).resize(size, Image.Resampling.NEAREST)
        rows = [[lr, *row] for row in zip(*columns, strict=True)]
        return draw_sheet(rows, ["LR", *self.runs], head=max(16, size[0] // TITLE_SHARE))
