"""Preference objectives as functions of per-sample denoising errors.

``g`` is the gain of a sample: the reference model's error minus the model's, a proxy of the log-ratio
log p_theta(x | c) / p_ref(x | c). Shapes: B samples (winners and losers together) or P pairs.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def gain_sums(gain: Tensor, label: Tensor) -> Tensor:
    """Sufficient statistics of mu, to be added over ranks.

    Args:
        gain: float (B,).
        label: float (B,), +1 winner, -1 loser.

    Returns:
        float32 (4,): sum over winners, number of winners, sum over losers, number of losers; detached.
    """
    gain, won = gain.detach().float(), label > 0
    return torch.stack([gain[won].sum(), won.sum().float(), gain[~won].sum(), (~won).sum().float()])


def population_mean(sums: Tensor, alpha: float) -> Tensor:
    """Mu = alpha E[g | winner] + (1 - alpha) E[g | loser] (PopAlign, appendix A.3).

    Args:
        sums: float (4,) as `gain_sums` returns, summed over ranks.
        alpha: Weight of the winners; the paper's 0.5.

    Returns:
        Scalar.

    Raises:
        ValueError: A side is empty.
    """
    won, wins, lost, losses = sums.unbind()
    if wins == 0 or losses == 0:
        side = "winner" if wins == 0 else "loser"
        raise ValueError(f"the global batch has no {side}, so PopAlign's mu is undefined; batches must be pairs.")
    return alpha * won / wins + (1 - alpha) * lost / losses


def popalign_loss(gain: Tensor, label: Tensor, mu: Tensor, beta: float) -> Tensor:
    """mean(-log sigmoid(label * beta * (gain - mu))) (PopAlign, equation 9).

    Args:
        gain: float (B,).
        label: float (B,), +1 winner, -1 loser.
        mu: Scalar, see `population_mean`; no gradient flows through it.
        beta: Divergence penalty.

    Returns:
        Scalar. With one winner and one loser that share noise and timestep it equals `dpo_loss` in value and
        gradient.
    """
    return -F.logsigmoid(label * beta * (gain - mu.detach())).mean()


def dpo_loss(gain_winner: Tensor, gain_loser: Tensor, beta: float) -> Tensor:
    """Diffusion-DPO as its authors wrote it: mean(-log sigmoid(0.5 * beta * (g_w - g_l))).

    Args:
        gain_winner: float (P,).
        gain_loser: float (P,), of the same pairs, with the winner's noise and timestep.
        beta: Divergence penalty.

    Returns:
        Scalar.
    """
    return -F.logsigmoid(0.5 * beta * (gain_winner - gain_loser)).mean()
