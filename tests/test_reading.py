"""Groups on their way from disk to the trainer: only what is needed, ahead of time, the same."""

from contextlib import contextmanager
from types import SimpleNamespace

import numpy as np
import pytest
import safetensors
import torch
from conftest import one_kind

from dp2osr.errors import UserError
from dp2osr.preference.groups import PreferenceGroups, groups_of_step
from dp2osr.preference.reader import GroupReader
from dp2osr.rewards.config import load_reward_config
from dp2osr.rewards.table import read_scores
from dp2osr.sampling.store import CandidateStore
from dp2osr.training.visits import visits_of


@pytest.fixture
def groups(labelled):
    config, table = load_reward_config(str(labelled / "reward.yaml")), read_scores(labelled / "scores.parquet")
    return PreferenceGroups(CandidateStore(labelled), table, config, None, 2)


@one_kind
def test_a_group_is_read_without_the_latents_that_it_does_not_need(groups, backbone, monkeypatch):
    everything = groups.store.read(groups.image_ids[0])
    whole, safe_open = [], safetensors.safe_open

    @contextmanager
    def spied(path, framework):
        with safe_open(path, framework) as file:
            read_whole = lambda key: whole.append(path.name) or file.get_tensor(key)  # noqa: E731
            yield SimpleNamespace(metadata=file.metadata, keys=file.keys, get_slice=file.get_slice, get_tensor=read_whole)

    monkeypatch.setattr("dp2osr.sampling.store.safe_open", spied)
    group = groups.read(0, backbone)
    assert torch.equal(group.latents, everything.latents[group.candidates].float()) and group.latents.shape[0] == 4
    assert set(whole) == {"prompt.safetensors"}
    again = groups.read(0, backbone, np.array([5, 1, 1]))
    assert torch.equal(again.latents, everything.latents[[5, 1, 1]].float())
    with pytest.raises(UserError, match="latents.safetensors: not readable"):
        groups.read(0, backbone, np.array([6]))


@one_kind
@pytest.mark.parametrize("processes", [1, 2])
def test_groups_read_ahead_are_those_read_when_needed(groups, backbone, processes):
    reader = GroupReader(ahead=2)
    own = [visit for step in range(4) for visit in visits_of(groups_of_step(step, 4, len(groups), 1), 0, processes)]
    assert processes == 2 or any(visit.before for visit in own)  # three groups, four a step: one comes twice
    for number, visit in enumerate(own, 1):
        given = reader.take(groups, visit.index, [coming.index for coming in own[number:]], backbone)
        expected = groups.read(visit.index, backbone)
        assert given.image_id == expected.image_id and len(reader.pending) <= 3
        for name in ("latents", "control", "weights"):
            assert torch.equal(getattr(given, name), getattr(expected, name))
        assert all(torch.equal(given.prompt[name], value) for name, value in expected.prompt.items())
    few = groups.only([2, 1])  # other groups under the same numbers
    assert reader.take(few, 0, [1], backbone).image_id == groups.image_ids[2]


@one_kind
def test_an_error_of_reading_ahead_comes_with_its_group(groups, backbone):
    reader = GroupReader()
    groups.image_ids[1] = "gone"
    assert reader.take(groups, 0, [1, 2], backbone).image_id == groups.image_ids[0]
    with pytest.raises(UserError, match="has no group 'gone'"):
        reader.take(groups, 1, [2], backbone)
    assert reader.take(groups, 2, [], backbone).image_id == groups.image_ids[2]
