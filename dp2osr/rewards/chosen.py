"""Which reward a program means: the one that it is told, else the one that the scores were made with, else `default`."""

from collections.abc import Callable, Mapping
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

from dp2osr.commands import command
from dp2osr.errors import UserError
from dp2osr.files import as_json
from dp2osr.rewards.config import CONFIG_DIR, MetricSpec, RewardConfig, load_reward_config
from dp2osr.rewards.table import ScoreTable, read_metadata, read_scores, scores_path

DEFAULT = "default"  # of label_rewards.py, and of tables that do not say what they were made with


def as_dict(config: RewardConfig) -> dict[str, Any]:
    """A `RewardConfig` as JSON holds it; a metric's `draws` where it is true and a bound where there is one, as older records lack them."""
    content = as_json(asdict(config))
    if not config.nr_bound:
        del content["nr_bound"], content["margin"]
    for spec in content["fr"] + content["nr"]:
        if not spec["draws"]:
            del spec["draws"]
    return content


def from_dict(content: dict[str, Any]) -> RewardConfig:
    """The `RewardConfig` that `as_dict` was given."""
    known = {name: _hashable(content[name]) for name in (field.name for field in fields(RewardConfig)) if name in content}
    specs = {
        part: [MetricSpec(**{key: _hashable(value) for key, value in spec.items()}) for spec in content[part]] for part in ("fr", "nr")
    }
    return RewardConfig(**{**known, **specs})


def _hashable(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def record_reward(
    metadata: dict[str, Any], config: RewardConfig, given: str | Path | None = None, gt_path: str | Path | None = None
) -> dict[str, Any]:
    """What a score table says of its making: this reward among the others that are there; `given` and `gt_path` as the user wrote them.

    Returns:
        {"reward_configs": {name: content}, "reward_files": {name: as given}, "gt_path": str or None}.
    """
    return {
        "reward_configs": {**metadata.get("reward_configs", {}), config.name: as_dict(config)},
        "reward_files": {**metadata.get("reward_files", {}), config.name: str(given or config.name)},
        "gt_path": str(gt_path) if gt_path else metadata.get("gt_path"),
    }


def reward_of(given: str | None, tables: Mapping[Path, dict[str, Any]], show: Callable[[str], object] | None = print) -> RewardConfig:
    """The `RewardConfig` that a program reads scores with.

    Args:
        given: value of --reward_config, or None.
        tables: {path of a score table: its metadata}.
        show: takes the line that says which reward it is and why; None for no line.

    Raises:
        UserError: no such reward, or nothing is given and the tables were made with several.
    """
    where = ", ".join(map(str, tables))
    if given:
        config, reason = load_reward_config(given), "as given"
    elif recorded := _recorded_reward(tables, where):
        config, reason = recorded, f"which {where} was scored for"
    else:
        config = load_reward_config(DEFAULT)
        reason = f"since {where} does not say what it was scored for" if where else "since nothing is scored yet"
    if show:
        show(f"reward: {config.name}, {reason}")
    return config


def _recorded_reward(tables: Mapping[Path, dict[str, Any]], where: str) -> RewardConfig | None:
    """The reward that all the tables were scored for, or None where none of them says; `UserError` where there are several."""
    recorded = [metadata.get("reward_configs", {}) for metadata in tables.values()]
    found = []
    for configs in recorded:
        found += [content for content in configs.values() if content not in found]
    if len(found) > 1:  # tables that are compared: what all of them have
        common = [content for content in found if all(content in configs.values() for configs in recorded)]
        found = common if len(common) == 1 else found
    if len(found) > 1:
        names = ", ".join(sorted({content["name"] for content in found}))
        raise UserError(f"{where}: was scored for several rewards ({names}); say which with --reward_config")
    return from_dict(found[0]) if found else None


def label_command(
    folder: str | Path,
    config: RewardConfig,
    metadata: dict[str, Any] | None = None,
    scores: str | Path | None = None,
    gt_path: str | Path | None = None,
    given: str | None = None,
) -> str:
    """The command that scores a candidate folder for a reward; the GT folder is the table's where none is named.

    Args:
        metadata: of the table that is there, if there is one.
        scores: the table, if it is not the folder's own.
        given: the reward as the user wrote it.
    """
    metadata = metadata or {}
    reward = given or metadata.get("reward_files", {}).get(config.name, config.name)
    other = scores if scores and scores_path(folder) != scores_path(folder, scores) else None
    gt = gt_path or metadata.get("gt_path") or ("GT_FOLDER" if config.needs_gt else None)
    return command("label_rewards.py", candidates_dir=folder, gt_path=gt, reward_config=reward, output=other)


def check_scored(
    config: RewardConfig, table: ScoreTable, folder: str | Path, scores: str | Path | None = None, given: str | None = None
) -> None:
    """Raise `UserError` unless the `ScoreTable` has all that the reward reads; the command that adds it is named."""
    missing = [spec.name for spec in config.metrics if spec.name not in table.scores]
    if not missing:
        return check_bounds(config, table, scores_path(folder, scores), label_command(folder, config, table.metadata, scores, given=given))
    told = label_command(folder, config, table.metadata, scores, given=given)
    fitting = [path.stem for path in sorted(CONFIG_DIR.glob("*.yaml")) if _fits(path, table)]
    other = f", or take --reward_config {' or '.join(fitting)}, which was scored" if fitting else ""
    small = ", or with --reward_config embedded, whose weights ship with the code" if config.name == DEFAULT and not fitting else ""
    where = scores_path(folder, scores)
    raise UserError(f"scores of {where}: lack {', '.join(missing)} of the reward '{config.name}'; run {told}{small}{other}")


def check_bounds(config: RewardConfig, table: ScoreTable, path: str | Path, label: str) -> None:
    """Raise `UserError` unless the `ScoreTable` has the GT's own scores where the reward is bounded by them; `label`: what adds them."""
    missing = [name for name in config.bounded if name not in table.gt_scores]
    if missing:
        own = [name for name in missing if name in config.columns]
        rows = f" (give your column {', '.join(own)} a value in the rows of candidate -1)" if own else ""
        names = ", ".join(missing)
        raise UserError(f"{path}: lacks the GT's own {names}, by which the reward '{config.name}' is bounded; run {label}{rows}")


def _fits(path: Path, table: ScoreTable) -> bool:
    try:
        return all(spec.name in table.scores for spec in load_reward_config(path).metrics)
    except UserError:
        return False


def read_with_reward(
    given: str | None, folder: str | Path, scores: str | Path | None = None, show: Callable[[str], object] | None = print
) -> tuple[ScoreTable, RewardConfig]:
    """(`ScoreTable` of a candidate folder, the `RewardConfig` to read it with, all its metrics scored).

    Arguments and errors as of `reward_of` and `check_scored`; `scores` is the table, if it is not the folder's own.
    """
    path = scores_path(folder, scores)
    config = reward_of(given, {path: read_metadata(path)}, show)
    table = read_scores(path, config)
    check_scored(config, table, folder, scores, given)
    return table, config
