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

import math
from dataclasses import dataclass, replace
from pathlib import Path

from PIL import Image

from dp2osr.data.images import read_image, save_image
from dp2osr.data.inputs import list_images
from dp2osr.errors import UserError
from dp2osr.evaluation.benchmark import load_published
from dp2osr.evaluation.image_scores import protocol_specs
from dp2osr.evaluation.run_images import load_protocol
from dp2osr.evaluation.settings import EvaluateSettings
from dp2osr.reproduce.cost import hours_and_disk
from dp2osr.reproduce.grid import check_keys, crop_suffix, read_experiment
from dp2osr.reproduce.runs import Pool, default_jobs
from dp2osr.reproduce.tasks import INPUTS, Program, Task, digest, fingerprint

KEYS = ("title", "protocol", "sets", "methods", "exclude_metrics", "metrics_dir", "crop_suffix", "cost")
SET_KEYS = ("image_path", "gt_path", "prompt_file", "published", "optional", "count")
METHOD_KEYS = ("bicubic", "program", "flags", "images", "seconds")
COST_KEYS = ("machine", "processes", "start", "score", "image")
IMAGES = "images"


@dataclass(frozen=True)
class ImageTable:
    """What a YAML of this form holds, keys as in it; `name` is the file's."""

    name: str
    title: str
    protocol: str
    sets: dict
    methods: dict
    exclude_metrics: list
    metrics_dir: str | None
    crop_suffix: str
    cost: dict | None = None


def load_image_table(name_or_yaml, preset):
    """Read an image table as `load_grid` reads a grid; UserError for what is missing or not known."""
    path, content = read_experiment(name_or_yaml, preset)
    check_keys(path, content, KEYS, "an image table")
    for key in KEYS[:4]:
        if not content.get(key):
            raise UserError(f"{path}: '{key}' is missing")
    for key in ("sets", "methods"):
        if not isinstance(content[key], dict):
            raise UserError(f"{path}: '{key}' must be a name with its entries each")
    for name, entry in content["sets"].items():
        check_keys(path, entry, SET_KEYS, f"set '{name}'")
        if "image_path" not in entry:
            raise UserError(f"{path}: set '{name}' has no image_path")
        if not isinstance(entry.get("count", 0), int):
            raise UserError(f"{path}: set '{name}': 'count' is how many images it should have")
    for name, entry in content["methods"].items():
        check_keys(path, entry, METHOD_KEYS, f"method '{name}'")
        if len({"bicubic", "program", "images"} & set(entry)) != 1:
            raise UserError(f"{path}: method '{name}' must have one of 'bicubic', 'program' and 'images'")
        if "program" in entry and "controlnet_model_name_or_path" not in (entry.get("flags") or {}):
            raise UserError(f"{path}: method '{name}' needs 'flags', with a controlnet_model_name_or_path")
        if not _is_number(entry.get("seconds", 0)):
            raise UserError(f"{path}: method '{name}': 'seconds' must be a number, 0 or more")
    first, more = (content[key] for key in KEYS[:4]), (content.get("exclude_metrics", []), content.get("metrics_dir"))
    return ImageTable(path.stem, *first, *more, crop_suffix(path, content), _cost(path, content))


def _cost(path, content):
    cost = content.get("cost")
    if cost is not None:
        check_keys(path, cost, COST_KEYS, "'cost'")
        if set(cost) != set(COST_KEYS) or not all(_is_number(cost[key]) for key in COST_KEYS[1:]) or not cost["processes"]:
            raise UserError(f"{path}: 'cost' must have {', '.join(COST_KEYS)}: numbers, but for the machine")
    return cost


def _is_number(value):
    return isinstance(value, int | float) and 0 <= value < math.inf


def without_absent(table):
    """(the table without optional sets that are not on this machine, what is to be said of each)."""
    absent, said = [], []
    for name, of_set in table.sets.items():
        missing = [str(of_set[key]) for key in ("image_path", "gt_path") if key in of_set and not Path(of_set[key]).exists()]
        if of_set.get("optional") and missing:
            absent.append(name)
            said.append(f"{table.name}: without {name}: {', '.join(missing)} not on this machine")
    if len(absent) == len(table.sets):
        raise UserError(f"{'; '.join(said)}: no set is left; put one there")
    return replace(table, sets={name: of_set for name, of_set in table.sets.items() if name not in absent}), said


def plan_images(table, output):
    """{(set, method): its `Task`, or the folder of its images where no program makes them}."""
    tasks = {}
    for set_name, of_set in table.sets.items():
        for name, method in table.methods.items():
            if "program" in method:
                flags = {"image_path": of_set["image_path"], "prompt_file": of_set.get("prompt_file"), **method.get("flags", {})}
                flags = {key: value for key, value in flags.items() if value is not None}
                task = Task(output / "images", [Program(method["program"], "restore", flags, {"output_dir": IMAGES})])
            elif "bicubic" in method:
                task = output / "bicubic" / digest([fingerprint(of_set["image_path"]), method["bicubic"]])
            else:
                task = Path(method["images"].format(set=set_name))
            tasks[set_name, name] = task
    return tasks


def check(table, tasks):
    """Raise `UserError` for what is not on this machine or will be refused, before the first expensive second."""
    missing = sorted({str(path) for path in _inputs(table) if not Path(path).exists()})
    if missing:
        raise UserError(f"{table.name}: not on this machine: {', '.join(missing)}; put them there, or name others in the experiment's YAML")
    for (set_name, name), task in tasks.items():
        if isinstance(task, Task):
            task.check(f"{table.name}, {name} on {set_name}")
    protocol_specs(load_protocol(table.protocol), exclude=table.exclude_metrics)
    for of_set in table.sets.values():
        if "published" in of_set:
            load_published(of_set["published"])


def _inputs(table):
    """Every path that must be there before anything starts."""
    if table.metrics_dir:
        yield table.metrics_dir
    for of_set in table.sets.values():
        yield from (of_set[key] for key in ("image_path", "gt_path", "prompt_file") if key in of_set)
    for method in table.methods.values():
        yield from (value for key, value in method.get("flags", {}).items() if key in INPUTS)
        if "images" in method:
            yield from (method["images"].format(set=name) for name in table.sets)


def write_bicubic(image_path, scale, folder):
    """Enlarge a folder of LR images; what is there already is kept."""
    folder.mkdir(parents=True, exist_ok=True)
    for path in list_images(image_path):
        target = folder / f"{path.stem}.png"
        if not target.exists():
            image = read_image(path)
            save_image(image.resize((round(scale * image.width), round(scale * image.height)), Image.Resampling.BICUBIC), target)


def make_images(table, tasks, jobs=None):
    """Restore and enlarge what is missing; returns {set: {method: folder of its images}}."""
    for (set_name, name), task in tasks.items():
        if "bicubic" in table.methods[name]:
            write_bicubic(table.sets[set_name]["image_path"], table.methods[name]["bicubic"], task)
    Pool(jobs or default_jobs()).run([[task] for task in tasks.values() if isinstance(task, Task)], table.name)
    folders = {name: {} for name in table.sets}
    for (set_name, name), task in tasks.items():
        folders[set_name][name] = task.folder / IMAGES if isinstance(task, Task) else task
    return folders


def summary(table, tasks):
    """One line: what there is to do, and by the table's `cost` its hours and disk."""
    missing = {key: task for key, task in tasks.items() if isinstance(task, Task) and not task.is_done()}
    said = f"{table.name}: {table.title}. {len(tasks)} folders of images, {len(missing)} of them to be restored"
    if not table.cost or not missing:
        return said
    seconds = size = 0.0
    for (set_name, name), task in missing.items():
        [program] = task.programs
        of_set = table.sets[set_name]
        found = len(list_images(of_set["image_path"])) if Path(of_set["image_path"]).exists() else of_set.get("count", 0)
        images = found * program.parsed().sample_times
        seconds += table.cost["start"] + images * (table.methods[name].get("seconds", 0) + table.cost["score"])
        size += images * table.cost["image"]
    return said + hours_and_disk(seconds / table.cost["processes"], size, table.cost["machine"])


def evaluation_flags(table, set_name, folders, output, bootstrap):
    """The `EvaluateSettings` of a set's images."""
    of_set = table.sets[set_name]
    return EvaluateSettings(
        images=[f"{name}={folder}" for name, folder in folders.items()],
        gt_path=of_set.get("gt_path"),
        lr_path=of_set["image_path"],
        output_dir=str(output / set_name),
        protocol=table.protocol,
        exclude_metrics=table.exclude_metrics,
        metrics_dir=table.metrics_dir,
        published=of_set.get("published"),
        bootstrap=bootstrap,
        crop_suffix=table.crop_suffix,
    )
