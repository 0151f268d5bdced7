"""Training on several ranks: as many as a step has candidates, with a sharded optimizer, stopped and started again in other numbers."""

import os
import signal
import subprocess
import sys
import time
from types import SimpleNamespace

import pytest
import torch
from conftest import ROOT, assert_one_clear_line, one_kind, read_log
from programs import run_ranks
from trainings import run_training, weights, words

from dp2osr.divergence import Divergence
from dp2osr.errors import UserError, run
from dp2osr.training import checkpoints, trainer
from dp2osr.training.checkpoints import check_agreement, restore_checkpoint, save_checkpoint, weights_digest
from dp2osr.training.checks import check_neutral_start, check_processes
from dp2osr.training.optimizers import share_out
from dp2osr.training.signals import noted_signals
from dp2osr.training.visits import visits_of


def train(ranks, kind, labelled, output, *more):
    done = run_ranks(ranks, *words(kind, labelled, output, *more))
    assert all(process.returncode == 0 for process in done), done[0].stderr[-2000:]
    return weights(output)


def largest_difference(one, other):
    return max((value - other[key]).abs().max().item() for key, value in one.items())


@pytest.mark.slow
@one_kind
def test_weights_do_not_depend_on_the_number_of_ranks_nor_on_sharding(kind, labelled, tmp_path):
    """Four ranks on two groups a step: each makes the passes of half a group's candidates."""
    more = ["--max_train_steps", 8, "--micro_batch_size", 2]
    one = train(1, kind, labelled, tmp_path / "one", *more)
    for ranks in (2, 4):
        several = train(ranks, kind, labelled, tmp_path / f"{ranks}", *more, "--shard_optimizer")
        assert largest_difference(one, several) <= 1e-7  # another rounding makes some 3e-6 by the eighth step


@one_kind
@pytest.mark.parametrize("loss", [["dgpo"], ["nft", "--beta", 1]])
def test_a_loss_of_the_group_gives_the_same_weights_where_ranks_share_groups(kind, labelled, tmp_path, loss):
    more = ["--max_train_steps", 4, "--micro_batch_size", 2, "--loss", *loss]
    one, several = (train(ranks, kind, labelled, tmp_path / f"{ranks}", *more) for ranks in (1, 4))
    assert largest_difference(one, several) <= 1e-6


@one_kind
def test_a_run_goes_on_with_another_number_of_ranks_and_without_sharding(kind, trained, labelled, tmp_path):
    for ranks, steps, more in ((1, 2, []), (2, 4, ["--shard_optimizer"]), (1, 6, [])):
        run_ranks(ranks, *words(kind, labelled, tmp_path / "run", "--max_train_steps", steps, *more))
    assert largest_difference(weights(trained), weights(tmp_path / "run")) <= 1e-6
    assert [record["step"] for record in read_log(tmp_path / "run/train_log.jsonl")] == list(range(1, 7))


@one_kind
def test_ranks_with_other_settings_say_so_before_the_first_step(kind, labelled, tmp_path):
    done = run_ranks(2, *words(kind, labelled, tmp_path / "run"), more={1: ["--beta", "7"]})
    assert_one_clear_line(done[1], "rank 1 of 2", "beta is 7.0 here and 5000.0 on rank 0")
    assert not (tmp_path / "run/train_log.jsonl").exists()


@pytest.mark.parametrize(("groups", "ranks"), [(2, 4), (3, 4), (16, 32), (4, 4), (5, 2), (2, 11)])
def test_every_candidate_of_a_step_is_visited_once(groups, ranks):
    indices, seen = list(range(10, 10 + groups)), []
    for rank in range(ranks):
        visits = visits_of(indices, rank, ranks)
        assert len(visits) == (1 if ranks > groups else len(range(rank, groups, ranks)))
        for visit in visits:
            every, own = visit.parts(8, 3)
            assert all(part.stop - part.start <= 3 for part in every) and len(every) >= visit.team
            seen += [(visit.index, candidate) for part in own for candidate in range(part.start, part.stop)]
    assert sorted(seen) == [(index, candidate) for index in indices for candidate in range(8)]


def test_more_ranks_than_candidates_are_one_line():
    args = SimpleNamespace(groups_per_step=2, top_n=2)
    check_processes(args, 8)
    with pytest.raises(UserError, match="a step has 8 candidates, fewer than the 9 processes; start at most 8"):
        check_processes(args, 9)


def test_shares_of_the_optimizer_are_of_about_one_size():
    shares = share_out([5, 1, 1, 4, 3, 2], 3)
    assert sorted(sum(shares, [])) == list(range(6)) and [sum([5, 1, 1, 4, 3, 2][i] for i in share) for share in shares] == [6, 5, 5]
    assert share_out([1], 2) == [[0], []]


@one_kind
@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGUSR1"])
def test_a_signal_ends_the_training_after_its_step_with_a_checkpoint(kind, trained, labelled, tmp_path, monkeypatch, capfd, name, ctrl_c):
    number, see = getattr(signal, name), Divergence.see

    def send(self, step, *rest):
        if step == 2:
            os.kill(os.getpid(), number)  # while step 3 begins
        see(self, step, *rest)

    more = ["--checkpointing_steps", "100"]
    with monkeypatch.context() as patch:
        patch.setattr(Divergence, "see", send)
        with pytest.raises(SystemExit) as stop:
            run_training(kind, labelled, tmp_path / "run", *more)
    assert stop.value.code == 128 + number
    told = capfd.readouterr().err
    assert f"/run: {name} came; step 3 of 6 is saved in checkpoint-3.pt, the same command goes on from it" in told.splitlines()[-1]
    assert told.count("Ctrl-C: this step is finished") == (name == "SIGINT")
    assert [path.name for path in (tmp_path / "run").glob("checkpoint-*")] == ["checkpoint-3.pt"]
    run_training(kind, labelled, tmp_path / "run", *more)
    assert "goes on from step 3" in capfd.readouterr().err
    assert all(torch.equal(value, weights(tmp_path / "run")[key]) for key, value in weights(trained).items())


@one_kind
def test_a_second_ctrl_c_ends_the_training_at_once(kind, labelled, tmp_path, monkeypatch, capfd, ctrl_c):
    seen, see = [], Divergence.see

    def send(self, step, *rest):
        seen.append(step)
        for _ in range(2 * (step == 3)):
            os.kill(os.getpid(), ctrl_c)
        see(self, step, *rest)

    monkeypatch.setattr(Divergence, "see", send)
    with pytest.raises(SystemExit) as stop:
        run(lambda: run_training(kind, labelled, tmp_path / "run"))
    assert stop.value.code == 130 and seen == [1, 2, 3]
    assert capfd.readouterr().err.splitlines()[-1] == "stopped; what is whole is kept, the same command does what is left"
    assert [path.name for path in (tmp_path / "run").glob("checkpoint-*")] == ["checkpoint-2.pt"]


@pytest.mark.slow
@one_kind
def test_ctrl_c_at_the_launcher_ends_all_ranks_with_one_checkpoint(kind, labelled, tmp_path, ctrl_c):
    """As at a terminal: the launcher alone gets the signal, since its ranks are in sessions of their own."""
    command = [sys.executable, "-m", "dp2osr.launch", *words(kind, labelled, tmp_path / "run", "--max_train_steps", 100000)]
    environment = {**os.environ, "OMP_NUM_THREADS": "2"}
    with open(tmp_path / "told", "w") as told:
        launcher = subprocess.Popen(list(map(str, command)), cwd=ROOT, env=environment, stderr=told, start_new_session=True)
    log = tmp_path / "run/train_log.jsonl"
    while not (log.exists() and log.read_text()):
        assert launcher.poll() is None, (tmp_path / "told").read_text()[-2000:]
        time.sleep(0.05)
    os.killpg(launcher.pid, ctrl_c)
    assert launcher.wait(timeout=120) == 130
    last, said = read_log(log)[-1]["step"], (tmp_path / "told").read_text()
    assert f"step {last} of 100000 is saved in checkpoint-{last}.pt" in said and (tmp_path / f"run/checkpoint-{last}.pt").exists()
    assert [said.count(line) for line in ("SIGINT came", "Ctrl-C: this step is finished", "Traceback", "death signal")] == [1, 1, 0, 0]


def test_a_ctrl_c_that_is_ignored_stays_ignored(monkeypatch, ctrl_c):
    signal.signal(ctrl_c, signal.SIG_IGN)  # as a shell has it for what runs in the background
    with noted_signals() as request:
        os.kill(os.getpid(), ctrl_c)
        assert request.signal == 0
        os.kill(os.getpid(), signal.SIGTERM)
        assert request.signal == signal.SIGTERM


def test_a_rank_with_other_weights_is_named(monkeypatch):
    parameters = [torch.ones(3, 4), torch.arange(5.0)]
    assert weights_digest(parameters) == weights_digest([tensor.clone() for tensor in parameters])
    swapped = [parameters[0], parameters[1][[1, 0, 2, 3, 4]]]
    monkeypatch.setattr(checkpoints, "DIGEST_PART", 2)
    assert weights_digest(swapped) != weights_digest(parameters)
    told = {int: [3, 3, 3], list: [weights_digest(parameters), weights_digest(swapped), weights_digest(parameters)]}
    monkeypatch.setattr("accelerate.utils.gather_object", lambda value: told[type(value[0])])
    with pytest.raises(UserError, match="step 3: the weights of rank 1 of 3 are not those of rank 0; nothing of this step is saved"):
        check_agreement(3, SimpleNamespace(num_processes=3), parameters)


def test_what_is_restored_does_not_lie_in_the_checkpoint_any_more(tmp_path):
    """A checkpoint is mapped, not read into memory by each process; what replaces or removes the file changes no state."""
    network = torch.nn.Linear(4, 4)
    optimizer = torch.optim.AdamW(network.parameters())
    network(torch.ones(1, 4)).sum().backward()
    optimizer.step()
    save_checkpoint(tmp_path, 1, {"policy": network, "optimizer": optimizer}, 1)
    expected = [value.clone() for state in optimizer.state.values() for value in state.values()]
    restore_checkpoint(tmp_path, {"policy": network, "optimizer": optimizer})
    path = tmp_path / "checkpoint-1.pt"
    with path.open("r+b") as file:
        file.write(bytes(path.stat().st_size))
    found = [value for state in optimizer.state.values() for value in state.values()]
    assert found and all(torch.equal(value, other) for value, other in zip(found, expected, strict=True))


def test_a_restored_state_lies_in_memory_as_its_parameter_does(tmp_path):
    """Where it does not, as in a checkpoint from before convolutions were laid out for speed, a fused step would mix numbers up."""
    network = torch.nn.Conv2d(3, 4, 3)
    optimizer = torch.optim.AdamW(network.parameters(), fused=True)
    network(torch.ones(1, 3, 5, 5)).square().sum().backward()
    optimizer.step()
    save_checkpoint(tmp_path, 1, {"optimizer": optimizer}, 1)
    expected = optimizer.state[network.weight]["exp_avg"].clone()
    network.weight.data = network.weight.data.to(memory_format=torch.channels_last)
    restore_checkpoint(tmp_path, {"optimizer": optimizer})
    found = optimizer.state[network.weight]["exp_avg"]
    assert torch.equal(found, expected) and found.stride() == network.weight.stride() != expected.stride()


@one_kind
def test_too_little_memory_is_one_line_with_what_to_set(kind, labelled, tmp_path, monkeypatch):
    class Full:
        def __init__(self, args):
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB")

    monkeypatch.setattr(trainer, "PreferenceTrainer", Full)
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UserError) as error:
        trainer.train_preferences(kind.training_settings(words(kind, labelled, tmp_path / "run", "--gradient_checkpointing")[1:]))
    first, other = str(error.value).split("; or begin anew in another --output_dir with ")
    assert "set --micro_batch_size 2, --shard_optimizer and run the same command again" in first and "--gradient_checkpointing" not in first
    assert other == "--use_8bit_adam, --lora_rank 16, --quantize_backbone nf4, --mixed_precision bf16"


@pytest.mark.parametrize("precision", ["no", "bf16"])
def test_a_start_that_is_not_neutral_is_an_error_in_fp32_and_a_warning_in_16_bits(precision, capsys):
    objective = SimpleNamespace(
        cache=None, args=SimpleNamespace(pairs_per_group=1), accelerator=SimpleNamespace(mixed_precision=precision, is_main_process=True)
    )
    groups, record = SimpleNamespace(), {"loss": 0.7, "margin": 0.01}
    if precision == "no":
        with pytest.raises(RuntimeError, match="the mean margin is 0.01, not 0"):
            check_neutral_start(objective, groups, record)
    else:
        check_neutral_start(objective, groups, record)
        assert "warning: step 0: the mean margin is 0.01, not 0, though policy and reference are one" in capsys.readouterr().err
