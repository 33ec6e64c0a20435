"""Several finished runs on one page: their numbers, what each draws of the same noise, and which settings differ."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from fairanon.files import read_json, read_text
from fairanon.report.answer import answer
from fairanon.report.page import axis, dot_row, render, sheets_of
from fairanon.report.words import words

_MOST = 40
"""Settings that are listed at most."""


def page_of_runs(folders: Sequence[Path]) -> str:
    """A page that needs no other file.

    Args:
        folders: Of two or more finished runs.

    Raises:
        FileNotFoundError: One of them has no ``metrics.json``.
    """
    results = {name: read_json(folder / "metrics.json", "runs") for name, folder in _named(folders).items()}
    keys = dict.fromkeys(key for result in results.values() for key in result["headline"])
    groups = []
    for key in keys:
        rows = [
            dot_row(name, result["before"].get(key), result["after"].get(key))
            for name, result in results.items()
            if result["after"].get(key)
        ]
        if rows:
            low, high = axis(rows)
            better = next(
                (r["higher_is_better"][key] for r in results.values() if key in r.get("higher_is_better", {})), None
            )
            way = {True: "more", False: "less"}.get(better, "")  # type: ignore[arg-type]  # nobody says which
            groups.append({"key": key, "title": words(key), "rows": rows, "low": low, "high": high, "way": way})
    return render(
        "beside.html",
        refresh=False,
        title=" · ".join(results),
        made=[],
        word="",
        groups=groups,
        answers=[(name, answer(result)) for name, result in results.items()],
        sheets=_sheets(_named(folders)),
        names=list(results),
        settings=_settings(_named(folders)),
    )


def _named(folders: Sequence[Path]) -> dict[str, Path]:
    """Folders by the experiment's name; with that of the run where several are of one experiment."""
    names = [folder.resolve().parent.name for folder in folders]
    return {
        name if names.count(name) == 1 else f"{name} {folder.resolve().name}": folder
        for name, folder in zip(names, folders, strict=True)
    }


def _sheets(folders: Mapping[str, Path]) -> list[tuple[str, list[tuple[str, Path]]]]:
    """For each set of prompts what each run drew of the same prompts and noise."""
    found: dict[str, list[tuple[str, Path]]] = {}
    for name, folder in folders.items():
        for sheet in sheets_of(folder):
            found.setdefault(sheet["title"], []).append((name, sheet["lower"]))
    return [(title, rows) for title, rows in found.items() if len(rows) > 1]


def _settings(folders: Mapping[str, Path]) -> list[tuple[str, list[str]]]:
    """Settings that are not the same in all runs, a value for each run."""
    flat = [_flat(yaml.safe_load(read_text(folder / "config.yaml", "runs")) or {}) for folder in folders.values()]
    keys = dict.fromkeys(key for one in flat for key in one)
    rows = [(key, [str(one.get(key, "")) for one in flat]) for key in keys]
    return [row for row in rows if len(set(row[1])) > 1][:_MOST]


def _flat(node: Any, prefix: str = "") -> dict[str, Any]:
    if not isinstance(node, Mapping) or not node:
        return {prefix: node}
    found: dict[str, Any] = {}
    for key, value in node.items():
        found |= _flat(value, f"{prefix}.{key}" if prefix else str(key))
    return found
