"""A finished run as one self-contained HTML page."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from fairanon.files import read_json, read_text, write_text
from fairanon.report.plots import plot_curves
from fairanon.report.table import alike, counted, shown, table_rows

_FIGURES = {
    "shares.png": ("who is drawn", "share of each class per neutral prompt; dotted: the ideal"),
    "identities.png": ("whose faces", "t-SNE of the judge's embeddings: near is alike"),
}


def write_report(folder: Path) -> Path:
    """Write ``report.html``: table with intervals, training curves, grids before and after, configuration.

    Args:
        folder: A finished run's folder.

    Returns:
        The path of the page; it needs no other file.
    """
    result = read_json(folder / "metrics.json", "report")
    plot_curves(folder)
    environment = Environment(
        loader=PackageLoader("fairanon.report", "."), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    environment.filters["estimate"] = lambda value: shown(value).partition(" ")[::2]
    environment.filters["image"] = _embedded
    page = environment.get_template("page.html").render(
        result=result,
        counted=counted(result),
        alike=alike(result),
        rows=table_rows(result),
        tables=_tables(result),
        figures=[(folder / name, *said) for name, said in _FIGURES.items() if (folder / name).exists()],
        grids=_grids(folder),
        curves=[path for path in [folder / "curves.png"] if path.exists()],
        files={
            name: read_text(folder / name, "report")
            for name in ("config.yaml", "versions.json")
            if (folder / name).exists()
        },
    )
    write_text(folder / "report.html", page)
    return folder / "report.html"


def _tables(result: Mapping[str, Any]) -> list[tuple[str, Mapping[str, Any], str, str]]:
    """This run beside its stages and its rivals: title, rows, what is said below, and the command that measured them."""
    found = []
    if "stages" in result:
        said = f"{result['images']} images in each row: the same prompts, sources and noise; 95 % intervals."
        found.append(("stage by stage", result["stages"], said, ""))
    if "rivals" in result:
        said, command = "On the same images; 95 % intervals.", result.get("rivals_from", "")
        if command:
            said = "Mean and range over seeds; this run: 95 % intervals. Measured by"
        found.append(("beside its rivals", {"this run": result["after"], **result["rivals"]}, said, command))
    return found


def _grids(folder: Path) -> dict[str, tuple[dict[str, Path], list[str]]]:
    """For each set of prompts its grids by stage, and the prompts."""
    path = folder / "grids" / "prompts.json"
    found = {}
    for name, lines in (read_json(path, "report") if path.exists() else {}).items():
        sheets = {stage: folder / "grids" / f"{name}-{stage}.png" for stage in ("source", "before", "after")}
        found[name] = ({stage: sheet for stage, sheet in sheets.items() if sheet.exists()}, lines)
    return found


def _embedded(path: Path) -> str:
    return f"data:image/png;base64,{base64.b64encode(path.read_bytes()).decode()}"
