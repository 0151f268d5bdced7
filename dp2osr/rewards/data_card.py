"""The card of a candidate folder, or of its labels: what was sampled by which weights, how it was scored, whose photographs these are."""

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from dp2osr.commands import command
from dp2osr.data.photographs import read_manifest
from dp2osr.hub.cards import card_of, without_places
from dp2osr.places import CONFIGS
from dp2osr.rewards.config import RewardConfig
from dp2osr.rewards.table import own_columns

TEMPLATE = Path(__file__).with_name("templates") / "data_card.md.j2"
CROP = re.compile(r"_\d\d$")  # what an image id has beyond its photograph's name
HOW = (
    "model", "model_hash", "vae_hash", "controlnet", "controlnet_hash", "policy_strength", "base_controlnet_hash", "imported", "backbone",
    "num_candidates", "upscale", "num_inference_steps", "guidance_scale", "scheduler", "control_scale", "align_method", "prompt_source",
    "negative_prompt", "max_sequence_length", "seed", "mixed_precision", "tf32", "versions",
)  # fmt: skip
SIZES = {1_000: "n<1K", 10_000: "1K<n<10K", 100_000: "10K<n<100K", 1_000_000: "100K<n<1M", 10_000_000: "1M<n<10M"}
LABELS, OF_GT = "candidates.parquet", "gt.parquet"


def data_card(
    name: str,
    image_ids: Iterable[str],
    settings: Mapping[str, Any],
    metadata: Mapping[str, Any] | None = None,
    columns: Iterable[str] = (),
    reward: RewardConfig | None = None,
    has_gt: bool = False,
) -> str:
    """The card's text: of labels where a `reward` is given, else of a candidate folder.

    Args:
        name: what it is loaded by: a folder or a repository of a hub.
        settings: of the candidate folder.
        metadata, columns: of its score table; none where it has none.
        has_gt: whether the true images' own scores are there.
    """
    from huggingface_hub import DatasetCardData

    ids, count = sorted(image_ids), int(settings.get("num_candidates", 0))
    metadata, where = metadata or {}, str(without_places(name))
    known, files = licences_of(ids), [{"config_name": "candidates", "data_files": LABELS, "default": True}]
    files += [{"config_name": "gt", "data_files": OF_GT}] if has_gt else []
    rows = len(ids) * count
    size = next((told for most, told in SIZES.items() if rows < most), "n>10M")
    tags = ["super-resolution", "preference-data", "dp2o-sr", "image-quality"]
    configs = {"configs": files} if reward else {}
    front = DatasetCardData(size_categories=size, task_categories=["image-to-image"], tags=tags, **configs)
    what = "Scores and rewards" if reward else "Candidates"
    given = without_places(metadata.get("metrics", {}))
    return card_of(
        TEMPLATE, front, title=Path(where).name, where=where, labels=reward is not None, command=command_for(where, reward is not None),
        about=f"{what} for preference training of super-resolution models (DP²O-SR, arXiv 2510.18851): {len(ids)} LR images (groups), "
        f"{count} candidates each, {rows} in all.",
        metrics=given, own=[column for column in own_columns(columns, dict(metadata)) if column not in ("seed", "reward")] if given else [],
        reward=reward, rewards=sorted(metadata.get("reward_configs", {})), pyiqa=metadata.get("pyiqa"),
        sampling=[(key, as_words(without_places(settings[key]))) for key in HOW if settings.get(key) is not None],
        licences=known, unknown=len(ids) - sum(known.values()), images=len(ids),
    )  # fmt: skip


def command_for(where: str, is_labels: bool) -> str:
    """What uses it, as a shell takes it."""
    if is_labels:
        return command("scripts/import_scores.py", table=where, candidates_dir="CANDIDATE_FOLDER")
    fetched = f"hf download --repo-type dataset {where} --local-dir candidates\n" if re.fullmatch(r"[\w.-]+/[\w.-]+", where) else ""
    return fetched + command("label_rewards.py", candidates_dir="candidates" if fetched else where, gt_path="GT_FOLDER")


def as_words(value: Any) -> Any:
    """A setting as a table shows it."""
    return ", ".join(f"{key} {entry}" for key, entry in value.items()) if isinstance(value, Mapping) else value


def licences_of(image_ids: Iterable[str]) -> dict[str, int]:
    """{licence: images} of those that are, by name, of the photographs that the project lists."""
    listed = {row["stem"]: row.get("licence") for row in read_manifest(CONFIGS / "photographs.csv")}
    found = Counter(listed.get(CROP.sub("", image_id)) or listed.get(image_id) for image_id in image_ids)
    return {licence: number for licence, number in sorted(found.items(), key=lambda item: (-item[1], str(item[0]))) if licence}
