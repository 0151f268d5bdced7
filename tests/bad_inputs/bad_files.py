"""Cases: bad files."""

import functools
import json
import os
import re
import shutil

from bad_inputs.common import BASE, EVALUATE, FOLDERS, GEN, LABEL, PAIRS, TEST, candidates, case, command, methods, photographs
from bad_inputs.outcomes import done, refused
from bad_inputs.silence import broken_link, empty_file, link_to_itself


def text_as_jpeg(place):
    place.text("in/text.jpg", "this is no photograph")
    return r"text\.jpg"


def truncated_png(place):
    place.image("in/cut.png", size=(64, 64))
    path = place.folder / "in/cut.png"
    path.write_bytes(path.read_bytes()[:2000])
    return r"cut\.png"


def truncated_jpeg(place):
    place.image("in/short.jpg", size=(64, 64))
    path = place.folder / "in/short.jpg"
    path.write_bytes(path.read_bytes()[:-800])
    return r"short\.jpg"


def two_of_one_name(place):
    place.image("in/twin.png", size=(16, 16))
    place.image("in/twin.jpg", size=(16, 16))
    return r"twin\.(png|jpg)"


def named_pipe(place):
    os.mkfifo(place.path("in/pipe.png"))
    return r"pipe\.png"


def bomb(place):
    """A PNG of 400 bytes whose header promises 60,000 × 60,000 pixels."""
    import struct
    import zlib

    def chunk(name, data):
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
    place.text(
        "in/bomb.png", b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0" * 99)) + chunk(b"IEND", b"")
    )
    return r"bomb\.png"


BAD_FILES = {
    "a broken link": (broken_link, FOLDERS),
    "a link to itself": (link_to_itself, (TEST,)),
    "an empty file, `empty.png`": (empty_file, FOLDERS),
    "a text file named `text.jpg`": (text_as_jpeg, FOLDERS),
    "a truncated PNG": (truncated_png, FOLDERS),
    "a truncated JPEG": (truncated_jpeg, FOLDERS),
    "`twin.png` beside `twin.jpg`": (two_of_one_name, FOLDERS),
    "a PNG whose header promises 60,000 × 60,000 pixels": (bomb, (TEST, PAIRS)),
}


def _add_bad_files():
    def build(place, spoil):
        place.images("in/a.png", size=(16, 16))
        spoil(place)
        return command(place)

    for given, (spoil, programs) in BAD_FILES.items():
        name = {two_of_one_name: "twin"}.get(spoil) or re.search(r"in/(\w+)\.", "".join(map(str, spoil.__code__.co_consts)))[1]
        case(4, f"{given} among the images", programs, refused(name))(functools.partial(build, spoil=spoil))


_add_bad_files()


@case(4, "a named pipe, `pipe.png`, among the images", TEST, refused("pipe"), done("pipe"))
def _(place):
    place.images("in/a.png")
    named_pipe(place)
    return command(place)


ALL_BAD = (broken_link, empty_file, text_as_jpeg, truncated_png, two_of_one_name)
THEIR_NAMES = ("link", "empty", "text", "cut", "twin")


@case(4, "a broken link, an empty, a text, a truncated file and a twin", FOLDERS, refused(*THEIR_NAMES), process=PAIRS)
def _(place):
    place.images("in/a.png", size=(16, 16))
    for spoil in ALL_BAD:
        spoil(place)
    return command(place)


@case(
    4,
    "the same, `--skip_unreadable`",
    FOLDERS,
    done("empty", "text", "link", "cut", r"\b[4-6]\b", note="the others are done, the count is said"),
)
def _(place):
    place.images("in/a.png", "in/b.png", size=(16, 16))
    for spoil in ALL_BAD:
        spoil(place)
    return command(place, "--skip_unreadable")


@case(4, "unreadable images alone, `--skip_unreadable`", FOLDERS, refused("in|image"))
def _(place):
    empty_file(place)
    text_as_jpeg(place)
    return command(place, "--skip_unreadable")


@case(4, "macOS's `._a.png` beside `a.png`", FOLDERS, done(note="no image of its own"))
def _(place):
    place.images("in/a.png", size=(16, 16))
    place.text("in/._a.png", b"\0\x05\x16\x07" + bytes(60))
    return command(place)


@case(4, "a folder named `thumbs.png`", FOLDERS, done(note="no image"))
def _(place):
    place.images("in/a.png", size=(16, 16))
    place.path("in/thumbs.png/x").mkdir()
    return command(place)


@case(4, "two photographs below `--crop_size`", PAIRS, refused("small", "tiny", "--crop_size"))
def _(place):
    place.images("in/a.png", size=(64, 64))
    place.images("in/small.png", "in/tiny.png", size=(16, 16))
    return command(place, "--crop_size", "32")


@case(
    4,
    "two photographs below `--crop_size`, `--skip_unreadable`",
    PAIRS,
    done("small", "tiny", there=("out/lr/a_00.png",), note="said"),
    refused("small", "tiny", "--crop_size"),
)
def _(place):
    place.images("in/a.png", size=(64, 64))
    place.images("in/small.png", "in/tiny.png", size=(16, 16))
    return command(place, "--crop_size", "32", "--skip_unreadable")


@case(4, "no such folder", FOLDERS, refused("nowhere"))
def _(place):
    return command(place, given="nowhere")


@case(4, "an empty folder", FOLDERS, refused("in"))
def _(place):
    place.path("in/x").parent.mkdir(exist_ok=True)
    return command(place)


@case(4, "one file that is no image", FOLDERS, refused("notes.txt"))
def _(place):
    place.text("notes.txt", "a list")
    return command(place, given="notes.txt")


@case(4, "a manifest of which two files are gone", PAIRS, refused("gone", "lost"))
def _(place):
    place.images("in/a.png", size=(16, 16))
    place.text("in/manifest.csv", "file\na.png\ngone.png\nlost.png\n")
    return command(place, given="in/manifest.csv")


@case(4, "two broken GT images", LABEL, refused(r"a\.png", r"b\.png"))
def _(place):
    place.shared(candidates)
    (place.folder / "candidates/scores.parquet").unlink()
    place.text("gt/a.png", "no image")
    place.text("gt/b.png", "")
    place.text("psnr.yaml", "fr: [psnr]\nnr: []\n")
    return ["--candidates_dir", "candidates", "--gt_path", "gt", "--reward_config", "psnr.yaml"]


@case(4, "two broken SR images", "scripts/evaluate.py", refused("x/a", "y/b", writes=("out/scores.jsonl",)))
def _(place):
    place.shared(methods)
    place.text("x/a.png", "no image")
    place.text("y/b.png", "")
    return EVALUATE


@case(4, "a broken photograph", "scripts/validate_reward.py", refused(r"a\.png"))
def _(place):
    place.text("psnr.yaml", "fr: [psnr]\nnr: []\n")
    place.images("in/b.png", size=(64, 64))
    place.text("in/a.png", "no image")
    return ["psnr.yaml", "--image_path", "in", "--resolution", "32"]


def controlnet_training(*more, channels=True):
    sizes = ["--conditioning_channels", "8", "16", "32"] if channels else []
    run = ["--report_to", "none", "--dataloader_num_workers", "0", "--train_batch_size", "1", "--max_train_steps", "1"]
    run += ["--resolution", "32", "--window", "8"]
    return [*BASE, "--train_dir", "hr", "--output_dir", "out", *run, *sizes, *more]


@case(4, "two broken photographs", "scripts/train_controlnet.py", done("x.png", "y.png", "skipped", there=("out/controlnet",)))
def _(place):
    place.shared(photographs)
    place.text("hr/x.png", "no image")
    place.text("hr/y.png", "")
    return controlnet_training()


@case(4, "two broken photographs, with `--strict`", "scripts/train_controlnet.py", refused("x.png", "y.png"))
def _(place):
    place.shared(photographs)
    place.text("hr/x.png", "no image")
    place.text("hr/y.png", "")
    return controlnet_training("--strict")


@case(4, "a folder of shards of which one is cut short", "scripts/train_controlnet.py", done("b.tar", there=("out/controlnet",)))
def _(place):
    place.shared(photographs)
    shards_of(place)
    return controlnet_training("--train_dir", "shards")


@case(4, "the same with `--strict`", "scripts/train_controlnet.py", refused("b.tar"))
def _(place):
    place.shared(photographs)
    shards_of(place)
    return controlnet_training("--train_dir", "shards", "--strict")


@case(4, "compressed shards", "scripts/train_controlnet.py", refused("compressed", "a.tar.gz"))
def _(place):
    place.shared(photographs)
    return controlnet_training("--train_dir", "shards/a.tar.gz")


def shards_of(place):
    """`a.tar` with a photograph, and `b.tar` that breaks off within one."""
    import tarfile

    place.text("shards/a.tar", "")
    for name in ("a", "b"):
        with tarfile.open(place.folder / f"shards/{name}.tar", "w") as shard:
            shard.add(place.folder / "hr/p.png", f"{name}.png")
    whole = (place.folder / "shards/b.tar").read_bytes()
    (place.folder / "shards/b.tar").write_bytes(whole[:2000])


@case(4, "photographs smaller than `--resolution`", "scripts/train_controlnet.py", refused("p.png|--resolution"))
def _(place):
    place.shared(photographs)
    return controlnet_training("--resolution", "128")


VAE = ["--train_dir", "hr", "--val_dir", "hr", "--output_dir", "out", "--max_train_steps", "1", "--train_batch_size", "1"]


@case(4, "photographs smaller than `--resolution`", "studies/train_vae.py", refused("p.png|--resolution"))
def _(place):
    place.shared(photographs)
    return VAE


@case(4, "no such folder of photographs", "scripts/train_rank_metric.py", refused("nowhere"))
def _(place):
    return ["--train_dir", "nowhere", "--val_dir", "nowhere", "--output", "rank.safetensors"]


@case(4, "an archive that was cut short", "scripts/prepare_data.py", refused("set.zip"))
def _(place):
    place.images("set/test_LR/a.png", "set/test_HR/a.png", size=(64, 64))
    shutil.make_archive(str(place.folder / "set"), "zip", place.folder / "set")
    path = place.folder / "set.zip"
    path.write_bytes(path.read_bytes()[:-200])
    return ["RealSR", "--source", "set.zip", "--any_count"]


@case(4, "an image that is broken in an archive's folder", "scripts/prepare_data.py", refused("a.png"))
def _(place):
    place.text("set/test_LR/a.png", "no image")
    place.images("set/test_HR/a.png", size=(512, 512))
    return ["RealSR", "--source", "set", "--any_count"]


def settings_are(**wanted):
    """A check of a candidate folder's settings."""

    def check(folder):
        found = json.loads((folder / "out/settings.json").read_text(encoding="utf-8"))
        return "; ".join(f"{key} is {found.get(key)!r}, not {value!r}" for key, value in wanted.items() if found.get(key) != value)

    return check


def yaml_case(given, content, *outcomes, program=GEN, encoding="utf-8", more=(), process=False):
    def build(place):
        place.images("in/a.png")
        place.text("run.yaml", content, encoding)
        return command(place, "--config", "run.yaml", *more)

    case(5, given, program, *outcomes, process=program if process else None)(build)


yaml_case("`mixed_precision: no`", "mixed_precision: no\n", done(check=settings_are(mixed_precision="no"), note="fp32"))
yaml_case(
    "`negative_prompt: no`",
    "negative_prompt: no\n",
    done(check=settings_are(negative_prompt="no"), note="the prompt is the word"),
    more=("--guidance_scale", "1.5"),
)
yaml_case("`suffix: 001`", "suffix: 001\n", done(there=("out/a001.png",), note="`a001.png`"), program=TEST)
yaml_case("`suffix: 1e3`, `1_0` and other words that look like numbers", "suffix: 1_0\n", done(there=("out/a1_0.png",)), program=TEST)
yaml_case("`negative_prompt: ~`", "negative_prompt: ~\n", done(note="the default"))
yaml_case("a key that is given twice", "seed: 1\nbatch_size: 2\nseed: 2\n", refused("run.yaml", "seed", "twice|line 3"))
yaml_case("a YAML with a byte-order mark", "\ufeffseed: 7\n", done(check=settings_are(seed=7), note="read"))
yaml_case("a YAML in UTF-16", "seed: 7\n", done(check=settings_are(seed=7), note="read"), refused("run.yaml"), encoding="utf-16")
yaml_case("a YAML in Latin-1", "negative_prompt: fl\xe4chig\n", refused("run.yaml"), encoding="latin-1")
yaml_case("an unknown key that is near to none", "learning_rate: 1\n", refused("run.yaml", "learning_rate", never=("variant", "nearest")))
