"""Cases: metrics and names."""

import shutil

import numpy as np
import pytest
from PIL import Image

from bad_inputs.common import EVALUATE, GEN, LABEL, REWARD, TEST, TRAIN, TRAINING, candidates, case, command, methods, photographs, scored
from bad_inputs.going_on import INSPECT
from bad_inputs.outcomes import done, refused
from bad_inputs.place import Place


@case(10, "a column added to the scores with pandas", "scripts/inspect_preferences.py", done("winners", note="read"))
def _(place):
    pandas = pytest.importorskip("pandas")
    place.shared(candidates)
    path = place.folder / "candidates/scores.parquet"
    frame = pandas.read_parquet(path)
    frame["mine"] = np.arange(len(frame)) / 10
    frame.to_parquet(path)
    return INSPECT


@case(10, "a score table that was cut short", ("scripts/inspect_preferences.py", TRAIN, LABEL), refused("scores.parquet"))
def _(place):
    place.shared(candidates)
    path = place.folder / "candidates/scores.parquet"
    path.write_bytes(path.read_bytes()[:300])
    if place.program == TRAIN:
        return [*TRAINING, *REWARD]
    return INSPECT if "inspect" in place.program else ["--candidates_dir", "candidates", "--reward_config", "nr_only"]


@case(10, "scores of other candidates", "scripts/inspect_preferences.py", refused("candidates"))
def _(place):
    place.shared(scored)
    place.run(*command(Place(place.folder, GEN), "--seed", "1", into="other"), program=GEN)
    shutil.copy(place.folder / "candidates/scores.parquet", place.folder / "other/scores.parquet")
    return ["--candidates_dir", "other", "--reward_config", "nr_only", "--top_n", "1"]


@case(10, "scores of a group that was made anew since", "scripts/inspect_preferences.py", refused("a"), done("a"))
def _(place):
    place.shared(scored)
    place.image("in/a.png", seed="new")
    shutil.rmtree(place.folder / "candidates/groups/a")
    place.run(*command(Place(place.folder, GEN), into="candidates"), program=GEN)
    return ["--candidates_dir", "candidates", "--reward_config", "nr_only", "--top_n", "1"]


@case(10, "a NaN score", "scripts/inspect_preferences.py", done("NaN", r"\ba\b", note="said"))
def _(place):
    from dp2osr.rewards.table import read_columns, write_scores

    place.shared(candidates)
    path = place.folder / "candidates/scores.parquet"
    columns, metadata = read_columns(path)
    columns = {name: values.copy() for name, values in columns.items()}
    columns["gmsd"][0] = np.nan
    write_scores(path, columns, metadata)
    return INSPECT


@case(10, "`nr: [brisque]` and no network", LABEL, refused("brisque", "parameters"))
def _(place):
    place.shared(candidates)
    (place.folder / "candidates/scores.parquet").unlink()
    place.text("mine.yaml", "fr: []\nnr: [brisque]\n")
    place.path("weights").mkdir()
    return ["--candidates_dir", "candidates", "--reward_config", "mine.yaml", "--metrics_dir", "weights"]


@case(10, "a metric that is misspelt", LABEL, refused("psnrr", "psnr"))
def _(place):
    place.shared(candidates)
    return ["--candidates_dir", "candidates", "--reward_config", "nr_only", "--extra_metrics", "psnrr"]


@case(10, "a metric that is misspelt", "scripts/fetch_metrics.py", refused("musik"))
def _(place):
    place.text("mine.yaml", "fr: []\nnr: [musik]\n")
    return ["--reward_config", "mine.yaml", "--metrics_dir", "weights"]


@case(10, "no network", "scripts/fetch_metrics.py", refused("musiq"))
def _(place):
    place.text("mine.yaml", "fr: []\nnr: [musiq]\n")
    return ["--reward_config", "mine.yaml", "--metrics_dir", "weights"]


@case(10, "a reward that is misspelt", "scripts/validate_reward.py", refused("embeded", "embedded"))
def _(place):
    return ["embeded"]


@case(10, "FR metrics without `--gt_path`", LABEL, refused("--gt_path"))
def _(place):
    place.shared(candidates)
    return ["--candidates_dir", "candidates", "--reward_config", "fr_only"]


PSNR = ["--candidates_dir", "candidates", "--gt_path", "gt", "--reward_config", "psnr.yaml"]


def _to_score(place):
    place.shared(candidates)
    (place.folder / "candidates/scores.parquet").unlink()
    place.text("psnr.yaml", "fr: [psnr]\nnr: []\n")


@case(10, "GT of another size", LABEL, refused("a.png", "20 x 20|20 × 20", "16 x 16|16 × 16"))
def _(place):
    _to_score(place)
    place.image("gt/a.png", size=(20, 20))
    return PSNR


@case(
    10, "the second GT has another size", LABEL, refused("b.png", "20 x 20|20 × 20", writes=("candidates/scores.parquet.parts/a.parquet",))
)
def _(place):
    _to_score(place)
    place.image("gt/b.png", size=(20, 20))
    return PSNR


@case(10, "no GT of either image", LABEL, refused(r"\ba\b", r"\bb\b"))
def _(place):
    _to_score(place)
    shutil.rmtree(place.folder / "gt")
    place.image("gt/c.png", size=(16, 16))
    return PSNR


@case(10, "no GT of one image", ("scripts/contact_sheet.py", "scripts/inspect_rewards.py"), refused(r"\bb\b", "gt"))
def _(place):
    place.shared(candidates)
    (place.folder / "gt/b.png").unlink()
    if "contact" in place.program:
        return ["--candidates", "x=candidates", "--gt_path", "gt", "--output", "sheet.png"]
    return ["--candidates_dir", "candidates", *REWARD, "--gt_path", "gt", "--output_dir", "out"]


@case(10, "candidate folders of other images", "scripts/contact_sheet.py", refused("b|other"))
def _(place):
    place.shared(candidates)
    place.image("lr/a.png", seed="in/a.png")
    place.run(*command(Place(place.folder, GEN), given="lr", into="other"), program=GEN)
    return ["--candidates", "x=candidates", "y=other", "--gt_path", "gt", "--output", "sheet.png"]


@case(10, "a score table that is missing", "scripts/inspect_rewards.py", refused("scores.parquet", "label_rewards"))
def _(place):
    place.shared(candidates)
    (place.folder / "candidates/scores.parquet").unlink()
    return ["--candidates_dir", "candidates", *REWARD, "--output_dir", "out"]


@case(10, "SR images without GT, and GT without SR images", "scripts/evaluate.py", refused(r"\bc\b", r"\bd\b"))
def _(place):
    place.shared(methods)
    place.image("x/c.png", size=(32, 32))
    place.image("gt/d.png", size=(32, 32))
    return EVALUATE


@case(10, "SR images of other sizes", "scripts/evaluate.py", refused("x/a.png", "y/b.png", writes=("out/scores.jsonl",)))
def _(place):
    place.shared(methods)
    place.image("x/a.png", size=(30, 32))
    place.image("y/b.png", size=(16, 16))
    return EVALUATE


def _suffixed(place):
    place.shared(methods)
    for name in "ab":
        (place.folder / f"x/{name}.png").rename(place.folder / f"x/{name}_sr.png")


@case(10, "SR images with a suffix, `a_sr.png`", "scripts/evaluate.py", refused("--suffix"), done(there=("out/table.md",)))
def _(place):
    _suffixed(place)
    return EVALUATE


@case(10, "SR images with a suffix, `--suffix _sr`", "scripts/evaluate.py", done(there=("out/table.md",), note="paired"))
def _(place):
    _suffixed(place)
    return [*EVALUATE, "--suffix", "_sr"]


@case(10, "a folder given twice", "scripts/evaluate.py", refused("twice"))
def _(place):
    place.shared(methods)
    return ["--images", "x=x", "x=./x", *EVALUATE[3:]]


@case(10, "`--images x`, not NAME=DIR", "scripts/evaluate.py", refused("NAME=DIR|--images"))
def _(place):
    place.shared(methods)
    return ["--images", "x", *EVALUATE[3:]]


@case(10, "a name with a line break in `--images`", "scripts/evaluate.py", done(there=("out/table.md",)), refused("--images"))
def _(place):
    place.shared(methods)
    return ["--images", "x|\ny=x", *EVALUATE[3:]]


STUDY = ["make", "--images", "x=x", "y=y", "--lr_path", "lr", "--output", "page.html"]


@case(10, "one method", "scripts/user_study.py", refused("--images", "2"))
def _(place):
    place.shared(methods)
    return [*STUDY[:3], *STUDY[4:]]


@case(10, "a method without one of the images", "scripts/user_study.py", refused(r"\bb\b"))
def _(place):
    place.shared(methods)
    (place.folder / "y/b.png").unlink()
    return STUDY


@case(10, "no LR images", "scripts/user_study.py", refused("lr"))
def _(place):
    place.shared(methods)
    shutil.rmtree(place.folder / "lr")
    return STUDY


def _votes(place, content):
    place.shared(methods)
    place.run(*STUDY)
    return ["count", "--key", "page.key.json", place.text("votes.json", content)]


@case(10, "votes that are no JSON", "scripts/user_study.py", refused("votes.json"))
def _(place):
    return _votes(place, "first")


@case(10, "votes of another study", "scripts/user_study.py", refused("votes.json"))
def _(place):
    return _votes(place, '{"study": "other", "participant": "p", "votes": {}}')


@case(10, "votes that are a list", "scripts/user_study.py", refused("votes.json"))
def _(place):
    return _votes(place, "[1, 2]")


@case(10, "no key", "scripts/user_study.py", refused("nowhere"))
def _(place):
    return ["count", "--key", "nowhere.key.json", place.text("votes.json", "{}")]


@case(10, "LR and HR images without their other halves", "scripts/prepare_data.py", refused("a|b"))
def _(place):
    place.images("set/test_LR/a.png", size=(128, 128))
    place.images("set/test_HR/b.png", size=(512, 512))
    return ["RealSR", "--source", "set", "--any_count"]


@case(10, "HR images that are not four times their LR images", "scripts/prepare_data.py", refused("a.png", "4 times|4"))
def _(place):
    place.images("set/test_LR/a.png", size=(128, 128))
    place.images("set/test_HR/a.png", size=(500, 512))
    return ["RealSR", "--source", "set", "--any_count"]


@case(
    10,
    "a manifest of other files to compare with",
    "scripts/prepare_data.py",
    refused("other.csv", "a.png|p.png", writes=("hr/manifest.csv",)),
)
def _(place):
    place.shared(photographs)
    place.text("other.csv", "file,width,height,sha256\na.png,1,1,00\n")
    return ["HR", "--source", "hr", "--min_side", "8", "--manifest", "other.csv"]


def is_image(name, size, mode=None, near=None, tolerance=45):
    """A check of a result: its size, mode, and mean colour, which adain takes from the LR."""

    def check(folder):
        image = Image.open(folder / name)
        if image.size != size or mode and image.mode != mode:
            return f"{name}: {image.size} {image.mode}, not {size} {mode or ''}"
        if near is None:
            return ""
        mean = np.asarray(image.convert("RGB"), float).mean((0, 1))
        return "" if np.abs(mean - near).max() <= tolerance else f"{name}: mean colour {mean.round()}, not {near}"

    return check


def odd_image(given, save, size=(16, 16), mode="RGB", near=None, name="a.png", program=TEST):
    def build(place):
        save(place.path(f"in/{name}"))
        return command(place)

    case(10, given, program, done(check=is_image("out/a.png", size, mode, near), note="right in size and colour"))(build)


RED = (200, 60, 60)
