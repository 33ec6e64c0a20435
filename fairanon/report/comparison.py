"""The page of a table: which experiment is better, number by number, and where that cannot be told."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fairanon.files import write_text
from fairanon.metrics.functional.welch import welch
from fairanon.report.answer import Answer, Tile, distinct, interval
from fairanon.report.page import axis, dot_row, render
from fairanon.report.table import shown
from fairanon.report.words import words

SEEDS = 3
"""With fewer, nobody knows how much seeds differ."""


def compared(table: Mapping[str, Any]) -> Answer:
    """Which experiment is better, and what it rests on.

    An experiment leads in a number if it is certainly better than each other one: by Welch's test (1947) at 5 %, divided by how
    many experiments and numbers are looked at; and if it is better than the base.

    Args:
        table: What `fairanon table` wrote.
    """
    rows = {name: row for name, row in table["rows"].items() if name != "base"}
    seeds = min((int(number.get("n") or 0) for row in rows.values() for number in row.values() if number), default=0)
    tiles, leads = [], dict.fromkeys(rows, 0)
    ways = table.get("higher_is_better", {})
    numbers = {key: {name: row[key] for name, row in rows.items() if row.get(key)} for key in ways}
    numbers = {key: figures for key, figures in numbers.items() if len(figures) > 1}
    for key, figures in numbers.items():
        base = table["rows"].get("base", {}).get(key)
        order = sorted(figures, key=lambda name: figures[name]["value"], reverse=ways[key])
        first = order[0]
        ahead = _ahead([figures[name].get("seeds", ()) for name in order], 0.05 / len(numbers) / (len(order) - 1))
        if base and (base["value"] - figures[first]["value"]) * (1 if ways[key] else -1) >= 0:
            ahead = False  # the best of those that were trained is no better than none of them
        leads[first] += ahead
        best, beside, *untrained = distinct(
            [figures[name]["value"] for name in order[:2]] + ([base["value"]] if base else [])
        )
        tiles.append(
            Tile(
                words(key), "", first if ahead else "not shown", state="better" if ahead else "",
                note=" ".join(f"{first} {best} {interval(figures[first])}".split())
                + f"; next {order[1]} {beside}" + "".join(f"; the base {value}" for value in untrained),
                key=key,
            )
        )  # fmt: skip
    best = max(leads, key=lambda name: leads[name]) if leads else ""
    if not tiles or not leads[best]:
        word, state = "NONE IS SHOWN TO BE BEST", "same"
    elif list(leads.values()).count(leads[best]) > 1:
        word, state = "DIFFERENT ONES LEAD IN DIFFERENT NUMBERS", "same"
    else:
        word, state = f"{best} LEADS IN {leads[best]} OF {len(tiles)} NUMBERS", "better"
    led = "; ".join(f"{number.after} in {number.title}" for number in tiles if number.state)
    if not tiles:
        sentence = "There is nothing to compare."
    elif not all(number.get("seeds") for figures in numbers.values() for number in figures.values()):
        sentence = "The table was made by an earlier version and does not say what each seed gave: make it again."
    elif seeds < SEEDS:
        sentence = f"With {seeds} seeds nothing is said: {SEEDS} are needed."
    elif led:
        sentence = f"Welch's test tells it from every other experiment, and it is better than the base: {led}."
    else:
        sentence = f"With {seeds} seeds none is certainly ahead of all others, and better than the base."
    return Answer(word, state, sentence, tiles)


def _ahead(experiments: Sequence[Sequence[float]], level: float) -> bool:
    """Whether the first of several experiments is certainly apart from each other one; seeds of each may vary by their own."""
    if any(len(values) < SEEDS for values in experiments):
        return False
    first, *others = experiments
    return all(welch(first, other) < level for other in others)


def everything(table: Mapping[str, Any]) -> dict[str, Any]:
    """The rows of a table, those of steerings and of folders of images."""
    return {**table["rows"], **table.get("beside", {})}


def write_comparison(path: Path, table: Mapping[str, Any]) -> Path:
    """Write the page of a table.

    Args:
        path: Of the page.
        table: What `fairanon table` wrote.
    """
    answer, better = compared(table), table.get("higher_is_better", {})
    keys = list(better) or list(dict.fromkeys(key for row in table["rows"].values() for key in row))
    groups = []
    for key in keys:
        rows = [dot_row(name, None, row.get(key)) for name, row in everything(table).items() if row.get(key)]
        if rows:
            for row, text in zip(rows, distinct([row["after"]["value"] for row in rows]), strict=True):
                row["said"] = text
            low, high = axis(rows)
            way = {True: "more", False: "less"}.get(better.get(key), "")
            groups.append({"key": key, "title": words(key), "rows": rows, "low": low, "high": high, "way": way})
    content = render(
        "comparison.html",
        refresh=False,
        title=" · ".join(name for name in table["rows"] if name != "base") or "the base model",
        made=[f"code {table.get('code', 'unknown')}"],
        word=answer.word,
        state=answer.state,
        sentence=answer.sentence,
        tiles=answer.tiles[:4],
        groups=groups,
        command=table["command"],
        table=[(name, [shown(row.get(group["key"])) for group in groups]) for name, row in everything(table).items()],
    )
    write_text(path, content)
    return path
