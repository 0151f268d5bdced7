"""Super-resolution of a folder: the released way to use a model, one or more samples an image."""

import os
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Protocol

import torch

from dp2osr.cli import refuse_ignored
from dp2osr.data.image_output import LONGEST_SIDE, options_of, read_kept, save_result
from dp2osr.data.images import read_image_and_alpha, tensor_to_pil
from dp2osr.data.inputs import ImageFile, find_inputs
from dp2osr.data.part import part_of
from dp2osr.device import compute_device
from dp2osr.errors import UserError, counted, listed
from dp2osr.files import LONGEST_NAME, check_same_program, clear_parts, differences, read_json, write_json
from dp2osr.locks import DOOR, Locks
from dp2osr.outputs import check_output
from dp2osr.results import RECORDS, Results
from dp2osr.sampling.progress import LaunchBar, say, say_cost, say_settings, summary
from dp2osr.sampling.sampler import GroupSampler, earlier_values, sampling_record, settings_not_compared
from dp2osr.sampling.settings import RestoreSettings
from dp2osr.sharing import Launch, WorkLog, share

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

    def __call__(self, image_id: str, images: torch.Tensor, seeds: Sequence[int]) -> tuple[int, dict[str, Any]]:
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
    begun, output, launch = time.monotonic(), Path(args.output_dir), Launch()
    files, skipped = read_inputs(args, launch, result_of(output))
    if chooser:
        chooser.begin(files)
    restoration = Restoration(args, launch, files, chooser)
    restoration.survey(GroupSampler(args, compute_device(), process_size=args.process_size))
    made = restoration.make()
    if made is not None:
        print(summary(output, "image", made, len(files) - made, skipped, begun, 1 if chooser else args.sample_times))


def read_inputs(args: RestoreSettings, launch: Launch, leave_out: Callable[[Path], bool]) -> tuple[list[ImageFile], dict[Path, str]]:
    """(the images to restore, {path: why it is skipped}); `UserError` also where folder or format cannot take the results."""
    choose = part_of(args)
    check_output(args.output_dir)
    with launch.first("inputs"):
        files, skipped = find_inputs(
            args.image_path, args.recursive, args.skip_unreadable, choose, leave_out=leave_out, quiet=not launch.is_first
        )
    check_format(files, args)
    return files, skipped


class Restoration:
    """The results of a folder's images by one ControlNet: `survey` says what is missing, `make` makes it.

    Args:
        files: of `read_inputs`.

    Attributes:
        output: the folder of results; names: {image id: paths of all its results below it}.

    Raises:
        UserError: names that cannot be, results that would overwrite inputs.
    """

    def __init__(self, args: RestoreSettings, launch: Launch, files: Sequence[ImageFile], chooser: Chooser | None = None) -> None:
        self.args, self.launch, self.files, self.chooser = args, launch, files, chooser
        self.output = Path(args.output_dir)
        self.names = {file.id: [*self.image_names(file), *self._prompt_names(file)] for file in files}
        everything = [name for names in self.names.values() for name in names]
        check_names(everything)
        Results(self.output, {}, flags=FLAGS).check_inputs(everything, [file.path for file in files])

    def image_names(self, file: ImageFile) -> list[str]:
        """Paths of the SR images of one input below the output folder, sub-folders as the inputs have them."""
        args, stem = self.args, str(Path(file.folder, file.stem))
        if args.sample_times == 1 or self.chooser:
            return [f"{stem}{args.suffix}.{args.format}"]
        digits = max(2, len(str(args.sample_times - 1)))
        return [f"{stem}_{index:0{digits}d}{args.suffix}.{args.format}" for index in range(args.sample_times)]

    def _prompt_names(self, file: ImageFile) -> list[str]:
        """The path of an input's prompt, where it is asked for."""
        return [str(Path("txt", file.folder, f"{file.stem}{self.args.suffix}.txt"))] if self.args.save_prompts else []

    def survey(self, sampler: GroupSampler, quiet: bool = False) -> None:
        """Find which results are missing, by the `sampler` that is to make them; `quiet`: its settings have been said.

        Raises:
            UserError: results of other settings, files of the user's, ranks that differ.
        """
        args, launch, self.sampler = self.args, self.launch, sampler
        if not quiet:
            say_settings(launch, sampler, args.negative_prompt, self.files)
        with launch.first("weights"):
            self.results = results_of(self.output, sampler, self.chooser)
        launch.agree("restoring", {**self.results.settings, "images": [(file.name, file.size) for file in self.files]})
        self.wanted = {name: made_of for file in self.files for name, made_of in self._inputs_of(file).items()}
        self.settings_path = self.output / f"settings{args.suffix}.json"
        self.missing = set(launch.of_first("results", self._missing))
        self.todo = [file for file in self.files if self.missing & set(self.names[file.id])]

    def _inputs_of(self, file: ImageFile) -> dict[str, dict[str, Any]]:
        """{result of an image: what its input is}: its content and id, its prompt where a file names it, what chooses, the number."""
        prompts = self.sampler.prompts.fixed([file.id])
        prompt = {"prompt": prompts[file.id]} if prompts else {}
        choice = self.chooser.made_of(file) if self.chooser else {}
        made_of = {"image": file.content, "id": file.id, **prompt, **choice}
        return {name: {**made_of, "sample": index} for index, name in enumerate(self.names[file.id])}

    def _missing(self) -> list[str]:
        check_folder(self.settings_path, self.results, self.args)
        if self.chooser:
            self.chooser.check_table(self.results)
        return self.results.missing(self.wanted, self.args.overwrite, self.args.adopt)

    def make(self) -> int | None:
        """Make what is missing; returns of how many images, to the rank that is ready last, None to the others."""
        launch, args, sampler, todo = self.launch, self.args, self.sampler, self.todo
        locks, counts = Locks(self.output), {file.id: args.sample_times for file in todo}
        say(launch, sizes_line(self.files, args))
        say_cost(launch, sampler, todo, counts)
        say(launch, self.chooser.announce() if self.chooser and todo else None)
        sampler.prepare(todo)
        if launch.is_first and todo:
            begin_folder(self.settings_path, self.results, self.wanted, locks, args)
        log = WorkLog(self.output / RECORDS, "restore", launch)
        with locks.leaving(), LaunchBar(launch, sampler, todo, counts, "restore") as bar:
            for file in share(launch, "restore", todo, locks, lambda file: file.id):
                bar.begin()
                lacking = self._lacking(file)
                if lacking:
                    self._restore(file, lacking, bar.update)
                    log.write(file.id, results=len(lacking))
                launch.add("made", int(bool(lacking)))
                bar.end(file.id)
        if not launch.is_last("restoring"):
            return None
        locks.leave()
        if self.chooser:
            print(self.chooser.finish(self.results))
        return launch.total("made", len(todo))

    def _lacking(self, file: ImageFile) -> list[str]:
        """The results of an image that are still to be made: another job may have made them meanwhile."""
        own = {name: self.wanted[name] for name in self.names[file.id] if name in self.missing}
        return list(own) if self.args.overwrite else self.results.missing(own)

    def _restore(self, file: ImageFile, lacking: Sequence[str], progress: Callable[[int], object]) -> None:
        """Write the results of one image that are `lacking`."""
        args, sampler, images = self.args, self.sampler, self.image_names(file)
        lr, alpha = read_image_and_alpha(file.path)
        if set(lacking) & set(images):
            kept = read_kept(file.path, alpha)
            group = sampler.sample(file.id, lr, args.sample_times, progress=progress)
            samples, more = sampler.images(group), {}
            if self.chooser:
                best, more["choice"] = self.chooser(file.id, samples, group.seeds)
                samples = samples[best : best + 1]
            for name, image in zip(images, samples, strict=True):
                if name in lacking:
                    with self.results.writing(name, self.wanted[name], **more) as part:
                        save_result(tensor_to_pil(image), part, name, kept, args.format, args.quality)
        for name in set(lacking) - set(images):
            with self.results.writing(name, self.wanted[name]) as part:
                part.write_text(sampler.prompts(file.id, lr) + "\n", encoding="utf-8")


def results_of(output: Path, sampler: GroupSampler, chooser: Chooser | None) -> Results:
    """The results of this run's settings in `output`."""
    args = sampler.args
    chosen = {"keep": "best", **chooser.record} if chooser else {"keep": "all"}
    record = {
        **sampling_record(sampler, sample_times=args.sample_times, process_size=args.process_size),
        **chosen,
        "format": args.format,
        "quality": options_of(args.format, args.quality).get("quality"),
    }
    also: dict[str, Callable[[], Any]] = dict(earlier_values(args))
    if not chooser:
        also["keep"] = lambda: None  # as versions wrote that knew nothing else
    if args.format == "png":
        also["format"] = lambda: None
    return Results(output, record, (*settings_not_compared(sampler), "reward_config"), also, FLAGS)


def begin_folder(settings_path: Path, results: Results, wanted: Iterable[str], locks: Locks, args: RestoreSettings) -> None:
    """Write the settings of the results, and remove what runs that are gone left half-written.

    Another job may have begun meanwhile: its settings are compared again.
    """
    output = results.folder
    output.mkdir(parents=True, exist_ok=True)
    with ExitStack() as refused, locks.held(DOOR, wait=True):
        refused.callback(locks.leave)
        check_folder(settings_path, results, args)
        locks.enter()
        compared = {name: value for name, value in results.settings.items() if name not in results.not_compared}
        locks.claim({f"results of {settings_path.name}": compared})
        write_json(settings_path, results.settings)
        refused.pop_all()
    for folder in {(output / name).parent for name in wanted} | {output / RECORDS}:
        clear_parts(folder)


def result_of(output: Path) -> Callable[[Path], bool]:
    """A function that tells whether an image among the inputs is a result that this program wrote to `output`."""
    results = Results(output, {})

    def is_result(path: Path) -> bool:
        relative = os.path.relpath(os.path.realpath(path), os.path.realpath(output))
        return not relative.startswith("..") and results.is_own(Path(relative).as_posix())

    return is_result


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
    return f"{args.output_dir}: {counted(len(files), 'image')}, {before} -> {after}{more} (--upscale {args.upscale:g})"
