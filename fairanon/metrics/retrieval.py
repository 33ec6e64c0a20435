"""Identity retrieval as a metric."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat

from fairanon.metrics.functional.estimates import Estimates
from fairanon.metrics.functional.retrieval import identity_retrieval


class IdentityRetrieval(Metric):
    """`identity_retrieval` for a loop of one's own; arguments as there.

    Less is better: it is the attacker who finds somebody.
    """

    is_differentiable = False
    higher_is_better = False
    full_state_update = False
    probes: list[Tensor]
    gallery: list[Tensor]
    people: list[Tensor]

    def __init__(
        self,
        protocol: Literal["source", "identity"] = "source",
        places: Sequence[int] = (1, 5),
        false_match_rates: Sequence[float] = (1e-3,),
        expected: float | None = None,
    ) -> None:
        super().__init__()
        self.protocol, self.places, self.rates = protocol, tuple(places), tuple(false_match_rates)
        self.expected = expected
        for name in ("probes", "gallery", "people"):
            self.add_state(name, [], dist_reduce_fx="cat")

    def update(self, probes: Tensor, gallery: Tensor, people: Tensor) -> None:
        """Add images; see `identity_retrieval`."""
        self.probes.append(probes)
        self.gallery.append(gallery)
        self.people.append(people)

    def compute(self) -> Estimates:
        """See `identity_retrieval`."""
        if not len(self.probes):
            raise ValueError("no image was added.")
        probes, gallery, people = (dim_zero_cat(parts) for parts in (self.probes, self.gallery, self.people))
        return identity_retrieval(probes, gallery, people, self.protocol, self.places, self.rates, self.expected)
