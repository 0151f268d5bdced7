"""Curation, HPO weights and the group loss against brute-force float64 loops."""

import itertools
import math

import numpy as np
import pytest
import torch

from dp2osr.errors import UserError
from dp2osr.preference.groups import groups_of_step
from dp2osr.preference.loss import group_dpo_loss, prediction_errors
from dp2osr.preference.pairs import curate
from dp2osr.preference.weights import hpo_weights, inter_weights, intra_weights

RNG = np.random.default_rng(7)
REWARDS = RNG.random((5, 12))


@pytest.mark.parametrize("top_n", [1, 3, 6])
def test_curation_takes_the_best_and_the_worst(top_n):
    winners, losers = curate(REWARDS, top_n)
    for rewards, best, worst in zip(REWARDS, winners, losers, strict=True):
        ranked = sorted(range(12), key=lambda m: -rewards[m])
        assert list(best) == ranked[:top_n]
        assert sorted(worst) == sorted(ranked[-top_n:])
        assert not set(best) & set(worst)


def test_ties_never_make_a_candidate_both_winner_and_loser():
    winners, losers = curate(np.zeros((2, 8)), 4)
    assert sorted([*winners[0], *losers[0]]) == list(range(8))


@pytest.mark.parametrize("top_n", [0, 7])
def test_impossible_top_n_is_a_user_error(top_n):
    with pytest.raises(UserError, match="between 1 and 6"):
        curate(REWARDS, top_n)


def test_weights_equal_the_double_loop():
    winners, losers = curate(REWARDS, 3)
    sigmas = [math.sqrt(sum((r - sum(row) / 12) ** 2 for r in row) / 12) for row in REWARDS.tolist()]
    for weighting in ("none", "intra", "inter", "both"):
        weights = hpo_weights(REWARDS, winners, losers, weighting)
        for g in range(5):
            gaps = [abs(REWARDS[g, w] - REWARDS[g, v]) for w in winners[g] for v in losers[g]]
            for i, j in itertools.product(range(3), range(3)):
                intra = abs(REWARDS[g, winners[g, i]] - REWARDS[g, losers[g, j]]) + 1 - sum(gaps) / 9
                inter = sigmas[g] + 1 - sum(sigmas) / 5
                expected = {"none": 1, "intra": intra, "inter": inter, "both": intra * inter}[weighting]
                assert weights[g, i, j] == pytest.approx(expected, rel=1e-12)


def test_weights_average_to_one():
    winners, losers = curate(REWARDS, 3)
    assert intra_weights(REWARDS, winners, losers).mean(axis=(1, 2)) == pytest.approx(np.ones(5))
    assert inter_weights(REWARDS).mean() == pytest.approx(1)


@pytest.mark.parametrize("sft_weight", [0.0, 0.3])
def test_group_loss_and_gradient_equal_the_sum_over_pairs(sft_weight):
    """Σ_{w,l} w · (−log σ(−β/2 [(e_w − r_w) − (e_l − r_l)]) + λ β/2 (e_w − r_w)), pair by pair with its own network passes, in float64."""
    torch.manual_seed(0)
    count, beta = 4, 50.0
    network = torch.nn.Sequential(torch.nn.Conv2d(3, 6, 3, padding=1), torch.nn.Tanh(), torch.nn.Conv2d(6, 3, 3, padding=1)).double()
    inputs, targets = torch.randn(2, 2 * count, 3, 6, 5, dtype=torch.float64)
    reference = torch.rand(2 * count, dtype=torch.float64)
    weights = torch.rand(count, count, dtype=torch.float64)

    def gap(i):
        return ((network(inputs[i : i + 1]) - targets[i : i + 1]) ** 2).sum() / (3 * 6 * 5) - reference[i]

    brute = sum(
        weights[i, j] * (torch.log(1 + torch.exp(beta / 2 * (gap(i) - gap(count + j)))) + sft_weight * beta / 2 * gap(i))
        for i in range(count)
        for j in range(count)
    )
    brute_gradient = torch.autograd.grad(brute, network.parameters())
    errors = (network(inputs) - targets).square().mean(dim=(1, 2, 3)) - reference
    loss = group_dpo_loss(errors[:count], errors[count:], weights, beta, sft_weight)
    gradient = torch.autograd.grad(loss, network.parameters())
    assert loss.item() == pytest.approx(brute.item(), rel=1e-12)
    for ours, theirs in zip(gradient, brute_gradient, strict=True):
        assert torch.allclose(ours, theirs, rtol=1e-10, atol=1e-12)


def test_loss_falls_when_the_winner_is_predicted_better():
    zero, weights = torch.zeros(1), torch.ones(1, 1)
    better = group_dpo_loss(torch.tensor([-1e-4]), zero, weights, 5000.0)
    assert better < group_dpo_loss(zero, zero, weights, 5000.0) < group_dpo_loss(torch.tensor([1e-4]), zero, weights, 5000.0)
    assert group_dpo_loss(zero, zero, weights, 5000.0).item() == pytest.approx(math.log(2))


def test_error_is_a_mean_over_channels_and_pixels():
    prediction, target = torch.zeros(2, 3, 4, 5), torch.full((2, 3, 4, 5), 2.0)
    assert prediction_errors(prediction, target).tolist() == [4.0, 4.0]


def test_every_epoch_visits_every_group_once_whatever_the_step_it_starts_from():
    visited = [index for step in range(5) for index in groups_of_step(step, 4, 10, seed=1)]
    assert sorted(visited[:10]) == sorted(visited[10:]) == list(range(10))
    assert visited[:10] != visited[10:]
    assert groups_of_step(3, 4, 10, seed=1) == visited[12:16]
