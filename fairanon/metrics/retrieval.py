"""Is a person found again by the anonymized picture?"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat

from fairanon.metrics.functional.intervals import Estimate, mean_interval, wilson
from fairanon.metrics.functional.retrieval import Found, retrieve, true_accept_rate


class IdentityRetrieval(Metric):
    """Identity retrieval (ID2Face, table I): the gallery holds the originals, the probes are anonymized.

    A naive attacker enrols originals; one who knows the method (``parrot``) enrols pictures that it anonymized: hand
    their embeddings in as the gallery. One who excludes knows how *unlike* the original a new face is made, and looks for
    that: ``expected``.

    Args:
        protocol: ``source``: a hit is the probe's own original. ``identity``: a hit is another picture of the same
            person, the original itself is left out.
        places: Which top-k are reported.
        false_match_rates: At which rates of mistaken matches the share of right ones is reported.
        expected: See `retrieve`.
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
        """Add pictures; see `retrieve`."""
        self.probes.append(probes)
        self.gallery.append(gallery)
        self.people.append(people)

    def hits(self, place: int) -> Tensor:
        """Which probes are found among the first ``place``: bool (N,)."""
        return self._found().ranks <= place

    def _found(self) -> Found:
        probes, gallery, people = (dim_zero_cat(parts) for parts in (self.probes, self.gallery, self.people))
        return retrieve(probes, gallery, people, self.protocol == "source", expected=self.expected)

    def compute(self) -> dict[str, Estimate | None]:
        """``topK`` and ``chance/topK`` for each place, ``map``, ``place``, ``tar/RATE``; ``gallery`` is its size.

        ``place`` is the mean place of the best match as a share of the gallery: a half by chance. Less is found more easily,
        more is excluded.

        A face that is not found counts as a hit. ``tar`` is None where there are too few people for the rate.
        """
        if not self.probes:
            raise ValueError("no picture was added.")
        found = self._found()
        n, missing = len(found.ranks), float(found.missing.sum())
        result: dict[str, Estimate | None] = {}
        for k in self.places:
            hits = int((found.ranks <= k).sum())
            low, high = wilson(hits, n)
            result[f"top{k}"] = {"value": hits / n, "low": low, "high": high, "n": float(n), "missing": missing}
            result[f"chance/top{k}"] = _exactly(min(1.0, k / max(1, found.gallery)), n)
        result["map"] = mean_interval(found.precision, int(missing))
        result["place"] = mean_interval((found.ranks - 1) / max(1, found.gallery - 1), int(missing))
        for rate in self.rates:
            accepted = true_accept_rate(found, rate)
            result[f"tar/{rate:g}"] = None
            if accepted is not None:
                pairs = len(found.genuine) + int(missing)
                low, high = wilson(round(accepted[0] * pairs), pairs)
                estimate = {"value": accepted[0], "low": low, "high": high, "n": float(n), "missing": missing}
                result[f"tar/{rate:g}"] = estimate
        result["gallery"] = _exactly(float(found.gallery), n)
        return result


def _exactly(value: float, n: int) -> Estimate:
    return {"value": value, "low": value, "high": value, "n": float(n), "missing": 0.0}
