"""The card of a trained ControlNet: what its folder's own records say of it, and nothing else."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dp2osr.backbones.kinds import KINDS, implementation_of, kind_of_controlnet
from dp2osr.backbones.locate import find_model_file, locate
from dp2osr.backbones.snippets import snippet
from dp2osr.commands import command
from dp2osr.errors import UserError
from dp2osr.files import read_json
from dp2osr.hub.cards import card_of, figure, without_places
from dp2osr.sampling.defaults import RECOMMENDED, published_settings, read_recommended

if TYPE_CHECKING:
    from huggingface_hub import ModelCardData

TEMPLATE = Path(__file__).with_name("templates") / "model_card.md.j2"
OF_PREFERENCES = (
    "num_candidates", "top_n", "loss", "beta", "weighting", "label_smoothing", "sft_weight", "timestep_range", "shared_noise",
    "groups_per_step", "lora_rank", "learning_rate", "lr_scheduler", "lr_warmup_steps", "max_train_steps", "adam_weight_decay",
    "max_grad_norm", "mixed_precision", "seed",
)  # fmt: skip
OF_BASELINES = (
    "degradation", "resolution", "samples_per_step", "drop_share", "negative_share", "learning_rate", "lr_scheduler", "lr_warmup_steps",
    "max_train_steps", "adam_weight_decay", "max_grad_norm", "use_ema", "train_backbone", "mixed_precision", "seed",
)  # fmt: skip
FIGURES = {"loss": "loss", "implicit_accuracy": "implicit accuracy", "margin": "margin", "distance": "distance from the reference"}
VALIDATED = {"val_base_mean": "reward, base", "val_reward_mean": "reward, policy", "G": "G"}


@dataclass(frozen=True)
class TrainedControlNet:
    """A folder that a training wrote.

    Args:
        folder: of the ControlNet: `config.json` and weights; the settings and the log lie there or in the folder above.

    Raises:
        UserError: it is none.
    """

    folder: Path

    def __post_init__(self) -> None:
        if self.kind is None or not self.run:
            raise UserError(
                f"{self.folder}: is no ControlNet that a training here wrote (config.json, and settings.json in it or above it)"
            )

    @cached_property
    def kind(self) -> str | None:
        """The kind of its backbone."""
        config = self.folder / "config.json"
        return kind_of_controlnet(read_json(config).get("_class_name")) if config.is_file() else None

    @cached_property
    def run(self) -> Path | None:
        """The output folder of the training."""
        for place in (self.folder, self.folder.resolve().parent):
            found = read_json(place / "settings.json") if (place / "settings.json").is_file() else None
            if isinstance(found, dict) and {"pretrained_model_name_or_path", "max_train_steps", "output_dir"} <= found.keys():
                return place
        return None

    @cached_property
    def record(self) -> dict[str, Any]:
        """The training's settings."""
        return read_json(self._of_run("settings.json"))

    @property
    def is_policy(self) -> bool:
        """Whether preferences trained it, not photographs."""
        return "start_hash" in self.record

    @property
    def base(self) -> str:
        """The base model that it steers: the one that was named, or the one that was trained along with it."""
        return str(self._of_run("model")) if self.record.get("train_backbone") else str(self.record["pretrained_model_name_or_path"])

    @cached_property
    def log(self) -> list[dict[str, Any]]:
        """The training's records in order; a line that a kill cut is left out."""
        path, found = self._of_run("train_log.jsonl"), []
        for line in path.read_text(encoding="utf-8").splitlines() if path.is_file() else ():
            try:
                found.append(json.loads(line))
            except json.JSONDecodeError:
                continue
        return found

    @cached_property
    def validated(self) -> dict[str, Any]:
        """The last record of a validation, of `best/` the best one's; {} where there was none."""
        found = [record for record in self.log if "G" in record]
        if self.folder.resolve().name == "best":
            return max(found, key=lambda record: record["G"], default={})
        return found[-1] if found else {}

    @cached_property
    def picture(self) -> Path | None:
        """The pictures of that validation, or the last ones of a baseline."""
        step = self.validated.get("step")
        wanted = self._of_run(f"samples/step-{step:06d}.png") if step is not None else None
        if wanted and wanted.is_file():
            return wanted
        return max(self._of_run("samples").glob("*.png"), default=None) if not self.is_policy else None

    @cached_property
    def sampling(self) -> dict[str, Any]:
        """How it is sampled: as its folder recommends, else as its base does, else as published."""
        own = self.folder / RECOMMENDED
        found = (
            read_json(own)
            if own.is_file()
            else read_recommended(str(self.record["pretrained_model_name_or_path"]), self.record.get("revision"))[0]
        )
        return {**published_settings(implementation_of(self.kind or "")), **found}

    @property
    def upscale(self) -> float:
        """Size of the result over size of the input."""
        if self.is_policy:
            return float(self.record.get("candidates", {}).get("upscale", 4))
        from dp2osr.data.degradation_settings import load_degradation

        try:
            return float(load_degradation(self.record["degradation"]).scale)
        except UserError:  # a YAML that is not here any more
            return 4.0

    def _of_run(self, name: str) -> Path:
        return (self.run or self.folder) / name


def model_card(trained: TrainedControlNet, name: str | Path, evaluation: tuple[str, ...] = (), is_pushed: bool = False) -> str:
    """The card's text.

    Args:
        name: what it is loaded by: a folder, or with `is_pushed` a repository of a hub.
        evaluation: lines of a later evaluation.
    """
    record, sampling, kind = trained.record, trained.sampling, KINDS[trained.kind or ""]
    base, where = public(trained.base), str(name) if is_pushed else without_places(str(name))
    precision = record.get("candidates", {}).get("mixed_precision") or record.get("mixed_precision")
    lines = about_policy(record) if trained.is_policy else about_baseline(record, base)
    restores = command(
        kind.test_program, image_path="my_photographs", output_dir="restored", upscale=f"{trained.upscale:g}",
        pretrained_model_name_or_path=base, controlnet_model_name_or_path=where, mixed_precision=None if precision == "no" else precision,
    )  # fmt: skip
    return card_of(
        TEMPLATE, front_matter(trained), title=Path(where).name, about=lines[0], data=lines[1:], apart=kind.apart, evaluation=evaluation,
        snippet=snippet(trained.kind or "", where, base, sampling, trained.upscale, precision),
        command=restores, align_method=sampling.get("align_method"), settings=settings_rows(record), figures=figure_rows(trained),
        picture=picture_link(trained, is_pushed), picture_text=picture_text(trained), licences=licence_lines(record),
    )  # fmt: skip


def front_matter(trained: TrainedControlNet) -> ModelCardData:
    """What a hub reads; a base that is a folder here has no page there and is left out."""
    from huggingface_hub import ModelCardData

    named = [trained.base, trained.record.get("controlnet_model_name_or_path")]
    ids = [str(name) for name in dict.fromkeys(filter(None, named)) if is_hub_id(name)]
    tags = ["controlnet", "super-resolution", "image-restoration", "dp2o-sr", *KINDS[trained.kind or ""].tags]
    return ModelCardData(
        base_model=ids if len(ids) > 1 else ids[0] if ids else None,
        library_name="diffusers",
        pipeline_tag="image-to-image",
        tags=tags + ["preference-optimization"] * trained.is_policy,
    )


def is_hub_id(path: str) -> bool:
    """Whether a model is named by an id of a hub and not by a place here."""
    try:
        return locate(path) is None
    except UserError:
        return False


def public(path: str) -> str:
    return str(without_places(str(path)))


def about_policy(record: Mapping[str, Any]) -> list[str]:
    """What it is, then the lines about its data."""
    found, reward = record.get("candidates", {}), record.get("reward") or {}
    names = {part: ", ".join(spec["name"] for spec in reward.get(part, ())) or "none" for part in ("fr", "nr")}
    groups = f"{record['num_groups']} LR images" if record.get("num_groups") else "LR images"
    count = record.get("num_candidates") or found.get("num_candidates", "?")
    start, base = (public(record[f"{name}_model_name_or_path"]) for name in ("controlnet", "pretrained"))
    sampled = f"{found.get('num_inference_steps')} steps, guidance {found.get('guidance_scale')}, ×{found.get('upscale')}"
    return [
        f"A ControlNet for super-resolution, trained by Direct Perceptual Preference Optimization (DP²O-SR, arXiv 2510.18851) from "
        f"`{start}` (weights `{record['start_hash']}`), for the base model `{base}` (weights `{found.get('model_hash')}`).",
        f"Candidates: {count} samples of each of {groups} from the ControlNet with weights `{found.get('controlnet_hash')}`: {sampled}.",
        f"Training compared the {record['top_n']} best and the {record['top_n']} worst of each image.",
        f"Reward `{reward.get('name')}`: full-reference {names['fr']}; no-reference {names['nr']}.",
    ]


def about_baseline(record: Mapping[str, Any], base: str) -> list[str]:
    """What it is, then the lines about its data."""
    start, together = record.get("controlnet_model_name_or_path"), ", which was trained along with it" * record["train_backbone"]
    begun = f"`{public(start)}`" if start else "a copy of the base's encoder"
    seen = record.get("photographs")
    return [
        f"A ControlNet for super-resolution, trained on degraded photographs from {begun}, for the base model `{base}`{together}. "
        "It is a baseline, from which preference training (DP²O-SR, arXiv 2510.18851) may start.",
        f"Photographs of `{public(record['train_dir'])}`" + (f" (fingerprint `{seen}`)." if isinstance(seen, str) else "."),
        f"Degradation `{public(record['degradation'])}`, crops of {record['resolution']} pixels.",
    ]


def settings_rows(record: Mapping[str, Any]) -> list[tuple[str, Any]]:
    """(flag, value) of what the training was told."""
    names = OF_PREFERENCES if "start_hash" in record else OF_BASELINES
    return [(name, without_places(record[name])) for name in names if record.get(name) is not None]


def figure_rows(trained: TrainedControlNet) -> list[tuple[str, str]]:
    """(what, number) at the training's end; what was not measured is not there."""
    last: dict[str, Any] = next((record for record in reversed(trained.log) if "loss" in record), {})
    rows = [("step", str(last["step"]))] if last else []
    rows += [(told, figure(last[name])) for name, told in FIGURES.items() if isinstance(last.get(name), float)]
    found = trained.validated
    return rows + [(f"held-out {told}, step {found['step']}", figure(found[name])) for name, told in VALIDATED.items() if name in found]


def picture_link(trained: TrainedControlNet, is_pushed: bool) -> str | None:
    """Where the card finds the picture: in a repository always in `samples/`."""
    if trained.picture is None:
        return None
    return f"samples/{trained.picture.name}" if is_pushed else os.path.relpath(trained.picture, trained.folder)


def picture_text(trained: TrainedControlNet) -> str:
    return "Held-out images: LR, base, policy, GT" if trained.is_policy else "Images sampled during the training"


def licence_lines(record: Mapping[str, Any]) -> list[str]:
    """What the card of the base model, where it is at hand, says of its licence."""
    lines = []
    for flag in ("pretrained_model_name_or_path", "controlnet_model_name_or_path"):
        name = str(record.get(flag) or "")
        card = find_model_file(name, "README.md") if name and (is_hub_id(name) or Path(name).is_dir()) else None
        licence = licence_in(card) if card else None
        if licence:
            lines.append(f"`{public(name)}` is under {licence}, as its card says.")
    return lines


def licence_in(card: Path) -> str | None:
    """`license` in the front matter of a card, with `license_name`; None where it names none or cannot be read."""
    from huggingface_hub import RepoCard

    try:
        data = RepoCard.load(card, ignore_metadata_errors=True).data.to_dict()
    except Exception:  # another's file: YAML errors, bytes that are no text
        return None
    found = " ".join(str(data[key]) for key in ("license", "license_name") if data.get(key))
    return found or None
