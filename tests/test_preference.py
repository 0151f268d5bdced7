"""Curation, HPO weights and the group loss against brute-force float64 loops."""

import itertools
import math

import numpy as np
import pytest
import torch

from dp2osr.errors import UserError
from dp2osr.preference.groups import groups_of_step
from dp2osr.preference.hierarchy import advantages, hpo_weights, inter_weights, intra_weights
from dp2osr.preference.loss import LOSSES, anchor_loss, pair_margins, prediction_errors, reads, sigmoid_loss
from dp2osr.preference.pairs import curate

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
    loss = sigmoid_loss(errors[:count], errors[count:], weights, beta) + anchor_loss(errors[:count], weights, beta, sft_weight)
    gradient = torch.autograd.grad(loss, network.parameters())
    assert loss.item() == pytest.approx(brute.item(), rel=1e-12)
    for ours, theirs in zip(gradient, brute_gradient, strict=True):
        assert torch.allclose(ours, theirs, rtol=1e-10, atol=1e-12)


GAPS = torch.randn(2, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(3)) * 0.05
WEIGHTS = torch.rand(4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(4))


def test_losses_of_pairs_equal_their_formulas_pair_by_pair():
    """Each written out for one pair with plain Python floats."""
    beta, epsilon = 50.0, 0.1

    def logistic(x):
        return 1 / (1 + math.exp(-x))

    formulas = {
        "sigmoid": lambda m: -math.log(logistic(m)),
        "smoothed": lambda m: -(1 - epsilon) * math.log(logistic(m)) - epsilon * math.log(1 - logistic(m)),
        "ipo": lambda m: beta**2 * (m / beta - 1 / (2 * beta)) ** 2,
        "hinge": lambda m: max(0.0, 1 - m),
    }
    margins = [[beta / 2 * (loser - winner) for loser in GAPS[1].tolist()] for winner in GAPS[0].tolist()]
    assert torch.allclose(pair_margins(*GAPS, beta), torch.tensor(margins, dtype=torch.float64), rtol=1e-12)
    for name, formula in formulas.items():
        brute = sum(WEIGHTS[i, j].item() * formula(margins[i][j]) for i in range(4) for j in range(4))
        ours = sigmoid_loss(*GAPS, WEIGHTS, beta, epsilon) if name == "smoothed" else LOSSES[name](*GAPS, WEIGHTS, beta)
        assert ours.item() == pytest.approx(brute, rel=1e-12), name


def test_plackett_luce_is_the_probability_of_the_order():
    """Against the product over all choices; the probabilities of all orders sum to one; one pair gives the sigmoid loss."""
    beta = 50.0
    ranked = [*GAPS[0].tolist(), *GAPS[1].flip(0).tolist()]

    def probability(order):
        scores = [math.exp(-beta / 2 * gap) for gap in order]
        return math.prod(score / sum(scores[k:]) for k, score in enumerate(scores))

    ours = LOSSES["plackett_luce"](*GAPS, torch.ones_like(WEIGHTS), beta).item()
    assert ours == pytest.approx(16 / 7 * -math.log(probability(ranked)), rel=1e-12)
    assert sum(probability(order) for order in itertools.permutations(ranked[:5])) == pytest.approx(1)
    one = [gaps[:1] for gaps in GAPS], WEIGHTS[:1, :1], beta
    assert LOSSES["plackett_luce"](*one[0], *one[1:]).item() == pytest.approx(sigmoid_loss(*one[0], *one[1:]).item(), rel=1e-12)


def test_advantages_equal_the_loop_and_are_zero_where_rewards_are_equal():
    winners, losers = curate(REWARDS, 3)
    for rewards, best, worst, found in zip(REWARDS.tolist(), winners, losers, advantages(REWARDS, winners, losers), strict=True):
        chosen = [rewards[candidate] for candidate in [*best, *worst]]
        mean = sum(chosen) / 6
        spread = math.sqrt(sum((reward - mean) ** 2 for reward in chosen) / 6)
        assert found == pytest.approx([(reward - mean) / spread for reward in chosen], rel=1e-12)
    flat = np.full((1, 8), 0.1)
    assert not advantages(flat, *curate(flat, 3)).any()


# As `advantages` gives them for these rewards, best to worst and then worst to better: three above the mean, five below it.
CHOSEN = np.array([[0.9, 0.8, 0.75, 0.3, 0.1, 0.15, 0.2, 0.25]])
ADVANTAGES = torch.from_numpy(advantages(CHOSEN, np.array([[0, 1, 2, 3]]), np.array([[4, 5, 6, 7]]))[0])


def test_losses_of_the_group_equal_their_formulas_candidate_by_candidate():
    """Written out with plain Python floats: GDPO's one sum over candidates, DGPO's two sides of a group."""
    beta, gaps, weighted = 50.0, [*GAPS[0].tolist(), *GAPS[1].tolist()], ADVANTAGES.tolist()
    policy = [0.3 + gap for gap in gaps]  # errors of which only the difference is to count
    gdpo = sum(a * error for a, error in zip(weighted, policy, strict=True)) - sum(a * 0.3 for a in weighted)
    good = sum(a * gap for a, gap in zip(weighted, gaps, strict=True) if a > 0)
    bad = sum(-a * gap for a, gap in zip(weighted, gaps, strict=True) if a < 0)
    assert sum(a > 0 for a in weighted) == 3 and sum(weighted) == pytest.approx(0, abs=1e-12)
    expected = {"group_advantage": math.log(1 + math.exp(beta / 2 * gdpo)), "dgpo": math.log(1 + math.exp(beta / 8 * (good - bad)))}
    for name, value in expected.items():
        assert LOSSES[name](*GAPS, ADVANTAGES, beta).item() == pytest.approx(16 * value, rel=1e-12), name
        assert LOSSES[name](*(GAPS + 0.7), ADVANTAGES, beta).item() == pytest.approx(16 * value, rel=1e-9), name
    assert LOSSES["dgpo"](*GAPS, ADVANTAGES, 4 * beta).item() == pytest.approx(LOSSES["group_advantage"](*GAPS, ADVANTAGES, beta).item())


@pytest.mark.parametrize("name", ["group_advantage", "dgpo"])
def test_one_pair_gives_the_sigmoid_loss(name):
    pair = advantages(np.array([[0.7, 0.2]]), np.array([[0]]), np.array([[1]]))
    ours = LOSSES[name](*GAPS[:, :1], torch.from_numpy(pair[0]), 50.0)
    assert ours.item() == pytest.approx(sigmoid_loss(*GAPS[:, :1], torch.ones(1, 1), 50.0).item(), rel=1e-12)


@pytest.mark.parametrize("name", ["group_advantage", "dgpo"])
def test_a_loss_of_the_group_pulls_down_what_is_better_than_the_mean_and_pushes_the_rest_up(name):
    gaps = GAPS.clone().requires_grad_()
    LOSSES[name](*gaps, ADVANTAGES, 50.0).backward()
    assert torch.equal(gaps.grad.flatten() > 0, ADVANTAGES > 0)
    assert torch.allclose(gaps.grad.flatten() / gaps.grad[0, 0], ADVANTAGES / ADVANTAGES[0], rtol=1e-9)


@pytest.mark.parametrize("beta", [1.0, 0.3, 20.0])
def test_nft_equals_its_two_implicit_policies_prediction_by_prediction(beta):
    """r ‖v⁺ − v‖² + (1 − r) ‖v⁻ − v‖² of predictions, as DiffusionNFT has it, less what no policy changes; and its gradient."""
    torch.manual_seed(0)
    policy, reference, target = torch.randn(3, 8, 3, 5, 4, dtype=torch.float64)
    policy.requires_grad_()
    strong = ADVANTAGES * torch.tensor([1, 1, 1, 1, 9, 1, 1, 1], dtype=torch.float64)  # one is beyond the clip

    def mean_square(values):
        return values.square().mean(dim=(1, 2, 3))

    shares = torch.tensor([min(max(a / 5 / 2 + 0.5, 0.0), 1.0) for a in strong.tolist()], dtype=torch.float64)
    positive, negative = beta * policy + (1 - beta) * reference, (1 + beta) * reference - beta * policy
    terms = shares * mean_square(positive - target) + (1 - shares) * mean_square(negative - target) - mean_square(reference - target)
    gaps = (mean_square(policy - target) - mean_square(reference - target)).chunk(2)
    ours = LOSSES["nft"](*gaps, strong, mean_square(policy - reference), beta)
    assert strong.min() < -5 and ours.item() == pytest.approx(16 * terms.sum().item() / 8, rel=1e-10)
    gradients = [torch.autograd.grad(loss, policy, retain_graph=True)[0] for loss in (ours, 16 * terms.mean())]
    assert torch.allclose(*gradients, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("name", LOSSES)
def test_every_loss_pulls_winners_down_and_losers_up_at_the_start(name):
    gaps = torch.zeros(2, 4, dtype=torch.float64, requires_grad=True)
    even = torch.tensor([1.5, 1, 0.5, 0.25, -1.5, -1, -0.5, -0.25], dtype=torch.float64)
    known = {"weights": WEIGHTS, "advantages": even, "distances": torch.zeros_like(even), "beta": 50.0, "label_smoothing": 0.0}
    LOSSES[name](*gaps, **{read: known[read] for read in reads(name)}).backward()
    assert (gaps.grad[0] > 0).all() and (gaps.grad[1] < 0).all() if name != "plackett_luce" else gaps.grad[0, 0] > 0 > gaps.grad[1, 0]
    assert gaps.grad.sum().abs() <= 1e-9  # what is common to all is not seen


def test_loss_falls_when_the_winner_is_predicted_better():
    zero, weights = torch.zeros(1), torch.ones(1, 1)
    better = sigmoid_loss(torch.tensor([-1e-4]), zero, weights, 5000.0)
    assert better < sigmoid_loss(zero, zero, weights, 5000.0) < sigmoid_loss(torch.tensor([1e-4]), zero, weights, 5000.0)
    assert sigmoid_loss(zero, zero, weights, 5000.0).item() == pytest.approx(math.log(2))


def test_error_is_a_mean_over_channels_and_pixels():
    prediction, target = torch.zeros(2, 3, 4, 5), torch.full((2, 3, 4, 5), 2.0)
    assert prediction_errors(prediction, target).tolist() == [4.0, 4.0]


def test_every_epoch_visits_every_group_once_whatever_the_step_it_starts_from():
    visited = [index for step in range(5) for index in groups_of_step(step, 4, 10, seed=1)]
    assert sorted(visited[:10]) == sorted(visited[10:]) == list(range(10))
    assert visited[:10] != visited[10:]
    assert groups_of_step(3, 4, 10, seed=1) == visited[12:16]
