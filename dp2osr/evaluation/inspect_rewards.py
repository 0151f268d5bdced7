"""From a score table to the page and the table that explain its reward."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from dp2osr.data.inputs import find_gt
from dp2osr.device import compute_device
from dp2osr.errors import UserError
from dp2osr.evaluation.reward_inspection import finite_groups, inspect_rewards, sentences
from dp2osr.evaluation.reward_report import Pictures, write_report
from dp2osr.files import write_text
from dp2osr.outputs import check_output
from dp2osr.preference.groups import check_same_candidates
from dp2osr.preference.pairs import curate
from dp2osr.provenance import versions
from dp2osr.results import check_own_files, own_files
from dp2osr.rewards.chosen import label_command, read_with_reward
from dp2osr.rewards.maps import has_map
from dp2osr.rewards.metrics import MetricSuite
from dp2osr.rewards.ordering import held_out_crops, validate_reward
from dp2osr.rewards.reward import reward_shares
from dp2osr.rewards.table import scores_path, write_table
from dp2osr.rewards.weight_files import check_manifest
from dp2osr.sampling.decode import load_decoder
from dp2osr.sampling.store import CandidateStore, reading

if TYPE_CHECKING:
    from dp2osr.evaluation.reward_inspection import Inspection
    from dp2osr.rewards.config import RewardConfig
    from dp2osr.rewards.ordering import MetricValidation
    from dp2osr.rewards.settings import InspectRewardSettings

FILES = ("rewards.html", "rewards.parquet", "correlation.csv")


def run_inspection(args: InspectRewardSettings) -> list[str]:
    """Write `rewards.html`, `rewards.parquet` and `correlation.csv` to `args.output_dir`; returns lines of text, the findings first.

    Raises:
        UserError: no score table, a metric that was not scored, N too large, a GT that is missing.
    """
    check_output(args.output_dir)
    check_own_files(args.output_dir, FILES)
    with reading([args.candidates_dir], "inspection"):
        return _inspect(args)


def _inspect(args: InspectRewardSettings) -> list[str]:
    """The same, when the place of the output is known to be good."""
    store = CandidateStore(args.candidates_dir)
    table, config = read_with_reward(args.reward_config, args.candidates_dir, args.scores)
    check_same_candidates(store, table)
    table, left_out, odd = finite_groups(table, config)
    if not table.image_ids:
        again = label_command(args.candidates_dir, config, table.metadata, args.scores, args.gt_path, args.reward_config)
        raise UserError(
            f"{scores_path(args.candidates_dir, args.scores)}: every group has a NaN or infinite score; run {again}, and read its warnings"
        )
    top_n = args.top_n or max(1, next(iter(table.scores.values())).shape[1] // 4)
    inspection = inspect_rewards(table, config, top_n)
    device = compute_device()
    gt_paths = find_gt(args.gt_path, table.image_ids) if args.gt_path else {}
    if args.metrics_dir:
        check_manifest(args.metrics_dir)
    validation = _validate(config, args.validation_image_path, args, device) if args.validation_image_path else None
    decoder = load_decoder(store.settings, device)
    mapped = [spec for spec in config.computed if spec in config.fr and has_map(spec.name)]
    suite = MetricSuite(mapped, device, weights_dir=args.metrics_dir) if gt_paths else None
    output = Path(args.output_dir)
    output.mkdir(parents=True, exist_ok=True)
    shares = reward_shares(table.scores, table.lower_better, config, table.gt_scores)
    settings = {
        "candidates": args.candidates_dir,
        "reward": config.name,
        "top_n": top_n,
        "normalised by": config.normalise + ", NR scores bounded by the GT's own" * bool(config.bounded),
        "shares of the weight": ", ".join(f"{name} {share:.3f}" for name, share in shares.items()),
        "groups left out (NaN or infinite)": ", ".join(left_out) or "none",
        "metrics left out (NaN or infinite)": ", ".join(odd) or "none",
        **versions(),
    }
    pictures = Pictures(store, gt_paths, decoder, suite)
    with own_files(output, FILES):
        write_report(output / "rewards.html", inspection, config, settings, pictures, args.max_groups_in_report, validation)
        write_table(output / "rewards.parquet", reward_columns(inspection), {"reward_config": config.name, "top_n": top_n})
        write_text(output / "correlation.csv", correlation_csv(inspection))
    return [*sentences(inspection), f"report: {output / 'rewards.html'}", f"table:  {output / 'rewards.parquet'}"]


def _validate(config: RewardConfig, photographs: str, args: InspectRewardSettings, device: str) -> dict[str, MetricValidation]:
    """What distortions the metrics order on crops of `args.resolution` pixels."""
    crops = held_out_crops(photographs, args.resolution, args.num_crops)
    return validate_reward(MetricSuite(config.computed, device, weights_dir=args.metrics_dir), crops)


def correlation_csv(inspection: Inspection) -> str:
    """The mean rank correlation within a group of every two metrics, outside of the reward too; empty where none has a spread."""
    return pd.DataFrame(inspection.correlation, inspection.names, inspection.names).to_csv(float_format="%.4f", lineterminator="\n")


def reward_columns(inspection: Inspection) -> dict[str, np.ndarray]:
    """A row a candidate: image_id, candidate, reward, rank (1 = best), chosen ("winner", "loser", ""), decided_by, part_<metric> …"""
    groups, count = inspection.rewards.shape
    winners, losers = curate(inspection.rewards, inspection.top_n)
    chosen = np.full((groups, count), "", dtype=object)
    np.put_along_axis(chosen, winners, "winner", axis=1)
    np.put_along_axis(chosen, losers, "loser", axis=1)
    order = np.argsort(-inspection.rewards, axis=1, kind="stable")
    rank = np.argsort(order, axis=1).astype(np.int32) + np.int32(1)
    columns = {
        "image_id": np.repeat(np.array(inspection.image_ids, dtype=object), count),
        "candidate": np.tile(np.arange(count, dtype=np.int32), groups),
        "reward": inspection.rewards.ravel(),
        "rank": rank.ravel(),
        "chosen": chosen.ravel(),
        "decided_by": inspection.decided.ravel(),
    }
    return columns | {f"part_{name}": values.ravel() for name, values in inspection.parts.items()}
