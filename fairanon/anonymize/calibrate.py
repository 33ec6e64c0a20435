"""From which distance on a recognizer calls two faces two people, on people whom it mistakes for each other."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from contextlib import suppress
from typing import Any

import torch
from torch import Tensor

from fairanon.anonymize.find import Finder
from fairanon.metrics.functional.verification import distances, threshold_among
from fairanon.protocols import FaceMatcher

_log = logging.getLogger(__name__)


def calibrate(
    people: Iterable[tuple[Tensor, str | None]],
    finder: Finder,
    matchers: Sequence[FaceMatcher],
    false_match_rate: float = 1e-3,
) -> dict[str, dict[str, Any]]:
    """Thresholds of recognizers, for all people and for each group.

    Args:
        people: Photographs uint8 (3, H, W) of different people, the largest face counts, and the group of each.
        finder: Finds the faces.
        matchers: Whose thresholds.
        false_match_rate: Share of the pairs of people that may match.

    Returns:
        By the recognizers' names: ``value``, ``false_match_rate``, ``people``, ``pairs``, ``missing`` (photographs without
        a face) and ``groups``: the same of each group that has people enough.

    Raises:
        ValueError: There are too few people.
    """
    rows: dict[str, list[Tensor]] = {matcher.name: [] for matcher in matchers}
    groups: dict[str, list[str | None]] = {matcher.name: [] for matcher in matchers}
    missing = dict.fromkeys(rows, 0)
    for pixels, group in people:
        boxes = finder.find(pixels).boxes
        largest = boxes[(boxes[:, 2:] - boxes[:, :2]).prod(1).argmax()] if len(boxes) else None
        for matcher in matchers:
            square = None if largest is None else matcher.align(pixels, largest)
            if square is None:
                missing[matcher.name] += 1
                continue
            rows[matcher.name].append(matcher.embed_aligned(square.cut(pixels, matcher.size)[None])[0])
            groups[matcher.name].append(group)
    found = {}
    for matcher in matchers:
        if len(rows[matcher.name]) < 2:
            raise ValueError(f"{matcher.name} found {len(rows[matcher.name])} faces; give photographs of more people.")
        embeddings = torch.stack(rows[matcher.name])
        apart = distances(embeddings, embeddings, matcher.metric)
        table = _row(apart, false_match_rate)
        table |= {"missing": missing[matcher.name], "groups": {}}
        names = groups[matcher.name]
        for group in sorted({name for name in names if name is not None}):
            here = torch.tensor([name == group for name in names])
            with suppress(ValueError):
                table["groups"][group] = _row(apart[here][:, here], false_match_rate)
            if group not in table["groups"]:
                _log.warning("%s: %d people of %s are too few for a threshold", matcher.name, int(here.sum()), group)
        found[matcher.name] = table
    return found


def _row(apart: Tensor, rate: float) -> dict[str, Any]:
    value, pairs = threshold_among(apart, rate)
    return {"value": round(value, 4), "false_match_rate": rate, "people": len(apart), "pairs": pairs}
