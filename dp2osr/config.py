"""Flags from the command line and from a YAML: the command line overrides, an unknown key is an error."""

import argparse
import difflib
import json
import math
import os
import re
import socket
import sys
from pathlib import Path

import yaml

from dp2osr.errors import UserError


def at_least(least, kind=int):
    """An argparse type: a number of `kind` that is not below `least`."""

    def read(word):
        value = kind(word)
        if not value >= least:
            raise argparse.ArgumentTypeError(f"must be at least {least}, not {word}")
        return value

    read.__name__ = kind.__name__  # argparse names it where the word is no number at all
    return read


def positive(word):
    """An argparse type: a finite number above 0."""
    if not 0 < float(word) < math.inf:
        raise argparse.ArgumentTypeError(f"must be a finite number above 0, not {word}")
    return float(word)


def regular_expression(word):
    """An argparse type: a regular expression, as it is written."""
    try:
        re.compile(word)
    except re.error as error:
        raise argparse.ArgumentTypeError(f"{word!r} is not a regular expression ({error})") from None
    return word


def finite(word):
    """An argparse type: a finite number."""
    if not math.isfinite(float(word)):
        raise argparse.ArgumentTypeError(f"must be a finite number, not {word}")
    return float(word)


def named_folder(word, flag, example):
    """(name, Path) of `NAME=DIR`; `UserError`, which names `flag` and shows an `example`, where it is not of that form."""
    name, equals, folder = word.partition("=")
    if not (name and equals and folder):
        raise UserError(f"{flag} {word}: not of the form NAME=DIR; write for example {example}")
    return name, Path(folder)


MODEL_FLAGS = argparse.ArgumentParser(add_help=False)
MODEL_FLAGS.add_argument("--pretrained_model_name_or_path", required=True, help="base model: a diffusers folder or hub id")
MODEL_FLAGS.add_argument("--variant", help="read the base model's weights from files of this variant, as fp16 in *.fp16.safetensors")
MODEL_FLAGS.add_argument("--revision", help="branch, tag or commit of a base model on a hub")
MODEL_FLAGS.add_argument("--pretrained_vae_model_name_or_path", help="autoencoder from this folder or hub id (default: the base's own)")
MODEL_FLAGS.add_argument("--tokenizer_name", help="CLIP tokenizer from this folder or hub id (default: the base's own)")
MODEL_FLAGS.add_argument("--backbone", choices=["sd2", "flux"], help="what the base model must be (default: what its folder says)")
MODEL_FLAGS.add_argument("--mixed_precision", default="no", choices=["no", "fp16", "bf16"], help="compute precision (default: %(default)s)")
MODEL_FLAGS.add_argument("--seed", type=int, default=0, help="run seed: all randomness follows from it (default: %(default)s)")

SAMPLING_FLAGS = argparse.ArgumentParser(add_help=False)
SAMPLING_FLAGS.add_argument(
    "--controlnet_model_name_or_path",
    required=True,
    help="ControlNet: a diffusers folder, one safetensors file, or the checkpoint-STEP.pt of a training",
)
SAMPLING_FLAGS.add_argument("--num_inference_steps", type=at_least(1), default=50, help="denoising steps (default: %(default)s)")
SAMPLING_FLAGS.add_argument(
    "--guidance_scale",
    type=finite,
    default=3.5,
    help="classifier-free guidance; 1 switches it off and halves the time (default: %(default)s)",
)
SAMPLING_FLAGS.add_argument(
    "--scheduler",
    help="SD2: ddpm, ddim, euler, euler_ancestral, dpm, unipc; FLUX: flow_euler, flow_heun; or any diffusers scheduler class that fits "
    "(default: ddpm; flow_euler)",
)
SAMPLING_FLAGS.add_argument(
    "--align_method",
    default="adain",
    choices=["adain", "wavelet", "nofix"],
    help="colour fix against the upsampled LR (default: %(default)s)",
)
SAMPLING_FLAGS.add_argument(
    "--prompt_source",
    choices=["ram", "file", "none"],
    help="ram: tags of the LR image by --ram_path; file: tags from --prompt_file; none: empty prompts "
    "(default: the one whose path is given, else none)",
)
SAMPLING_FLAGS.add_argument("--ram_path", help="RAM: ram_swin_large_14m.pth, or the file that scripts/convert_ram.py made of it")
SAMPLING_FLAGS.add_argument("--dape_path", help="DAPE.pth, RAM's update for degraded images; not needed where it is merged")
SAMPLING_FLAGS.add_argument("--prompt_file", help="JSON {image id: tags}, with --prompt_source file")
SAMPLING_FLAGS.add_argument(
    "--negative_prompt", default="dotted, noise, blur, lowres, smooth", help="used where guidance is on (default: '%(default)s')"
)
SAMPLING_FLAGS.add_argument(
    "--batch_size",
    type=at_least(1),
    default=8,
    help="samples of the model's own size denoised together, on each process; of larger images as many as have the same pixels "
    "(default: %(default)s)",
)

SAMPLING_FLAGS.add_argument(
    "--enable_xformers_memory_efficient_attention",
    action="store_true",
    help="attention by xformers, which must be installed; without it PyTorch's own memory-efficient attention is used",
)
SAMPLING_FLAGS.add_argument("--control_scale", type=finite, default=1.0, help="factor on what the ControlNet adds (default: %(default)s)")
SAMPLING_FLAGS.add_argument(
    "--tile_size", type=at_least(1), help="larger images are denoised in tiles of this side, pixels (default: 1.5 times the model's size)"
)
SAMPLING_FLAGS.add_argument(
    "--tile_overlap", type=at_least(0), help="least overlap of neighbouring tiles, pixels (default: a third of the tile)"
)
SAMPLING_FLAGS.add_argument(
    "--vae_tile_size",
    type=at_least(1),
    help="larger images are encoded and decoded in tiles of this side, pixels (default: twice the model's size)",
)

TIMESTEP_FLAGS = argparse.ArgumentParser(add_help=False)
TIMESTEP_FLAGS.add_argument(
    "--timestep_sampling",
    choices=["logit_normal", "uniform"],
    default="logit_normal",
    help="FLUX: density of the training timesteps σ; those of SD2 are uniform (default: %(default)s)",
)
TIMESTEP_FLAGS.add_argument("--logit_mean", type=finite, default=0.0, help="of logit(σ); above 0: more noise (default: %(default)s)")
TIMESTEP_FLAGS.add_argument("--logit_std", type=positive, default=1.0, help="its standard deviation (default: %(default)s)")


def timestep_options(args):
    """The values of `TIMESTEP_FLAGS` as arguments of a backbone's `draw_timesteps`."""
    return {name: getattr(args, name) for name in ("timestep_sampling", "logit_mean", "logit_std")}


RESTORE_FLAGS = argparse.ArgumentParser(add_help=False)
RESTORE_FLAGS.add_argument("--image_path", required=True, help="folder of LR images, or one image, of any size")
RESTORE_FLAGS.add_argument(
    "--output_dir", required=True, help="gets <stem>.png, or <stem>_00.png, ... where several are asked for; run again to go on"
)
RESTORE_FLAGS.add_argument("--upscale", type=positive, default=1, help="size of the result over size of the input (default: %(default)s)")
RESTORE_FLAGS.add_argument(
    "--process_size", type=at_least(1), help="inputs with a smaller side are enlarged to it first, pixels (default: the model's)"
)
RESTORE_FLAGS.add_argument(
    "--sample_times", type=at_least(1), default=1, help="samples an image, each from its own seed (default: %(default)s)"
)
RESTORE_FLAGS.add_argument("--suffix", default="", help="appended to the stem of every result (default: none)")
RESTORE_FLAGS.add_argument("--save_prompts", action="store_true", help="also write each image's tags to <output_dir>/txt/<stem>.txt")
RESTORE_FLAGS.add_argument("--overwrite", action="store_true", help="do again what is there, also with other settings")


def parse_args(parser, argv=None):
    """`parser.parse_args` with `--config YAML`, whose keys are the flags' names; one line and exit code 2 on a mistake.

    Raises:
        UserError: unreadable YAML, or a key that is no flag of this script (the nearest one is named).
    """
    parser.add_argument("--config", help="YAML that sets any flag above; the command line overrides it")
    parser.error = lambda message: (print(f"error: {message} (see --help)", file=sys.stderr), sys.exit(2))
    argv = sys.argv[1:] if argv is None else list(argv)
    config = known_config(argv)
    if config:
        argv = flags_of(parser, config) + argv
    return parser.parse_args(argv)


def known_config(argv):
    """The value of `--config` in `argv`, or None."""
    finder = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    finder.add_argument("--config")
    return finder.parse_known_args(argv)[0].config


def flags_of(parser, path):
    """The YAML at `path` as command-line words for `parser`."""
    try:
        settings = yaml.safe_load(Path(path).read_text(encoding="utf-8")) or {}
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise UserError(f"{path}: not a readable YAML of settings ({str(error).splitlines()[0]})") from None
    if not isinstance(settings, dict):
        raise UserError(f"{path}: must be a list of 'flag: value' lines")
    return words_of(parser, settings, path)


def words_of(parser, settings, where):
    """{flag: value} as command-line words for `parser`; UserError, which names `where` they are from, for an unknown flag."""
    actions = {action.dest: action for action in parser._actions if action.option_strings and action.dest != "help"}
    words = []
    for key, value in settings.items():
        if key not in actions:
            near = difflib.get_close_matches(str(key), actions, n=1, cutoff=0)
            raise UserError(f"{where}: unknown setting '{key}'; the nearest known one is '{near[0]}'")
        option = actions[key].option_strings[-1]
        if actions[key].nargs == 0:  # a switch
            words += [option] if value else []
        elif isinstance(value, list):
            words += [option, *map(str, value)]
        elif value is not None:
            words.append(f"{option}={value}")
    return words


def read_json(path):
    """Contents of a JSON file; UserError if it is missing or broken."""
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise UserError(f"{path}: not a readable JSON file ({error})") from None


def write_json(path, content):
    """Write beside, then rename; several processes may write the same file, the last one stands."""
    path = Path(path)
    part = path.with_name(f".{path.name}.{socket.gethostname()}-{os.getpid()}.part")
    part.write_text(json.dumps(content, indent=2, ensure_ascii=False, default=str) + "\n", encoding="utf-8")
    part.replace(path)


def write_text(path, text):
    """Write beside, then rename: the file is whole or as it was."""
    part = Path(path).with_name(f".{Path(path).name}.part")
    part.write_text(text, encoding="utf-8")
    part.replace(path)


def settle(path, settings, told=(), force=False):
    """Write a run's `settings` to the JSON at `path`, or check that the run already there has the same.

    Keys in `told` are written and not compared: where a model lies does not matter, its hash does. With `force` other settings are
    shown and replace those that were there.

    Raises:
        UserError: the run there was made with other settings; both values are shown.
    """
    settings = json.loads(json.dumps(settings, default=str))
    path = Path(path)
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, settings)
        return
    found = read_json(path)
    keys = [key for key in {**found, **settings} if key not in told and found.get(key) != settings.get(key)]
    differing = [f"{key} is {found.get(key)!r} there and {settings.get(key)!r} here" for key in keys]
    if differing and force:
        print(f"warning: {path.parent}: goes on with other settings ({'; '.join(differing)})", file=sys.stderr)
        write_json(path, settings)
    elif differing:
        raise UserError(f"{path.parent}: was made with other settings ({'; '.join(differing)}); use them, or another output folder")
