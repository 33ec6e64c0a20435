"""One gradient from K objectives that share a prediction: exact over ranks, micro-batches and loss scaling."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from fairanon.solvers.base import Solver, Weights

GramMode = Literal["full", "last_block", "prediction"]
CHUNK = 1 << 16


@dataclass(frozen=True)
class Part:
    """A micro-batch.

    Attributes:
        predict: The forward pass; its result (B, ...) is all through which the objectives see the parameters.
        sums: From that prediction the K objectives, each summed over the samples that have it.
        counts: float (K,), how many samples have it.
    """

    predict: Callable[[], Tensor]
    sums: Callable[[Tensor], Tensor]
    counts: Tensor


@dataclass(frozen=True)
class Update:
    """What one step did.

    Attributes:
        losses: float64 (K,), the objectives' means over the global batch.
        weights: float64 (K,); 0 where no sample of the global batch has the objective.
        active: bool (K,).
        regularised: bool scalar, see `Weights`.
        norm: Norm of the combined gradient before clipping.
        skipped: No objective was active, and no gradient is written.
    """

    losses: Tensor
    weights: Tensor
    active: Tensor
    regularised: Tensor
    norm: Tensor
    skipped: bool


class ObjectiveGradients:
    """Writes the combined gradient of K objectives to ``.grad``.

    The parameters' gradients live in one float32 buffer of K rows (one row where a single backward pass is enough):
    every backward pass accumulates into its row, one reduction adds the ranks, and the combination overwrites the
    first row, whose views are the parameters' ``.grad``.

    Args:
        parameters: What trains, float32.
        solver: Weights the objectives.
        gram: Where inner products are taken, if the solver needs them: ``full``, all parameters, exact, K backward
            passes; ``last_block``, the parameters in ``last_block``; ``prediction``, the gradients with respect to
            the shared prediction. The latter two need one backward pass more than none.
        every: Optimizer steps between two solutions; in between the weights are stale, and one backward pass does.
        clip: Largest norm of the combined gradient; None does not clip.
        last_block: See ``gram``.
    """

    def __init__(
        self,
        parameters: Iterable[nn.Parameter],
        solver: Solver,
        gram: GramMode = "full",
        every: int = 1,
        clip: float | None = None,
        last_block: Iterable[nn.Parameter] = (),
    ) -> None:
        if every < 1:
            raise ValueError(f"every must be at least 1, got {every}.")
        self.parameters, self.solver, self.gram, self.every, self.clip = list(parameters), solver, gram, every, clip
        self.last_block = list(last_block)
        if gram == "last_block" and not self.last_block:
            raise ValueError("gram: last_block needs trainable parameters in the last block; use full or prediction.")
        self.stale: Tensor | None = None
        self._buffer = torch.empty(0, 0)

    def state_dict(self) -> dict[str, Tensor]:
        """The solver's state and the stale weights."""
        stale = {} if self.stale is None else {"stale": self.stale}
        return {**stale, **{f"solver.{name}": value for name, value in self.solver.state_dict().items()}}

    def load_state_dict(self, values: Mapping[str, Tensor]) -> None:
        """Continue from what `state_dict` returned."""
        self.stale = values.get("stale")
        prefix = "solver."
        self.solver.load_state_dict({k.removeprefix(prefix): v for k, v in values.items() if k.startswith(prefix)})

    def backward(self, parts: Sequence[Part], step: int, scale: Tensor | None = None) -> Update:
        """Compute losses, weights and the combined gradient of the global batch.

        Args:
            parts: This rank's micro-batches.
            step: Optimizer steps done.
            scale: The loss scale of fp16 training: the gradients are unscaled before they are compared, and the
                result is scaled again, as a gradient scaler expects it. None is 1.

        Returns:
            What was done; ``.grad`` of the parameters holds the result.
        """
        device = self.parameters[0].device
        self.solver.to(device)
        self.stale = None if self.stale is None else self.stale.to(device)
        fresh = step % self.every == 0 or self.stale is None
        if self.solver.needs_gram and self.gram == "full" and fresh:
            return self._separately(parts, step, scale)
        return self._together(parts, step, scale, fresh)

    @torch.no_grad()
    def observe(self, parts: Sequence[Part]) -> None:
        """Tell a solver that asks for it the losses of the same batch after the optimizer step."""
        if self.solver.needs_losses_after:
            statistics = torch.stack([torch.stack([part.sums(part.predict()), part.counts]) for part in parts])
            total = statistics.double().sum(0)
            _add_ranks(total)
            self.solver.observe(_means(total[0], total[1])[0])

    # --- K backward passes -------------------------------------------------------------------------------

    def _separately(self, parts: Sequence[Part], step: int, scale: Tensor | None) -> Update:
        count = len(parts[0].counts)
        rows, tail = self._rows(count)
        here = _counts(parts)
        for part in parts:
            sums = part.sums(part.predict())
            tail[:, 0] += sums.detach()
            for k in range(count):
                self._point_gradients_at(rows[k])
                # A mean over this rank's samples: a sum would leave fp16's range sooner.
                _scaled(sums[k] / here[k], scale).backward(retain_graph=k < count - 1)
        tail[:, 1] = torch.stack([part.counts for part in parts]).sum(0)
        rows *= here[:, None]
        _add_ranks(self._buffer)
        losses, active, number = _means(tail[:, 0], tail[:, 1])
        rows /= (number if scale is None else number * scale).to(rows)[:, None]
        gram = _products(rows)
        weights = self._solve(losses, gram, active, step)
        norm = _quadratic(gram, weights.values)
        factor = weights.values * self._clipping(norm)
        if scale is not None:
            factor = factor * scale
        factor = factor.to(rows)
        rows[0] *= factor[0]
        for k in range(1, count):
            rows[0].addcmul_(rows[k], factor[k])
        return self._finish(losses, weights, active, norm, rows[0])

    # --- one backward pass -------------------------------------------------------------------------------

    def _together(self, parts: Sequence[Part], step: int, scale: Tensor | None, fresh: bool) -> Update:
        # The weights must be known before the backward pass, so the activations of several parts are recomputed.
        predictions = [
            part.predict() if len(parts) == 1 else checkpoint(part.predict, use_reentrant=False) for part in parts
        ]
        sums = [part.sums(prediction) for part, prediction in zip(parts, predictions, strict=True)]
        statistics = self._statistics(parts, sums, predictions, fresh)
        losses, active, number = _means(statistics[:, 0], statistics[:, 1])
        if fresh or self.stale is None:
            gram = None
            if self.solver.needs_gram and self.gram == "prediction":
                gram = statistics[:, 2:] / number[:, None] / number
            elif self.solver.needs_gram:
                gram = self._last_block_products(sums, _counts(parts), number, scale)
            weights = self._solve(losses, gram, active, step)
        else:
            weights = Weights(torch.where(active, self.stale, 0), torch.zeros_like(active[0]))
        row, norm = self._weighted_gradient(torch.stack(sums).sum(0), weights.values, number, scale)
        return self._finish(losses, weights, active, norm, row)

    def _statistics(
        self, parts: Sequence[Part], sums: Sequence[Tensor], predictions: Sequence[Tensor], fresh: bool
    ) -> Tensor:
        """Sum, number and products of the gradients with respect to the prediction, over all ranks: float64 (K, 2 + K)."""
        count = len(parts[0].counts)
        statistics = torch.zeros(count, 2 + count, device=sums[0].device, dtype=torch.float64)
        for part, values, prediction in zip(parts, sums, predictions, strict=True):
            statistics[:, 0] += values.detach()
            statistics[:, 1] += part.counts
            if fresh and self.solver.needs_gram and self.gram == "prediction":
                gradients = [torch.autograd.grad(value, prediction, retain_graph=True)[0] for value in values]
                statistics[:, 2:] += _products(torch.stack([g.flatten() for g in gradients]).float())
        _add_ranks(statistics)
        return statistics

    def _weighted_gradient(
        self, sums: Tensor, weights: Tensor, number: Tensor, scale: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """One backward pass of the weighted sum: the clipped gradient over all ranks, and its norm before clipping."""
        rows, _ = self._rows(1)
        self._point_gradients_at(rows[0])
        # Weights are of any size: the largest is kept out of the backward pass, whose range fp16 limits.
        largest = weights.max().clamp_min(torch.finfo(torch.float32).tiny)
        _scaled((sums * (weights / largest / number).to(sums)).sum(), scale).backward()
        _add_ranks(rows)
        rows *= largest.to(rows)
        norm = rows[0].norm() if scale is None else rows[0].norm() / scale
        rows[0] *= self._clipping(norm)
        return rows[0], norm

    def _last_block_products(
        self, sums: Sequence[Tensor], here: Tensor, number: Tensor, scale: Tensor | None
    ) -> Tensor:
        """Inner products of the gradients of the means over the global batch, in the last block."""
        rows = []
        for k, total in enumerate(torch.stack(list(sums)).sum(0)):
            gradients = torch.autograd.grad(_scaled(total / here[k], scale), self.last_block, retain_graph=True)
            rows.append(torch.cat([gradient.flatten() for gradient in gradients]) * here[k])
        stacked = torch.stack(rows)
        _add_ranks(stacked)
        return _products(stacked / (number if scale is None else number * scale).to(stacked)[:, None])

    # --- shared ------------------------------------------------------------------------------------------

    def _solve(self, losses: Tensor, gram: Tensor | None, active: Tensor, step: int) -> Weights:
        if gram is not None and not bool(gram.isfinite().all()):
            # fp16 overflow: not a number either, so that the scaler skips the step.
            return Weights(torch.full_like(losses, torch.nan), torch.zeros_like(active[0]))
        weights = self.solver.weights(losses, gram, active, step)
        if self.every > 1:
            self.stale = weights.values
        return weights

    def _clipping(self, norm: Tensor) -> Tensor:
        return torch.ones_like(norm) if self.clip is None else (self.clip / norm.clamp_min(self.clip))

    def _finish(self, losses: Tensor, weights: Weights, active: Tensor, norm: Tensor, row: Tensor) -> Update:
        self._point_gradients_at(row)
        skipped = not bool(active.any())
        return Update(losses, weights.values, active, weights.regularised, norm, skipped)

    def _rows(self, count: int) -> tuple[Tensor, Tensor]:
        """The zeroed buffer: K rows of gradients, and behind each row two numbers that travel with it."""
        size, device = sum(p.numel() for p in self.parameters), self.parameters[0].device
        if self._buffer.shape != (count, size + 2) or self._buffer.device != device:
            self._buffer = torch.empty(0, 0)  # release first
            self._buffer = torch.empty(count, size + 2, device=device)
        self._buffer.zero_()
        return self._buffer[:, :size], self._buffer[:, size:]

    def _point_gradients_at(self, row: Tensor) -> None:
        """Make every parameter's ``.grad`` a view into ``row``, so that backward passes add up there."""
        start = 0
        for parameter in self.parameters:
            parameter.grad = row[start : start + parameter.numel()].view_as(parameter)
            start += parameter.numel()


def _counts(parts: Sequence[Part]) -> Tensor:
    """How many of this rank's samples have each objective, at least 1."""
    return torch.stack([part.counts for part in parts]).sum(0).clamp_min(1)


def _scaled(value: Tensor, scale: Tensor | None) -> Tensor:
    return value if scale is None else value * scale


def _add_ranks(value: Tensor) -> None:
    if dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
        dist.all_reduce(value)


def _means(sums: Tensor, counts: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Mean losses, which objectives are active, and by what each sum is to be divided; float64."""
    number = counts.double().clamp_min(1)
    return sums.double() / number, counts > 0, number


def _products(rows: Tensor) -> Tensor:
    """Inner products of the rows (K, P), float64, added up in pieces so that no second copy of them exists."""
    result = torch.zeros(len(rows), len(rows), dtype=torch.float64, device=rows.device)
    for first in range(0, rows.shape[1], CHUNK):
        piece = rows[:, first : first + CHUNK].double()
        result += piece @ piece.T
    return result


def _quadratic(gram: Tensor, weights: Tensor) -> Tensor:
    """Norm of the combination."""
    return (weights @ gram @ weights).clamp_min(0).sqrt()
