"""What a sampler makes of its predictions: a linear chain, through which a loss of the final image reaches each of them."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor


def ddim_steps(abar: Tensor, prediction: Literal["epsilon", "v_prediction"]) -> tuple[Tensor, Tensor]:
    """Coefficients of DDIM's steps (Song et al. 2021, equation 12 without noise): next = a * latents + b * prediction.

    Args:
        abar: float (S,), the signal's share of the variance at each step, rising; the last step leads to 1.
        prediction: What the network predicts.

    Returns:
        a and b, float64 (S,).

    Examples:
        >>> a, b = ddim_steps(torch.tensor([0.25]), "epsilon")
        >>> [round(float(one), 4) for one in (a[0], b[0])]  # x0 = (x - sqrt(.75) e) / .5
        [2.0, -1.7321]
    """
    a, b, _ = noisy_ddim_steps(abar, prediction, 0.0)
    return a, b


def noisy_ddim_steps(
    abar: Tensor, prediction: Literal["epsilon", "v_prediction"], eta: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Coefficients of DDIM's steps with noise (equations 12 and 16): next = a * latents + b * prediction + spread * noise.

    Args:
        abar: See `ddim_steps`.
        prediction: Likewise.
        eta: How much of DDPM's noise; 0 is none.

    Returns:
        a, b and spread, float64 (S,); the last step has no noise.
    """
    here = abar.double()
    after = torch.cat([here[1:], torch.ones(1, dtype=torch.float64)])
    spread = eta * ((1 - after) / (1 - here) * (1 - here / after)).sqrt()
    signal, noise, clear, left = (
        here.sqrt(),
        (1 - here).sqrt(),
        after.sqrt(),
        (1 - after - spread**2).clamp_min(0).sqrt(),
    )
    if prediction == "epsilon":
        return clear / signal, left - clear * noise / signal, spread
    return clear * signal + left * noise, left * signal - clear * noise, spread


def final_weights(a: Tensor, b: Tensor) -> Tensor:
    """How much each prediction counts in the final latents, if it changed nothing of those after it: float64 (S,).

    The latents are x_S = prod(a) x_0 + sum_i b_i prod_{j > i} a_j e_i.
    """
    later = torch.cat([a.flip(0).cumprod(0).flip(0)[1:], torch.ones(1, dtype=a.dtype)])
    return b * later


def evened(weights: Tensor) -> Tensor:
    """Weights that let every step learn alike: their signs times the geometric mean of their sizes (aDFT, section 4.2).

    Through the chain itself the first steps, which decide who is drawn, would hardly learn.
    """
    return weights.sign() * weights.abs().log().mean().exp()
