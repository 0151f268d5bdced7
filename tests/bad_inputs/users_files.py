"""Cases: users files."""

import contextlib
import os
import shutil

from bad_inputs.common import (
    EVALUATE,
    FOLDERS,
    GEN,
    LABEL,
    PAIRS,
    REWARD,
    TEST,
    TRAIN,
    TRAINING,
    broken_controlnet,
    candidates,
    case,
    command,
    methods,
    narrow_controlnet,
    photographs,
    result,
    sr_results,
    two_images,
)
from bad_inputs.outcomes import CONTROLNET, done, refused

WAY_OUT = r"--output_dir|--suffix"


@case(1, "the output folder is the input folder, `--overwrite`", TEST, refused(WAY_OUT))
def _(place):
    place.shared(two_images)
    return command(place, "--overwrite", into="in")


@case(1, "the output folder is the input folder", TEST, refused(WAY_OUT))
def _(place):
    place.shared(two_images)
    return command(place, into="in")


@case(1, "the output folder is a link to the input folder", TEST, refused(WAY_OUT))
def _(place):
    place.shared(two_images)
    (place.folder / "link").symlink_to("in")
    return command(place, "--overwrite", into="link")


@case(1, "the output folder is `x/../in`, the input folder `./in/`", TEST, refused(WAY_OUT))
def _(place):
    place.shared(two_images)
    place.path("x/y").mkdir()
    return command(place, "--overwrite", given="./in/", into="x/../in")


@case(1, "one image, and its own folder for the result", TEST, refused(WAY_OUT))
def _(place):
    place.shared(two_images)
    return command(place, "--overwrite", given="in/a.png", into="in")


@case(1, "`out/a.png` is a link to the input `in/a.png`, `--overwrite`", TEST, refused("a.png"))
def _(place):
    place.shared(two_images)
    place.path("out/a.png").symlink_to("../in/a.png")
    return command(place, "--overwrite")


@case(1, "`out/a.png` is a hard link to the input `in/a.png`, `--overwrite`", TEST, refused("a.png"))
def _(place):
    place.shared(two_images)
    os.link(place.folder / "in/a.png", place.path("out/a.png"))
    return command(place, "--overwrite")


@case(1, "the input folder for output, `--suffix _sr`", TEST, done(there=("in/a_sr.png", "in/b_sr.png"), note="results beside the inputs"))
def _(place):
    place.shared(two_images)
    return command(place, "--suffix", "_sr", into="in")


@case(
    1, "the same once more: the input folder holds results too", TEST,
    done(absent=("in/a_sr_sr.png",), note="results are not taken as inputs"), done("a_sr"), refused("a_sr"),
)  # fmt: skip
def _(place):
    place.shared(two_images)
    place.run(*command(place, "--suffix", "_sr", into="in"))
    return command(place, "--suffix", "_sr", into="in")


@case(1, "photographs in `out/gt`, where the GT goes", PAIRS, refused("out"), process=PAIRS)
def _(place):
    place.images("out/gt/a.png", "out/gt/b.png", size=(16, 16))
    return command(place, given="out/gt")


@case(1, "pairs made before, and their GT folder as the photographs", PAIRS, refused("out"))
def _(place):
    place.shared(photographs)
    place.run(*command(place, "--crop_size", "16", given="hr"))
    return command(place, "--crop_size", "16", given="out/gt")


@case(1, "a file of the user's has the name of a result", FOLDERS, refused("odd"))
def _(place):
    place.images("in/a.png", "in/odd.png", size=(16, 16))
    if place.program == GEN:
        place.text("out/groups/odd/notes.txt", "mine")
    else:
        place.image(result(place.program, "odd"), size=(99, 99))
    return command(place)


@case(1, "the same, `--overwrite`", TEST, refused("odd"))
def _(place):
    place.images("in/a.png", "in/odd.png")
    place.image("out/odd.png", size=(99, 99))
    return command(place, "--overwrite")


@case(1, "a result that was retouched since, `--overwrite`", TEST, refused("a.png"))
def _(place):
    place.shared(sr_results)
    place.image("out/a.png", size=(16, 16), seed="retouched")
    return command(place, "--overwrite")


@case(1, "a misspelt scheduler, `--overwrite`, earlier results", TEST, refused("ddmp", "scheduler"))
def _(place):
    place.shared(sr_results)
    return command(place, "--overwrite", "--scheduler", "ddmp")


@case(1, "a missing ControlNet, `--overwrite`, earlier results", TEST, refused("nowhere"))
def _(place):
    place.shared(sr_results)
    return command(place, "--overwrite", controlnet="nowhere")


@case(1, "an unreadable image, `--overwrite`, earlier results", TEST, refused("b.png"))
def _(place):
    place.shared(sr_results)
    place.text("in/b.png", "no image")
    return command(place, "--overwrite")


def _replaced(place):
    place.images("in/a.png", "in/b.png", size=(8, 8))
    place.run(*command(place))
    place.image("in/a.png", size=(12, 8), seed="new")


@case(1, "an input that was replaced since, by one of another size", TEST, done(renewed=("out/a.png",), note="made anew"))
def _(place):
    _replaced(place)
    return command(place)


@case(1, "an input that was replaced since, by one of the same size", TEST, done(renewed=("out/a.png",), note="made anew"))
def _(place):
    place.shared(sr_results)
    place.image("in/a.png", seed="new")
    return command(place)


@case(
    1,
    "an input that was replaced since",
    GEN,
    done(renewed=("out/groups/a/l*",), replaces=("out/groups/a/*",), note="its group is made anew"),
)
def _(place):
    _replaced(place)
    return command(place)


@case(1, "an input that was replaced since", PAIRS, done(renewed=("out/gt/a.png", "out/lr/a.png"), note="its pair is made anew"))
def _(place):
    _replaced(place)
    return command(place)


@case(
    1, "a first command that failed for a misspelt scheduler, now corrected", (TEST, GEN), done(note="nothing of the first is in the way")
)
def _(place):
    place.shared(two_images)
    place.fail(*command(place, "--scheduler", "ddmp"))
    return command(place)


@case(1, "a first command that failed for a wrong ControlNet, now corrected", (TEST, GEN), done(note="nothing of the first is in the way"))
def _(place):
    place.shared(two_images)
    with contextlib.suppress(AssertionError):  # the line is another case's matter
        place.fail(*command(place, controlnet=narrow_controlnet(place)))
    return command(place)


@case(1, "a first command that failed for a NaN weight, now corrected", (TEST, GEN), done(note="nothing of the first is in the way"))
def _(place):
    place.shared(two_images)
    place.fail(*command(place, controlnet=broken_controlnet(place, float("nan"))))
    return command(place)


@case(1, "results of other settings", TEST, refused("seed", "--overwrite"))
def _(place):
    place.shared(sr_results)
    return command(place, "--seed", "1")


@case(1, "results of other settings, `--overwrite`", TEST, done(renewed=("out/?.png",), note="replaced"))
def _(place):
    place.shared(sr_results)
    return command(place, "--seed", "1", "--overwrite")


@case(1, "`--overwrite` with a ControlNet of NaN", TEST, refused("finite|NaN"))
def _(place):
    place.shared(sr_results)
    return command(place, "--overwrite", controlnet=broken_controlnet(place, float("nan")))


def _without_records(place):
    place.shared(sr_results)
    shutil.rmtree(place.folder / "out/.records", ignore_errors=True)


@case(1, "results from before there were records", TEST, refused("--adopt"))
def _(place):
    _without_records(place)
    return command(place)


@case(1, "results from before there were records, `--adopt`", TEST, done(note="kept"))
def _(place):
    _without_records(place)
    return command(place, "--adopt")


@case(1, "candidates of another program's kind: the folder of test results", GEN, refused("out"))
def _(place):
    place.shared(sr_results)
    return command(place)


@case(1, "an output folder with files of the user's of other names", FOLDERS, done(there=("out/notes.txt",), note="left alone"))
def _(place):
    place.images("in/a.png", size=(16, 16))
    place.text("out/notes.txt", "mine")
    if place.program == PAIRS:
        place.text("out/lr/notes.txt", "mine")
    return command(place)


@case(1, "a settings.json of the user's own in the output folder", FOLDERS, refused("settings.json"))
def _(place):
    place.images("in/a.png", size=(16, 16))
    place.text("out/settings.json", '{"colour": "blue", "size": 3}')
    return command(place)


@case(1, "`--output_dir` is the folder of the ControlNet that is trained", TRAIN, refused("--output_dir|c:|c/"))
def _(place):
    place.shared(candidates)
    shutil.copytree(CONTROLNET, place.folder / "c")
    argv = [*TRAINING, *REWARD]
    argv[3], argv[argv.index("out")] = "c", "c"
    return argv


@case(1, "a `table.md` of the user's in the output folder", "scripts/evaluate.py", refused("table.md"), done(note="left alone"))
def _(place):
    place.shared(methods)
    place.text("out/table.md", "mine")
    return EVALUATE


@case(1, "`--output` is one of the GT images", "scripts/contact_sheet.py", refused("gt/a.png"))
def _(place):
    place.shared(candidates)
    return ["--candidates", "x=candidates", "--gt_path", "gt", "--output", "gt/a.png"]


@case(1, "`--output` is a file of the user's", "scripts/validate_reward.py", refused("notes.json"))
def _(place):
    place.text("notes.json", '{"mine": 1}')
    place.text("psnr.yaml", "fr: [psnr]\nnr: []\n")
    place.images("in/a.png", size=(64, 64))
    return ["psnr.yaml", "--image_path", "in", "--resolution", "32", "--num_crops", "2", "--output", "notes.json"]


@case(1, "`--output` is a page of the user's", "scripts/user_study.py", refused("page.html"))
def _(place):
    place.shared(methods)
    place.text("page.html", "<p>mine</p>")
    return ["make", "--images", "x=x", "y=y", "--lr_path", "lr", "--output", "page.html"]


@case(1, "a `manifest.csv` of the user's own among the photographs", "scripts/prepare_data.py", refused("manifest.csv"))
def _(place):
    place.shared(photographs)
    place.text("hr/manifest.csv", "shot,camera\n1,Canon\n")
    return ["HR", "--source", "hr", "--min_side", "8"]


@case(1, "`data/RealSR` holds files of the user's", "scripts/prepare_data.py", refused("RealSR"))
def _(place):
    place.images("set/test_LR/a.png", size=(128, 128))
    place.images("set/test_HR/a.png", size=(512, 512))
    place.text("data/RealSR/notes.txt", "mine")
    return ["RealSR", "--source", "set", "--any_count"]


@case(1, "`--output` is a table of other columns", LABEL, refused("mine.parquet"))
def _(place):
    import pyarrow as pa
    import pyarrow.parquet as pq

    place.shared(candidates)
    pq.write_table(pa.table({"age": [1, 2]}), place.path("mine.parquet"))
    return ["--candidates_dir", "candidates", "--reward_config", "nr_only", "--output", "mine.parquet"]
