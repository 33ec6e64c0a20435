"""Several finished runs on one page: their numbers, what each draws of the same noise, and which settings differ."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
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
        FileNotFoundError: One of them has no ``metrics.json`` or no ``config.yaml``.
    """
    named = _named(folders)
    results = {name: read_json(folder / "metrics.json", "runs") for name, folder in named.items()}
    keys = dict.fromkeys(key for result in results.values() for key in result["headline"])
    groups, settings = [], _settings(named)
    for key in keys:
        rows = [
            dot_row(name, result["before"].get(key), result["after"].get(key))
            for name, result in results.items()
            if result["after"].get(key)
        ]
        if rows:
            low, high = axis(rows)
            way = {True: "more", False: "less"}.get(_better(results.values(), key), "")
            groups.append({"key": key, "title": words(key), "rows": rows, "low": low, "high": high, "way": way})
    return render(
        "beside.html",
        refresh=False,
        title=" · ".join(results),
        made=[],
        word="",
        groups=groups,
        answers=[(name, answer(result)) for name, result in results.items()],
        sheets=_sheets(named),
        names=list(results),
        settings=settings[:_MOST],
        more=max(0, len(settings) - _MOST),
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
    sheets: dict[str, list[tuple[str, Path]]] = {}
    for name, folder in folders.items():
        for sheet in sheets_of(folder):
            sheets.setdefault(sheet["title"], []).append((name, sheet["lower"]))
    return [(title, rows) for title, rows in sheets.items() if len(rows) > 1]


def _settings(folders: Mapping[str, Path]) -> list[tuple[str, list[str]]]:
    """Settings that are not the same in all runs, a value for each run."""
    flat = [_flat(yaml.safe_load(read_text(folder / "config.yaml", "runs")) or {}) for folder in folders.values()]
    keys = dict.fromkeys(key for settings in flat for key in settings)
    rows = [(key, [str(settings.get(key, "")) for settings in flat]) for key in keys]
    return [row for row in rows if len(set(row[1])) > 1]


def _better(results: Iterable[Mapping[str, Any]], key: str) -> Any:
    """Whether more of it is better, as the first run says that knows it."""
    return next(
        (directions[key] for result in results if key in (directions := result.get("higher_is_better", {}))), None
    )


def _flat(node: Any, prefix: str = "") -> dict[str, Any]:
    if not isinstance(node, Mapping) or not node:
        return {prefix: node}
    leaves: dict[str, Any] = {}
    for key, value in node.items():
        leaves |= _flat(value, f"{prefix}.{key}" if prefix else str(key))
    return leaves
