"""Flags from the command line and from a YAML: the command line overrides, an unknown key is an error."""

import argparse
import difflib
import math
import re
import sys
from pathlib import Path

from dp2osr.errors import UserError, stop
from dp2osr.files import read_yaml

LARGEST = 2**63 - 1  # the libraries' whole numbers
NUMBERS = {"share": "a number", "int": "a whole number", "float": "a number", "positive": "a number", "finite": "a number"}


class DefaultsAndLines(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
    """--help with each flag's default, and the description as it is written."""


def at_least(least, kind=int):
    """An argparse type: a number of `kind` that is finite, fits into 64 bits and is not below `least`."""

    def read(word):
        value = kind(word)
        if not value >= least or value == math.inf:
            raise argparse.ArgumentTypeError(f"must be at least {least}{' and finite' if value == math.inf else ''}, not {word}")
        if kind is int and value > LARGEST:
            raise argparse.ArgumentTypeError(f"must be at most {LARGEST}, not {word}")
        return value

    read.__name__ = kind.__name__  # argparse names it where the word is no number at all
    return read


def positive(word):
    """An argparse type: a finite number above 0."""
    if not 0 < float(word) < math.inf:
        raise argparse.ArgumentTypeError(f"must be a finite number above 0, not {word}")
    return float(word)


def share(word):
    """An argparse type: a number from 0 to 1."""
    if not 0 <= float(word) <= 1:
        raise argparse.ArgumentTypeError(f"must lie between 0 and 1, not {word}")
    return float(word)


def regular_expression(word):
    """An argparse type: a regular expression, as it is written."""
    try:
        re.compile(word)
    except re.error as error:
        raise argparse.ArgumentTypeError(f"{word!r} is not a regular expression ({error})") from None
    return word


def part_of_a_name(word):
    """An argparse type: a part of a file's name."""
    if any(letter in word for letter in "/\\\0\n"):
        raise argparse.ArgumentTypeError(f"{word!r} is no part of a file's name")
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


def model_flags():
    """A new parent parser: the flags that name the base model, its files, its precision and the run's seed."""
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument("--pretrained_model_name_or_path", required=True, help="base model: a diffusers folder or hub id")
    parser.add_argument("--variant", help="read the base model's weights from files of this variant, as fp16 in *.fp16.safetensors")
    parser.add_argument("--revision", help="branch, tag or commit of a base model on a hub")
    parser.add_argument("--pretrained_vae_model_name_or_path", help="autoencoder from this folder or hub id (default: the base's own)")
    parser.add_argument("--tokenizer_name", help="CLIP tokenizer from this folder or hub id (default: the base's own)")
    parser.add_argument("--backbone", choices=["sd2", "flux"], help="what the base model must be (default: what its folder says)")
    parser.add_argument("--mixed_precision", default="no", choices=["no", "fp16", "bf16"], help="compute precision (default: %(default)s)")
    parser.add_argument("--seed", type=at_least(0), default=0, help="run seed: all randomness follows from it (default: %(default)s)")
    return parser


def sampling_flags():
    """A new parent parser: the flags of every program that samples."""
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument(
        "--controlnet_model_name_or_path",
        required=True,
        help="ControlNet: a diffusers folder, a hub id, one safetensors file, or the checkpoint-STEP.pt of a training",
    )
    recommended = "default: what the model's sampling_settings.json says, else"
    parser.add_argument("--num_inference_steps", type=at_least(1), help=f"denoising steps ({recommended} the paper's: SD2 50, FLUX 25)")
    parser.add_argument(
        "--guidance_scale",
        type=finite,
        help=f"classifier-free guidance; 1 switches it off and halves the time ({recommended} the paper's: SD2 3.5, FLUX 2.5)",
    )
    parser.add_argument(
        "--scheduler",
        help="SD2: ddpm, ddim, euler, euler_ancestral, dpm, unipc; FLUX: flow_euler, flow_heun; or any diffusers scheduler class that fits "
        f"({recommended} ddpm; flow_euler)",
    )
    parser.add_argument(
        "--align_method",
        choices=["adain", "wavelet", "nofix"],
        help=f"colour fix against the upsampled LR ({recommended} adain)",
    )
    parser.add_argument(
        "--prompt_source",
        choices=["ram", "file", "none"],
        help="ram: tags of the LR image by --ram_path; file: tags from --prompt_file; none: empty prompts "
        "(default: the one whose path is given, else none)",
    )
    parser.add_argument("--ram_path", help="RAM: ram_swin_large_14m.pth, or the file that scripts/convert_ram.py made of it")
    parser.add_argument("--dape_path", help="DAPE.pth, RAM's update for degraded images; not needed where it is merged")
    parser.add_argument("--prompt_file", help="JSON {image id: tags}, with --prompt_source file")
    parser.add_argument("--negative_prompt", help=f"SD2: used where guidance is on ({recommended} 'dotted, noise, blur, lowres, smooth')")
    parser.add_argument(
        "--batch_size",
        type=at_least(1),
        default=8,
        help="samples of the model's own size denoised together, on each process; of larger images as many as have the same pixels "
        "(default: %(default)s)",
    )

    parser.add_argument(
        "--enable_xformers_memory_efficient_attention",
        action="store_true",
        help="attention by xformers, which must be installed; without it PyTorch's own memory-efficient attention is used",
    )
    parser.add_argument("--control_scale", type=finite, help=f"factor on what the ControlNet adds ({recommended} 1)")
    parser.add_argument(
        "--tile_size",
        type=at_least(1),
        help="larger images are denoised in tiles of this side, pixels (default: 1.5 times the model's size)",
    )
    parser.add_argument(
        "--tile_overlap", type=at_least(0), help="least overlap of neighbouring tiles, pixels (default: a third of the tile)"
    )
    parser.add_argument(
        "--vae_tile_size",
        type=at_least(1),
        help="larger images are encoded and decoded in tiles of this side, pixels (default: twice the model's size)",
    )
    return parser


def timestep_flags():
    """A new parent parser: the flags of every program that trains a denoiser."""
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument(
        "--timestep_sampling",
        choices=["logit_normal", "uniform"],
        default="logit_normal",
        help="FLUX: density of the training timesteps σ; those of SD2 are uniform (default: %(default)s)",
    )
    parser.add_argument("--logit_mean", type=finite, default=0.0, help="of logit(σ); above 0: more noise (default: %(default)s)")
    parser.add_argument("--logit_std", type=positive, default=1.0, help="its standard deviation (default: %(default)s)")
    return parser


def timestep_options(args):
    """The values of `timestep_flags` as arguments of a backbone's `draw_timesteps`."""
    return {name: getattr(args, name) for name in ("timestep_sampling", "logit_mean", "logit_std")}


def input_flags():
    """A new parent parser: which images of a folder are taken."""
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument("--recursive", action="store_true", help="take the images of sub-folders too")
    parser.add_argument(
        "--skip_unreadable", action="store_true", help="go on without images that cannot be used; the end says how many (default: stop)"
    )
    parser.add_argument(
        "--adopt", action="store_true", help="take results without a record, from before there were records, as those of these settings"
    )
    return parser


def restore_flags():
    """A new parent parser: the flags of the test programs."""
    parser = argparse.ArgumentParser(add_help=False, parents=[input_flags()])
    parser.add_argument("--image_path", required=True, help="folder of LR images, or one image, of any size")
    parser.add_argument(
        "--output_dir", required=True, help="gets <stem>.png, or <stem>_00.png, ... where several are asked for; run again to go on"
    )
    parser.add_argument(
        "--upscale", type=positive, default=1, help="size of the result over size of the input (default: %(default)s, as published)"
    )
    parser.add_argument(
        "--process_size", type=at_least(1), help="inputs with a smaller side are enlarged to it first, pixels (default: the model's)"
    )
    parser.add_argument(
        "--sample_times", type=at_least(1), default=1, help="samples an image, each from its own seed (default: %(default)s)"
    )
    parser.add_argument("--suffix", type=part_of_a_name, default="", help="appended to the stem of every result (default: none)")
    parser.add_argument("--save_prompts", action="store_true", help="also write each image's tags to <output_dir>/txt/<stem>.txt")
    parser.add_argument(
        "--overwrite", action="store_true", help="make anew what is there, also with other settings; each stays until the new one is whole"
    )
    return parser


def parse_args(parser, argv=None):
    """`parser.parse_args` with `--config YAML`, whose keys are the flags' names; one line and exit code 2 on a mistake.

    The command line overrides the YAML wherever `--config` stands. Flags are taken by their whole names.

    Raises:
        UserError: unreadable YAML, a key that is no flag of this program (the nearest one is named), a value that does not fit.
    """
    argv = sys.argv[1:] if argv is None else list(argv)
    commands = next((action.choices for action in parser._actions if isinstance(action, argparse._SubParsersAction)), {})
    for each in (parser, *commands.values()):
        each.allow_abbrev = False
        each.error = lambda message: stop(f"error: {message} (see --help)", 2)
        if each is not parser or not commands:
            each.add_argument("--config", help="YAML that sets any flag above; the command line overrides it")
    config = known_config(argv)
    if config is not None:
        place = next((index for index, word in enumerate(argv) if word in commands), None)
        chosen = parser if place is None else commands[argv[place]]
        start = 0 if place is None else place + 1
        argv[start:start] = flags_of(chosen, config)
    args, unknown = parser.parse_known_args(argv)
    if unknown:
        flags = [option for each in (parser, *commands.values()) for action in each._actions for option in action.option_strings]
        parser.error(f"unknown {unknown[0].partition('=')[0]}{nearest_of(unknown[0].partition('=')[0], flags)}")
    return args


def given_flags(parser, argv=None):
    """Names of the flags that the command line or its YAML gives, those of a `parser` that has been through `parse_args`."""
    argv = sys.argv[1:] if argv is None else list(argv)
    config, nothing = known_config(argv), object()
    words = (flags_of(parser, config) if config is not None else []) + argv
    blank = argparse.Namespace(**{action.dest: nothing for action in parser._actions if action.dest != "help"})
    return {name for name, value in vars(parser.parse_known_args(words, blank)[0]).items() if value is not nothing}


def known_config(argv):
    """The value of `--config` in `argv`, or None."""
    finder = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    finder.add_argument("--config")
    finder.error = lambda message: stop(f"error: {message} (see --help)", 2)
    return finder.parse_known_args(argv)[0].config


def nearest_of(name, known):
    """`; the nearest known one is 'x'`, or nothing where none is near."""
    known = {word.lstrip("-"): word for word in known}
    close = difflib.get_close_matches(str(name).lstrip("-"), known, n=1, cutoff=0.7)
    return f"; the nearest known one is '{known[close[0]]}'" if close else ""


def flags_of(parser, path):
    """The YAML at `path` as command-line words for `parser`."""
    settings = read_yaml(path, "a readable YAML of settings", as_text=True)
    if settings is None:
        return []
    if not isinstance(settings, dict):
        raise UserError(f"{path}: must be a list of 'flag: value' lines")
    return words_of(parser, settings, path)


def words_of(parser, settings, where):
    """{flag: value} as command-line words for `parser`; values are text, or what a typed YAML holds.

    Raises:
        UserError: an unknown flag, or a value that its flag does not take; `where` they are from is named.
    """
    actions = {action.dest: action for action in parser._actions if action.option_strings and action.dest != "help"}
    words = []
    for key, value in settings.items():
        if key not in actions:
            raise UserError(f"{where}: unknown setting '{key}'{nearest_of(key, actions) or '; --help lists those of this program'}")
        if value is not None:
            words += _words(actions[key], value, f"{where}: {key}")
    return words


def _words(action, value, where):
    """The command-line words that give one flag its value."""
    option, several = action.option_strings[-1], action.nargs not in (None, 0, "?")
    if isinstance(value, dict) or isinstance(value, list) and not several:
        raise UserError(f"{where}: takes {'values' if several else 'one value'}, not {value!r}")
    if action.nargs == 0:  # a switch
        word = str(value).lower()
        if word not in ("true", "false"):
            raise UserError(f"{where}: is a switch, true or false, not {value!r}")
        return [option] if word == "true" else []
    words = [str(word) for word in value] if isinstance(value, list) else [str(value)]
    if isinstance(action.nargs, int) and len(words) != action.nargs:
        raise UserError(f"{where}: takes {action.nargs} values, not {len(words)}")
    for word in words:
        _check_value(action, word, where)
    return [option, *words] if several else [f"{option}={words[0]}"]


def _check_value(action, word, where):
    try:
        value = action.type(word) if action.type else word
    except (ValueError, TypeError, argparse.ArgumentTypeError) as error:
        kind = getattr(action.type, "__name__", "")
        reason = (
            str(error) if isinstance(error, argparse.ArgumentTypeError) else f"{word!r} is not {NUMBERS.get(kind, 'a value that it takes')}"
        )
        raise UserError(f"{where}: {reason}") from None
    if action.choices is not None and value not in action.choices:
        raise UserError(f"{where}: is {word!r}, must be one of {', '.join(map(str, action.choices))}")
