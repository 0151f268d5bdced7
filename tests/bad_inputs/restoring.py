"""Cases: between base and policy, the best of several, formats, one prompt, winners as images."""

import functools

from bad_inputs.common import CONTROLNET, GEN, REWARD, TEST, broken_controlnet, candidates, case, command, two_images
from bad_inputs.outcomes import done, refused

EXPORT = "scripts/export.py"
BEST = ["--keep", "best", "--sample_times", "2"]
WINNERS = ["--candidates_dir", "candidates", *REWARD, "--output_dir", "out"]


def flags_case(given, program, more, *outcomes):
    """A case of two images and some flags."""

    def build(place):
        place.shared(two_images)
        return command(place, *more)

    case(5, given, program, *outcomes)(build)


for value in ("nan", "inf", "-1"):
    flags_case(f"`--policy_strength {value}`", TEST, ["--policy_strength", value], refused("--policy_strength"))
flags_case(
    "`--policy_strength .5` of a ControlNet that no training here made", (TEST, GEN), ["--policy_strength", ".5"],
    refused("--policy_strength 0.5", "settings.json", "--base_controlnet_model_name_or_path"),
)  # fmt: skip
flags_case(
    "`--policy_strength .5`, a base that is not there", TEST,
    ["--policy_strength", ".5", "--base_controlnet_model_name_or_path", "gone/model.safetensors"], refused("gone/model.safetensors"),
)  # fmt: skip
flags_case(
    "a base's ControlNet and `--policy_strength 1`", TEST, ["--base_controlnet_model_name_or_path", CONTROLNET],
    done("not read", there=("out/a.png",), note="said"),
)  # fmt: skip
flags_case("`--keep best` of one sample", TEST, ["--keep", "best"], refused("--keep best", "--sample_times"))
flags_case("`--keep best`, a reward with FR metrics, no GT", TEST, [*BEST, "--reward_config", "fr_only"], refused("gmsd", "--gt_path"))
flags_case("`--keep best`, a misspelt reward", TEST, [*BEST, "--reward_config", "nr_onyl"], refused("nr_onyl", "nr_only"))
flags_case("`--reward_config` without `--keep best`", TEST, ["--reward_config", "nr_only"], refused("--reward_config", "--keep best"))
flags_case("`--quality 50` of PNGs", TEST, ["--quality", "50"], refused("--quality", "png"))
flags_case("`--quality 0`", TEST, ["--format", "jpg", "--quality", "0"], refused("--quality"))
flags_case("`--format tiff`", TEST, ["--format", "tiff"], refused("--format", "png"))
flags_case("`--prompt` beside `--prompt_source none`", (TEST, GEN), ["--prompt", "x", "--prompt_source", "none"], refused("--prompt"))
flags_case("`--images_offset 1` alone", TEST, ["--images_offset", "1"], refused("--images_offset", "--max_images"))


@case(6, "`--policy_strength .5`, a base with a weight that is NaN", TEST, refused("NaN"))
def _(place):
    place.shared(two_images)
    base = broken_controlnet(place, float("nan"), "base")
    return command(place, "--policy_strength", ".5", "--base_controlnet_model_name_or_path", base)


@case(10, "GT of another size, `--keep best`", TEST, refused("GT", "a.png", "--upscale"))
def _(place):
    place.shared(two_images)
    place.images("gt/a.png", "gt/b.png", size=(9, 9))
    place.text("psnr.yaml", "fr: [psnr]\nnr: []\n")
    return command(place, *BEST, "--reward_config", "psnr.yaml", "--gt_path", "gt")


@case(10, "a photograph whose EXIF is broken", TEST, done("1 image written", there=("out/a.png",), note="restored"))
def _(place):
    place.image("in/a.jpg", format="JPEG", exif=b"Exif\0\0MM\0*\0\0\0\x08\0\x09\x01\x0f\0\x02\xff\xff\xff\xff")
    return command(place)


@case(10, "a transparent PNG, `--format jpg`", TEST, done("transparency is put on white", there=("out/a.jpg",), note="on white, said"))
def _(place):
    place.image("in/a.png", mode="RGBA")
    return command(place, "--format", "jpg")


@case(1, "a `best.csv` of the user's in the output folder, `--keep best`", TEST, refused("best.csv"))
def _(place):
    place.shared(two_images)
    place.text("out/best.csv", "mine\n")
    return command(place, *BEST)


@case(1, "an input `in/a.jpg`, results as `--format jpg` into its own folder", TEST, refused("overwrite the inputs", "a.jpg"))
def _(place):
    place.image("in/a.jpg", format="JPEG")
    return command(place, "--format", "jpg", into="in")


@case(1, "a picture of the user's with the name of a winner", EXPORT, refused("a.png", "--output_dir", never=("--adopt",)))
def _(place):
    place.shared(candidates)
    place.image("out/a.png")
    return WINNERS


@case(1, "the candidate folder for the winners", EXPORT, refused("--candidates_dir"))
def _(place):
    place.shared(candidates)
    return [*WINNERS[:-1], "candidates"]


for flag, value in (("--top", "0"), ("--top", "9"), ("--num_candidates", "9")):

    def _winners(place, flag, value):
        place.shared(candidates)
        return [*WINNERS, flag, value]

    case(5, f"`{flag} {value}` of two candidates", EXPORT, refused(flag))(functools.partial(_winners, flag=flag, value=value))


@case(10, "a folder of images for a candidate folder", EXPORT, refused("in", "candidate folder"))
def _(place):
    place.shared(two_images)
    return ["--candidates_dir", "in", "--output_dir", "out"]


@case(9, "results of another strength", TEST, refused("policy_strength is 1.0 there and 0.5 here", "--overwrite"))
def _(place):
    place.shared(two_images)
    place.run(*command(place))
    return command(place, "--policy_strength", ".5", "--base_controlnet_model_name_or_path", CONTROLNET)


@case(
    9,
    "the best of several, and the same command without `--keep best`",
    TEST,
    refused("keep is 'best' there and 'all' here", never=("reward_config",)),
)
def _(place):
    place.shared(two_images)
    place.run(*command(place, *BEST))
    return command(place)


@case(
    9, "the best of several once more, one result gone", TEST,
    done(
        "1 image written, 1 already there",
        there=("out/a.png", "out/best.csv"), replaces=("out/best.csv",), note="made anew, the other kept",
    ),  # fmt: skip
)  # fmt: skip
def _(place):
    place.shared(two_images)
    place.run(*command(place, *BEST))
    (place.folder / "out/a.png").unlink()
    return command(place, *BEST)
