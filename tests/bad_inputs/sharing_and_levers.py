"""Cases: cheaper candidates, several ControlNets, labels and models that are published."""

import functools
import shutil

from bad_inputs.common import GEN, SAMPLE, TEST, TRAIN, candidates, case, command, scored, sr_results
from bad_inputs.outcomes import CONTROLNET, MODEL, done, refused

EXPORT_LABELS, IMPORT, PUSH = "scripts/export_labels.py", "scripts/import_scores.py", "scripts/push_to_hub.py"


def _sampling(place, flags):
    place.images("in/a.png")
    return command(place, *flags)


for flags, mentions in (
    (["--guidance_interval", "5", "1", "--guidance_scale", "3"], ["--guidance_interval 5 1", "LOW"]),
    (["--guidance_interval", "0.3", "5"], ["--guidance_interval", "guidance is off"]),
    (["--guidance_interval", "1e8", "1e9", "--guidance_scale", "3"], ["--guidance_interval", "no step"]),
    (["--cache_interval", "0"], ["--cache_interval", "0"]),
    (["--branch_at", "1"], ["--branch_at 1"]),
    (["--branch_at", "-2"], ["--branch_at", "-2"]),
):
    case(5, f"`{' '.join(flags)}`, one step", GEN, refused(*mentions))(functools.partial(_sampling, flags=flags))


@case(5, "`--branch_at 1`, one sample an image", TEST, refused("--branch_at 1"))
def _(place):
    place.images("in/a.png")
    return command(place, "--num_inference_steps", "4", "--branch_at", "1")


@case(9, "candidates of two steps, `--cache_interval 2` the second time", GEN, refused("cache_interval", "2"))
def _(place):
    place.images("in/a.png")
    place.run(*command(place, "--num_inference_steps", "2"))
    return command(place, "--num_inference_steps", "2", "--cache_interval", "2")


@case(6, "`--compare_with` a folder that is not there", TEST, refused("nowhere"))
def _(place):
    place.images("in/a.png")
    return command(place, "--compare_with", "nowhere")


@case(6, "`--compare_with` the same ControlNet again", TEST, refused("--compare_with"), done(note="twice the same"))
def _(place):
    place.images("in/a.png")
    return command(place, "--compare_with", CONTROLNET)


@case(1, "results of one ControlNet in the folder, `--compare_with` a second", TEST, refused("out"), done(note="beside them"))
def _(place):
    place.shared(sr_results)
    shutil.copytree(CONTROLNET, place.folder / "other")
    return command(place, "--compare_with", "other")


def _training(place, flags):
    place.shared(candidates)
    words = ["--candidates_dir", "candidates", "--reward_config", "candidates/reward.yaml", "--output_dir", "policy", "--top_n", "1"]
    return [*SAMPLE[:4], *words, "--max_train_steps", "1", "--report_to", "none", *flags]


for flags, mentions in (
    (["--push_to_hub"], ["pushing to a hub", "HF_HUB_OFFLINE"]),
    (["--push_to_hub", "--hub_model_id", "a/b/c"], ["a/b/c"]),
    (["--hub_model_id", "me/policy"], ["--hub_model_id", "--push_to_hub"]),
):
    case(7, f"`{' '.join(flags)}`, no token and no network", TRAIN, refused(*mentions))(functools.partial(_training, flags=flags))


@case(7, "a folder of images to push", PUSH, refused("in"))
def _(place):
    place.images("in/a.png")
    return ["in", "--hub_model_id", "me/x", "--dry_run"]


@case(10, "candidates without scores to publish", EXPORT_LABELS, refused("label_rewards.py"))
def _(place):
    place.shared(candidates)
    (place.folder / "candidates/scores.parquet").unlink()
    return ["--candidates_dir", "candidates", "--output_dir", "labels"]


@case(1, "the candidate folder for the published labels", EXPORT_LABELS, refused("candidates"))
def _(place):
    place.shared(scored)
    return ["--candidates_dir", "candidates", "--output_dir", "candidates"]


def _published(place):
    place.shared(scored)
    place.run("--candidates_dir", "candidates", "--output_dir", "labels", program=EXPORT_LABELS)
    return ["--table", "labels", "--candidates_dir", "candidates", "--output", "theirs.parquet"]


@case(10, "published labels with half of their table cut off", IMPORT, refused("labels"))
def _(place):
    words = _published(place)
    table = place.folder / "labels/candidates.parquet"
    table.write_bytes(table.read_bytes()[: table.stat().st_size // 2])
    return words


@case(10, "published labels of candidates of another seed", IMPORT, refused("labels"))
def _(place):
    words = _published(place)
    place.run(*SAMPLE, "--num_candidates", "2", "--image_path", "in", "--output_dir", "others", "--seed", "9", program=GEN)
    return [*words[:3], "others", *words[4:]]


@case(10, "published labels for a folder of images", IMPORT, refused("in"))
def _(place):
    words = _published(place)
    return [*words[:3], "in", *words[4:]]


@case(6, "a base without a ControlNet's folder to push", PUSH, refused("base"))
def _(place):
    shutil.copytree(MODEL, place.folder / "base")
    return ["base", "--hub_model_id", "me/x", "--dry_run"]
