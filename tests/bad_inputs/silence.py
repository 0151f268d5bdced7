"""Cases: silence."""

import shutil
from pathlib import Path

from bad_inputs.common import (
    EVALUATE,
    FOLDERS,
    GEN,
    LABEL,
    PAIRS,
    QUICK,
    REWARD,
    SAMPLE,
    TEST,
    TRAIN,
    TRAINING,
    broken_controlnet,
    candidates,
    case,
    command,
    methods,
    photographs,
    scored,
    two_images,
)
from bad_inputs.outcomes import MODEL, done, refused
from bad_inputs.place import noise


@case(2, "the tiny models and no sampling settings", TEST, done(r"steps.*8|8 steps|steps 8", note="the models' own settings, said"))
def _(place):
    place.images("in/a.png")
    return [*SAMPLE[:4], "--image_path", "in", "--output_dir", "out"]


@case(2, "no `--upscale`", TEST, done(r"8 ?[x×] ?8|upscale", note="the size is said"))
def _(place):
    place.images("in/a.png")
    return [*SAMPLE[:4], *QUICK, "--image_path", "in", "--output_dir", "out"]


@case(2, "no reward named, the default's weights not to be had", LABEL, refused("embedded"))
def _(place):
    place.shared(candidates)
    place.path("weights").mkdir()
    (place.folder / "candidates/scores.parquet").unlink()
    return ["--candidates_dir", "candidates", "--gt_path", "gt", "--metrics_dir", "weights"]


@case(
    2, "no reward named, scores made with `nr_only`", "scripts/inspect_preferences.py",
    done("nr_only", "winners", note="the reward of the scores, said"), process="scripts/inspect_preferences.py",
)  # fmt: skip
def _(place):
    place.shared(scored)
    return ["--candidates_dir", "candidates", "--top_n", "1"]


@case(2, "no reward named, scores made with `nr_only`", TRAIN, done("nr_only", note="the reward of the scores, said"))
def _(place):
    place.shared(scored)
    return TRAINING


@case(3, "a prompt file that names none of the images", (TEST, GEN), refused("prompts.json"))
def _(place):
    place.shared(two_images)
    place.text("prompts.json", '{"c": "a tree", "d": "a house"}')
    return command(place, "--prompt_file", "prompts.json")


@case(
    3,
    "a prompt file that names one of two images",
    (TEST, GEN),
    done("prompts.json|prompt", r"\bb\b", "1"),
    refused(r"\bb\b", "prompts.json"),
)
def _(place):
    place.shared(two_images)
    place.text("prompts.json", '{"a": "a tree"}')
    return command(place, "--prompt_file", "prompts.json")


def _tags_are_used(folder):
    found = (folder / "out/txt/a.txt").read_text(encoding="utf-8")
    return "" if "a tree" in found else f"the prompt of a.png is {found!r}"


@case(
    3,
    "a prompt file that names images by their files, `a.png`",
    TEST,
    done(check=_tags_are_used, note="its prompts are used"),
    refused("a.png"),
)
def _(place):
    place.shared(two_images)
    place.text("prompts.json", '{"a.png": "a tree", "b.png": "a house"}')
    return command(place, "--prompt_file", "prompts.json", "--save_prompts")


@case(3, "an empty prompt file, `{}`", TEST, refused("prompts.json"))
def _(place):
    place.shared(two_images)
    place.text("prompts.json", "{}")
    return command(place, "--prompt_file", "prompts.json")


@case(3, "a ControlNet with NaN weights", (TEST, GEN), refused("finite|NaN", writes=("out/settings.json",)))
def _(place):
    place.shared(two_images)
    return command(place, controlnet=broken_controlnet(place, float("nan")))


@case(3, "a ControlNet with infinite weights", TEST, refused("finite|NaN|inf", writes=("out/settings.json",)))
def _(place):
    place.shared(two_images)
    return command(place, controlnet=broken_controlnet(place, float("inf")))


@case(3, "an autoencoder with NaN weights", TEST, refused("finite|NaN", writes=("out/settings.json",)))
def _(place):
    from safetensors.torch import load_file, save_file

    place.shared(two_images)
    shutil.copytree(Path(MODEL) / "vae", place.folder / "vae")
    [file] = (place.folder / "vae").glob("*.safetensors")
    tensors = load_file(file)
    tensors["decoder.conv_out.weight"][:] = float("nan")
    save_file(tensors, file)
    return command(place, "--pretrained_vae_model_name_or_path", "vae")


@case(3, "`--control_scale 1e30`", TEST, refused("finite|NaN|--control_scale", writes=("out/settings.json",)))
def _(place):
    place.shared(two_images)
    return command(place, "--control_scale", "1e30")


@case(3, "candidates with NaN latents, from an earlier version", LABEL, refused("finite|NaN"), done("finite|NaN"))
def _(place):
    from safetensors.torch import load_file, save_file

    place.shared(candidates)
    (place.folder / "candidates/scores.parquet").unlink()
    file = place.folder / "candidates/groups/a/latents.safetensors"
    latents = load_file(file)["latents"]
    latents[0] = float("nan")
    save_file({"latents": latents}, file)
    return ["--candidates_dir", "candidates", "--reward_config", "nr_only"]


@case(3, "a GIF among the images", FOLDERS, done(r"b\.gif", note="said"), process=PAIRS)
def _(place):
    place.images("in/a.png", "in/b.gif", size=(16, 16))
    return command(place)


@case(3, "HEIC, AVIF, JPEG 2000 and JFIF files among the images", FOLDERS, done("HEIC", "AVIF", "JP2", "JFIF", note="said"))
def _(place):
    place.images("in/a.png", size=(16, 16))
    for name in ("c.HEIC", "d.avif", "e.jp2"):
        place.text(f"in/{name}", b"\0\0\0\x18ftyp")
    noise((16, 16)).save(place.path("in/f.jfif"), format="JPEG")
    return command(place)


@case(3, "images in a sub-folder", FOLDERS, done(r"sub", note="said"))
def _(place):
    place.images("in/a.png", "in/sub/b.png", "in/sub/c.png", size=(16, 16))
    return command(place)


@case(3, "images in a sub-folder, `--recursive`", TEST, done(there=("out/a.png", "out/sub/a.png"), note="mirrored in the output"))
def _(place):
    place.images("in/a.png", "in/sub/a.png")
    return command(place, "--recursive")


@case(
    3,
    "images in a sub-folder, `--recursive`",
    (GEN, PAIRS),
    done(there=("out",), check=lambda folder: _two_results(folder), note="both are done"),
)
def _(place):
    place.images("in/a.png", "in/sub/b.png", size=(16, 16))
    return command(place, "--recursive")


def _two_results(folder):
    found = len(list(folder.glob("out/groups/**/latents.safetensors"))) or len(list(folder.glob("out/lr/**/*.png")))
    return "" if found == 2 else f"{found} results of two images"


@case(3, "a TIFF of three pages", FOLDERS, done(r"a\.tiff?", "page|frame", note="said"), refused(r"a\.tif"))
def _(place):
    pages = [noise((16, 16), seed) for seed in range(3)]
    pages[0].save(place.path("in/a.tif"), save_all=True, append_images=pages[1:])
    return command(place)


@case(3, "an animated PNG", TEST, done(r"a\.png", "page|frame", note="said"), refused(r"a\.png"))
def _(place):
    pages = [noise((8, 8), seed) for seed in range(3)]
    pages[0].save(place.path("in/a.png"), save_all=True, append_images=pages[1:])
    return command(place)


@case(3, "a hidden image, `.photo.png`", FOLDERS, done(r"\.photo\.png", note="said"))
def _(place):
    place.images("in/a.png", "in/.photo.png", size=(16, 16))
    return command(place)


@case(3, "`.PNG` and `.JPEG` in capitals", TEST, done(there=("out/a.png", "out/b.png"), note="both are done"))
def _(place):
    place.image("in/a.PNG")
    place.image("in/b.JPEG", format="JPEG")
    return command(place)


@case(3, "a folder of GIFs alone", FOLDERS, done(r"a\.gif", r"b\.gif", note="done and said"))
def _(place):
    place.images("in/a.gif", "in/b.gif")
    return command(place)


@case(3, "`--report_to wandb` without wandb", TRAIN, refused("wandb"))
def _(place):
    place.shared(candidates)
    argv = [*TRAINING, *REWARD]
    argv[argv.index("none")] = "wandb"
    return argv


@case(3, "`HR` with `--output_dir`", "scripts/prepare_data.py", refused("--output_dir"), done(there=("made",)))
def _(place):
    place.shared(photographs)
    return ["HR", "--source", "hr", "--min_side", "8", "--output_dir", "made"]


@case(3, "a test set with `--min_side`, which is of `HR`", "scripts/prepare_data.py", refused("--min_side"), done("--min_side"))
def _(place):
    place.images("set/test_LR/a.png", size=(128, 128))
    place.images("set/test_HR/a.png", size=(512, 512))
    return ["RealSR", "--source", "set", "--any_count", "--min_side", "64"]


@case(
    3,
    "photographs that are all smaller than `--min_side`",
    "scripts/prepare_data.py",
    refused("--min_side|512"),
    done("0 images.*2|2.*smaller"),
)
def _(place):
    place.shared(photographs)
    return ["HR", "--source", "hr"]


@case(3, "`--prompt_file` with `--prompt_source none`", TEST, refused("--prompt_file"), done("--prompt_file"))
def _(place):
    place.shared(two_images)
    place.text("prompts.json", '{"a": "a tree", "b": "a house"}')
    return command(place, "--prompt_source", "none", "--prompt_file", "prompts.json")


@case(3, "`--images_offset` without `--max_images`", GEN, refused("--images_offset"), done("--images_offset"))
def _(place):
    place.shared(two_images)
    return command(place, "--images_offset", "1")


@case(3, "`--negative_prompt` where guidance is off", TEST, refused("--negative_prompt"), done("--negative_prompt"))
def _(place):
    place.shared(two_images)
    return command(place, "--negative_prompt", "blur")


@case(
    3,
    "`--images` with `--reward_config`, which is of `--candidates`",
    "scripts/evaluate.py",
    refused("--reward_config"),
    done("--reward_config"),
)
def _(place):
    place.shared(methods)
    return [*EVALUATE, "--reward_config", "default"]


@case(3, "`--candidates` with `--channel`, which is of `--images`", "scripts/evaluate.py", refused("--channel"))
def _(place):
    place.shared(candidates)
    return [
        "--candidates", "x=candidates", "y=candidates", "--gt_path", "gt", "--output_dir", "out", *REWARD, "--channel", "y", "--no_bicubic",
    ]  # fmt: skip


@case(3, "`--logit_mean`, which is of FLUX", TRAIN, refused("--logit_mean"), done("--logit_mean"))
def _(place):
    place.shared(candidates)
    return [*TRAINING, *REWARD, "--logit_mean", "1"]


@case(3, "validation images without `--validation_gt_path`, validation off", TRAIN, refused("--validation"), done("--validation"))
def _(place):
    place.shared(candidates)
    return [*TRAINING, *REWARD, "--validation_image_path", "in"]


def broken_link(place):
    place.path("in/link.png").symlink_to("nowhere.png")
    return r"link\.png"


def link_to_itself(place):
    place.path("in/loop.png").symlink_to("loop.png")
    return r"loop\.png"


def empty_file(place):
    place.text("in/empty.png", "")
    return r"empty\.png"
