"""Cases: yaml and flags."""

import functools
import re

from bad_inputs.bad_files import VAE, controlnet_training, settings_are, yaml_case
from bad_inputs.common import (
    EVALUATE,
    GEN,
    LABEL,
    PAIRS,
    REWARD,
    TEST,
    TRAIN,
    TRAINING,
    candidates,
    case,
    command,
    large_photographs,
    methods,
    photographs,
    sr_results,
)
from bad_inputs.outcomes import ROOT, done, refused
from bad_inputs.silence import _tags_are_used

yaml_case("a misspelt key", "gudance_scale: 1\n", refused("gudance_scale", "guidance_scale"))
yaml_case("`batch_size: many`", "batch_size: many\n", refused("batch_size", "many"))
yaml_case("`num_inference_steps: 1.5`", "num_inference_steps: 1.5\n", refused("num_inference_steps", r"1\.5"))
yaml_case("a list for one value", "seed: [1, 2]\n", refused("seed"))
yaml_case("a mapping for one value", "seed: {a: 1}\n", refused("seed"))
yaml_case("a tab for indentation", "seed: 1\n\tbatch_size: 2\n", refused("run.yaml", "line"))
yaml_case("a YAML that is a list", "- seed\n- 1\n", refused("run.yaml"))
yaml_case("a YAML that is a word", "seed\n", refused("run.yaml"))
yaml_case("an empty YAML", "", done(check=settings_are(seed=0), note="no settings"))
yaml_case("`align_method: Wavelet`", "align_method: Wavelet\n", refused("align_method", "wavelet"))
yaml_case("`save_prompts: 1` for a switch", "save_prompts: 1\n", refused("save_prompts", "true"), program=TEST)


@case(5, '`overwrite: "false"`, earlier results of other settings', TEST, refused("--overwrite"))
def _(place):
    place.shared(sr_results)
    place.text("run.yaml", 'overwrite: "false"\nseed: 1\n')
    return command(place, "--config", "run.yaml")


@case(5, "`--conf run.yaml`, an abbreviation", GEN, refused("--conf"), process=GEN)
def _(place):
    place.images("in/a.png")
    place.text("run.yaml", "seed: 1\n")
    return command(place, "--conf", "run.yaml")


@case(5, "`--config` is a folder", GEN, refused("in"))
def _(place):
    place.images("in/a.png")
    return command(place, "--config", "in")


@case(5, "`--config` is a photograph", GEN, refused("a.png"))
def _(place):
    place.images("in/a.png")
    return command(place, "--config", "in/a.png")


@case(5, "`--config` is missing", GEN, refused("nowhere.yaml"))
def _(place):
    place.images("in/a.png")
    return command(place, "--config", "nowhere.yaml")


@case(5, "a manifest with Excel's byte-order mark", PAIRS, done(there=("out/lr/a.png",), note="read"))
def _(place):
    place.images("in/a.png", size=(16, 16))
    place.text("in/manifest.csv", "\ufefffile,width\na.png,16\n")
    return command(place, given="in/manifest.csv")


@case(5, "a manifest with semicolons, as Excel writes it in many countries", PAIRS, refused("manifest.csv"), done(there=("out/lr/a.png",)))
def _(place):
    place.images("in/a.png", size=(16, 16))
    place.text("in/manifest.csv", "file;width\na.png;16\n")
    return command(place, given="in/manifest.csv")


@case(5, "a manifest without a column `file`", PAIRS, refused("manifest.csv", "file"))
def _(place):
    place.images("in/a.png", size=(16, 16))
    place.text("in/manifest.csv", "name,width\na.png,16\n")
    return command(place, given="in/manifest.csv")


def prompts_case(given, content, *outcomes, encoding="utf-8"):
    def build(place):
        place.images("in/a.png")
        place.text("prompts.json", content, encoding)
        return command(place, "--prompt_file", "prompts.json", "--save_prompts")

    case(5, given, TEST, *outcomes)(build)


prompts_case("prompts with a byte-order mark", '\ufeff{"a": "a tree"}', done(check=_tags_are_used, note="read"))
prompts_case("prompts in UTF-16", '{"a": "a tree"}', done(check=_tags_are_used, note="read"), refused("prompts.json"), encoding="utf-16")
prompts_case("prompts that are a list", '["a tree"]', refused("prompts.json"))
prompts_case("prompts that are no JSON", "a: a tree", refused("prompts.json"))
prompts_case("prompts that are numbers", '{"a": 3}', refused("prompts.json"))
prompts_case("prompts that name an image twice", '{"a": "a house", "a": "a tree"}', refused("prompts.json", "a"))


def reward_case(given, content, *outcomes):
    def build(place):
        place.shared(candidates)
        place.text("reward.yaml", content)
        return ["--candidates_dir", "candidates", "--reward_config", "reward.yaml", "--top_n", "1"]

    case(5, given, "scripts/inspect_preferences.py", *outcomes)(build)


reward_case("a reward with a key given twice", "fr: [gmsd]\nnr: []\nfr: [piqe]\n", refused("reward.yaml", "fr|line 3"))
reward_case("a reward with a byte-order mark", "\ufefffr: [gmsd]\nnr: []\n", done("winners", note="read"))
reward_case("a reward with a metric for a list, `fr: gmsd`", "fr: gmsd\nnr: []\n", refused("reward.yaml", "fr"))
reward_case('a reward with `fr_weight: "0.5"`', 'fr: [gmsd]\nnr: [piqe]\nfr_weight: "0.5"\n', refused("reward.yaml", "fr_weight"))
reward_case("a reward with a misspelt key", "fr: [gmsd]\nnr: []\nwieghts: {gmsd: 2}\n", refused("wieghts", "weights"))
reward_case("a reward of nothing", "fr: []\nnr: []\n", refused("reward.yaml"))
reward_case("a reward with `weights: {gmsd: .nan}`", "fr: [gmsd]\nnr: []\nweights: {gmsd: .nan}\n", refused("reward.yaml", "weights"))


@case(5, "a degradation with a misspelt key", PAIRS, refused("mine.yaml", "scael"))
def _(place):
    place.images("in/a.png", size=(16, 16))
    text = (ROOT / "configs/degradation/bicubic.yaml").read_text(encoding="utf-8")
    place.text("mine.yaml", re.sub(r"(?m)^scale", "scael", text))
    return ["--image_path", "in", "--output_dir", "out", "--degradation", "mine.yaml"]


ABSURD = {
    TEST: [
        ("--upscale", "nan"), ("--upscale", "0"), ("--upscale", "-1"), ("--upscale", "inf"), ("--upscale", "1e-9"), ("--seed", "-1"),
        ("--seed", "1e99"), ("--num_inference_steps", "0"), ("--num_inference_steps", "100000"), ("--guidance_scale", "nan"),
        ("--batch_size", "0"), ("--batch_size", "1e99"), ("--tile_size", "0"), ("--tile_size", "1"), ("--tile_overlap", "-1"),
        ("--vae_tile_size", "0"), ("--sample_times", "0"), ("--process_size", "0"), ("--process_size", "nan"),
    ],
    GEN: [("--num_candidates", "0"), ("--num_candidates", "1000000000000"), ("--max_images", "0"), ("--control_scale", "nan")],
    PAIRS: [
        ("--crop_size", "nan"), ("--crop_size", "-4"), ("--crop_size", "6"), ("--crops_per_image", "0"), ("--min_detail", "nan"),
        ("--num_workers", "0"),
    ],
    TRAIN: [
        ("--learning_rate", "nan"), ("--learning_rate", "inf"), ("--beta", "nan"), ("--beta", "1e999"), ("--top_n", "0"), ("--top_n", "2"),
        ("--max_train_steps", "0"), ("--guidance_scale", "nan"), ("--max_grad_norm", "nan"), ("--adam_weight_decay", "inf"),
        ("--seed", "99999999999999999999999999"), ("--num_candidates", "99"), ("--label_smoothing", "0.9"), ("--lora_rank", "-1"),
    ],
    "scripts/train_controlnet.py": [
        ("--full_window_share", "nan"), ("--adam_weight_decay", "nan"), ("--learning_rate", "nan"), ("--learning_rate", "-1"),
        ("--lr_scheduler", "cosin"), ("--drop_share", "2"), ("--image_weight", "nan"), ("--conditioning_channels", "0"),
        ("--lr_warmup_steps", "-5"), ("--window", "999"),
    ],
    "studies/train_vae.py": [("--learning_rate", "nan"), ("--kl_weight", "nan"), ("--block_out_channels", "0"), ("--resolution", "33")],
}  # fmt: skip


def _add_absurd():
    def build(place, flag, value):
        if place.program in (TEST, GEN, PAIRS):
            place.images("in/a.png", size=(16, 16))
            crop = ["--crop_size", "16"] if flag in ("--crops_per_image", "--min_detail") else []
            return command(place, *crop, flag, value)
        if place.program == TRAIN:
            place.shared(candidates)
            return [*TRAINING, *REWARD, flag, value]
        place.shared(photographs if "controlnet" in place.program else large_photographs)
        return [*(controlnet_training() if "controlnet" in place.program else [*VAE, "--resolution", "32"]), flag, value]

    for program, flags in ABSURD.items():
        for flag, value in flags:
            case(5, f"`{flag} {value}`", program, refused(flag))(functools.partial(build, flag=flag, value=value))


_add_absurd()


@case(5, "an unknown flag near a known one", LABEL, refused("--reward_confg", "--reward_config"))
def _(place):
    return ["--candidates_dir", "x", "--reward_confg", "embedded"]


@case(5, "`--zoom 0`", "scripts/contact_sheet.py", refused("--zoom"))
def _(place):
    place.shared(candidates)
    return ["--candidates", "x=candidates", "--gt_path", "gt", "--output", "sheet.png", "--zoom", "0"]


@case(5, "`--columns 0`", "scripts/contact_sheet.py", refused("--columns"))
def _(place):
    place.shared(candidates)
    return ["--candidates", "x=candidates", "--gt_path", "gt", "--output", "sheet.png", "--columns", "0"]


@case(5, "two folders of one title", "scripts/contact_sheet.py", refused("--candidates", "'x' is given twice"))
def _(place):
    place.shared(candidates)
    return ["--candidates", "x=candidates", "x=candidates", "--gt_path", "gt", "--output", "sheet.png"]


@case(5, "`--top_n 0`", "scripts/inspect_preferences.py", refused("--top_n"))
def _(place):
    place.shared(candidates)
    return ["--candidates_dir", "candidates", *REWARD, "--top_n", "0"]


@case(5, "`--num_candidates -1`", "scripts/inspect_preferences.py", refused("--num_candidates"))
def _(place):
    place.shared(candidates)
    return ["--candidates_dir", "candidates", *REWARD, "--top_n", "1", "--num_candidates", "-1"]


@case(5, "`--memory_limit -1`", LABEL, refused("--memory_limit"))
def _(place):
    place.shared(candidates)
    return ["--candidates_dir", "candidates", "--reward_config", "nr_only", "--memory_limit", "-1"]


@case(5, "`--sizes 64`, of two candidates", "scripts/suggest_nm.py", refused("--sizes|64"))
def _(place):
    place.shared(candidates)
    return [*TRAINING, *REWARD, "--sizes", "64"]


@case(5, "`--bootstrap 0`", "scripts/evaluate.py", refused("--bootstrap"))
def _(place):
    place.shared(methods)
    return [*EVALUATE, "--bootstrap", "0"]


@case(5, "`--crop_suffix '['`", "scripts/evaluate.py", refused("--crop_suffix"))
def _(place):
    place.shared(methods)
    return [*EVALUATE, "--crop_suffix", "["]


@case(5, "`--center_crop` larger than the images", "scripts/evaluate.py", refused("--center_crop", writes=("out/scores.jsonl",)))
def _(place):
    place.shared(methods)
    return [*EVALUATE, "--center_crop", "64"]


NOWHERE = {"a file": "file", "below a file": "file/x", "below /proc": "/proc/x"}
