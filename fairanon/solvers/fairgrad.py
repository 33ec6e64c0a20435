"""FairGrad: the update that is alpha-fair to K objectives, from the Gram matrix of their gradients.

Ban and Ji, Fair Resource Allocation in Multi-Task Learning; alpha 2 is the minimum potential delay of FairHuman
(section 3.2), alpha 1 proportional fairness (Nash-MTL), a large alpha max-min.
"""

from __future__ import annotations

import torch
from torch import Tensor

from fairanon.solvers.base import Solver, Weights

ITERATIONS = 60
CONDITION = 1e8
RIDGE = 1e-6


class FairGrad(Solver):
    """Alpha-fair weights; see `fairgrad`.

    Args:
        alpha: 2 is minimum potential delay (FairHuman), 1 proportional fairness, large values max-min.
    """

    needs_gram = True

    def __init__(self, alpha: float = 2.0) -> None:
        if not alpha > 0:
            raise ValueError(f"solver.alpha must be positive, got {alpha}.")
        self.alpha = alpha

    def weights(self, losses: Tensor, gram: Tensor | None, active: Tensor, step: int) -> Weights:
        """See `Solver.weights`."""
        assert gram is not None
        return fairgrad(gram, self.alpha, active)


def fairgrad(gram: Tensor, alpha: float = 2.0, active: Tensor | None = None) -> Weights:
    """Solve ``gram @ w = w ** (-1 / alpha)`` for ``w > 0``.

    The root is the minimum of the convex ``w'Aw / 2 - sum w**p / p`` with ``p = 1 - 1 / alpha``, so it is unique where
    it exists. Scaled to unit diagonal it is found by Newton's method with a line search over fixed step sizes,
    in float64, on the Gram matrix's device and without waiting for it (a fixed number of iterations).

    Args:
        gram: float (..., K, K), inner products of the objectives' gradients, K at most 8.
        alpha: Fairness, above 0.
        active: bool (..., K); what is not active leaves the problem. None: whatever has a gradient.

    Returns:
        The weights. Where the gradients leave no well-determined solution (exactly opposite or parallel: condition
        above 1e8 after scaling to unit trace) that of ``gram + 1e-6 * trace / K * I``.

    Raises:
        ValueError: Not square, or K above 8.
    """
    count = gram.shape[-1]
    if gram.shape[-2:] != (count, count) or count > 8:
        raise ValueError(f"the Gram matrix must be square with at most 8 rows, got {tuple(gram.shape)}.")
    gram = gram.double()
    diagonal = gram.diagonal(dim1=-2, dim2=-1)
    active = (diagonal > 0) if active is None else active & (diagonal > 0)
    # Inactive rows become rows of the identity: they are solved by 1 and touch nobody else.
    both = active[..., :, None] & active[..., None, :]
    identity = torch.eye(count, dtype=gram.dtype, device=gram.device)
    trace = (diagonal * active).sum(-1).clamp_min(torch.finfo(gram.dtype).tiny)[..., None, None]
    number = active.sum(-1).clamp_min(1)[..., None, None]
    scaled = torch.where(both, gram / trace * number, identity * ~active[..., None, :])

    spectrum = torch.linalg.eigvalsh(torch.where(both | ~identity.bool(), scaled, identity))
    regularised = spectrum[..., 0] * CONDITION < spectrum[..., -1]
    scaled = scaled + torch.where(regularised[..., None, None] & both, RIDGE * identity, 0)
    weights = _solve(scaled, alpha) * (trace / number)[..., 0] ** (-alpha / (alpha + 1))
    return Weights(torch.where(active, weights, 0), regularised)


def _solve(gram: Tensor, alpha: float) -> Tensor:
    """Damped Newton for a Gram matrix with a positive diagonal."""
    norm = gram.diagonal(dim1=-2, dim2=-1).sqrt()
    cosines = gram / (norm[..., :, None] * norm[..., None, :])
    # With v = norm * w the equation reads cosines @ v = scale * v ** (-1 / alpha).
    scale = norm ** (1 / alpha - 1)
    power = 1 - 1 / alpha
    steps = 0.5 ** torch.arange(12, dtype=gram.dtype, device=gram.device)[:, *[None] * norm.dim()]

    def objective(v: Tensor) -> Tensor:
        utility = scale * (v.log() if alpha == 1 else v**power / power)
        return ((cosines @ v[..., None])[..., 0] * v / 2 - utility).sum(-1, keepdim=True)

    v = scale ** (alpha / (alpha + 1))  # the solution for orthogonal gradients
    for _ in range(ITERATIONS):
        demand = scale * v ** (-1 / alpha)
        residual = (cosines @ v[..., None])[..., 0] - demand
        hessian = cosines + torch.diag_embed(demand / v / alpha)
        move = -torch.linalg.solve_ex(hessian, residual[..., None]).result[..., 0]
        longest = 0.95 / (-move / v).amax(-1, keepdim=True).clamp_min(0.95)  # stay positive
        trials = v + steps * longest * move
        values = objective(trials)
        # Near the root rounding hides the descent: the full step stands unless a shorter one is clearly better.
        slack = 4 * torch.finfo(v.dtype).eps * (v.sum(-1, keepdim=True) ** 2 + values.abs().amax(0))
        best = (values <= values.amin(0, keepdim=True) + slack).to(torch.int8).argmax(0, keepdim=True)
        v = trials.gather(0, best.expand(1, *v.shape))[0]
    return v / norm
