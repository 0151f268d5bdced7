"""Pruning: 2N latents of each group stay, and training on them is the same to the bit."""

import json
import shutil
from functools import partial

import numpy as np
import pytest
import torch
from conftest import assert_one_clear_line, one_kind, run_program, write_made_up_scores
from test_locks import start_reader
from trainings import run_training, weights, words

from dp2osr.cli import parse
from dp2osr.errors import UserError
from dp2osr.locks import Locks
from dp2osr.preference import prune
from dp2osr.preference.settings import PruneSettings
from dp2osr.sampling.store import CandidateStore, reading


@pytest.fixture
def folder(labelled, tmp_path):
    return shutil.copytree(labelled, tmp_path / "candidates")


def prune_by(folder, *more):
    flags = ["--candidates_dir", folder, "--reward_config", folder / "reward.yaml", "--top_n", 2, *more]
    prune.prune_candidates(parse(PruneSettings, flags))


def test_training_on_a_pruned_folder_gives_the_same_weights_with_this_n_and_a_smaller_one(kind, labelled, trained, folder, tmp_path):
    prune_by(folder)
    whole, pruned = CandidateStore(labelled), CandidateStore(folder)
    for image_id in whole.ids():
        about = json.loads((folder / "groups" / image_id / "group.json").read_text())
        assert len(about["kept"]) == 4 < len(about["seeds"])
        kept = about["kept"][::-1]
        assert torch.equal(pruned.read(image_id, kept).latents, whole.read(image_id).latents[kept])
    run_training(kind, folder, tmp_path / "again")
    assert all(torch.equal(weights(tmp_path / "again")[name], value) for name, value in weights(trained).items())
    if kind.name == "sd2":
        fewer = ("--top_n", 1, "--max_train_steps", 2)
        run_training(kind, labelled, tmp_path / "whole", *fewer)
        run_training(kind, folder, tmp_path / "pruned", *fewer)
        assert all(torch.equal(weights(tmp_path / "pruned")[name], value) for name, value in weights(tmp_path / "whole").items())


@one_kind
def test_disk_is_said_before_and_after_and_a_dry_run_changes_nothing(kind, folder, capsys):
    def files():
        return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}

    before, told = files(), capsys.readouterr()
    prune_by(folder, "--dry_run")
    assert files() == before
    planned = capsys.readouterr().out
    assert "4 of 6 candidates are kept in 3 of 3 groups" in planned and "disk: " in planned and " before, " in planned
    prune_by(folder)
    told = capsys.readouterr().out
    assert "3 groups pruned, 0 were" in told
    for path, content in files().items():
        if path.name not in ("latents.safetensors", "group.json", "pruned.json"):
            assert content == before[path], path
    group = next((folder / "groups").iterdir())
    relative = group.relative_to(folder) / "latents.safetensors"
    assert (group / "latents.safetensors").stat().st_size < 0.75 * len(before[relative])
    prune_by(folder)
    assert "0 groups pruned, 3 were" in capsys.readouterr().out


@one_kind
def test_what_needs_a_candidate_that_is_gone_is_one_clear_line(kind, folder, lr_folder, tmp_path):
    prune_by(folder, "--top_n", 1)
    write_made_up_scores(folder)  # as they were
    by = "reward reward, M = 6, N = 1"
    assert_one_clear_line(run_program(*words(kind, folder, tmp_path / "out"), check=False), "pruned", by, "3 of 3 groups", "no larger N")
    (tmp_path / "other.yaml").write_text("fr: [gmsd]\n", encoding="utf-8")
    other = words(kind, folder, tmp_path / "out", "--top_n", "1", "--reward_config", str(tmp_path / "other.yaml"))
    assert_one_clear_line(run_program(*other, check=False), "pruned", by, "that reward")
    sampling = ["gen_candidates.py", *kind.model_flags, "--image_path", lr_folder, "--output_dir", folder, "--num_inference_steps", 2]
    sampling += ["--guidance_scale", 1, "--num_candidates", 6, "--seed", 3]
    assert_one_clear_line(run_program(*sampling, check=False), "pruned", by, "another --output_dir")
    labelling = ["label_rewards.py", "--candidates_dir", folder, "--gt_path", lr_folder, "--reward_config", "embedded"]
    assert_one_clear_line(run_program(*labelling, check=False), "pruned", by, "all of its candidates")
    store = CandidateStore(folder)
    with pytest.raises(UserError, match="has 2 of its candidates alone.*pruned away"):
        store.read(store.ids()[0])
    assert not (tmp_path / "out/model.safetensors").exists()


@one_kind
def test_a_stop_at_any_group_leaves_each_whole_and_the_same_command_goes_on(kind, folder, labelled, monkeypatch, capsys):
    real, calls = prune.keep_candidates, []

    def stop_at_the_second(group, numbers):
        calls.append(group)
        if len(calls) == 2:
            monkeypatch.setattr("dp2osr.sampling.pruned.save_tensors", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt()))
        real(group, numbers)

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(prune, "keep_candidates", stop_at_the_second)
        prune_by(folder)
    monkeypatch.undo()
    counts = [len(CandidateStore(folder).read(image_id, [0]).latents) if not kept(folder, image_id) else 4 for image_id in ids(labelled)]
    assert sorted(counts) == [1, 1, 4]
    assert not (folder / ".locks").exists()
    capsys.readouterr()
    prune_by(folder)
    assert "2 groups pruned, 1 were" in capsys.readouterr().out
    assert not list((folder / "groups").glob(".*"))


@one_kind
def test_pruning_is_refused_while_another_job_works_in_the_folder(kind, folder):
    before = (folder / "groups").stat().st_mtime_ns
    with Locks(folder).held("scores.parquet some image"), pytest.raises(UserError, match="another job works in this folder.*scores"):
        prune_by(folder)
    assert (folder / "groups").stat().st_mtime_ns == before and not (folder / "pruned.json").exists()


@one_kind
def test_nothing_is_removed_while_trainings_read_the_folder(kind, folder):
    with reading([folder], "training"), reading([folder], "evaluation"):  # as many as like
        with pytest.raises(
            UserError, match=r"another job works in this folder \(evaluation on .*, training on .*process \d+-.*waits for its"
        ):
            prune_by(folder)
        assert not (folder / "pruned.json").exists()
    assert not (folder / ".locks").exists()
    prune_by(folder)
    assert (folder / "pruned.json").exists() and not (folder / ".locks").exists()


@one_kind
def test_a_reader_that_is_killed_holds_nothing(kind, folder):
    reader = start_reader(folder, 600)
    try:
        assert reader.stdout.readline() == "reads\n"
        command = ["scripts/prune.py", "--candidates_dir", folder, "--reward_config", folder / "reward.yaml", "--top_n", 2]
        refused = run_program(*command, check=False)
        assert_one_clear_line(refused, "another job works in this folder (training on", f"process {reader.pid}-")
        assert refused.returncode == 2
    finally:
        reader.kill()
        reader.communicate()
    prune_by(folder)
    assert (folder / "pruned.json").exists() and not (folder / ".locks").exists()


@one_kind
@pytest.mark.parametrize("what", ["training", "scoring", "evaluation", "inspection"])
def test_the_programs_that_read_latents_are_seen(kind, folder, lr_folder, tmp_path, monkeypatch, what):
    from dp2osr.evaluation import candidates, inspect_rewards
    from dp2osr.evaluation.settings import EvaluateSettings
    from dp2osr.rewards import label
    from dp2osr.rewards.settings import InspectRewardSettings, LabelSettings
    from dp2osr.training import trainer

    class Seen(Exception):
        pass

    def prunes(*_, **__):
        with pytest.raises(UserError, match=rf"another job works in this folder \({what} on"):
            prune_by(folder)
        raise Seen

    reward = ["--reward_config", folder / "reward.yaml"]
    settings, owner, name, run, flags = {
        "training": (kind.training_settings, trainer, "PreferenceTrainer", trainer.train_preferences, words(kind, folder, tmp_path)[1:]),
        "evaluation": (
            partial(parse, EvaluateSettings), candidates, "load_methods", candidates.run_evaluation,
            ["--candidates", f"a={folder}", "--gt_path", lr_folder, "--output_dir", tmp_path / "out", *reward],
        ),
        "inspection": (
            partial(parse, InspectRewardSettings), inspect_rewards, "check_same_candidates", inspect_rewards.run_inspection,
            ["--candidates_dir", folder, "--output_dir", tmp_path / "out", *reward],
        ),
        "scoring": (
            partial(parse, LabelSettings), label.Labeller, "score_missing", label.label_candidates,
            ["--candidates_dir", folder, "--gt_path", lr_folder, "--output", tmp_path / "scores.parquet", *reward],
        ),
    }[what]  # fmt: skip
    monkeypatch.setattr(owner, name, prunes)
    with pytest.raises(Seen):
        run(settings(list(map(str, flags))))
    assert not (folder / ".locks").exists() and not (folder / "pruned.json").exists()


@one_kind
def test_groups_with_a_nan_score_keep_all_their_candidates(kind, folder, capsys):
    import pandas as pd

    scores = pd.read_parquet(folder / "scores.parquet")
    first = ids(folder)[0]
    scores.loc[(scores["image_id"] == first) & (scores["candidate"] == 1), "piqe"] = np.nan
    scores.to_parquet(folder / "scores.parquet")
    prune_by(folder)
    assert f"1 groups keep all, since training passes over them (no finite score): {first}" in capsys.readouterr().out
    assert len(CandidateStore(folder).read(first).latents) == 6


def ids(folder):
    return CandidateStore(folder).ids()


def kept(folder, image_id):
    return json.loads((folder / "groups" / image_id / "group.json").read_text()).get("kept")
