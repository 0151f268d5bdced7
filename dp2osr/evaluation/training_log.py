"""The training run's log (`train_log.jsonl`): one JSON record a step, validation records between them."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from dp2osr.errors import UserError

Records = dict[int, dict[str, Any]]


def read_training_logs(paths: Iterable[str | Path]) -> tuple[Records, Records]:
    """({step: training record}, {step: validation record}) of rounds that followed each other, their steps counted through.

    Raises:
        UserError: as `read_training_log`.
    """
    training: Records = {}
    validation: Records = {}
    before = 0
    for path in paths:
        of_round = read_training_log(path)
        for records, total in zip(of_round, (training, validation), strict=True):
            total.update({before + step: record for step, record in records.items()})
        before = max([*training, *validation])
    return training, validation


def read_training_log(path: str | Path) -> tuple[Records, Records]:
    """({step: training record}, {step: validation record}), both sorted by step.

    A resumed run repeats the steps after its last checkpoint: the later record counts. A torn last line is what a kill leaves
    behind and is skipped.

    Raises:
        UserError: no such file, a broken line before the last, or no record of training in it.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"{path}: no such training log; give the train_log.jsonl of the training's output folder")
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    training: Records = {}
    validation: Records = {}
    for number, line in enumerate(lines, start=1):
        try:
            record = json.loads(line)
            step = int(record["step"])
        except (ValueError, KeyError, TypeError):
            if number == len(lines) or not line.strip():
                continue
            raise UserError(f"{path}: line {number} is not a record with a step; is this a training log?") from None
        if "loss" in record:
            training[step] = record
        if "val_reward_mean" in record:
            validation[step] = record
    if not training and not validation:
        raise UserError(f"{path}: holds no training record; give the train_log.jsonl of the training's output folder")
    return dict(sorted(training.items())), dict(sorted(validation.items()))
