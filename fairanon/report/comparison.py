"""The page of a table: which experiment is better, number by number, and where that cannot be told."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fairanon.files import write_text
from fairanon.report.answer import Answer, Tile, brief, interval
from fairanon.report.page import axis, dot_row, render
from fairanon.report.table import shown
from fairanon.report.words import words

_SEEDS = 3
"""With fewer, two equal models' ranges lie apart too often."""


def compared(table: Mapping[str, Any]) -> Answer:
    """Which experiment is better, and what it rests on.

    An experiment leads in a number if its range over seeds lies apart from all others'.

    Args:
        table: What `fairanon table` wrote.
    """
    rows = {name: row for name, row in table["rows"].items() if name != "base"}
    seeds = min((int(one.get("n") or 0) for row in rows.values() for one in row.values() if one), default=0)
    tiles, leads = [], dict.fromkeys(rows, 0)
    for key, better in table.get("higher_is_better", {}).items():
        found = {name: row[key] for name, row in rows.items() if row.get(key)}
        if len(found) < 2:
            continue
        order = sorted(found, key=lambda name: found[name]["value"], reverse=better)
        first, rest = order[0], [found[name] for name in order[1:]]
        ends = [found[first][end] for end in ("low", "high")]
        told = (
            seeds >= _SEEDS
            and None not in ends
            and all(
                one["low"] is not None
                and one["high"] is not None
                and (ends[0] > one["high"] if better else ends[1] < one["low"])
                for one in rest
            )
        )
        leads[first] += told
        beside = ", ".join(f"{name} {brief(found[name]['value'])}" for name in order[1:])
        base = table["rows"].get("base", {}).get(key)
        tiles.append(
            Tile(
                words(key), "", first if told else "not shown", state="better" if told else "",
                note=f"{first} {brief(found[first]['value'])} {interval(found[first])}; {beside}"
                + (f"; the base {brief(base['value'])}" if base else ""),
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
    led = "; ".join(f"{one.after} in {one.title}" for one in tiles if one.state)
    if seeds < _SEEDS:
        sentence = f"With {seeds} seeds nothing is said: {_SEEDS} are needed."
    elif led:
        sentence = f"Their ranges over {seeds} seeds lie apart from all others': {led}."
    else:
        sentence = f"Their ranges over {seeds} seeds overlap."
    return Answer(word, state, sentence, tiles)


def write_comparison(path: Path, table: Mapping[str, Any]) -> Path:
    """Write the page of a table.

    Args:
        path: Of the page.
        table: What `fairanon table` wrote.
    """
    found, better = compared(table), table.get("higher_is_better", {})
    keys = list(better) or list(dict.fromkeys(key for row in table["rows"].values() for key in row))
    groups = []
    for key in keys:
        rows = [dot_row(name, None, row.get(key)) for name, row in table["rows"].items() if row.get(key)]
        if rows:
            low, high = axis(rows)
            way = {True: "more", False: "less"}.get(better.get(key), "")
            groups.append({"key": key, "title": words(key), "rows": rows, "low": low, "high": high, "way": way})
    content = render(
        "comparison.html",
        refresh=False,
        title=" · ".join(name for name in table["rows"] if name != "base"),
        made=[f"code {table.get('code', 'unknown')}"],
        word=found.word,
        state=found.state,
        sentence=found.sentence,
        tiles=found.tiles[:4],
        groups=groups,
        command=table["command"],
        table=[(name, [shown(row.get(group["key"])) for group in groups]) for name, row in table["rows"].items()],
    )
    write_text(path, content)
    return path
