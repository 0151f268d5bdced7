"""An experiment small enough to be run in a test, and a way to run it without the seconds in which each program imports the libraries."""

import contextlib
import io
import os
import subprocess

import pytest
import yaml
from programs import ROOT, ForkedProgram

from dp2osr.cli import parse
from dp2osr.errors import UserError
from dp2osr.experiments import steps
from dp2osr.experiments.run import run_experiment
from dp2osr.experiments.settings import ExperimentSettings


@contextlib.contextmanager
def programs_as_forks():
    """Within, the programs that an experiment starts are forks; relative paths are of the repository."""

    def start(script, settings, jobs, stdout=None, **_):
        return ForkedProgram([ROOT / script, "--config", settings], stdout.name if stdout else os.devnull)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(steps, "start", start)
        patch.chdir(ROOT)
        yield


def reproduce(*words, check=True):
    """`scripts/reproduce.py` with these words, in this process; returns a `CompletedProcess`."""
    out, err, code = io.StringIO(), io.StringIO(), 0
    with programs_as_forks(), contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            run_experiment(parse(ExperimentSettings, [str(word) for word in words]))
        except UserError as error:
            if check:
                raise
            code = 2
            print(f"error: {error}", file=err)
    return subprocess.CompletedProcess(words, code, out.getvalue(), err.getvalue())


def experiment(folder, **changes):
    """An experiment of two short trainings on three photographs; returns the path of its YAML."""
    stages = folder / "stages"
    stages.mkdir(parents=True, exist_ok=True)
    model = {
        "pretrained_model_name_or_path": "preset/models/tiny-sd2",
        "controlnet_model_name_or_path": "preset/models/c-tiny-sd2",
    }
    sampling = {"num_inference_steps": 1, "guidance_scale": 1.0, "batch_size": 4, "num_candidates": 4}
    reward = folder / "psnr.yaml"
    reward.write_text("fr: [psnr, gmsd]\n", encoding="utf-8")
    content = {
        "sample": model | sampling | {"image_path": "preset/train/lr", "max_images": 3},
        "label": {"gt_path": "preset/train/gt", "reward_config": str(reward)},
        "train": model
        | {"reward_config": str(reward), "top_n": 2, "groups_per_step": 2, "max_train_steps": 2}
        | {"learning_rate": 1e-3, "report_to": "none"},
        "test": model | sampling | {"image_path": "preset/test/lr", "max_images": 3, "seed": 1},
        "label_test": {"gt_path": "preset/test/gt", "reward_config": str(reward), "extra_metrics": ["ssim"]},
    }
    for name, settings in content.items():
        (stages / f"{name}.yaml").write_text(yaml.safe_dump(settings), encoding="utf-8")
    grid = {
        "title": "A small one",
        "stages": str(stages),
        "evaluated_by": str(reward),
        "seeds": [0, 1],
        "axis": "N/M",
        "arms": {
            "plain": {"at": 0.5},
            "ranks": {"reward": {"normalise": "rank"}, "train": {"top_n": 1}, "seeds": [1], "line": "ranks", "at": 0.25, "rounds": 2},
        },
    } | changes
    path = folder / "small.yaml"
    path.write_text(yaml.safe_dump(grid, sort_keys=False), encoding="utf-8")
    return path
