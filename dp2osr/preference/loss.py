"""Preference losses of one group, in group form (paper, Sec. 3 and 4.3).

With one timestep for a group, each of its N² pairs is a function of 2N scalars d_i = e_θ(i) − e_ref(i), where e is the mean
squared error of the prediction over C, H, W. So N² pairs cost 2N forwards, and the gradient is one weight a candidate.

A loss is a function of the winners' gaps (N,) best first and the losers' gaps (N,) worst first. What else it reads it declares by the
names of its parameters: `weights` (N, N) winner by loser, or `advantages` (2N,) in the order of the gaps; `distances` (2N,), the mean
squared difference of policy's and reference's predictions; `beta`; `label_smoothing`.
It returns the sum over the group's N² pairs, a loss of the whole group N² times its one term. `LOSSES` has them by name.
"""

import inspect
from collections.abc import Callable, Collection

import torch
from torch.nn import functional as F


def prediction_errors(prediction: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """e: mean squared error of each sample over C, H, W, in fp32; (B, C, h, w) twice → (B,)."""
    return (prediction.float() - target.float()).square().mean(dim=(1, 2, 3))


def pair_margins(winner_gaps: torch.Tensor, loser_gaps: torch.Tensor, beta: float) -> torch.Tensor:
    """m = −(β/2) (d_w − d_l) for each pair: (N,), (N,) → (N, N), winner by loser. Positive: the policy prefers the winner."""
    return -0.5 * beta * (winner_gaps[:, None] - loser_gaps[None, :])


def sigmoid_loss(
    winner_gaps: torch.Tensor, loser_gaps: torch.Tensor, weights: torch.Tensor, beta: float, label_smoothing: float = 0.0
) -> torch.Tensor:
    """Σ w · −[(1 − ε) log σ(m) + ε log σ(−m)]: the paper's (Diffusion-DPO, arXiv 2311.12908, eq. 14) for ε = 0.

    ε is the share of pairs whose label is taken to be wrong (Mitchell 2023, "A note on DPO with noisy preferences").
    """
    margins = pair_margins(winner_gaps, loser_gaps, beta)
    return -(weights * ((1 - label_smoothing) * F.logsigmoid(margins) + label_smoothing * F.logsigmoid(-margins))).sum()


def ipo_loss(winner_gaps: torch.Tensor, loser_gaps: torch.Tensor, weights: torch.Tensor, beta: float) -> torch.Tensor:
    """Σ w · (m − ½)²: β² times the squared distance of m / β to 1 / 2β (IPO, arXiv 2310.12036, eq. 17).

    The target is finite, so a pair that is told apart well enough is left alone.
    """
    return (weights * (pair_margins(winner_gaps, loser_gaps, beta) - 0.5).square()).sum()


def hinge_loss(winner_gaps: torch.Tensor, loser_gaps: torch.Tensor, weights: torch.Tensor, beta: float) -> torch.Tensor:
    """Σ w · max(0, 1 − m) (SLiC, arXiv 2305.10425, in the form of RSO, arXiv 2309.06657)."""
    return (weights * F.relu(1 - pair_margins(winner_gaps, loser_gaps, beta))).sum()


def plackett_luce_loss(winner_gaps: torch.Tensor, loser_gaps: torch.Tensor, weights: torch.Tensor, beta: float) -> torch.Tensor:
    """−log of the Plackett–Luce probability of the order, Π_k exp(s_k) / Σ_{j≥k} exp(s_j), s = −(β/2) d (DPO, arXiv 2305.18290, App. A.3).

    The order is winners, best first, then losers, worst last. It has 2N − 1 choices where the pairs are N²: their mean is
    scaled to the sum of the pairs' weights, so that N = 1 gives `sigmoid_loss`.
    """
    scores = -0.5 * beta * torch.cat([winner_gaps, loser_gaps.flip(0)])
    left = scores.flip(0).logcumsumexp(0).flip(0)
    return weights.sum() * (left - scores)[:-1].mean()


def group_advantage_loss(winner_gaps: torch.Tensor, loser_gaps: torch.Tensor, advantages: torch.Tensor, beta: float) -> torch.Tensor:
    """N² · −log σ(−(β/2) Σ_i A_i d_i): one term a group (GDPO, arXiv 2603.16769, as its trainer has it).

    A are z-scored rewards (`hierarchy.advantages`). One pair has A = ±1, and this is `sigmoid_loss`.
    """
    gaps = torch.cat([winner_gaps, loser_gaps])
    return -(winner_gaps.numel() ** 2) * F.logsigmoid(-0.5 * beta * (advantages * gaps).sum())


def dgpo_loss(winner_gaps: torch.Tensor, loser_gaps: torch.Tensor, advantages: torch.Tensor, beta: float) -> torch.Tensor:
    """N² · −log σ(−(β / 2N) [Σ_{A > 0} |A_i| d_i − Σ_{A < 0} |A_i| d_i]) (DGPO, arXiv 2510.08425, scaled as its trainer has it).

    The weights |A| of the two sides are equally large, so that what is common to all gaps cancels. The bracket is Σ_i A_i d_i:
    this is `group_advantage_loss` of β / N.
    """
    gaps = torch.cat([winner_gaps, loser_gaps])
    good, weighted = advantages > 0, advantages.abs() * gaps
    return -(winner_gaps.numel() ** 2) * F.logsigmoid(-beta / gaps.numel() * (weighted[good].sum() - weighted[~good].sum()))


NFT_CLIP = 5.0  # DiffusionNFT's trainer: an advantage of ±5 counts as surely good or bad


def nft_loss(
    winner_gaps: torch.Tensor, loser_gaps: torch.Tensor, advantages: torch.Tensor, distances: torch.Tensor, beta: float
) -> torch.Tensor:
    """N² · mean over candidates of r ‖v⁺ − v‖² + (1 − r) ‖v⁻ − v‖² − e_ref (DiffusionNFT, arXiv 2509.16117, eq. 5).

    v⁺ = v_ref + β (v_θ − v_ref) and v⁻ = v_ref − β (v_θ − v_ref) are the implicit positive and negative policy, r = ½ + ½ clip(A / 5).
    With s = ‖v_θ − v_ref‖² the squares are e_ref ± β d + β (β ∓ 1) s, so the term is β a d + β (β − a) s for a = 2r − 1.
    The trainer's division by each sample's own error is left out. A candidate's best prediction is v_ref + a (v − v_ref) / β.
    """
    good = (advantages / NFT_CLIP).clamp(-1, 1)
    terms = beta * good * torch.cat([winner_gaps, loser_gaps]) + beta * (beta - good) * distances
    return winner_gaps.numel() ** 2 * terms.mean()


LOSSES: dict[str, Callable[..., torch.Tensor]] = {
    "sigmoid": sigmoid_loss,
    "ipo": ipo_loss,
    "hinge": hinge_loss,
    "plackett_luce": plackett_luce_loss,
    "group_advantage": group_advantage_loss,
    "dgpo": dgpo_loss,
    "nft": nft_loss,
}


def reads(loss: str) -> Collection[str]:
    """What a loss of `LOSSES` reads, by name: `weights` or `advantages`, `distances`, `beta`, `label_smoothing`."""
    return list(inspect.signature(LOSSES[loss]).parameters)[2:]


def anchor_loss(winner_gaps: torch.Tensor, weights: torch.Tensor, beta: float, sft_weight: float) -> torch.Tensor:
    """λ (β/2) Σ w · d_w over the pairs: the winners' own errors.

    A margin is blind to errors of winner and loser that grow together; λ > 0 holds the winners' down. In the margin's linear range
    a pair weighs its winner ½ + λ and its loser −½, so the best prediction is v_w + (v_w − v_l) / 2λ instead of one at infinity.
    """
    return sft_weight * 0.5 * beta * (weights * winner_gaps[:, None]).sum()
