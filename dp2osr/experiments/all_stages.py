"""The whole method, one stage after the other: sample, score, train, perhaps in rounds, test, evaluate.

Numbers and input paths are in a folder of settings; where each stage writes is decided here, because the next stage reads it there.
One round is the paper's method. Each further round samples with the policy of the one before, with new seeds, and starts from it.
Every stage resumes: stopped anywhere, the same command goes on where it was.
"""

import os
import shlex
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dp2osr.backbones.kinds import KINDS
from dp2osr.cli import read_settings
from dp2osr.errors import PARENT, UserError
from dp2osr.experiments.rounds import further_round, reference_of, round_suffix
from dp2osr.outputs import check_output
from dp2osr.places import ROOT
from dp2osr.rewards.table import SCORES

NAMES = ("sample", "label", "train", "test", "label_test", "evaluate")  # .yaml, of a folder of settings
QUIET = {  # noise that a reader takes for failure; a model or metric that is not on disk must fail at once, not search the network
    "PYTHONWARNINGS": "ignore", "TRANSFORMERS_VERBOSITY": "error", "DIFFUSERS_VERBOSITY": "error", "GLOG_minloglevel": "2",
    "HF_HUB_OFFLINE": "1",
}  # fmt: skip


@dataclass(frozen=True)
class Stage:
    """A program with its flags; `printed`: the file that keeps what it prints."""

    title: str
    script: str
    flags: dict[str, Any]
    printed: Path | None = None

    def command(self) -> list[str]:
        """Scripts of `scripts/` are one process, the others as many as help."""
        launcher = [] if self.script.startswith("scripts/") else ["-m", "dp2osr.launch"]
        words = [sys.executable, *launcher, os.path.relpath(ROOT / self.script)]
        for name, value in self.flags.items():
            words += [f"--{name}", *map(str, value if isinstance(value, list) else [value])]
        return words


def check_stages(configs: str | Path, output: str | Path, reference: str = "moved") -> tuple[str, str | None]:
    """(backbone, the base's ControlNet or None) of train.yaml; `UserError` for what can be known before the first stage runs."""
    configs = Path(configs)
    train = read_settings(configs / "train.yaml") if os.access(configs / "train.yaml", os.R_OK) else {}
    backbone, base = train.get("backbone") or "sd2", train.get("controlnet_model_name_or_path")
    if backbone not in KINDS:
        raise UserError(f"{configs / 'train.yaml'}: backbone is '{backbone}', must be {' or '.join(KINDS)}")
    missing = [f"{name}.yaml" for name in NAMES if not os.access(configs / f"{name}.yaml", os.R_OK)]
    if missing:
        copies = [str(ROOT / f"configs/tiny_{backbone}/quickstart" / name) for name in missing]
        copy = shlex.join(["cp", *copies, f"{configs}/"])
        raise UserError(f"{configs}: {', '.join(missing)} missing or unreadable; copy and edit: {copy}")
    if reference == "fixed" and not base:
        raise UserError(f"{configs / 'train.yaml'}: names no controlnet_model_name_or_path to stay the reference")
    check_output(output, "OUTPUT_DIR")
    return backbone, base


def stages_of(
    configs: str | Path, output: str | Path, backbone: str, base: str | None, rounds: int = 1, reference: str = "moved"
) -> list[Stage]:
    """The list of `Stage`s."""
    configs, output, stages, logs = Path(configs), Path(output), [], []
    policy: dict[str, Any] = {}

    def config(name: str) -> dict[str, Any]:
        return {"config": configs / f"{name}.yaml"}

    for number in range(1, rounds + 1):
        suffix, name = round_suffix(number), f"policy of round {number - 1}" if number > 1 else "base"
        candidates, target = output / f"candidates{suffix}", output / f"policy{suffix}"
        further = further_round(number, number - 1) if number > 1 else {"images_offset": 0}
        sample = {"output_dir": candidates, "images_offset": further.pop("images_offset")} | policy | further
        train = {"candidates_dir": candidates, "scores": candidates / SCORES, "output_dir": target} | policy | further
        train |= reference_of(reference, {"controlnet_model_name_or_path": base}) if number > 1 else {}
        stages += [
            Stage(f"sample the training photographs with the {name}", "gen_candidates.py", config("sample") | sample),
            Stage("score the candidates", "label_rewards.py", config("label") | {"candidates_dir": candidates}),
            Stage("train the policy on its best and worst", f"train_{backbone}_dpo.py", config("train") | train),
        ]
        policy = {"controlnet_model_name_or_path": target}
        logs.append(target / "train_log.jsonl")
    for name, flags in (("base", {}), ("policy", policy)):
        held_out = {"output_dir": output / "test" / name}
        stages += [  # the same photographs and seeds for every model
            Stage(f"sample held-out photographs with the {name}", "gen_candidates.py", config("test") | held_out | flags),
            Stage("score them", "label_rewards.py", config("label_test") | {"candidates_dir": held_out["output_dir"]}),
        ]
    compared = [f"{name}={output / 'test' / name}" for name in ("base", "policy")]
    flags = config("evaluate") | {"candidates": compared, "training_log": logs, "output_dir": output / "report"}
    return [*stages, Stage("compare, and write the report", "scripts/evaluate.py", flags, output / "table.txt")]


def run_stages(
    configs: str | Path,
    output: str | Path,
    rounds: int = 1,
    reference: str = "moved",
    same_command: str = "the same command",
    begun: float | None = None,
) -> None:
    """Run all stages; ends with their times and the table.

    Args:
        same_command: what goes on, for messages; begun: when all began, seconds since 1970, to be told with the environment's time.

    Raises:
        UserError: settings that are missing or cannot be; SystemExit with the exit code of a stage that failed.
    """
    backbone, base = check_stages(configs, output, reference)
    stages = stages_of(configs, output, backbone, base, rounds, reference)
    Path(output).mkdir(parents=True, exist_ok=True)
    times, started = [], time.time()
    for number, stage in enumerate(stages, 1):
        place, start = f"{number}/{len(stages)}", time.time()
        print(f"\n[{place}] {stage.title}", flush=True)
        code = run_stage(stage)
        if code:
            print(f"stopped in stage {place} ({stage.title}), exit code {code}{what_next(code, same_command)}", file=sys.stderr)
            sys.exit(code)
        times.append((f"[{place}] {stage.title}", time.time() - start))
    times.append(("all stages", time.time() - started))
    times += [("with the environment", time.time() - begun)] if begun else []
    print(f"\nminutes:seconds on {os.environ.get('OMP_NUM_THREADS') or os.cpu_count()} threads")
    for title, seconds in times:
        print(f"  {title:<54} {int(seconds) // 60}:{int(seconds) % 60:02d}")
    table = stages[-1].printed
    print("\n" + (table.read_text(encoding="utf-8") if table else ""), end="")


def run_stage(stage: Stage) -> int:
    """The exit code of a stage, as a shell tells it; an interrupt is the program's to end with."""
    environment = QUIET | {
        key: value for key, value in os.environ.items() if key not in QUIET or key in ("PYTHONWARNINGS", "HF_HUB_OFFLINE")
    }
    environment[PARENT] = str(os.getpid())
    with open(stage.printed, "w", encoding="utf-8") if stage.printed else open(os.devnull) as file:
        child = subprocess.Popen(stage.command(), env=environment, stdout=file if stage.printed else None)
        try:
            code = child.wait()
        except KeyboardInterrupt:
            code = child.wait() or 128 + signal.SIGINT
    return 128 - code if code < 0 else code


def what_next(code: int, same_command: str) -> str:
    """After an interrupt the same command goes on; after a mistake of the user's it would make it again."""
    if code == 2:
        return f"; mend what the error above says, then run again: {same_command}"
    if code in (129, 130, 143):
        return f"; the same command goes on from here: {same_command}"
    if code == 137:
        return f": killed, most often because memory did not suffice; with more free, the same command goes on from here: {same_command}"
    return f"; the error above may come again; the finished stages are kept, and this one is tried again by: {same_command}"
