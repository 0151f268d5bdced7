"""Cases: paths and models."""

import functools
import shutil

from bad_inputs.bad_files import VAE, controlnet_training
from bad_inputs.common import (
    EVALUATE,
    FLUX,
    FOLDERS,
    GEN,
    LABEL,
    PAIRS,
    REWARD,
    SAMPLE,
    TEST,
    TRAIN,
    TRAINING,
    candidates,
    case,
    command,
    large_photographs,
    methods,
    narrow_controlnet,
    photographs,
    two_images,
)
from bad_inputs.outcomes import CONTROLNET, MODEL, ROOT, done, refused
from bad_inputs.yaml_and_flags import NOWHERE


def _add_outputs():
    def build(place, prepare, argv, into):
        place.text("file", "mine")
        prepare(place)
        return [into + word[3:] if word == "OUT" or word.startswith("OUT.") else word for word in argv(place)]

    def of(given, tree, program, argv, where="below a file", flag="--output_dir"):
        into = NOWHERE[where]
        build_it = functools.partial(build, prepare=lambda place: place.shared(tree), argv=argv, into=into)
        case(
            6, f"{given} {where}", program, refused("file|/proc/x"), process=PAIRS if (program, where) == (PAIRS, "below a file") else None
        )(build_it)

    for program in FOLDERS:
        for where in NOWHERE:
            of(
                "an output folder that is" if where == "a file" else "an output folder",
                two_images,
                program,
                lambda p: command(p, into="OUT"),
                where,
            )
    training = [word if word != "out" else "OUT" for word in [*TRAINING, *REWARD]]
    of("an output folder", candidates, TRAIN, lambda p: training)
    of("an output folder", candidates, TRAIN, lambda p: training, "below /proc")
    of("an output folder", candidates, "scripts/suggest_nm.py", lambda p: [*training, "--sizes", "2"])
    of("an output folder", photographs, "scripts/train_controlnet.py", lambda p: [*controlnet_training(), "--output_dir", "OUT"])
    of("an output folder", large_photographs, "studies/train_vae.py", lambda p: [*VAE, "--output_dir", "OUT", "--resolution", "32"])
    of("an output folder", methods, "scripts/evaluate.py", lambda p: [*EVALUATE, "--output_dir", "OUT"])
    of(
        "an output folder",
        candidates,
        "scripts/inspect_rewards.py",
        lambda p: ["--candidates_dir", "candidates", *REWARD, "--output_dir", "OUT"],
    )
    of(
        "an output folder",
        photographs,
        "scripts/prepare_data.py",
        lambda p: ["RealLR200", "--source", "hr", "--any_count", "--output_dir", "OUT"],
    )
    return of


def _add_files(of):
    of("a metrics folder", two_images, "scripts/fetch_metrics.py", lambda p: ["--reward_config", "nr_only", "--metrics_dir", "OUT"])
    of(
        "a table",
        candidates,
        LABEL,
        lambda p: ["--candidates_dir", "candidates", "--reward_config", "nr_only", "--output", "OUT.parquet"],
        "below /proc",
    )
    study = ["make", "--images", "x=x", "y=y", "--lr_path", "lr", "--output"]
    of("a page", methods, "scripts/user_study.py", lambda p: [*study, "OUT.html"])
    sheet = ["--candidates", "x=candidates", "--gt_path", "gt", "--output"]
    of("a picture", candidates, "scripts/contact_sheet.py", lambda p: [*sheet, "OUT.png"])
    check = [str(ROOT / "configs/rewards/fr_only.yaml"), "--image_path", "hr", "--resolution", "32", "--num_crops", "2", "--output"]
    of("a file of numbers", photographs, "scripts/validate_reward.py", lambda p: [*check, "OUT.json"])
    of(
        "a model folder",
        photographs,
        "studies/make_tiny_sd2.py",
        lambda p: ["--vae", f"{MODEL}/vae", "--manifest", MANIFEST, "--output_dir", "OUT"],
    )
    of(
        "a model folder",
        photographs,
        "studies/make_tiny_flux.py",
        lambda p: ["--vae", f"{MODEL}/vae", "--manifest", MANIFEST, "--output_dir", "OUT"],
    )


MANIFEST = str(ROOT / "configs/photographs.csv")
_add_files(_add_outputs())


@case(6, "`--output` is a folder", LABEL, refused("gt"))
def _(place):
    place.shared(candidates)
    return ["--candidates_dir", "candidates", "--reward_config", "nr_only", "--output", "gt"]


@case(6, "an image whose name has 250 bytes", FOLDERS, done(note="done"), refused("name|long"))
def _(place):
    place.images(f"in/{'n' * 246}.png", size=(16, 16))
    return command(place)


@case(6, "an image whose name has 120 letters, 245 bytes", TEST, done(there=(f"out/{'ä' * 120}.png",)), refused("name|long"))
def _(place):
    place.images(f"in/{'ä' * 120}.png")
    return command(place)


@case(6, "a `--suffix` that makes names too long", TEST, refused("name|long|suffix"))
def _(place):
    place.images(f"in/{'n' * 240}.png")
    return command(place, "--suffix", "_super_resolved")


@case(6, "a `--suffix` with a slash", TEST, refused("--suffix"))
def _(place):
    place.images("in/a.png")
    return command(place, "--suffix", "/../../b")


@case(6, "a ControlNet of another width", (TEST, GEN), refused("narrow"))
def _(place):
    place.images("in/a.png")
    return command(place, controlnet=narrow_controlnet(place))


@case(6, "a ControlNet of another width", TRAIN, refused("narrow"))
def _(place):
    place.shared(candidates)
    return [*TRAINING, *REWARD, "--controlnet_model_name_or_path", narrow_controlnet(place)]


@case(6, "a ControlNet of FLUX for SD2", TEST, refused("c-tiny-flux"))
def _(place):
    place.images("in/a.png")
    return command(place, controlnet=str(ROOT / "preset/models/c-tiny-flux"))


@case(6, "a base model for a ControlNet", TEST, refused("tiny-sd2"))
def _(place):
    place.images("in/a.png")
    return command(place, controlnet=MODEL)


@case(6, "a ControlNet's file that was cut short", TEST, refused("safetensors"))
def _(place):
    place.images("in/a.png")
    shutil.copytree(CONTROLNET, place.folder / "c")
    [file] = (place.folder / "c").glob("*.safetensors")
    file.write_bytes(file.read_bytes()[:100_000])
    return command(place, controlnet="c")


@case(6, "a text file for a ControlNet", TEST, refused("notes.txt"))
def _(place):
    place.images("in/a.png")
    return command(place, controlnet=place.text("notes.txt", "mine"))


def _model_copy(place, *without):
    shutil.copytree(MODEL, place.folder / "model", ignore=shutil.ignore_patterns(*without))
    argv = command(place)
    return ["model" if word == MODEL else word for word in argv]


@case(6, "a base model without its UNet's weights", TEST, refused("model/unet"))
def _(place):
    place.images("in/a.png")
    argv = _model_copy(place)
    for file in (place.folder / "model/unet").glob("*.safetensors"):
        file.unlink()
    return argv


@case(6, "a base model with a broken configuration", TEST, refused("model/vae"))
def _(place):
    place.images("in/a.png")
    argv = _model_copy(place)
    place.text("model/vae/config.json", "{")
    return argv


@case(6, "a base model without a tokenizer", TEST, refused("model/tokenizer"))
def _(place):
    place.images("in/a.png")
    return _model_copy(place, "tokenizer")


@case(6, "an empty folder for a base model", TEST, refused("empty"))
def _(place):
    place.images("in/a.png")
    place.path("empty/x").parent.mkdir(exist_ok=True)
    return ["empty" if word == MODEL else word for word in command(place)]


@case(6, "SD2 for the program of FLUX", FLUX, refused("tiny-sd2", "sd2|StableDiffusion"))
def _(place):
    place.images("in/a.png")
    return [*SAMPLE, "--image_path", "in", "--output_dir", "out"]


@case(6, "`--variant fp16` of a model that has none", TEST, refused("fp16"))
def _(place):
    place.images("in/a.png")
    return command(place, "--variant", "fp16")


@case(6, "a scheduler of diffusers that does not fit", TEST, refused("scheduler"))
def _(place):
    place.images("in/a.png")
    return command(place, "--scheduler", "ScoreSdeVpScheduler")


@case(6, "`--scheduler UNet2DConditionModel`", TEST, refused("scheduler"))
def _(place):
    place.images("in/a.png")
    return command(place, "--scheduler", "UNet2DConditionModel")


@case(6, "another autoencoder's folder that is none", TEST, refused("in"))
def _(place):
    place.images("in/a.png")
    return command(place, "--pretrained_vae_model_name_or_path", "in")


@case(
    6,
    "no `--conditioning_channels` for the tiny model",
    "scripts/train_controlnet.py",
    refused("--conditioning_channels"),
    done(there=("out/controlnet",)),
)
def _(place):
    place.shared(photographs)
    return controlnet_training(channels=False)


@case(6, "a ControlNet's checkpoint that was cut short", TEST, refused("checkpoint-1.pt"))
def _(place):
    place.images("in/a.png")
    return command(place, controlnet=place.text("checkpoint-1.pt", b"PK\3\4" + bytes(200)))


@case(6, "no such candidate folder", (LABEL, TRAIN, "scripts/inspect_preferences.py"), refused("nowhere"))
def _(place):
    if place.program == TRAIN:
        return [*TRAINING, *REWARD, "--candidates_dir", "nowhere"]
    return ["--candidates_dir", "nowhere", "--reward_config", "nr_only"]


@case(6, "a folder of images for a candidate folder", (LABEL, "scripts/inspect_rewards.py"), refused("in", "candidate"))
def _(place):
    place.images("in/a.png")
    return ["--candidates_dir", "in", *(["--output_dir", "out"] if "inspect" in place.program else [])]


@case(6, "a missing `--prompt_file`", TEST, refused("nowhere.json"))
def _(place):
    place.images("in/a.png")
    return command(place, "--prompt_file", "nowhere.json")


@case(6, "a text file for RAM's weights", TEST, refused("ram.pth"))
def _(place):
    place.images("in/a.png")
    place.text("ram_tag_list.txt", "tree\n")
    place.text("ram_tag_list_threshold.txt", "0.5\n")
    return command(place, "--ram_path", place.text("ram.pth", "mine"))


@case(6, "no wheel", "scripts/convert_brisque.py", refused("nowhere.whl"))
def _(place):
    return ["--wheel", "nowhere.whl", "--output", "b.safetensors"]


@case(6, "a wheel that is no archive", "scripts/convert_brisque.py", refused("b.whl"))
def _(place):
    return ["--wheel", place.text("b.whl", "mine"), "--output", "b.safetensors"]


@case(6, "the wheel of another package", "scripts/convert_brisque.py", refused("b.whl"))
def _(place):
    place.text("w/x.txt", "mine")
    shutil.make_archive(str(place.folder / "b"), "zip", place.folder / "w")
    (place.folder / "b.zip").rename(place.folder / "b.whl")
    return ["--wheel", "b.whl", "--output", "b.safetensors"]


@case(6, "no checkpoint", "scripts/convert_ram.py", refused("nowhere.pth"))
def _(place):
    return ["--ram_path", "nowhere.pth", "--output", "ram.safetensors"]


@case(6, "a checkpoint that is a text file", "scripts/convert_ram.py", refused("ram.pth"))
def _(place):
    place.text("ram_tag_list.txt", "tree\n")
    place.text("ram_tag_list_threshold.txt", "0.5\n")
    return ["--ram_path", place.text("ram.pth", "mine"), "--output", "ram.safetensors"]


@case(6, "no manifest", "scripts/fetch_photographs.py", refused("nowhere.csv"))
def _(place):
    return ["--manifest", "nowhere.csv", "--output_dir", "out", "--work_dir", "work"]


@case(6, "a manifest of other columns", "scripts/fetch_photographs.py", refused("mine.csv"))
def _(place):
    return ["--manifest", place.text("mine.csv", "shot,camera\n1,Canon\n"), "--output_dir", "out", "--work_dir", "work"]


@case(6, "no autoencoder", "studies/make_tiny_sd2.py", refused("nowhere"))
def _(place):
    return ["--vae", "nowhere", "--manifest", MANIFEST, "--output_dir", "out"]
