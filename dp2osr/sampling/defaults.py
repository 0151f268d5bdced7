"""What sampling is asked to do, and where a setting that no flag gives comes from."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from dp2osr.backbones.base import Backbone
from dp2osr.backbones.locate import find_model_file
from dp2osr.backbones.tiles import WHOLE, Tiling
from dp2osr.errors import UserError
from dp2osr.files import read_json
from dp2osr.sampling.colour import ALIGN
from dp2osr.sampling.settings import LEVERS_OFF, GenerateSettings, RestoreSettings

RECOMMENDED = "sampling_settings.json"  # in a model's folder
NAMES = ("num_inference_steps", "guidance_scale", "scheduler", "align_method", "control_scale", "negative_prompt")
PUBLISHED = {"align_method": "adain", "control_scale": 1.0, "negative_prompt": "dotted, noise, blur, lowres, smooth"}  # of both kinds


@dataclass
class LoopSettings:
    """What the backbone's sampling loop needs to know."""

    num_inference_steps: int
    guidance_scale: float
    scheduler: str
    control_scale: float = 1.0
    tiling: Tiling = WHOLE  # of the latents
    guidance_interval: tuple[float, float] | None = None
    cache_interval: int = 1
    taylorseer_interval: int = 1
    branch_at: int = 0


def loop_settings(args: GenerateSettings | RestoreSettings, tiling: Tiling) -> LoopSettings:
    """The `LoopSettings` of flags that leave nothing open."""
    levers = {name: getattr(args, name) for name in LEVERS_OFF}
    asked = (args.num_inference_steps, args.guidance_scale, args.scheduler, args.control_scale)
    return LoopSettings(*asked, tiling, **levers)  # type: ignore[arg-type] # with_defaults has filled them in


def published_settings(backbone: Backbone) -> dict[str, Any]:
    """The paper's sampling settings for a kind of backbone, by flag."""
    return {**PUBLISHED, **backbone.published_sampling, "scheduler": backbone.default_scheduler}


def with_defaults(args: GenerateSettings | RestoreSettings, backbone: Backbone, ask: bool = True) -> tuple[Any, dict[str, tuple[Any, str]]]:
    """(flags in which each setting that was not given is the model's recommendation, else the published value; what was filled in).

    The ControlNet's folder is asked first, then the base model's, if they are to be asked. The second value is {flag: (value, where it is
    from)}.

    Raises:
        UserError: a recommendation that is no such setting.
    """
    published, filled = published_settings(backbone), {}
    sources = [(args.controlnet_model_name_or_path, None), (args.pretrained_model_name_or_path, args.revision)]
    recommended = [read_recommended(path, revision) for path, revision in sources] if ask else []
    for name in NAMES:
        if getattr(args, name) is None:
            found = next(((settings[name], where) for settings, where in recommended if name in settings), None)
            filled[name] = found or (published[name], "the paper")
    return replace(args, **{name: value for name, (value, _) in filled.items()}), filled


def read_recommended(path: str, revision: str | None = None) -> tuple[dict[str, Any], str]:
    """({setting: value} that the model at `path`, a folder or hub id, recommends, the file that says so); empty where it says nothing.

    Raises:
        UserError: a key that is no sampling setting, or a value of another type.
    """
    file = find_model_file(path, RECOMMENDED, revision)
    settings = read_json(file) if file else {}
    kinds: dict[str, type | tuple[type, ...]]
    kinds = {"num_inference_steps": int, "guidance_scale": (int, float), "control_scale": (int, float)}
    good = isinstance(settings, dict) and all(
        name in NAMES and isinstance(value, kinds.get(name, str)) and not isinstance(value, bool) for name, value in settings.items()
    )
    if not good or settings.get("num_inference_steps", 1) < 1 or settings.get("align_method", "adain") not in ALIGN:
        raise UserError(f"{file}: must give values to some of {', '.join(NAMES)}; correct it, or remove it and give the flags")
    return settings, str(file or "")


def describe_defaults(filled: Mapping[str, tuple[Any, str]]) -> str:
    """`not given, so num_inference_steps 3, guidance_scale 1 (preset/…/sampling_settings.json); …` of what `with_defaults` filled in."""
    by_origin: dict[str, list[str]] = {}
    for name, (value, where) in filled.items():
        by_origin.setdefault(where, []).append(f"{name} {value!r}" if isinstance(value, str) else f"{name} {value:g}")
    return "not given, so " + "; ".join(f"{', '.join(values)} ({where})" for where, values in by_origin.items())
