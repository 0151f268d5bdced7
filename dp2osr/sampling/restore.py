"""Super-resolution of a folder: the released way to use a model, one or more samples an image."""

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from dp2osr.data.images import read_image_and_alpha, tensor_to_pil, with_alpha
from dp2osr.data.inputs import ImageFile, find_inputs
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

FLAGS = ("--output_dir", "--suffix", "--overwrite")  # the ways out of a folder with other results


def restore_folder(args: RestoreSettings) -> None:
    """Write the SR image(s) of every image of `args.image_path`; results of these inputs and settings that are there are kept.

    Raises:
        UserError: see `find_inputs`, `GroupSampler` and `Results`; also results that would overwrite inputs, or whose names are too long.
    """
    output = Path(args.output_dir)
    check_output(output)
    launch, locks = Launch(), Locks(output)
    with launch.first("inputs"):
        files, skipped = find_inputs(
            args.image_path, args.recursive, args.skip_unreadable, leave_out=result_of(output), quiet=not launch.is_first
        )
    names = {file.id: result_names(file, args) for file in files}
    check_names([name for of_image in names.values() for name in of_image])
    Results(output, {}, flags=FLAGS).check_inputs([name for of_image in names.values() for name in of_image], [file.path for file in files])
    sampler = GroupSampler(args, compute_device(), process_size=args.process_size)
    say_settings(launch, sampler, args.negative_prompt, files)
    with launch.first("weights"):
        record = sampling_record(sampler, sample_times=args.sample_times, process_size=args.process_size)
    launch.agree("restoring", {**record, "images": [(file.name, file.size) for file in files]})
    results = Results(output, record, settings_not_compared(sampler), earlier_values(args), FLAGS)
    wanted = {name: about for file in files for name, about in inputs_of(file, names[file.id], sampler).items()}
    settings_path = output / f"settings{args.suffix}.json"

    def survey() -> list[str]:
        check_folder(settings_path, results, args)
        return results.missing(wanted, args.overwrite, args.adopt)

    missing = set(launch.of_first("results", survey))
    todo = [file for file in files if missing & set(names[file.id])]
    counts = {file.id: args.sample_times for file in todo}
    say(launch, sizes_line(files, args))
    say_cost(launch, sampler, todo, counts)
    sampler.prepare(todo)
    if launch.is_first and todo:
        begin_folder(output, settings_path, record, wanted, locks)
    log = WorkLog(output / RECORDS, "restore", launch)
    with locks.leaving(), LaunchBar(launch, sampler, todo, counts, "restore") as bar:
        for file in share(launch, "restore", todo, locks, lambda file: file.id):
            bar.begin()
            own = {name: wanted[name] for name in names[file.id] if name in missing}
            lacking = own if args.overwrite else results.missing(own)  # another job may have made them meanwhile
            if lacking:
                restore(file, list(lacking), sampler, results, wanted, bar.update)
                log.write(file.id, results=len(lacking))
            launch.add("made", int(bool(lacking)))
            bar.end(file.id)
    if launch.is_last("restoring"):
        locks.leave()
        made = launch.add("made", 0)
        print(summary(output, "images", made, len(files) - made, skipped))


def begin_folder(output: Path, settings_path: Path, record: dict[str, Any], wanted: Iterable[str], locks: Locks) -> None:
    """Write the settings of the results, and remove what runs that are gone left half-written."""
    output.mkdir(parents=True, exist_ok=True)
    locks.enter()
    write_json(settings_path, record)
    for folder in {(output / name).parent for name in wanted} | {output / RECORDS}:
        clear_parts(folder)


def restore(
    file: ImageFile,
    missing: Sequence[str],
    sampler: GroupSampler,
    results: Results,
    wanted: Mapping[str, dict[str, Any]],
    progress: Callable[[int], object] | None = None,
) -> None:
    """Write the results of one image that are `missing`."""
    args = sampler.args
    lr, alpha = read_image_and_alpha(file.path)
    images = [name for name in missing if name.endswith(".png")]
    if images:
        group = sampler.sample(file.id, lr, args.sample_times, progress=progress)
        for name, image in zip(image_names(file, args), sampler.images(group), strict=True):
            if name in images:
                result = with_alpha(tensor_to_pil(image), alpha)
                with results.writing(name, wanted[name]) as part:
                    result.save(part, format="PNG")
    for name in set(missing) - set(images):
        with results.writing(name, wanted[name]) as part:
            part.write_text(sampler.prompts(file.id, lr) + "\n", encoding="utf-8")


def image_names(file: ImageFile, args: RestoreSettings) -> list[str]:
    """Paths of the SR images of one input below the output folder, sub-folders as the inputs have them."""
    folder = f"{file.folder}/" if file.folder else ""
    if args.sample_times == 1:
        return [f"{folder}{file.stem}{args.suffix}.png"]
    digits = max(2, len(str(args.sample_times - 1)))
    return [f"{folder}{file.stem}_{index:0{digits}d}{args.suffix}.png" for index in range(args.sample_times)]


def result_names(file: ImageFile, args: RestoreSettings) -> list[str]:
    """Paths of all results of one input: its SR images, and its prompt where that is asked for."""
    folder = f"{file.folder}/" if file.folder else ""
    return image_names(file, args) + ([f"txt/{folder}{file.stem}{args.suffix}.txt"] if args.save_prompts else [])


def inputs_of(file: ImageFile, names: Sequence[str], sampler: GroupSampler) -> dict[str, dict[str, Any]]:
    """{result: what its input is}: the image's content and id, its prompt where a file names it, the number of the sample."""
    prompt = {"prompt": sampler.prompts.tags.get(file.id, "")} if sampler.prompts.kind == "file" else {}
    return {name: {"image": file.content, "id": file.id, **prompt, "sample": index} for index, name in enumerate(names)}


def result_of(output: Path) -> Callable[[Path], bool]:
    """A function that tells whether an image among the inputs is a result that this program wrote to `output`."""
    results = Results(output, {})

    def is_result(path: Path) -> bool:
        relative = os.path.relpath(os.path.realpath(path), os.path.realpath(output))
        return not relative.startswith("..") and results.is_own(Path(relative).as_posix())

    return is_result


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
