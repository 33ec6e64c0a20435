"""Kinds of prompts, such as languages and forms: what further columns of their table tell apart."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fairanon.auditor.findings import Neutral, Question, aligned, obeyed, scored
from fairanon.auditor.tally import Tally
from fairanon.metrics.functional.discrepancy import rms_discrepancy, unbiased_squares
from fairanon.metrics.functional.estimates import Estimate
from fairanon.metrics.functional.welch import welch

_VALUES = (2, 20)
"""A column of so many values has a row for each; of fewer there is nothing to compare, of more it is no kind of prompt."""
_LEVEL = 0.05
_DEALS = 20_000

Kinds = dict[str, dict[str, Neutral]]
"""By column and value the prompts that name no group, of a tally in which no other prompt has images."""


def kinds(tally: Tally) -> tuple[Kinds, list[str]]:
    """Prompts by what further columns of their table say of them.

    Returns:
        The kinds; and the columns that have more values than are told apart.
    """
    values: dict[str, dict[str, Tensor]] = {}
    for k, row in enumerate(tally.rows):
        for column, value in row.asked.items():
            if column not in tally.classes and tally.images[k] > 0:
                prompts = values.setdefault(column, {}).setdefault(
                    value, torch.zeros(len(tally.rows), dtype=torch.bool)
                )
                prompts[k] = True
    least, most = _VALUES
    several = {
        column: {value: Neutral(tally.only(prompts)) for value, prompts in rows.items()}
        for column, rows in values.items()
        if least <= len(rows) <= most
    }
    return several, [column for column, rows in values.items() if len(rows) > most]


def of_kind(neutral: Neutral, asked: Sequence[Question]) -> dict[str, Any]:
    """The numbers of one kind.

    Args:
        neutral: Its prompts.
        asked: What is counted, with a target for each of these prompts.

    Returns:
        ``prompts`` and ``images`` of those that name no group; by attribute ``distance``, ``shares`` (of these images, as judged, by
        class) and ``no_face`` (share of these images); ``naming``, the number of prompts that name a group; ``obeyed``, ``shown`` and
        ``scores`` as they are for all prompts.
    """
    tally, distances, shares, absent = neutral.tally, {}, {}, {}
    for question in asked:
        name = question.attribute
        counts = neutral.counts(name)
        judged = counts.sum(1)
        distances[name] = rms_discrepancy(counts, question.ideal, confusion=question.confusion)
        shares[name] = {
            class_name: Estimate.share_by(counts[:, k], judged)
            for k, class_name in enumerate(question.classes)
            if judged.sum()
        }
        absent[name] = Estimate.share_by(tally.absent[name][neutral.rows], neutral.images) if len(judged) else None
    return {
        "prompts": len(neutral.rows), "images": int(neutral.images.sum()), "naming": int((tally.images > 0).sum()) - len(neutral.rows),
        "distance": distances, "shares": shares, "no_face": absent, "obeyed": obeyed(tally).get("all"), "shown": aligned(tally),
        "scores": {name: score for name, (score,) in scored(tally).items()},
    }  # fmt: skip


def apart(columns: Kinds, ask: Callable[[Neutral], Sequence[Question]]) -> list[dict[str, Any]]:
    """For each column and attribute the kind that is nearest to its target, the farthest one, and whether they are told apart.

    Two tests of the mean unbiased squares have to refuse that the two are alike: Welch's, and one that deals the kinds' names among their
    prompts. For them every prompt counts as many images, so that alike kinds have alike squares, however many images each has: as many as three
    quarters of both kinds' prompts have, drawn at random; prompts that have fewer are left out. The chance is multiplied by how many
    pairs of kinds there are, of all columns and attributes (Bonferroni): the two were chosen for being far apart. With three kinds of four prompts
    nothing can be told. `tests/audit/test_statistics.py` draws alike kinds.

    Returns:
        ``column``, ``attribute``, ``near``, ``far``, ``chance`` and ``told`` (whether they are), where two kinds have two prompts of two images.
    """
    pairs, tests = list[tuple[str, str, str, str, float]](), 0
    for column, sides in columns.items():
        for attribute, by_kind in _counted(sides, ask).items():
            tests += math.comb(len(by_kind), 2)
            if len(by_kind) > 1:
                means = {
                    value: float(_squares(question, counts).mean()) for value, (question, counts) in by_kind.items()
                }
                near, far = min(means, key=means.__getitem__), max(means, key=means.__getitem__)
                pairs.append((column, attribute, near, far, _alike(*by_kind[near], *by_kind[far])))
    rows = []
    for column, attribute, near, far, chance in pairs:
        row = {"column": column, "attribute": attribute, "near": near, "far": far, "chance": min(1.0, chance * tests)}
        rows.append({**row, "told": chance * tests <= _LEVEL})
    return rows


def _counted(
    sides: Mapping[str, Neutral], ask: Callable[[Neutral], Sequence[Question]]
) -> dict[str, dict[str, tuple[Question, Tensor]]]:
    """By attribute and kind the counts (P, K) of its prompts of two images and more, of kinds that have two; and what is asked of them."""
    counted: dict[str, dict[str, tuple[Question, Tensor]]] = {}
    for value, neutral in sides.items():
        for question in ask(neutral):
            counts = neutral.counts(question.attribute)
            several = counts.sum(1) >= 2
            if int(several.sum()) >= 2:
                asked = replace(question, ideal=question.ideal[several])
                counted.setdefault(question.attribute, {})[value] = asked, counts[several]
    return counted


def _squares(question: Question, counts: Tensor) -> Tensor:
    return unbiased_squares(counts, question.ideal, None if question.confusion is None else question.confusion.inverse)


def _alike(question: Question, counts: Tensor, other: Question, others: Tensor) -> float:
    """The probability that two alike kinds lie as far apart, see `apart`."""
    images = torch.cat([counts.sum(1), others.sum(1)])
    size, generator = max(2, int(images.quantile(0.25, interpolation="lower"))), np.random.default_rng(0)
    parts = []
    for asked, table in ((question, counts), (other, others)):
        enough = table.sum(1) >= size
        drawn = [generator.multivariate_hypergeometric(row, size) for row in table[enough].long().numpy()]
        if len(drawn) < 2:
            return 1.0
        parts.append(_squares(replace(asked, ideal=asked.ideal[enough]), torch.from_numpy(np.stack(drawn)).double()))
    near, far = parts
    dealt = _dealt(near, far)
    return max(welch(near.tolist(), far.tolist()), dealt) if float(near.var() + far.var()) > 1e-12 else dealt


def _dealt(near: Tensor, far: Tensor) -> float:
    """The same, by dealing the prompts to the two kinds: all deals where they are few, otherwise random ones."""
    joined, first = torch.cat([near, far]), len(near)
    observed, total = abs(float(far.mean() - near.mean())), float(joined.sum())

    def difference(sums: Tensor) -> Tensor:
        return ((total - sums) / len(far) - sums / first).abs()

    if math.comb(len(joined), first) <= _DEALS:
        deals = torch.tensor(list(itertools.combinations(range(len(joined)), first)))
        return float((difference(joined[deals].sum(1)) >= observed - 1e-12).double().mean())
    generator = torch.Generator().manual_seed(0)
    higher = 0
    for _ in range(_DEALS // 1000):
        order = torch.rand(1000, len(joined), generator=generator).argsort(1)[:, :first]
        higher += int((difference(joined[order].sum(1)) >= observed - 1e-12).sum())
    return (higher + 1) / (_DEALS + 1)
