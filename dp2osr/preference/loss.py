"""Group form of the hierarchically weighted Diffusion-DPO loss (PAPER §3, Sec. 3 and 4.3).

With one timestep for a group, each of its N² pairs is a function of 2N scalars d_i = e_θ(i) − e_ref(i), where e is the mean
squared error of the prediction over C, H, W. So N² pairs cost 2N forwards, and the gradient is one weight a candidate.
"""

from torch.nn import functional as F


def prediction_errors(prediction, target):
    """e: mean squared error of each sample over C, H, W, in fp32; (B, C, h, w) twice → (B,)."""
    return (prediction.float() - target.float()).square().mean(dim=(1, 2, 3))


def pair_margins(winner_gaps, loser_gaps, beta):
    """−(β/2) (d_w − d_l) for each pair: (N,), (N,) → (N, N), winner by loser. Positive: the policy prefers the winner."""
    return -0.5 * beta * (winner_gaps[:, None] - loser_gaps[None, :])


def group_dpo_loss(winner_gaps, loser_gaps, weights, beta, sft_weight=0.0):
    """Σ w · (−log σ(margin) + λ (β/2) d_w) over the N² pairs of one group.

    Args:
        winner_gaps, loser_gaps: (N,) d_i of the winners and losers.
        weights: (N, N) HPO weights, winner by loser.
        beta: β of Diffusion-DPO, for errors that are means.
        sft_weight: λ, 0 in the paper. The margin is blind to errors of winner and loser that grow together; λ > 0 holds the
            winners' down. In the margin's linear range a pair weighs its winner ½ + λ and its loser −½, so the best
            prediction is v_w + (v_w − v_l) / 2λ instead of one at infinity.
    """
    preference = -(weights * F.logsigmoid(pair_margins(winner_gaps, loser_gaps, beta))).sum()
    return preference + sft_weight * 0.5 * beta * (weights * winner_gaps[:, None]).sum()
