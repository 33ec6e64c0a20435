"""What every strategy of weighting K objectives looks like from outside."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor


@dataclass(frozen=True)
class Weights:
    """Weights of K objectives: the update follows the sum of ``values[i] * gradient[i]``.

    Attributes:
        values: float64 (..., K), not negative; 0 for objectives that are not active.
        regularised: bool (...), whether the gradients left no well-determined solution and got a ridge.
    """

    values: Tensor
    regularised: Tensor


class Solver(ABC):
    """Weights K objectives, step by step.

    Attributes:
        needs_gram: Whether the gradients' inner products are needed, or the losses are enough.
        needs_losses_after: Whether `observe` wants the losses of the same batch after the optimizer step.
        state: Names of the tensors that a checkpoint must hold.
    """

    needs_gram: ClassVar[bool] = False
    needs_losses_after: ClassVar[bool] = False
    state: ClassVar[tuple[str, ...]] = ()

    @abstractmethod
    def weights(self, losses: Tensor, gram: Tensor | None, active: Tensor, step: int) -> Weights:
        """Weights for one optimizer step; called once a step, on every rank with the same arguments.

        Args:
            losses: float (K,), the objectives of the global batch, detached; of inactive ones anything finite.
            gram: float (K, K), inner products of their gradients; None unless `needs_gram`.
            active: bool (K,), which objectives the batch has.
            step: Optimizer steps done.
        """

    def observe(self, losses: Tensor) -> None:  # noqa: B027  # most strategies have no use for it
        """Take the losses (K,) of the same batch after the step; called where `needs_losses_after`."""

    def state_dict(self) -> dict[str, Tensor]:
        """The tensors named by `state` that exist by now."""
        return {name: value for name in self.state if (value := getattr(self, name)) is not None}

    def load_state_dict(self, values: Mapping[str, Tensor]) -> None:
        """Continue from what `state_dict` returned."""
        for name in self.state:
            setattr(self, name, values.get(name))

    def to(self, device: torch.device) -> None:
        """Move the state: a checkpoint's lies on the CPU, the losses where the model trains."""
        self.load_state_dict({name: value.to(device) for name, value in self.state_dict().items()})


def plain(values: Tensor, active: Tensor) -> Weights:
    """Weights that needed no ridge, 0 where not active."""
    return Weights(torch.where(active, values.double(), 0), torch.zeros((), dtype=torch.bool, device=values.device))
