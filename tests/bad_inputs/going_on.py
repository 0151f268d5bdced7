"""Cases: going on."""

import json
import shutil

from bad_inputs.bad_files import bomb
from bad_inputs.common import GEN, LABEL, PAIRS, REWARD, TEST, TRAIN, TRAINING, candidates, case, command, two_images
from bad_inputs.outcomes import CONTROLNET, MODEL, done, refused
from bad_inputs.paths_and_models import MANIFEST


@case(6, "no autoencoder", "studies/make_tiny_flux.py", refused("nowhere"))
def _(place):
    return ["--vae", "nowhere", "--manifest", MANIFEST, "--output_dir", "out"]


@case(6, "a folder without sample.yaml", "scripts/plan.py", refused("sample.yaml"))
def _(place):
    place.path("run/x").parent.mkdir(exist_ok=True)
    return ["run", "--num_gpus", "1"]


@case(6, "a sample.yaml with a misspelt key", "scripts/plan.py", refused("sample.yaml", "sede"))
def _(place):
    place.text("run/sample.yaml", f"pretrained_model_name_or_path: {MODEL}\nsede: 1\n")
    place.text("run/train.yaml", "")
    return ["run", "--num_gpus", "1"]


@case(6, "an experiment that is not there", "scripts/reproduce.py", refused("nowhere"))
def _(place):
    return ["fig4", "--experiment", "nowhere.yaml", "--output_dir", "out", "--plan"]


@case(6, "an experiment with a misspelt key", "scripts/reproduce.py", refused("mine.yaml"))
def _(place):
    return ["fig4", "--experiment", place.text("mine.yaml", "nmae: x\n"), "--output_dir", "out", "--plan"]


@case(6, "a metrics folder with a file that was cut short", LABEL, refused("x.pth"))
def _(place):
    place.shared(candidates)
    place.text("weights/x.pth", "abc")
    place.text("weights/manifest.json", '{"x.pth": {"bytes": 9, "sha256": "00"}}')
    return ["--candidates_dir", "candidates", "--reward_config", "nr_only", "--metrics_dir", "weights"]


@case(7, "a ControlNet by a hub id that cannot be reached", TEST, refused("somebody/c-none", "hub"))
def _(place):
    place.images("in/a.png")
    return command(place, controlnet="somebody/c-none")


@case(7, "a folder that is mistyped", TEST, refused("models/c-tiny", "folder|no such|not there"))
def _(place):
    place.images("in/a.png")
    return command(place, controlnet="./models/c-tiny")


@case(7, "a base model by a hub id that cannot be reached", TEST, refused("somebody/none", "hub"))
def _(place):
    place.images("in/a.png")
    return ["somebody/none" if word == MODEL else word for word in command(place)]


@case(
    7, "a ControlNet by hub id, in the hub's cache, offline", TEST, done(there=("out/a.png",), note="loaded from the cache"),
    process=TEST, env={"HF_HUB_CACHE": "hub", "HF_HUB_OFFLINE": "1"},
)  # fmt: skip
def _(place):
    place.images("in/a.png")
    snapshot = place.folder / "hub/models--somebody--c-tiny/snapshots" / ("0" * 40)
    shutil.copytree(CONTROLNET, snapshot)
    place.text("hub/models--somebody--c-tiny/refs/main", "0" * 40)
    return command(place, controlnet="somebody/c-tiny")


@case(8, "`--upscale 100000`", TEST, refused("--upscale|memory|GB"))
def _(place):
    place.images("in/a.png", size=(64, 64))
    return command(place, "--upscale", "100000")


@case(8, "`--upscale 100000`", GEN, refused("--upscale|memory|GB"))
def _(place):
    place.images("in/a.png", size=(64, 64))
    return command(place, "--upscale", "100000")


@case(
    8,
    "an image of 2 × 50 pixels",
    TEST,
    done(r"a\.png \(8 × 200 asked for, 128 × 3,200 worked on\)"),
)
def _(place):
    place.images("in/a.png", size=(2, 50))
    return command(place, "--upscale", "4")


@case(8, "an image of 1 × 30,000 pixels", TEST, refused(r"a\.png|30,?000|memory|GB"))
def _(place):
    place.images("in/a.png", size=(1, 30_000))
    return command(place, "--upscale", "4")


@case(8, "`--process_size 1000000`", TEST, refused("--process_size|memory|GB"))
def _(place):
    place.images("in/a.png")
    return command(place, "--process_size", "1000000")


@case(8, "a PNG whose header promises 60,000 × 60,000 pixels, alone", PAIRS, refused("bomb"), process=PAIRS)
def _(place):
    bomb(place)
    return command(place)


def latents_of(path):
    from safetensors.torch import load_file

    return load_file(path)["latents"]


def _first_two_are_the_same(folder):
    import torch

    grown, earlier = (latents_of(folder / name / "groups/a/latents.safetensors") for name in ("out", "earlier"))
    if len(grown) != 3:
        return f"{len(grown)} candidates, not 3"
    return "" if torch.equal(grown[:2], earlier) else "the first two candidates are others"


@case(
    9,
    "two candidates an image are there, three are wanted",
    GEN,
    done(check=_first_two_are_the_same, replaces=("out/groups/*",), note="M grows"),
)
def _(place):
    place.shared(two_images)
    place.run(*command(place))
    shutil.copytree(place.folder / "out", place.folder / "earlier")
    return command(place, "--num_candidates", "3")


@case(9, "two candidates an image are there, one is wanted", GEN, done("2"), refused("num_candidates", "2"))
def _(place):
    place.shared(two_images)
    place.run(*command(place))
    return command(place, "--num_candidates", "1")


@case(9, "candidates of other settings", GEN, refused("seed", "--output_dir|output folder"))
def _(place):
    place.shared(two_images)
    place.run(*command(place))
    return command(place, "--seed", "1")


@case(9, "pairs of other settings", PAIRS, refused("seed", "--output_dir|output folder"), process=PAIRS)
def _(place):
    place.images("in/a.png", size=(16, 16))
    place.run(*command(place))
    return command(place, "--seed", "1")


def _two_steps(folder):
    lines = (folder / "out/train_log.jsonl").read_text(encoding="utf-8").splitlines()
    steps = [json.loads(line).get("step") for line in lines]
    return "" if max(steps) == 2 else f"steps {steps}"


TRAINED = ("out/README.md", "out/config.json", "out/*.safetensors", "out/checkpoint*", "out/*.pt")


@case(9, "one step is trained, two are wanted", TRAIN, done(check=_two_steps, replaces=TRAINED, note="goes on"))
def _(place):
    place.shared(candidates)
    place.run(*TRAINING, *REWARD, "--lr_scheduler", "constant")
    return [*TRAINING, *REWARD, "--lr_scheduler", "constant", "--max_train_steps", "2"]


@case(9, "a training of other settings", TRAIN, refused("beta", "--force"))
def _(place):
    place.shared(candidates)
    place.run(*TRAINING, *REWARD)
    return [*TRAINING, *REWARD, "--beta", "10"]


@case(9, "a checkpoint that was cut short", TRAIN, refused("checkpoint"), done("checkpoint", replaces=TRAINED))
def _(place):
    place.shared(candidates)
    place.run(*TRAINING, *REWARD)
    for path in (place.folder / "out").rglob("checkpoint-*"):
        if path.is_file():
            path.write_bytes(path.read_bytes()[:1000])
    return [*TRAINING, *REWARD, "--max_train_steps", "2"]


@case(9, "a settings.json that was cut short", (TEST, GEN), refused("settings.json"))
def _(place):
    place.shared(two_images)
    place.run(*command(place))
    path = place.folder / "out/settings.json"
    path.write_bytes(path.read_bytes()[:40])
    return command(place)


@case(9, "what a killed run left half-written", GEN, done(there=("out/groups/a/latents.safetensors",), note="left aside"))
def _(place):
    place.shared(two_images)
    place.text("out/groups/.a.123.part/latents.safetensors", "half")
    return command(place)


@case(
    9,
    "a group whose latents were cut short",
    (LABEL, TRAIN),
    refused("latents.safetensors", "groups/a", writes=("out/settings.json", "out/train_log.jsonl")),
)
def _(place):
    place.shared(candidates)
    path = place.folder / "candidates/groups/a/latents.safetensors"
    path.write_bytes(path.read_bytes()[:50])
    if place.program == TRAIN:
        return [*TRAINING, *REWARD, "--groups_per_step", "2"]
    (place.folder / "candidates/scores.parquet").unlink()
    return ["--candidates_dir", "candidates", "--reward_config", "nr_only"]


@case(
    9,
    "a reward that was not scored, in a folder with spaces",
    "scripts/inspect_preferences.py",
    refused(r"'my candidates'|my\\ candidates"),
)
def _(place):
    place.shared(candidates)
    (place.folder / "candidates").rename(place.folder / "my candidates")
    return ["--candidates_dir", "my candidates", "--reward_config", "nr_only", "--top_n", "1"]


@case(9, "candidates without scores, in a folder with spaces", "scripts/evaluate.py", refused(r"label_rewards\.py", r"'my candidates'"))
def _(place):
    place.shared(candidates)
    (place.folder / "candidates").rename(place.folder / "my candidates")
    (place.folder / "my candidates/scores.parquet").unlink()
    return ["--candidates", "x=my candidates", "--gt_path", "gt", "--output_dir", "out", "--reward_config", "nr_only"]


INSPECT = ["--candidates_dir", "candidates", *REWARD, "--top_n", "1"]
