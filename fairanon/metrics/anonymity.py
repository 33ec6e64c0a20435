"""Numbers of anonymized images: one implementation, for a training's measures and for two folders of photographs.

Everywhere N images have a result each; rows belong together, and NaN says that nobody could judge.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from fairanon.metrics.classes import IdentityRetrieval
from fairanon.metrics.functional.distances import frechet_interval, kernel_distance
from fairanon.metrics.functional.estimates import Estimate, Estimates
from fairanon.metrics.functional.geometry_distance import geometry_distance
from fairanon.metrics.functional.protection import protection
from fairanon.metrics.functional.similarity import similarity

GEOMETRY = ("landmarks", "pose", "expression", "gaze")


def protected(hidden: Tensor, distances: Tensor, people: Tensor | None = None) -> Estimates:
    """How many are hidden, and how far results are from their originals.

    Args:
        hidden: bool (N,).
        distances: float (N,).
        people: int64 (N,), who is shown; None is somebody else in each.
    """
    estimates = dict(protection(hidden, distances, people))
    result: Estimates = {"anonymization/accuracy": estimates.pop("accuracy")}
    return result | {f"distance/{name}": value for name, value in estimates.items()}


def found_again(
    probes: Tensor,
    gallery: Tensor,
    people: Tensor,
    name: str,
    among_others: bool = False,
    rates: tuple[float, ...] = (1e-3,),
    expected: float | None = None,
) -> Estimates:
    """Who is found again, see `identity_retrieval`.

    Args:
        probes: float (N, D), unit embeddings of results.
        gallery: float (N, D), of what an attacker compares them with; row n is what probe n should be found by: its
            original, or another image of the same person.
        people: int64 (N,).
        name: Of the attacker and of what the gallery shows; ends the keys.
        among_others: Row n itself is left out of the gallery, and a hit is any *other* row of the same person.
        rates: At which rates of mistaken matches the share of right ones is reported.
        expected: How similar the attacker expects a match to be.
    """
    retrieval = IdentityRetrieval(
        "identity" if among_others else "source", false_match_rates=rates, expected=expected
    )  # fmt: skip
    estimates = retrieval.measured(probes, gallery, people)
    return {f"retrieval/{key}/{name}": value for key, value in estimates.items()}


def resemblance(
    own: Tensor,
    source: Tensor,
    people: Tensor | None = None,
    alike: Tensor | None = None,
    asking: Tensor | None = None,
) -> Estimates:
    """How similar results are to their originals, and how similar originals of different people are to one another.

    Args:
        own: float (N, D), unit embeddings of results.
        source: float (N, D), of originals.
        people: int64 (N,); None is somebody else in each.
        alike: int64 (N,), a number for each kind of people who look alike; None leaves it out.
        asking: Originals as probes of ``source``, where the two sides differ, see `as_cosines`; None is ``source`` itself.
    """
    nobody_apart = torch.zeros(len(source), dtype=torch.long)
    result: Estimates = {
        "id_similarity": Estimate.mean((own * source).sum(1), people),
        "id_similarity/random": _of_pairs(to_others(source, nobody_apart, people, asking), people),
    }
    if alike is not None:
        result["id_similarity/random/alike"] = _of_pairs(to_others(source, alike, people, asking), people)
    return result


def _of_pairs(rows: Tensor, people: Tensor | None) -> Estimate:
    """The mean over all pairs, of each face's mean over its pairs: faces share pairs, which doubles the error (Hoeffding 1948)."""
    mean, seen = Estimate.mean(rows, people), ~rows.isnan()
    whose = torch.arange(len(rows))[seen] if people is None else people[seen]
    if mean.low is None or mean.high is None or len(whose.unique()) < 3:
        return Estimate(mean.value, None, None, mean.n, mean.missing)
    low, high = (2 * end - mean.value for end in (mean.low, mean.high))
    return Estimate(mean.value, low, high, mean.n, mean.missing)


def to_others(
    embeddings: Tensor, kinds: Tensor, people: Tensor | None = None, asking: Tensor | None = None
) -> Tensor:  # fmt: skip
    """Each face's mean similarity to all other people of its kind: float64 (N,), NaN where there is none, or no face.

    Args:
        embeddings: float (N, D), unit.
        kinds: int64 (N,).
        people: int64 (N,); None is somebody else in each.
        asking: Whose similarity to ``embeddings`` is asked for, row by row; None is theirs to each other.
    """
    wide = embeddings.double()
    seen = ~wide.isnan().any(1)
    same = torch.arange(len(wide)) if people is None else people
    same = torch.stack([kinds, same], 1).unique(dim=0, return_inverse=True)[1]  # who is shown, among those of a kind

    def summed(groups: Tensor) -> tuple[Tensor, Tensor]:
        size = int(groups.max()) + 1
        total = torch.zeros(size, wide.shape[1], dtype=wide.dtype).index_add(0, groups[seen], wide[seen])
        return total[groups], torch.bincount(groups[seen], minlength=size)[groups]

    (everybody, all_of), (theirs, their) = summed(kinds), summed(same)
    others = all_of - their
    asked = wide if asking is None else asking.double()
    similarities = (asked * (everybody - theirs)).sum(1) / others
    return torch.where(others > 0, similarities, torch.nan)


def looks(
    values: Mapping[str, Tensor], sources: Mapping[str, Tensor], people: Tensor | None = None
) -> Estimates:  # fmt: skip
    """What is kept, and how good it looks; None where its judge is absent.

    Args:
        values: Of the results, rows by what was measured: ``alike/NAME`` (see `image_pairs`), ``geometry/NAME`` (see
            `FaceGeometry.measure`), ``features``, ``clip_i`` (cosines), ``perceptual`` (distances), ``quality``.
        sources: Of the originals: ``geometry/NAME`` and ``features``.
        people: int64 (N,); None is somebody else in each.
    """
    result: Estimates = {}
    alike = {name.partition("/")[2]: rows for name, rows in values.items() if name.startswith("alike/")}
    if alike:
        result |= similarity(alike, people)
    for name in GEOMETRY:
        rows = values.get(f"geometry/{name}")
        apart = None if rows is None else geometry_distance(name, rows, sources[f"geometry/{name}"])
        result[f"preservation/{name}"] = None if apart is None or apart.isnan().all() else Estimate.mean(apart, people)
    features = values.get("features")
    if features is not None and len(features) >= 4:
        result["fid/source"] = frechet_interval(features, sources["features"])
        result["kid/source"] = kernel_distance(features, sources["features"])
    for name in ("clip_i", "perceptual", "quality"):
        if name in values:
            result[name] = Estimate.mean(values[name], people)
    return result
