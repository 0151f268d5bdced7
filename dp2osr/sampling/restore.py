"""Super-resolution of a folder: the released way to use a model, one or more samples an image."""

import os
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from dp2osr.cli import refuse_ignored
from dp2osr.data.image_output import LONGEST_SIDE, options_of, read_kept, save_result
from dp2osr.data.images import read_image_and_alpha, tensor_to_pil
from dp2osr.data.inputs import ImageFile, find_inputs
from dp2osr.data.part import part_of
from dp2osr.device import compute_device
from dp2osr.errors import UserError, listed
from dp2osr.files import LONGEST_NAME, check_same_program, clear_parts, differences, read_json, write_json
from dp2osr.locks import Locks
from dp2osr.outputs import check_output
from dp2osr.results import RECORDS, Results
from dp2osr.sampling.progress import LaunchBar, say, say_cost, say_settings, summary
from dp2osr.sampling.sampler import GroupSampler, earlier_values, sampling_record, settings_not_compared
from dp2osr.sampling.settings import RestoreSettings
from dp2osr.sharing import Launch, WorkLog, share

if TYPE_CHECKING:
    import torch

FLAGS = ("--output_dir", "--suffix", "--overwrite", "--adopt")  # the ways out of a folder with other results


class Chooser(Protocol):
    """Which of an image's samples is written, where not all are: `rewards.best_of.BestOf`."""

    @property
    def record(self) -> dict[str, Any]:
        """What decides the choice, settings of the results: "reward" stands for all of it, "reward_config" is for the reader."""

    def announce(self) -> str:
        """A line on what it does beside the sampling."""

    def begin(self, files: Sequence[ImageFile]) -> None:
        """Check what it needs of these images, before anything is sampled."""

    def made_of(self, file: ImageFile) -> dict[str, str]:
        """What the choice depends on beside the image."""

    def __call__(self, image_id: str, images: "torch.Tensor", seeds: Sequence[int]) -> tuple[int, dict[str, Any]]:
        """(number of the sample that is written, what the result's record says of the choice)."""

    def check_table(self, results: Results) -> None:
        """Raise `UserError` where it cannot write its table."""

    def finish(self, results: Results) -> str:
        """Write its table of all results; a line about it."""


def restore_folder(args: RestoreSettings, chooser: Chooser | None = None) -> None:
    """Write the SR image(s) of every image of `args.image_path`; results of these inputs and settings that are there are kept.

    With a `chooser` one of an image's samples alone is written.

    Raises:
        UserError: see `find_inputs`, `GroupSampler` and `Results`; also results that would overwrite inputs, or whose names are too long.
    """
    begun, choose, output = time.monotonic(), part_of(args), Path(args.output_dir)
    check_output(output)
    launch, locks = Launch(), Locks(output)
    with launch.first("inputs"):
        files, skipped = find_inputs(
            args.image_path, args.recursive, args.skip_unreadable, choose, leave_out=result_of(output), quiet=not launch.is_first
        )
    check_format(files, args)
    if chooser:
        chooser.begin(files)
    names = names_of(output, files, args, chooser)
    sampler = GroupSampler(args, compute_device(), process_size=args.process_size)
    say_settings(launch, sampler, args.negative_prompt, files)
    with launch.first("weights"):
        results = results_of(output, sampler, chooser)
    launch.agree("restoring", {**results.settings, "images": [(file.name, file.size) for file in files]})
    wanted = {name: about for file in files for name, about in inputs_of(file, names[file.id], sampler, chooser).items()}
    settings_path = output / f"settings{args.suffix}.json"

    def survey() -> list[str]:
        check_folder(settings_path, results, args)
        if chooser:
            chooser.check_table(results)
        return results.missing(wanted, args.overwrite, args.adopt)

    missing = set(launch.of_first("results", survey))
    todo = [file for file in files if missing & set(names[file.id])]
    counts = {file.id: args.sample_times for file in todo}
    say(launch, sizes_line(files, args))
    say_cost(launch, sampler, todo, counts)
    say(launch, chooser.announce() if chooser and todo else None)
    sampler.prepare(todo)
    if launch.is_first and todo:
        begin_folder(settings_path, results, wanted, locks)
    log = WorkLog(output / RECORDS, "restore", launch)
    with locks.leaving(), LaunchBar(launch, sampler, todo, counts, "restore") as bar:
        for file in share(launch, "restore", todo, locks, lambda file: file.id):
            bar.begin()
            own = {name: wanted[name] for name in names[file.id] if name in missing}
            lacking = own if args.overwrite else results.missing(own)  # another job may have made them meanwhile
            if lacking:
                restore(file, list(lacking), sampler, results, wanted, bar.update, chooser)
                log.write(file.id, results=len(lacking))
            launch.add("made", int(bool(lacking)))
            bar.end(file.id)
    if launch.is_last("restoring"):
        locks.leave()
        made = launch.add("made", 0)
        if chooser:
            print(chooser.finish(results))
        print(summary(output, "images", made, len(files) - made, skipped, begun))


def results_of(output: Path, sampler: GroupSampler, chooser: Chooser | None) -> Results:
    """The results of this run's settings in `output`."""
    args = sampler.args
    record = sampling_record(sampler, sample_times=args.sample_times, process_size=args.process_size)
    also: dict[str, Callable[[], Any]] = dict(earlier_values(args))
    if chooser:
        record |= {"keep": "best", **chooser.record}
    else:
        record |= {"keep": "all"}
        also["keep"] = lambda: None  # as versions wrote that knew nothing else
    record |= {"format": args.format, "quality": options_of(args.format, args.quality).get("quality")}
    if args.format == "png":
        also["format"] = lambda: None
    return Results(output, record, (*settings_not_compared(sampler), "reward_config"), also, FLAGS)


def begin_folder(settings_path: Path, results: Results, wanted: Iterable[str], locks: Locks) -> None:
    """Write the settings of the results, and remove what runs that are gone left half-written."""
    output = results.folder
    output.mkdir(parents=True, exist_ok=True)
    locks.enter()
    write_json(settings_path, results.settings)
    for folder in {(output / name).parent for name in wanted} | {output / RECORDS}:
        clear_parts(folder)


def restore(
    file: ImageFile,
    missing: Sequence[str],
    sampler: GroupSampler,
    results: Results,
    wanted: Mapping[str, dict[str, Any]],
    progress: Callable[[int], object] | None = None,
    chooser: Chooser | None = None,
) -> None:
    """Write the results of one image that are `missing`."""
    args = sampler.args
    lr, alpha = read_image_and_alpha(file.path)
    of_images = image_names(file, args, chooser)
    images = [name for name in missing if name in of_images]
    if images:
        kept = read_kept(file.path, alpha)
        group = sampler.sample(file.id, lr, args.sample_times, progress=progress)
        samples, more = sampler.images(group), {}
        if chooser:
            best, more["choice"] = chooser(file.id, samples, group.seeds)
            samples = samples[best : best + 1]
        for name, image in zip(of_images, samples, strict=True):
            if name in images:
                with results.writing(name, wanted[name], **more) as part:
                    save_result(tensor_to_pil(image), part, name, kept, args.format, args.quality)
    for name in set(missing) - set(images):
        with results.writing(name, wanted[name]) as part:
            part.write_text(sampler.prompts(file.id, lr) + "\n", encoding="utf-8")


def image_names(file: ImageFile, args: RestoreSettings, chooser: Chooser | None = None) -> list[str]:
    """Paths of the SR images of one input below the output folder, sub-folders as the inputs have them."""
    folder = f"{file.folder}/" if file.folder else ""
    if args.sample_times == 1 or chooser:
        return [f"{folder}{file.stem}{args.suffix}.{args.format}"]
    digits = max(2, len(str(args.sample_times - 1)))
    return [f"{folder}{file.stem}_{index:0{digits}d}{args.suffix}.{args.format}" for index in range(args.sample_times)]


def result_names(file: ImageFile, args: RestoreSettings, chooser: Chooser | None = None) -> list[str]:
    """Paths of all results of one input: its SR images, and its prompt where that is asked for."""
    folder = f"{file.folder}/" if file.folder else ""
    return image_names(file, args, chooser) + ([f"txt/{folder}{file.stem}{args.suffix}.txt"] if args.save_prompts else [])


def inputs_of(file: ImageFile, names: Sequence[str], sampler: GroupSampler, chooser: Chooser | None = None) -> dict[str, dict[str, Any]]:
    """{result: what its input is}: the image's content and id, its prompt where a file names it, what chooses, the number of the result."""
    prompt = {"prompt": sampler.prompts.tags.get(file.id, "")} if sampler.prompts.kind == "file" else {}
    choice = chooser.made_of(file) if chooser else {}
    return {name: {"image": file.content, "id": file.id, **prompt, **choice, "sample": index} for index, name in enumerate(names)}


def result_of(output: Path) -> Callable[[Path], bool]:
    """A function that tells whether an image among the inputs is a result that this program wrote to `output`."""
    results = Results(output, {})

    def is_result(path: Path) -> bool:
        relative = os.path.relpath(os.path.realpath(path), os.path.realpath(output))
        return not relative.startswith("..") and results.is_own(Path(relative).as_posix())

    return is_result


def names_of(output: Path, files: Sequence[ImageFile], args: RestoreSettings, chooser: Chooser | None) -> dict[str, list[str]]:
    """{image id: paths of its results below `output`}; `UserError` for names that cannot be, or results that would overwrite inputs."""
    names = {file.id: result_names(file, args, chooser) for file in files}
    everything = [name for of_image in names.values() for name in of_image]
    check_names(everything)
    Results(output, {}, flags=FLAGS).check_inputs(everything, [file.path for file in files])
    return names


def check_format(files: Sequence[ImageFile], args: RestoreSettings) -> None:
    """Raise `UserError` for a quality that nobody reads, or results that are too large for their format."""
    if args.format == "png" and args.quality is not None:
        refuse_ignored({"quality"}, ("quality",), "with --format png, which is lossless")
    most = LONGEST_SIDE[args.format]
    long = [file.name for file in files if round(max(file.size) * args.upscale) > most]
    if long:
        raise UserError(
            f"--format {args.format}: holds at most {most:,} pixels a side, and {len(long)} results would have more ({listed(long)}); "
            "take png"
        )


def check_names(names: Sequence[str]) -> None:
    """Raise `UserError` for names that are too long for a file system, or two results of one name."""
    long = [name for name in names if len(os.fsencode(name.rpartition("/")[2])) > LONGEST_NAME]
    if long:
        raise UserError(f"{len(long)} results would have names of more than {LONGEST_NAME} bytes, as {long[0][:60]}...: rename the inputs")
    twice = sorted(name for name in set(names) if names.count(name) > 1) if len(set(names)) < len(names) else []
    if twice:
        raise UserError(f"{len(twice)} results would have one name ({listed(twice)}); rename the inputs, or give another --suffix")


def check_folder(path: Path, results: Results, args: RestoreSettings) -> None:
    """Refuse to mix results of other settings, which the settings file at `path` has, with these (UserError)."""
    if not path.exists():
        return
    found = read_json(path)
    check_same_program(path, found, results.settings)
    if "sample_times" not in found:
        raise UserError(f"{path}: is not of this program; nothing of that folder is touched, give another --output_dir")
    differing = differences(found, results.settings, results.not_compared, results.also)
    if differing and not args.overwrite and (args.adopt or results.any_of(found)):
        raise UserError(
            f"{path.parent}: was made with other settings ({'; '.join(differing)}); use them, give another --output_dir, "
            "or make its results anew by --overwrite"
        )


def sizes_line(files: Sequence[ImageFile], args: RestoreSettings) -> str:
    """`26 images, 32 × 32 → 128 × 128 (--upscale 4)`."""
    sizes = {file.size for file in files}
    before = " x ".join(map(str, files[0].size))
    after = " x ".join(str(round(side * args.upscale)) for side in files[0].size)
    more = f" and {len(sizes) - 1} other sizes" if len(sizes) > 1 else ""
    return f"{args.output_dir}: {len(files)} images, {before} -> {after}{more} (--upscale {args.upscale:g})"
