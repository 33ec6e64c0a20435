"""What `fairanon evaluate` leaves: a table for the terminal, CSV, LaTeX and one self-contained page."""

from __future__ import annotations

import base64
import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from fairanon.files import write_text
from fairanon.report.table import shown

Row = tuple[str, list[str], str, str]
"""Key, one cell for each column, n, missing."""
Section = tuple[str, list[str], list[Row]]
"""Title, columns, rows."""


def sections(result: Mapping[str, Any]) -> list[Section]:
    """Who is found, a column for each recognizer and row by row also of the originals themselves; what is kept.

    Args:
        result: The content of a metrics.json of `fairanon evaluate`.
    """
    names = list(result["thresholds"])
    found: dict[str, dict[str, Mapping[str, float] | None]] = {}
    kept: dict[str, Mapping[str, float] | None] = {}
    for key, value in result["after"].items():
        name = next((name for name in names if key.endswith(f"/{name}")), None)
        if name is None:
            kept[key] = value
        else:
            found.setdefault(key.removesuffix(f"/{name}"), {})[name] = value
    originals: dict[str, dict[str, Mapping[str, float] | None]] = {}
    for key, value in result["before"].items():
        name = next((name for name in names if key.endswith(f"/{name}")), None)
        if name is not None and "/chance/" not in key and "/gallery/" not in key:
            originals.setdefault(key.removesuffix(f"/{name}"), {})[name] = value
    parts: list[Section] = [
        ("who is found", names, [_row(key, [cells.get(name) for name in names]) for key, cells in found.items()]),
        (
            "the originals themselves",
            names,
            [_row(key, [cells.get(n) for n in names]) for key, cells in originals.items()],
        ),
        ("what is kept", ["value"], [_row(key, [value]) for key, value in kept.items()]),
    ]
    return [part for part in parts if part[2]]


def _row(key: str, values: Sequence[Mapping[str, float] | None]) -> Row:
    known = [value for value in values if value is not None]
    n = format(known[0]["n"], ".0f") if known else ""
    missing = "/".join(dict.fromkeys(format(value["missing"], ".0f") for value in known))
    return key, [shown(value, ".4g") for value in values], n, missing


def counted(result: Mapping[str, Any]) -> str:
    """How much was looked at."""
    said = f"{result['faces']} faces in {result['pairs']} pairs"
    left = {
        "without a counterpart": "unpaired",
        "of the table not there": "unknown",
        "without a face in the original": "faceless",
        "unreadable": "unreadable",
    }
    rest = [f"{result[key]} {what}" for what, key in left.items() if result[key]]
    return "; ".join([said, *rest])


def as_text(result: Mapping[str, Any]) -> str:
    """The tables, for a terminal."""
    lines = [counted(result) + ", 95 % intervals"]
    for name, row in result["thresholds"].items():
        lines.append(f"{name}: two faces match up to {row['value']:.4g}, {row['origin']}")
    lines += told(result)
    for title, columns, rows in sections(result):
        cells = [(title, *columns, "n", "missing"), *((key, *values, n, missing) for key, values, n, missing in rows)]
        widths = [max(len(line[k]) for line in cells) for k in range(len(cells[0]))]
        lines.append("")
        lines += ["  ".join(cell.ljust(w) for cell, w in zip(line, widths, strict=True)).rstrip() for line in cells]
    return "\n".join(lines)


def told(result: Mapping[str, Any]) -> list[str]:
    """The verdicts on all faces, and for each recognizer whether some group is protected less; sentences."""
    verdicts = ", ".join(f"{count} {name}" for name, count in result["verdicts"].items())
    said = [f"verdicts on {result['faces']} faces, all recognizers together: {verdicts}"] if verdicts else []
    if "obscured" in result["verdicts"]:
        said.append("obscured is not anonymized: something of a blurred or pixelated face can be computed back")
    for name in result["thresholds"]:
        gap = result["after"].get(f"anonymization/accuracy/gap/{name}")
        chance = result["after"].get(f"anonymization/accuracy/gap_by_chance/{name}")
        if gap is None or chance is None:
            continue
        pair = next((key for key in result["after"] if "/accuracy/gap: " in key and key.endswith(f"/{name}")), None)
        if pair is not None:
            worse, _, better = pair.partition("gap: ")[2].removesuffix(f"/{name}").partition(" < ")
            differ = f"{name}: {worse} is protected less than {better}, by {shown(result['after'][pair])}"
        elif chance["value"] < 0.05:
            differ = f"{name}: groups are not protected alike; which is protected less cannot be told"
        else:
            differ = f"{name}: whether a group is protected less cannot be told"
        said.append(
            f"{differ} (if all groups were protected alike, they would differ as much with a probability of {chance['value']:.2g})"
        )
    return said


def as_latex(result: Mapping[str, Any]) -> str:
    """The tables with booktabs."""
    parts = []
    for title, columns, rows in sections(result):
        head = " & ".join(map(_escaped, [title, *columns, "n", "missing"]))
        body = [" & ".join(map(_escaped, [key, *values, n, missing])) + r" \\" for key, values, n, missing in rows]
        begin = rf"\begin{{tabular}}{{l{'r' * (len(columns) + 2)}}}"
        lines = [begin, r"\toprule", head + r" \\", r"\midrule", *body, r"\bottomrule", r"\end{tabular}"]
        parts.append("\n".join(lines))
    return "\n\n".join(parts) + "\n"


def _escaped(text: str) -> str:
    for sign in "_%#&$":
        text = text.replace(sign, "\\" + sign)
    return text


def write_tables(folder: Path, result: Mapping[str, Any], faces: bytes | None = None) -> None:
    """Write ``table.csv``, ``table.tex`` and ``report.html``.

    Args:
        folder: Where.
        result: The content of metrics.json.
        faces: A PNG of the worst cases, if people are to be shown.
    """
    table = io.StringIO()
    writer = csv.writer(table)
    writer.writerow(["of", "key", "value", "low", "high", "n", "missing"])
    for of, stage in (("originals", "before"), ("anonymized", "after")):
        for key, value in result[stage].items():
            cells = ["n/a"] * 5 if value is None else [value[name] for name in ("value", "low", "high", "n", "missing")]
            writer.writerow([of, key, *cells])
    write_text(folder / "table.csv", table.getvalue())
    write_text(folder / "table.tex", as_latex(result))
    environment = Environment(
        loader=PackageLoader("fairanon.report", "."), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    page = environment.get_template("evaluation.html").render(
        title=result["experiment"],
        counted=counted(result),
        told=told(result),
        result=result,
        tables=sections(result),
        faces=None if faces is None else f"data:image/png;base64,{base64.b64encode(faces).decode()}",
    )
    write_text(folder / "report.html", page)
