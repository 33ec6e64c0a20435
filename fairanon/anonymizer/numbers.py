"""Numbers of anybody's anonymizer: ID2Face's tables I and II, Ano-Face-Fair's table 3, and who is protected less."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from fairanon.anonymizer.attack import Threshold, has_a_say, verdict_of
from fairanon.anonymizer.evidence import Evidence, Recognized
from fairanon.anonymizer.looking import Looks
from fairanon.anonymizer.verdicts import HIDDEN
from fairanon.metrics.anonymity import found_again, looks, protected, resemblance
from fairanon.metrics.functional.estimates import Estimate, Estimates, as_json, ratio, spread_of_shares
from fairanon.metrics.functional.recall import group_accuracy
from fairanon.metrics.functional.verification import as_cosines, distances, threshold_among

_CALIBRATED_ON = 2000
"""People among whom a threshold is calibrated: two million pairs; more change little but the memory."""
_RATE = 1e-3
_USUALLY = 0.05
"""Where no threshold is usual: this rate's, which hardly depends on few people who are there twice."""


@dataclass(frozen=True)
class Attack:
    """One recognizer's evidence, ready to be counted.

    Attributes:
        name: The recognizer's.
        seen: What it sees.
        threshold: Up to which two faces match.
        people: int64 (N,), who is who.
        apart: float (N,), from each result to its original, by the attack that brings it nearest; NaN where the recognizer
            has no say, see `fairanon.anonymizer.attack.has_a_say`.
        hidden: bool (N,), whether each face is hidden as far as this recognizer can say.
    """

    name: str
    seen: Recognized
    threshold: Threshold
    people: Tensor
    apart: Tensor
    hidden: Tensor


def people_of(evidence: Evidence) -> Tensor:
    """A number for each person: int64 (N,); who has no name is somebody of their own."""
    known: dict[str, int] = {}
    names = [name if name is not None else f"#{k}" for k, name in enumerate(evidence.identities)]
    return torch.tensor([known.setdefault(name, len(known)) for name in names])


def threshold_for(
    seen: Recognized, people: Tensor, own_threshold: Threshold | None, usual: Threshold | None, calibrate: bool
) -> Threshold:
    """A recognizer's threshold: the user's own, calibrated on the originals, or the usual one.

    Args:
        seen: What it sees.
        people: int64 (N,), who is who.
        own_threshold: What a table of the user's says.
        usual: What comes along, or is published.
        calibrate: The originals say who is who, so that one of each person makes pairs of strangers.

    Raises:
        ValueError: None is known, or the originals call one person two.
    """
    if own_threshold is not None:
        return own_threshold
    first = torch.tensor([k for k in _firsts(people) if not seen.originals[k].isnan().any()][:_CALIBRATED_ON])
    if calibrate and len(first) * (len(first) - 1) / 2 * _RATE >= 10:
        rows = seen.originals[first]
        apart = distances(rows, rows, seen.metric)
        value, pairs = threshold_among(apart, _RATE)
        least = threshold_among(apart, _USUALLY)[0] / 2 if usual is None else usual.value / 2
        if not value >= least > 0:
            raise ValueError(
                f"the originals' own threshold would be {value:.3g}, less than half of what is usual ({2 * least:.3g}): some people "
                "are there under two names, or more than once with --calibrate; say who is who in the column identity of "
                "--table, or name a table with --thresholds."
            )
        origin = f"calibrated at a false-match rate of {_RATE:g} on {pairs} pairs of these originals"
        return Threshold(value, origin, value if usual is None else min(value, usual.value))
    if usual is None:
        raise ValueError(
            "no threshold is known, and the originals show too few people who are told apart to calibrate one; --thresholds "
            "FILE names those that `fairanon calibrate` wrote, the column identity of --table says who is who, --calibrate "
            "that everybody is there once."
        )
    return usual


def attack_of(evidence: Evidence, name: str, threshold: Threshold) -> Attack:
    """A recognizer's evidence, with what its threshold says of each face."""
    seen, people = evidence.recognized[name], people_of(evidence)
    if not evidence.faces:
        apart = torch.minimum(*(_row_by_row(rows, seen) for rows in (seen.hidden, seen.own)))
        return Attack(name, seen, threshold, people, apart, apart > threshold.value)  # NaN is not
    apart = torch.full((len(evidence),), torch.nan)
    for k, face in enumerate(evidence.faces):
        if name in face.distances and has_a_say(face.seen[name], threshold):
            apart[k] = face.distances[name]
    verdicts = [verdict_of(face, {name: threshold}) for face in evidence.faces]
    return Attack(name, seen, threshold, people, apart, torch.tensor([verdict in HIDDEN for verdict in verdicts]))


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
    if not torch.equal(seen.own.nan_to_num(), seen.hidden.nan_to_num()):
        after |= found_again(
            *as_cosines(seen.own, seen.originals, seen.metric), people, "source/own_alignment", rates=()
        )
    if seen.parrot is not None:
        after |= found_again(*as_cosines(seen.hidden, seen.parrot, seen.metric), people, "source/parrot", rates=())
    elif _several(people):
        after |= found_again(*as_cosines(seen.hidden, seen.hidden, seen.metric), people, "identity/parrot", True, ())
    own, known = as_cosines(seen.hidden, seen.originals, seen.metric)
    after |= resemblance(own, known, people, asking=as_cosines(seen.originals, seen.originals, seen.metric)[0])
    after |= protected(attack.hidden, attack.apart, people)
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
    return found_again(own[rows], gallery[rows], people[rows], protocol, protocol == "identity")


def _by_group(evidence: Evidence, attack: Attack) -> Estimates:
    """Who is protected less: each group, the worst, how much they differ, and how that compares with being recognized at all."""
    names = sorted({group for group in evidence.groups if group is not None})
    rows = {name: torch.tensor([group == name for group in evidence.groups]) for name in names}
    result: Estimates = {}
    for name, here in rows.items():
        hidden, people = attack.hidden[here], attack.people[here]
        accuracy = Estimate.share_of(hidden, people, int(attack.apart[here].isnan().sum()))
        result[f"anonymization/accuracy/{name}"] = accuracy
        if not attack.apart[here].isnan().all():
            result[f"id_distance/{name}"] = Estimate.mean(attack.apart[here], people)
        clean = _recognized_anyway(attack, here)
        result[f"recognized/originals/{name}"] = clean
        result[f"anonymization/failure_relative/{name}"] = (
            None if clean is None else ratio(Estimate.share_of(~hidden, people), clean)
        )
    spread = spread_of_shares(
        [attack.hidden[here] for here in rows.values()], [attack.people[here] for here in rows.values()]
    )
    if spread is not None:
        result["anonymization/accuracy/worst"] = spread.worst
        result["anonymization/accuracy/gap"] = spread.gap
        result["anonymization/accuracy/gap_by_chance"] = Estimate.exact(spread.chance, spread.gap.n)
        if spread.pair is not None:
            worse, better = (names[k] for k in spread.pair)
            result[f"anonymization/accuracy/gap: {worse} < {better}"] = spread.apart
    return result


def _recognized_anyway(attack: Attack, here: Tensor) -> Estimate | None:
    """Share of pairs of different originals of one person that match, within a group; None without such pairs."""
    rows, people = attack.seen.originals[here], attack.people[here]
    order = people.argsort(stable=True)
    rows, people = rows[order], people[order]
    pairs, whose = [], []
    for apart in range(1, int(torch.bincount(people).max())):  # a person's images lie side by side
        same = people[apart:] == people[:-apart]
        left, right = rows[:-apart][same], rows[apart:][same]
        pairs.append((left - right).norm(dim=1) if attack.seen.metric == "euclidean" else 1 - (left * right).sum(1))
        whose.append(people[apart:][same])
    pair_distances, who = (torch.cat(pairs), torch.cat(whose)) if pairs else (torch.empty(0), torch.empty(0))
    there = ~pair_distances.isnan()
    if not there.any():
        return None
    return Estimate.share_of(pair_distances[there] <= attack.threshold.value, who[there])


def appearance(evidence: Evidence, judges: Looks, people: Tensor) -> tuple[Estimates, Estimates]:
    """What is kept and how good it looks: numbers of the originals themselves, and of the results."""
    values, sources = evidence.values, evidence.source_values
    absent: Estimates = dict.fromkeys(("fid/source", "kid/source", "clip_i", "quality"))
    before: Estimates = {"quality": Estimate.mean(sources["quality"], people) if "quality" in sources else None}
    after = absent | looks(values, sources, people)
    if evidence.found_again is not None:
        after["detection_rate/face"] = Estimate.share_of(evidence.found_again, people)
    return before, after | _groups_seen(evidence, judges)


def _groups_seen(evidence: Evidence, looks: Looks) -> Estimates:
    """How often a result still looks like its group (table 3's "Asian Acc")."""
    groups = {group for group in evidence.groups if group is not None}
    if looks.attributes is None or not groups:
        return {}
    for name, classes in looks.attributes.classes.items():
        number = {label.casefold(): k for k, label in enumerate(classes)}  # as a table's groups are written
        if groups <= set(number):
            rows = torch.tensor([k for k, group in enumerate(evidence.groups) if group is not None])
            asked = torch.tensor([number[group] for group in evidence.groups if group is not None])
            probabilities, people = evidence.values[f"attributes/{name}"][rows], people_of(evidence)[rows]
            estimates = group_accuracy(probabilities, asked, classes, people)
            return {f"group_accuracy/{group}": value for group, value in estimates.items()}
    return {}


def evaluate(
    evidence: Evidence,
    own_thresholds: Mapping[str, Threshold | None],
    usual: Mapping[str, Threshold | None],
    looks: Looks,
    calibrate: bool = False,
) -> dict[str, Any]:
    """All numbers of some evidence.

    Args:
        evidence: What was seen; its faces get the verdicts that all recognizers together give.
        own_thresholds: Thresholds of each recognizer in tables of the user's.
        usual: Those that come along or are published.
        looks: Who judged appearance.
        calibrate: Nobody is among the originals twice, so that thresholds can be calibrated on them. Otherwise they are where
            every original has an identity.

    Returns:
        ``before`` (the originals themselves), ``after``, each by key, those of a recognizer end with its name; ``thresholds``;
        ``verdicts``, how many faces have each; ``nearest``: rows of the results that are nearest to their originals.
    """
    people = people_of(evidence)
    before, after = appearance(evidence, looks, people)
    known_people = calibrate or all(name is not None for name in evidence.identities)
    thresholds = {
        name: threshold_for(seen, people, own_thresholds.get(name), usual.get(name), known_people)
        for name, seen in evidence.recognized.items()
    }
    nearness = torch.zeros(len(evidence))
    for name, threshold in thresholds.items():
        attack = attack_of(evidence, name, threshold)
        nearness = torch.maximum(nearness, (threshold.value / attack.apart.clamp_min(1e-6)).nan_to_num(0.0))
        for numbers, estimates in zip((before, after), recognition(evidence, attack), strict=True):
            numbers |= {f"{key}/{name}": value for key, value in estimates.items()}
    for face in evidence.faces:
        face.verdict = verdict_of(face, thresholds)
    return {
        "before": as_json(before),
        "after": as_json(after),
        "thresholds": {name: {"value": limit.value, "origin": limit.origin} for name, limit in thresholds.items()},
        "verdicts": dict(sorted(Counter(face.verdict for face in evidence.faces).items())),
        "nearest": nearness.argsort(descending=True).tolist(),
    }
