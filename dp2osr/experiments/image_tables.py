"""Tables of models and methods on test sets: restore every set with every model, then evaluate the images. Read from one YAML.

title: Models on held-out photographs
protocol: offline                     # of configs/evaluation
sets:
  RealSR: {image_path: data/RealSR/lr, gt_path: data/RealSR/gt, published: table1_realsr, count: 100}
  Syn-Test: {image_path: data/Syn-Test/lr, optional: true}  # left out where it is not on this machine
methods:
  bicubic: {bicubic: 4}                                     # the LR images enlarged
  C-SD2: {program: test_sd2b_controlnet.py, seconds: 2.5, flags: {...}}   # a model: the flags of its program, what an image takes
  SeeSR: {images: results/{set}/seesr}                      # a folder of images made elsewhere
cost: {machine: an A800, processes: 1, start: 60, score: 1.1, image: 4.5e+5}  # seconds a program and a scored image; bytes of an image
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from PIL import Image

from dp2osr.data.images import read_image, save_image
from dp2osr.data.inputs import list_images
from dp2osr.errors import UserError
from dp2osr.evaluation.image_comparison import load_protocol, run_image_evaluation
from dp2osr.evaluation.image_scores import protocol_specs
from dp2osr.evaluation.published import load_published
from dp2osr.evaluation.settings import EvaluateSettings
from dp2osr.experiments.cost import hours_and_disk
from dp2osr.experiments.plan import plain_name
from dp2osr.experiments.settings import ExperimentSettings
from dp2osr.experiments.spec import find_experiment
from dp2osr.experiments.steps import INPUTS, Pool, Step, default_jobs
from dp2osr.fields import Count, Natural, NonNegative, Positive, RegularExpression
from dp2osr.schema import read_typed
from dp2osr.stats import CROP_SUFFIX

IMAGES = "images"


@dataclass(frozen=True)
class TestSet:
    """Images that are restored; `count`: how many there should be, where they are not on this machine."""

    __test__ = False  # no test of pytest's
    image_path: str
    gt_path: str | None = None
    prompt_file: str | None = None
    published: str | None = None
    optional: bool = False
    count: Natural = 0

    def paths(self) -> list[str]:
        return [path for path in (self.image_path, self.gt_path, self.prompt_file) if path]


@dataclass(frozen=True)
class TableMethod:
    """A row: a program with its flags and the seconds that an image takes, a factor of bicubic enlargement, or a folder of images."""

    bicubic: Positive | None = None
    program: str | None = None
    flags: dict = field(default_factory=dict)
    images: str | None = None
    seconds: NonNegative = 0

    def __post_init__(self) -> None:
        if sum(given is not None for given in (self.bicubic, self.program, self.images)) != 1:
            raise ValueError("must have one of 'bicubic', 'program' and 'images'")
        if self.program and "controlnet_model_name_or_path" not in self.flags:
            raise ValueError("needs 'flags', with a controlnet_model_name_or_path")


@dataclass(frozen=True)
class TableCost:
    """Seconds a program and a scored image, bytes of an image; of one of the `processes` of the machine."""

    machine: str
    processes: Count
    start: NonNegative
    score: NonNegative
    image: NonNegative


@dataclass(frozen=True)
class ImageTableSpec:
    """What a YAML of this form holds."""

    title: str
    protocol: str
    sets: dict[str, TestSet]
    methods: dict[str, TableMethod]
    exclude_metrics: list[str] = field(default_factory=list)
    metrics_dir: str | None = None
    crop_suffix: RegularExpression = CROP_SUFFIX
    cost: TableCost | None = None
    name: str = field(default="", metadata={"in_yaml": False})


def load_image_table(name_or_yaml: str | Path, preset: str) -> ImageTableSpec:
    """The `ImageTableSpec` of a name in `configs/reproduce/<preset>` or a YAML; UserError for what is missing or not known."""
    path = find_experiment(name_or_yaml, preset)
    return replace(read_typed(ImageTableSpec, path, "an image table"), name=path.stem)


def without_absent(table: ImageTableSpec) -> tuple[ImageTableSpec, list[str]]:
    """(the table without optional sets that are not on this machine, what is to be said of each)."""
    absent = {}
    for name, of_set in table.sets.items():
        missing = [path for path in (of_set.image_path, of_set.gt_path) if path and not Path(path).exists()]
        if of_set.optional and missing:
            absent[name] = f"{table.name}: without {name}: {', '.join(missing)} not on this machine"
    if len(absent) == len(table.sets):
        raise UserError(f"{'; '.join(absent.values())}: no set is left; put one there")
    return replace(table, sets={name: of_set for name, of_set in table.sets.items() if name not in absent}), list(absent.values())


def plan_images(table: ImageTableSpec, results: Path) -> dict[tuple[str, str], Step | Path]:
    """{(set, method): its `Step`, or the folder of its images where no program makes them}."""
    steps: dict[tuple[str, str], Step | Path] = {}
    for set_name, of_set in table.sets.items():
        for name, method in table.methods.items():
            folder = results / plain_name(set_name) / plain_name(name)
            if method.program:
                prompts = {"prompt_file": of_set.prompt_file} if of_set.prompt_file else {}
                flags = {"image_path": of_set.image_path, **prompts, **method.flags, "output_dir": str(folder / IMAGES)}
                steps[set_name, name] = Step(method.program, "restore", folder, flags, folder / IMAGES)
            else:
                steps[set_name, name] = Path(method.images.format(set=set_name)) if method.images else folder
    return steps


def check(table: ImageTableSpec, steps: Mapping[tuple[str, str], Step | Path]) -> None:
    """Raise `UserError` for what is not on this machine or will be refused, before the first expensive second."""
    missing = sorted({str(path) for path in _inputs(table) if not Path(path).exists()})
    if missing:
        raise UserError(f"{table.name}: not on this machine: {', '.join(missing)}; put them there, or name others in the experiment's YAML")
    for (set_name, name), step in steps.items():
        if isinstance(step, Step):
            step.check(f"{table.name}, {name} on {set_name}")
    protocol_specs(load_protocol(table.protocol), exclude=table.exclude_metrics)
    for of_set in table.sets.values():
        if of_set.published:
            load_published(of_set.published)


def _inputs(table: ImageTableSpec) -> Iterator[str]:
    """Every path that must be there before anything starts."""
    yield from [table.metrics_dir] if table.metrics_dir else []
    for of_set in table.sets.values():
        yield from of_set.paths()
    for method in table.methods.values():
        yield from (value for key, value in method.flags.items() if key in INPUTS)
        yield from (method.images.format(set=name) for name in table.sets if method.images)


def write_bicubic(image_path: str, scale: float, folder: Path) -> None:
    """Enlarge a folder of LR images; what is there already, made of these images, is kept."""
    folder.mkdir(parents=True, exist_ok=True)
    for path in list_images(image_path):
        target = folder / f"{path.stem}.png"
        if not target.exists() or target.stat().st_mtime < path.stat().st_mtime:
            image = read_image(path)
            save_image(image.resize((round(scale * image.width), round(scale * image.height)), Image.Resampling.BICUBIC), target)


def summary(table: ImageTableSpec, steps: Mapping[tuple[str, str], Step | Path]) -> str:
    """One line: what there is to do, and by the table's `cost` its hours and disk."""
    missing = {key: step for key, step in steps.items() if isinstance(step, Step) and not step.is_done()}
    said = f"{table.name}: {table.title}. {len(steps)} folders of images, {len(missing)} of them to be restored"
    if not table.cost or not missing:
        return said
    seconds = size = 0.0
    for (set_name, name), step in missing.items():
        of_set = table.sets[set_name]
        found = len(list_images(of_set.image_path)) if Path(of_set.image_path).exists() else of_set.count
        images = found * step.settings().sample_times
        seconds += table.cost.start + images * (table.methods[name].seconds + table.cost.score)
        size += images * table.cost.image
    return said + hours_and_disk(seconds / table.cost.processes, size, table.cost.machine)


def run_image_table(table: ImageTableSpec, results: Path, args: ExperimentSettings) -> None:
    """Restore and enlarge what is missing, then evaluate each set; with `args.plan` say what is missing. All is in `results`."""
    table, absent = without_absent(table)
    for said in absent:
        print(said)
    steps = plan_images(table, results)
    print(summary(table, steps), flush=True)
    check(table, steps)
    if args.plan:
        return
    for (set_name, name), step in steps.items():
        scale = table.methods[name].bicubic
        if scale and isinstance(step, Path):
            write_bicubic(table.sets[set_name].image_path, scale, step)
    Pool(args.jobs or default_jobs()).run([[step] for step in steps.values() if isinstance(step, Step)], table.name)
    for set_name in table.sets:
        made = {name: steps[set_name, name] for name in table.methods}
        folders = {name: step.output if isinstance(step, Step) else step for name, step in made.items()}
        run_image_evaluation(evaluation_settings(table, set_name, folders, results, args.bootstrap))


def evaluation_settings(
    table: ImageTableSpec, set_name: str, folders: Mapping[str, Path], results: Path, bootstrap: int
) -> EvaluateSettings:
    """The `EvaluateSettings` of a set's images."""
    of_set = table.sets[set_name]
    return EvaluateSettings(
        images=[f"{name}={folder}" for name, folder in folders.items()],
        gt_path=of_set.gt_path,
        lr_path=of_set.image_path,
        output_dir=str(results / plain_name(set_name)),
        protocol=table.protocol,
        exclude_metrics=table.exclude_metrics,
        metrics_dir=table.metrics_dir,
        published=of_set.published,
        bootstrap=bootstrap,
        crop_suffix=table.crop_suffix,
    )
