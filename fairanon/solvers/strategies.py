"""The strategies that FairHuman's table 2 compares with FairGrad, and FAMO and MGDA, behind the same call."""

from __future__ import annotations

import itertools

import torch
from torch import Tensor

from fairanon.seeding import keyed_generator
from fairanon.solvers.base import Solver, Weights, plain
from fairanon.solvers.fairgrad import fairgrad


class LinearScalarization(Solver):
    """Fixed weights (LS).

    Args:
        values: One per objective; None is 1 for each.
    """

    def __init__(self, values: tuple[float, ...] | None = None) -> None:
        self.values = values

    def weights(self, losses: Tensor, gram: Tensor | None, active: Tensor, step: int) -> Weights:
        """See `Solver.weights`."""
        if self.values is None:
            return plain(torch.ones_like(losses), active)
        if len(self.values) != len(losses):
            raise ValueError(f"solver.values has {len(self.values)} weights for {len(losses)} objectives.")
        return plain(losses.new_tensor(self.values), active)


class RandomLossWeighting(Solver):
    """Softmax of standard normal draws, times K (RLW; Lin et al., equation 3 with normal draws).

    Args:
        seed: Of the draws; step t's depend on it and t alone.
    """

    def __init__(self, seed: int = 0) -> None:
        self.seed = seed

    def weights(self, losses: Tensor, gram: Tensor | None, active: Tensor, step: int) -> Weights:
        """See `Solver.weights`."""
        draw = torch.randn(len(losses), generator=keyed_generator(self.seed, "loss weights", step), dtype=torch.float64)
        return plain(draw.softmax(0).to(losses.device) * len(losses), active)


class ScaleInvariant(Solver):
    """The sum of the losses' logarithms (SI): weights 1 / loss."""

    def weights(self, losses: Tensor, gram: Tensor | None, active: Tensor, step: int) -> Weights:
        """See `Solver.weights`."""
        return plain(1 / torch.where(active, losses.double(), 1), active)


class DynamicWeightAverage(Solver):
    """More weight to losses that fall slowly (DWA; Liu et al., End-to-End Multi-Task Learning, equation 7).

    Args:
        temperature: Softness; the paper's 2.
        window: Optimizer steps whose mean loss is compared with that of the window before; the paper has an epoch.
    """

    state = ("sums", "counts", "previous", "latest")

    def __init__(self, temperature: float = 2.0, window: int = 25) -> None:
        self.temperature, self.window = temperature, window
        self.sums: Tensor | None = None
        self.counts: Tensor | None = None
        self.previous: Tensor | None = None
        self.latest: Tensor | None = None

    def weights(self, losses: Tensor, gram: Tensor | None, active: Tensor, step: int) -> Weights:
        """See `Solver.weights`."""
        losses = losses.double()
        if self.sums is None or self.counts is None:
            self.sums, self.counts = torch.zeros_like(losses), torch.zeros_like(losses)
        elif step % self.window == 0:
            self.previous, self.latest = self.latest, self.sums / self.counts.clamp_min(1)
            self.sums, self.counts = torch.zeros_like(losses), torch.zeros_like(losses)
        self.sums, self.counts = self.sums + torch.where(active, losses, 0), self.counts + active
        if self.previous is None or self.latest is None:
            return plain(torch.ones_like(losses), active)
        ratio = torch.where((self.previous > 0) & (self.latest > 0), self.latest / self.previous, 1)
        return plain((ratio / self.temperature).softmax(0) * len(losses), active)


def _adam(moments: Tensor, gradient: Tensor, lr: float) -> tuple[Tensor, Tensor]:
    """One Adam step: new moments (3, K) (mean, square, count) and the change of the parameter."""
    mean = 0.9 * moments[0] + 0.1 * gradient
    square = 0.999 * moments[1] + 0.001 * gradient**2
    count = moments[2] + 1
    change = -lr * mean / (1 - 0.9**count) / ((square / (1 - 0.999**count)).sqrt() + 1e-8)
    return torch.stack([mean, square, count]), change


class UncertaintyWeighting(Solver):
    """Homoscedastic uncertainty (UW; Kendall et al., equation 10): minimises sum exp(-s) / 2 * loss + s / 2 over s too.

    Args:
        lr: Adam's learning rate of s, the logarithms of the variances.
    """

    state = ("logs", "moments")

    def __init__(self, lr: float = 0.02) -> None:
        self.lr = lr
        self.logs: Tensor | None = None
        self.moments: Tensor | None = None

    def weights(self, losses: Tensor, gram: Tensor | None, active: Tensor, step: int) -> Weights:
        """See `Solver.weights`."""
        losses = losses.double()
        if self.logs is None or self.moments is None:
            self.logs, self.moments = torch.zeros_like(losses), losses.new_zeros(3, len(losses))
        values = (-self.logs).exp() / 2
        gradient = torch.where(active, 0.5 - values * losses, 0)
        self.moments, change = _adam(self.moments, gradient, self.lr)
        self.logs = self.logs + torch.where(active, change, 0)
        return plain(values, active)


class NashMTL(Solver):
    """The Nash bargaining solution (Navon et al.): ``A w = 1 / w``, which is FairGrad's equation with alpha 1.

    The paper solves it approximately by convex programs on A scaled to norm 1; here it is solved exactly, with the
    same scaling, so that the weights do not grow as gradients shrink.
    """

    needs_gram = True

    def weights(self, losses: Tensor, gram: Tensor | None, active: Tensor, step: int) -> Weights:
        """See `Solver.weights`."""
        assert gram is not None
        both = active[:, None] & active[None, :]
        norm = torch.where(both, gram.double(), 0).norm()
        return fairgrad(gram.double() / norm.clamp_min(torch.finfo(torch.float64).tiny), 1.0, active)


class MGDA(Solver):
    """The shortest vector in the convex hull of the gradients (Sener and Koltun, equation 3), times K.

    With K objectives the minimum lies in the interior of one of the hull's faces, so all of them are tried: exact,
    and at most 255 small systems.
    """

    needs_gram = True

    def weights(self, losses: Tensor, gram: Tensor | None, active: Tensor, step: int) -> Weights:
        """See `Solver.weights`."""
        assert gram is not None
        count, best, shortest = len(losses), torch.zeros(len(losses), dtype=torch.float64), float("inf")
        matrix, usable = gram.double().cpu(), [k for k in range(count) if bool(active[k])]
        for size in range(1, len(usable) + 1):
            for face in itertools.combinations(usable, size):
                part = matrix[list(face)][:, list(face)]
                # Stationary on the face: part @ w = c, sum w = 1; parallel gradients share their weight.
                inverse = torch.linalg.pinv(part, hermitian=True).sum(1)
                weights = inverse / inverse.sum() if inverse.sum() > 0 else torch.full((size,), 1 / size).double()
                length = float(weights @ part @ weights)
                if bool((weights >= -1e-12).all()) and length < shortest * (1 - 1e-12):
                    best, shortest = torch.zeros_like(best), length
                    best[list(face)] = weights.clamp_min(0)
        return plain(best.to(losses.device) * len(usable), active)


class FAMO(Solver):
    """Fast adaptive multitask optimization (Liu et al., algorithm 1): one backward pass, one more forward pass.

    Args:
        lr: Adam's learning rate of the logits.
        decay: Pull of the logits towards 0, gamma in the paper.
    """

    needs_losses_after = True
    state = ("logits", "moments", "before", "present")

    def __init__(self, lr: float = 0.025, decay: float = 0.01) -> None:
        self.lr, self.decay = lr, decay
        self.logits: Tensor | None = None
        self.moments: Tensor | None = None
        self.before: Tensor | None = None
        self.present: Tensor | None = None

    def weights(self, losses: Tensor, gram: Tensor | None, active: Tensor, step: int) -> Weights:
        """See `Solver.weights`."""
        losses = torch.where(active, losses.double(), 1)
        if self.logits is None or self.moments is None:
            self.logits, self.moments = torch.zeros_like(losses), losses.new_zeros(3, len(losses))
        self.before, self.present = losses, active
        share = torch.where(active, self.logits, -torch.inf).softmax(0) / losses
        return plain(share / share.sum(), active)

    def observe(self, losses: Tensor) -> None:
        """Shift weight to the objectives whose logarithm fell least."""
        assert self.logits is not None and self.moments is not None
        assert self.before is not None and self.present is not None
        fall = torch.where(self.present, self.before.log() - losses.double().log(), 0)
        share = torch.where(self.present, self.logits, -torch.inf).softmax(0)
        gradient = share * (fall - share @ fall) + self.decay * self.logits
        self.moments, change = _adam(self.moments, torch.where(self.present, gradient, 0), self.lr)
        self.logits = self.logits + torch.where(self.present, change, 0)
