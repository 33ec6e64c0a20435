"""Numbers of anybody's anonymizer: ID2Face's tables I and II, Ano-Face-Fair's table 3, and who is protected less."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from fairanon.anonymize.attack import Threshold
from fairanon.anonymize.evidence import Evidence, Looks, Recognized
from fairanon.metrics.functional.anonymization import anonymization_accuracy
from fairanon.metrics.functional.distances import frechet_interval, kernel_distance
from fairanon.metrics.functional.estimates import Estimate, Estimates
from fairanon.metrics.functional.geometry import geometry_distance
from fairanon.metrics.functional.recall import group_accuracy
from fairanon.metrics.functional.retrieval import identity_retrieval
from fairanon.metrics.functional.similarity import similarity
from fairanon.metrics.functional.verification import as_cosines, distances, threshold_among

_CALIBRATED_ON = 2000
"""People among whom a threshold is calibrated: two million pairs; more change little but the memory."""
_RATE = 1e-3


@dataclass(frozen=True)
class Attack:
    """One recognizer's evidence, ready to be counted.

    Attributes:
        seen: What it sees.
        threshold: Up to which two faces match.
        people: int64 (N,), who is who.
        apart: float (N,), from each result to its original, by the alignment that brings it nearer; NaN where either cannot
            be embedded.
    """

    seen: Recognized
    threshold: Threshold
    people: Tensor
    apart: Tensor


def people_of(evidence: Evidence) -> Tensor:
    """A number for each person: int64 (N,); who has no name is somebody of their own."""
    known: dict[str, int] = {}
    names = [name if name is not None else f"#{k}" for k, name in enumerate(evidence.identities)]
    return torch.tensor([known.setdefault(name, len(known)) for name in names])


def attack_of(seen: Recognized, people: Tensor, known: Threshold | None) -> Attack:
    """Prepare a recognizer's evidence; its threshold is calibrated on the originals where there are people enough."""
    first = torch.tensor([k for k in _firsts(people) if not seen.originals[k].isnan().any()][:_CALIBRATED_ON])
    threshold = known
    if len(first) * (len(first) - 1) / 2 * _RATE >= 10:
        rows = seen.originals[first]
        value, pairs = threshold_among(distances(rows, rows, seen.metric), _RATE)
        threshold = Threshold(
            value, f"calibrated at a false-match rate of {_RATE:g} on {pairs} pairs of these originals"
        )
    if threshold is None:
        raise ValueError(
            "no threshold is known, and the originals show too few people to calibrate one; --thresholds FILE names those "
            "that `fairanon calibrate` wrote."
        )
    apart = torch.minimum(*(_row_by_row(rows, seen) for rows in (seen.hidden, seen.own)))
    return Attack(seen, threshold, people, apart)


def _row_by_row(rows: Tensor, seen: Recognized) -> Tensor:
    if seen.metric == "euclidean":
        return (rows - seen.originals).norm(dim=1)
    return 1 - (rows * seen.originals).sum(1)


def _firsts(people: Tensor) -> list[int]:
    """The first row of each person."""
    seen: dict[int, int] = {}
    for row, person in enumerate(people.tolist()):
        seen.setdefault(person, row)
    return list(seen.values())


def recognition(evidence: Evidence, attack: Attack) -> tuple[Estimates, Estimates]:
    """What one recognizer finds: numbers of the originals themselves, and of the results."""
    seen, people = attack.seen, attack.people
    before, after = Estimates(), Estimates()
    after |= _retrieval(seen.hidden, seen, people, "source")
    if _several(people):
        before |= _retrieval(seen.originals, seen, people, "identity")
        after |= _retrieval(seen.hidden, seen, people, "identity")
    if not torch.equal(seen.own, seen.hidden):
        found = identity_retrieval(*as_cosines(seen.own, seen.originals, seen.metric), people, false_match_rates=())
        after |= {f"retrieval/{name}/source/own_alignment": value for name, value in found.items()}
    if seen.parrot is not None:
        found = identity_retrieval(*as_cosines(seen.hidden, seen.parrot, seen.metric), people, false_match_rates=())
        after |= {f"retrieval/{name}/source/parrot": value for name, value in found.items()}
    elif _several(people):
        found = identity_retrieval(
            *as_cosines(seen.hidden, seen.hidden, seen.metric), people, "identity", false_match_rates=()
        )
        after |= {f"retrieval/{name}/identity/parrot": value for name, value in found.items()}
    own, known = as_cosines(seen.hidden, seen.originals, seen.metric)
    after["id_similarity"] = Estimate.mean((own * known).sum(1))
    after["id_similarity/random"] = Estimate.mean((own * known.roll(1, 0)).sum(1))
    apart = anonymization_accuracy(attack.apart, attack.threshold.value)
    after["anonymization/accuracy"] = apart.pop("accuracy")
    after |= {f"distance/{name}": value for name, value in apart.items()}
    after["anonymization/threshold"] = Estimate.exact(attack.threshold.value, len(people))
    after |= _by_group(evidence, attack)
    return before, after


def _several(people: Tensor) -> bool:
    """Whether anybody is shown more than once."""
    return len(people.unique()) < len(people)


def _retrieval(probes: Tensor, seen: Recognized, people: Tensor, protocol: Literal["source", "identity"]) -> Estimates:
    own, gallery = as_cosines(probes, seen.originals, seen.metric)
    rows = torch.ones(len(people), dtype=torch.bool)
    if protocol == "identity":  # whoever is shown once has nobody to be found by
        rows = torch.bincount(people)[people] > 1
    found = identity_retrieval(own[rows], gallery[rows], people[rows], protocol)
    return {f"retrieval/{name}/{protocol}": value for name, value in found.items()}


def _by_group(evidence: Evidence, attack: Attack) -> Estimates:
    """Who is protected less: each group, the worst, the gap, and how that compares with being recognized at all."""
    names = sorted({group for group in evidence.groups if group is not None})
    if len(names) < 1:
        return {}
    hidden = attack.apart > attack.threshold.value  # NaN is not
    result: Estimates = {}
    shares, draws = [], []
    generator = torch.Generator().manual_seed(0)
    for name in names:
        here = torch.tensor([group == name for group in evidence.groups])
        count = int(here.sum())
        found = Estimate.share(int(hidden[here].sum()), count, int(attack.apart[here].isnan().sum()))
        result[f"anonymization/accuracy/{name}"] = found
        result[f"id_distance/{name}"] = Estimate.mean(attack.apart[here])
        shares.append(found.value)
        samples = torch.full((1000, count), found.value).bernoulli(generator=generator).mean(1)
        draws.append(samples)
        clean = _recognized_anyway(attack, here)
        result[f"recognized/originals/{name}"] = clean
        result[f"anonymization/failure_relative/{name}"] = (
            None
            if clean is None or clean.value == 0
            else Estimate.bootstrap((1 - found.value) / clean.value, (1 - samples) / clean.value, count)
        )
    spread = torch.stack(draws)
    worst = min(range(len(names)), key=lambda k: shares[k])
    result[f"anonymization/accuracy/worst: {names[worst]}"] = result[f"anonymization/accuracy/{names[worst]}"]
    gap = max(shares) - min(shares)
    result["anonymization/accuracy/gap"] = Estimate.bootstrap(gap, spread.amax(0) - spread.amin(0), len(evidence))
    return result


def _recognized_anyway(attack: Attack, here: Tensor) -> Estimate | None:
    """Share of pairs of different originals of one person that match, within a group; None without such pairs."""
    rows, people = attack.seen.originals[here], attack.people[here]
    order = people.argsort(stable=True)
    rows, people = rows[order], people[order]
    pairs = []
    for apart in range(1, int(torch.bincount(people).max())):  # a person's images lie side by side
        same = people[apart:] == people[:-apart]
        left, right = rows[:-apart][same], rows[apart:][same]
        pairs.append((left - right).norm(dim=1) if attack.seen.metric == "euclidean" else 1 - (left * right).sum(1))
    found = torch.cat(pairs) if pairs else torch.empty(0)
    found = found[~found.isnan()]
    if not len(found):
        return None
    return Estimate.share(int((found <= attack.threshold.value).sum()), len(found))


def appearance(evidence: Evidence, looks: Looks) -> tuple[Estimates, Estimates]:
    """What is kept and how good it looks: numbers of the originals themselves, and of the results."""
    values, sources = evidence.values, evidence.source_values
    before, after = Estimates(), Estimates()
    if evidence.found_again is not None:
        after["detection_rate/face"] = Estimate.share(int(evidence.found_again.sum()), len(evidence))
    alike = {name.partition("/")[2]: rows for name, rows in values.items() if name.startswith("alike/")}
    if alike:
        after |= similarity(alike)
    for name in ("landmarks", "pose", "expression", "gaze"):
        rows = values.get(f"geometry/{name}")
        after[f"preservation/{name}"] = None
        if rows is not None:
            source = sources[f"geometry/{name}"]
            apart = geometry_distance(name, rows, source)
            after[f"preservation/{name}"] = None if apart.isnan().all() else Estimate.mean(apart)
    after["fid/source"] = after["kid/source"] = after["clip_i"] = after["quality"] = before["quality"] = None
    if "features" in values and len(evidence) >= 4:
        after["fid/source"] = frechet_interval(values["features"], sources["features"])
        after["kid/source"] = kernel_distance(values["features"], sources["features"])
    if "clip" in values:
        after["clip_i"] = Estimate.mean(F.cosine_similarity(values["clip"], sources["clip"]))
    if "perceptual" in values:
        after["perceptual"] = Estimate.mean(values["perceptual"])
    if "quality" in values:
        before["quality"], after["quality"] = Estimate.mean(sources["quality"]), Estimate.mean(values["quality"])
    after |= _groups_seen(evidence, looks)
    return before, after


def _groups_seen(evidence: Evidence, looks: Looks) -> Estimates:
    """How often a result still looks like its group (table 3's "Asian Acc")."""
    groups = {group for group in evidence.groups if group is not None}
    if looks.attributes is None or not groups:
        return {}
    for name, classes in looks.attributes.classes.items():
        if groups <= set(classes):
            rows = torch.tensor([k for k, group in enumerate(evidence.groups) if group is not None])
            asked = torch.tensor([classes.index(g) for g in evidence.groups if g is not None])
            found = group_accuracy(evidence.values[f"attributes/{name}"][rows], asked, classes)
            return {f"group_accuracy/{group}": value for group, value in found.items()}
    return {}


def evaluate(evidence: Evidence, thresholds: Mapping[str, Threshold | None], looks: Looks) -> dict[str, Any]:
    """All numbers of some evidence.

    Args:
        evidence: What was seen.
        thresholds: Of each recognizer, as far as they are known.
        looks: Who judged appearance.

    Returns:
        ``before`` (the originals themselves), ``after``, each by key, those of a recognizer end with its name; ``thresholds``;
        ``nearest``: rows of the results that are nearest to their originals.
    """
    people = people_of(evidence)
    before, after = appearance(evidence, looks)
    said, worst = {}, torch.zeros(len(evidence))
    for name, seen in evidence.recognized.items():
        attack = attack_of(seen, people, thresholds.get(name))
        said[name] = asdict(attack.threshold)
        worst = torch.maximum(worst, (attack.threshold.value / attack.apart.clamp_min(1e-6)).nan_to_num(0.0))
        for numbers, found in zip((before, after), recognition(evidence, attack), strict=True):
            numbers |= {f"{key}/{name}": value for key, value in found.items()}
    return {
        "before": {key: None if one is None else asdict(one) for key, one in before.items()},
        "after": {key: None if one is None else asdict(one) for key, one in after.items()},
        "thresholds": said,
        "nearest": worst.argsort(descending=True).tolist(),
    }
