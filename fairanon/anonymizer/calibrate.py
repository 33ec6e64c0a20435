"""From which distance on a recognizer calls two faces two people, on people whom it mistakes for each other."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from fairanon.anonymizer.attack import seen_in
from fairanon.anonymizer.find import Finder
from fairanon.anonymizer.judges import FINDS, MATCHES, judges
from fairanon.anonymizer.manifest import counted, printable
from fairanon.anonymizer.pairs import Labels, composed, read_labels
from fairanon.anonymizer.photos import read_photo
from fairanon.anonymizer.request import CalibrateRequest
from fairanon.anonymizer.sources import collect
from fairanon.engines import devices_of
from fairanon.files import write_json
from fairanon.imaging import CorruptImageError, Square
from fairanon.metrics.functional.verification import distances, false_match_interval, threshold_among
from fairanon.progress import progress_bar
from fairanon.protocols import FaceMatcher

_log = logging.getLogger(__name__)


def thresholds_of(
    people: Iterable[tuple[str, Tensor, str | None]],
    finder: Finder,
    matchers: Sequence[FaceMatcher],
    false_match_rate: float = 1e-3,
) -> dict[str, dict[str, Any]]:
    """Thresholds of recognizers, for all people and for each group.

    Args:
        people: Photographs of different people: name, uint8 (3, H, W), of which the largest face counts, and group.
        finder: Finds the faces.
        matchers: Whose thresholds.
        false_match_rate: Share of the pairs of people that may match.

    Returns:
        By the recognizers' names: ``value``, ``false_match_rate`` with ``low`` and ``high`` (see `false_match_interval`),
        ``people``, ``pairs``, ``missing`` (photographs without a face) and ``groups``: the same of each group that has
        people enough.

    Raises:
        ValueError: There are too few people, a photograph is there twice, or the threshold would be below half of the
            published one, as it is where one person is there several times.
    """
    rows: dict[str, list[Tensor]] = {matcher.name: [] for matcher in matchers}
    groups: dict[str, list[str | None]] = {matcher.name: [] for matcher in matchers}
    missing = dict.fromkeys(rows, 0)
    looks: list[Tensor] = []
    names: list[str] = []
    for name, pixels, group in people:
        there = finder.find(pixels)
        largest = int((there.boxes[:, 2:] - there.boxes[:, :2]).prod(1).argmax()) if len(there) else None
        if largest is not None:
            names.append(name)
            looks.append(_look(pixels, there.boxes[largest]))
        for matcher in matchers:
            seen = None
            if largest is not None:
                seen = seen_in(matcher, pixels, there.boxes[largest], int(there.quarters[largest]))
            if seen is None:
                missing[matcher.name] += 1
                continue
            rows[matcher.name].append(seen[1])
            groups[matcher.name].append(group)
    _refuse_duplicates(names, looks)
    tables = {}
    for matcher in matchers:
        if len(rows[matcher.name]) < 2:
            raise ValueError(f"{matcher.name} found {len(rows[matcher.name])} faces; give photographs of more people.")
        embeddings = torch.stack(rows[matcher.name])
        apart = distances(embeddings, embeddings, matcher.metric)
        table = _row(apart, false_match_rate)
        if matcher.published is not None and table["value"] < matcher.published / 2:
            raise ValueError(
                f"{matcher.name}: the threshold would be {table['value']:g}, less than half of the published "
                f"{matcher.published:g}: some people are there more than once; give one photograph of each."
            )
        _refuse_one_person(matcher, apart)
        table |= {"missing": missing[matcher.name], "groups": {}}
        whose = groups[matcher.name]
        for group in sorted({label for label in whose if label is not None}):
            here = torch.tensor([label == group for label in whose])
            try:
                table["groups"][group] = _row(apart[here][:, here], false_match_rate)
            except ValueError as error:
                _log.warning("%s has no threshold for %s: %s", matcher.name, group, error)
        tables[matcher.name] = table
    return tables


@dataclass(frozen=True)
class CalibrateResult:
    """Thresholds of recognizers.

    Attributes:
        out: The file, for ``--thresholds``.
        table: What it says, see `thresholds_of`.
    """

    out: Path
    table: dict[str, dict[str, Any]]


def calibrate(request: CalibrateRequest) -> CalibrateResult:
    """See `fairanon.calibrate`; errors are not put into sentences here."""
    source = collect([request.folder])
    labels = read_labels(request.groups, "--groups", "file") if request.groups else Labels()
    for written, label in labels.changed.items():
        _log.warning("group %r counts as %r", written, label)
    if strangers := sorted(set(labels.rows) - {composed(item.name) for item in source.items}):
        _log.warning("--groups names %s not there (%s)", counted(len(strangers), "file"), printable(strangers[0]))
    finders = judges(request.detector, "--detector", FINDS, threshold=request.detector_threshold)
    matchers = judges(request.recognizer, "--recognizer", MATCHES)
    place = devices_of(request.device)[0]
    for model in (*finders, *matchers):
        model.to(place)

    def people() -> Iterator[tuple[str, Tensor, str | None]]:
        for item in progress_bar(source.items, desc="people", unit="img"):
            try:
                yield item.name, read_photo(item.read(), item.name).pixels, labels.of(item.name)[0]
            except CorruptImageError as error:
                _log.warning("skipped %s", error)

    table = thresholds_of(people(), Finder(finders), matchers, request.false_match_rate)
    write_json(request.out, table)
    return CalibrateResult(request.out, table)


_SIDE = 24
"""Pixels of a face that are compared with those of others."""
_SAME = 0.995
"""Correlation of such pixels from which on two photographs are one, saved twice."""


def _look(pixels: Tensor, box: Tensor) -> Tensor:
    """A face at a few pixels, without its mean and contrast: float (3 * S * S,), of length 1."""
    x0, y0, x1, y1 = box.tolist()
    square = Square((x0 + x1) / 2, (y0 + y1) / 2, 1.5 * max(x1 - x0, y1 - y0))
    small = square.crop(pixels, _SIDE).float().flatten()
    return F.normalize(small - small.mean(), dim=0)


def _refuse_duplicates(names: Sequence[str], looks: Sequence[Tensor]) -> None:
    if len(looks) < 2:
        return
    rows = torch.stack(list(looks))
    for row in range(1, len(rows)):
        alike = rows[:row] @ rows[row]
        if float(alike.max()) > _SAME:
            other = names[int(alike.argmax())]
            raise ValueError(f"{other} and {names[row]} show the same photograph; give one photograph of each person.")


_STRANGERS = 0.5
"""Cosine distance that half of all pairs of strangers have at least, by any recognizer that tells people apart."""


def _refuse_one_person(matcher: FaceMatcher, apart: Tensor) -> None:
    """Refuse people who are alike as one person's photographs are: nobody may have said what is usual of this recognizer."""
    first, second = torch.triu_indices(len(apart), len(apart), 1)
    usual = float(apart[first, second].median())
    if matcher.metric == "cosine" and usual < _STRANGERS:
        raise ValueError(
            f"{matcher.name}: half of the pairs are nearer than {usual:.3g}, as photographs of one person are; give one photograph of "
            "each of many people."
        )


def _row(apart: Tensor, rate: float) -> dict[str, Any]:
    value, pairs = threshold_among(apart, rate)
    low, high = false_match_interval(apart, value)
    return {
        "value": round(value, 4), "false_match_rate": rate, "low": float(f"{low:.2g}"), "high": float(f"{high:.2g}"),
        "people": len(apart), "pairs": pairs,
    }  # fmt: skip
