"""What the cases share: programs, commands, folders made once."""

import functools
import json
import re
import shutil
import tempfile
from dataclasses import dataclass, field
from pathlib import Path

from bad_inputs.outcomes import CACHE, CONTROLNET, MODEL
from bad_inputs.place import Place

TEST, GEN, PAIRS = "test_sd2b_controlnet.py", "gen_candidates.py", "scripts/make_lr_pairs.py"
FLUX, LABEL, TRAIN = "test_flux_controlnet.py", "label_rewards.py", "train_sd2_dpo.py"
FOLDERS = (TEST, GEN, PAIRS)  # the programs that take a folder of images and make a result of each


@dataclass(frozen=True, eq=False)
class Case:
    """A bad or odd input.

    Attributes:
        kind: of `KINDS`.
        given: what is given, in words.
        program: path from the repository's root.
        build: called with a `Place`; makes the input there and returns the command line.
        outcomes: what may come of it (`Refused`, `Done`): each loses nothing and is not silent.
        process: run as a process of its own.
        env: further environment of that process.
    """

    kind: int
    given: str
    program: str
    build: object
    outcomes: tuple
    process: bool = False
    env: dict = field(default_factory=dict)

    @property
    def id(self):
        words = re.sub(r"[^A-Za-z0-9_.=-]+", "-", self.given.encode("ascii", "replace").decode()).strip("-")
        return f"{self.kind}-{Path(self.program).stem}-{words}"[:120]


CASES = []


def case(kind, given, programs, *outcomes, process=None, env=None):
    """Register a function `place → command line` as a case for each of the programs; `process` names the one run as a process."""
    programs = (programs,) if isinstance(programs, str) else programs

    def register(build):
        for program in programs:
            CASES.append(Case(kind, given, program, build, outcomes, program == process, env or {}))
        return build

    return register


BASE = ["--pretrained_model_name_or_path", MODEL]
QUICK = ["--num_inference_steps", "1", "--guidance_scale", "1"]
SAMPLE = [*BASE, "--controlnet_model_name_or_path", CONTROLNET, *QUICK, "--upscale", "2"]


def command(place, *more, given="in", into="out", controlnet=None):
    """The command line of one of `FOLDERS` for the images in `given`."""
    folders = ["--image_path", given, "--output_dir", into]
    if place.program == PAIRS:
        return [*folders, "--degradation", "bicubic", *more]
    model = [*BASE, "--controlnet_model_name_or_path", controlnet] if controlnet else SAMPLE[:4]
    count = ["--num_candidates", "2"] if place.program == GEN else []
    return [*model, *SAMPLE[4:], *count, *folders, *more]


def result(program, stem, into="out"):
    """Where one of `FOLDERS` leaves the result of an image."""
    return {TEST: f"{into}/{stem}.png", GEN: f"{into}/groups/{stem}", PAIRS: f"{into}/lr/{stem}.png"}[program]


def tree(build):
    """A function that builds a folder once and returns it afterwards."""

    @functools.cache
    def built():
        folder = Path(tempfile.mkdtemp(prefix="tree-", dir=CACHE))
        build(folder)
        return folder

    return built


@tree
def two_images(folder):
    Place(folder, TEST).images("in/a.png", "in/b.png")


def narrow_controlnet(place):
    """`narrow`, a ControlNet whose config.json says half the channels of the base."""
    shutil.copytree(CONTROLNET, place.folder / "narrow")
    path = place.folder / "narrow/config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    config["block_out_channels"] = [channels // 2 for channels in config["block_out_channels"]]
    path.write_text(json.dumps(config), encoding="utf-8")
    return str(path.parent)


@tree
def sr_results(folder):
    """Two LR images in `in`, and their SR images in `out`."""
    place = Place(folder, TEST)
    place.images("in/a.png", "in/b.png")
    place.run(*command(place))


@tree
def candidates(folder):
    """LR images in `in`, GT in `gt`, two candidates of each in `candidates`, with made-up scores and `candidates/reward.yaml`."""
    from conftest import write_made_up_scores

    place = Place(folder, GEN)
    place.images("in/a.png", "in/b.png")
    place.images("gt/a.png", "gt/b.png", size=(16, 16))
    place.run(*command(place, into="candidates"))
    write_made_up_scores(folder / "candidates")


@tree
def scored(folder):
    """The same with scores of the NR half of the embedded reward, as label_rewards.py writes them."""
    shutil.copytree(candidates(), folder, dirs_exist_ok=True)
    (folder / "candidates/scores.parquet").unlink()
    Place(folder, LABEL).run("--candidates_dir", "candidates", "--reward_config", "nr_only")


@tree
def methods(folder):
    """LR images in `lr`, GT in `gt`, and two methods' SR images in `x` and `y`."""
    place = Place(folder, TEST)
    for name in ("a.png", "b.png"):
        place.image(f"lr/{name}")
        for kind in ("gt", "x", "y"):
            place.image(f"{kind}/{name}", size=(32, 32))
    place.text("psnr.yaml", "fr: [psnr]\nnr: []\n")


@tree
def photographs(folder):
    Place(folder, PAIRS).images("hr/p.png", "hr/q.png", size=(48, 48))


@tree
def large_photographs(folder):
    Place(folder, PAIRS).images("hr/p.png", "hr/q.png", size=(144, 144))


TRAINING = [
    *BASE, "--controlnet_model_name_or_path", CONTROLNET, "--candidates_dir", "candidates", "--output_dir", "out", "--max_train_steps", "1",
    "--groups_per_step", "1", "--top_n", "1", "--report_to", "none", "--validation_steps", "0",
]  # fmt: skip
REWARD = ["--reward_config", "candidates/reward.yaml"]
EVALUATE = ["--images", "x=x", "y=y", "--gt_path", "gt", "--protocol", "psnr.yaml", "--output_dir", "out"]


def same_bytes(place, *names):
    """A check that files are what they are now."""
    earlier = {name: (place.folder / name).read_bytes() for name in names}
    return lambda folder: "; ".join(f"{name} has changed" for name in names if (folder / name).read_bytes() != earlier[name])


def broken_controlnet(place, value, name="c"):
    """A copy of the tiny ControlNet with one weight that is `value`."""
    from safetensors.torch import load_file, save_file

    shutil.copytree(CONTROLNET, place.path(name))
    [file] = (place.folder / name).glob("*.safetensors")
    tensors = load_file(file)
    next(tensor for key, tensor in sorted(tensors.items()) if key.endswith("weight") and tensor.dim() == 4)[:] = value
    save_file(tensors, file)
    return name
