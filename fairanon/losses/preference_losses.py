"""Preference objectives as functions of per-sample denoising errors.

``g`` is the gain of a sample: the reference model's error minus the model's, a proxy of the log-ratio
log p_theta(x | c) / p_ref(x | c). ``error`` is the model's error itself: SimPO, MaPO and ORPO need no reference.
Shapes: B samples (winners and losers together) or P pairs.
"""

from __future__ import annotations

import math
from typing import Literal

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


def ipo_loss(gain_winner: Tensor, gain_loser: Tensor, beta: float) -> Tensor:
    """Identity preference optimization: mean((g_w - g_l - 1 / (2 beta)) ** 2) (Azar et al. 2023)."""
    return (gain_winner - gain_loser - 1 / (2 * beta)).square().mean()


def simpo_logits(error_winner: Tensor, error_loser: Tensor, beta: float, margin: float) -> Tensor:
    """The logits beta * (L_l - L_w - margin) (Ano-Face-Fair, equation 9): float (P,).

    Args:
        error_winner: float (P,), mean squared errors: "length-normalised".
        error_loser: float (P,).
        beta: Reward scale; the paper's 200.
        margin: By how much the winner's error should be smaller, in units of the error. A margin gamma in units of the
            reward (equation 11) is gamma / beta here; the paper's gamma / beta of 0.5 is 0.5.
    """
    return beta * (error_loser - error_winner - margin)


def simpo_loss(logits: Tensor, kind: Literal["sigmoid", "hinge"] = "sigmoid") -> Tensor:
    """mean(-log sigmoid(logits)) or mean(relu(1 - logits)) (Ano-Face-Fair, algorithm 3)."""
    return -F.logsigmoid(logits).mean() if kind == "sigmoid" else F.relu(1 - logits).mean()


def saturated(logits: Tensor) -> Tensor:
    """Share of pairs whose sigmoid's slope is within 1 % of 0 or of 1: they follow a linear objective, or none.

    At beta 200 and a margin of 0.5, errors that differ by hundredths give logits near -100: all pairs are saturated,
    the objective is linear in the errors, and neither beta nor the margin matters after clipping and Adam.
    """
    slope = torch.sigmoid(-logits)
    return ((slope < 0.01) | (slope > 0.99)).float().mean()


def mapo_loss(
    error_winner: Tensor, error_loser: Tensor, beta: float = 0.1, steps: float = 1000.0, snr: float = 0.5
) -> Tensor:
    """Margin-aware preference optimization (Hong et al. 2024): SFT and a reference-free ratio of likelihoods.

    mean(m_w) - beta * mean(log sigmoid(T * (f(m_w) - f(m_l)))) with f(m) = s m / (exp(s m) - 1), which falls with m.

    Args:
        error_winner: float (P,), m_w.
        error_loser: float (P,), m_l.
        beta: Weight of the ratio.
        steps: T, the number of timesteps.
        snr: s.
    """

    def likelihood(error: Tensor) -> Tensor:
        scaled = snr * error
        return scaled / torch.expm1(scaled).clamp_min(torch.finfo(scaled.dtype).tiny)

    ratio = steps * (likelihood(error_winner) - likelihood(error_loser))
    return error_winner.mean() - beta * F.logsigmoid(ratio).mean()


def orpo_loss(error_winner: Tensor, error_loser: Tensor, beta: float) -> Tensor:
    """SFT and an odds ratio in the style of ORPO (Hong et al. 2024), with exp(-m) in the place of a probability.

    mean(m_w) - beta * mean(log sigmoid(log odds_w - log odds_l)), log odds = -m - log(1 - exp(-m)).
    """

    def log_odds(error: Tensor) -> Tensor:
        return -error - torch.log(-torch.expm1(-error.clamp_min(1e-6)))

    return error_winner.mean() - beta * F.logsigmoid(log_odds(error_winner) - log_odds(error_loser)).mean()


def clipped_log_ratio(drawn: Tensor, mean: Tensor, reference: Tensor, spread: float, clip: float) -> Tensor:
    """The log of a Gaussian step's density over the reference's, clipped: log clamp(rho, 1 - clip, 1 + clip) (SPO).

    Densities are averaged over pixels, as the official code has it.

    Args:
        drawn: float (P, ...), what the step led to.
        mean: Where the model's step leads to.
        reference: Where the reference's does.
        spread: Standard deviation of both.
        clip: How far the ratio counts.

    Returns:
        float (P,).

    Examples:
        >>> one = torch.ones(1, 4)
        >>> clipped_log_ratio(one, one * 0.9, one * 0.8, 1.0, 0.1)  # ((.2)^2 - (.1)^2) / 2
        tensor([0.0150])
    """
    nearer = (drawn - reference).square() - (drawn - mean).square()
    log_ratio = nearer.flatten(1).mean(1) / (2 * spread**2)
    return log_ratio.clamp(math.log1p(-clip), math.log1p(clip))
