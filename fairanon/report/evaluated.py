"""What `fairanon evaluate` leaves: an answer, a table for the terminal, CSV, LaTeX and one self-contained page."""

from __future__ import annotations

import csv
import io
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fairanon.files import write_text
from fairanon.report.answer import Answer, Tile, brief, by_chance, distinct, interval, told_apart
from fairanon.report.page import data_uri, render
from fairanon.report.table import shown
from fairanon.report.words import missing_needs, recognizer_of, words

_HIDDEN = ("anonymized", "obscured", "covered")
"""As `fairanon.anonymizer.verdicts.HIDDEN`, which this room must not import; a test compares them."""

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
    anonymized: dict[str, dict[str, Mapping[str, float] | None]] = {}
    kept: dict[str, Mapping[str, float] | None] = {}
    for key, value in result["after"].items():
        name = recognizer_of(key, names)
        if name is None:
            kept[key] = value
        else:
            anonymized.setdefault(key.removesuffix(f"/{name}"), {})[name] = value
    originals: dict[str, dict[str, Mapping[str, float] | None]] = {}
    for key, value in result["before"].items():
        name = recognizer_of(key, names)
        if name is not None and "/chance/" not in key and "/gallery/" not in key:
            originals.setdefault(key.removesuffix(f"/{name}"), {})[name] = value
    parts: list[Section] = [
        ("who is found", names, [_row(key, [cells.get(name) for name in names]) for key, cells in anonymized.items()]),
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


def counted(result: Mapping[str, Any], verdicts: str) -> str:
    """How much was looked at, with what became of it."""
    summary = f"{result['faces']} faces in {result['pairs']} pairs" + (f": {verdicts}" if verdicts else "")
    left = {
        "without a counterpart": "unpaired",
        "of the table not there": "unknown",
        "without a face in the original": "faceless",
        "unreadable": "unreadable",
    }
    rest = [f"{result[key]} {what}" for what, key in left.items() if result[key]]
    return "; ".join([summary, *rest])


def evaluated(result: Mapping[str, Any]) -> Answer:
    """Whether anybody is recognized, and what it rests on.

    Args:
        result: The content of a metrics.json of `fairanon evaluate`.
    """
    verdicts, faces, after = result["verdicts"], result["faces"], result["after"]
    names = tuple(result["thresholds"])
    kept = sum(verdicts.get(name, 0) for name in _HIDDEN)
    known, left = verdicts.get("recognized", 0), faces - kept
    tally = ", ".join(f"{count} {name}" for name, count in verdicts.items())
    above: list[str] = []
    if not faces:
        word, how = "NO FACES", "same"
    elif not verdicts:  # of stored embeddings there are only numbers
        word, how = "EMBEDDINGS COMPARED", "same"
    elif known:
        word, how = f"{known} OF {faces} FACES RECOGNIZED", "worse"
    elif left:
        word, how = f"{left} OF {faces} FACES NOT SHOWN TO BE HIDDEN", "worse"
    elif above := [key for name in names for key in _above_chance(after, name, len(names))]:
        word, how = "FOUND MORE OFTEN THAN BY GUESSING", "worse"
    elif not names or any(not after.get(f"anonymization/accuracy/{name}") for name in names):
        word, how = "CANNOT BE TOLD", "same"
    elif result["left_out"] or result["faceless"]:
        word, how = "NOBODY RECOGNIZED IN WHAT WAS LOOKED AT", "same"
    else:
        word, how = "NOBODY RECOGNIZED", "better"
    sentence = f"{counted(result, tally)}."
    for key in above:
        top1, chance = (after[key.replace("retrieval/", f"retrieval/{what}")] for what in ("", "chance/"))
        there, hits = told_apart(top1)
        guessed = f"{hits} of {there} faces, guessing would find {chance['value'] * there:.2g}"
        sentence += f" {_sentence(words(key, names))}: {guessed}."
    if verdicts.get("obscured"):
        sentence += " Obscured is not anonymized: something of a blurred or pixelated face can be computed back."
    tiles = []
    for name in names:
        by = f" ({name})" if len(names) > 1 else ""
        tiles.append(_tile(after, f"anonymization/accuracy/{name}", f"share of faces that are hidden{by}"))
        chance = after.get(f"retrieval/chance/top1/source/{name}")
        top1 = after.get(f"retrieval/top1/source/{name}")
        more = chance and top1 and by_chance("retrieval/top1/source", top1, chance["value"]) < 0.05
        guessed = (
            f"guessing finds {brief(chance['value'])}{'' if more else ', and this is not shown to be more'}; "
            if chance
            else ""
        )
        tiles.append(
            _tile(after, f"retrieval/top1/source/{name}", f"found among the originals at the first guess{by}", guessed)
        )
        nearest, row = after.get(f"distance/min/{name}"), result["thresholds"][name]
        if nearest:
            smallest, limit = distinct([nearest["value"], row["value"]])
            note = f"two faces match up to {limit}, {row['origin']}"
            tiles.append(Tile(f"smallest distance to an original{by}", "", smallest, note=note))
        if after.get(f"anonymization/accuracy/gap/{name}"):
            tiles.append(_tile(after, f"anonymization/accuracy/gap/{name}", f"how much groups differ{by}"))
    return Answer(word, how, sentence, [tile for tile in tiles if tile.after])


def _above_chance(numbers: Mapping[str, Any], name: str, recognizers: int) -> list[str]:
    """By which attacks one of so many recognizers ranks the right person first more often than guessing does."""
    attacks, known = [], {}
    for who in ("source", "identity", "source/own_alignment", "source/parrot", "identity/parrot"):
        top1, chance = (numbers.get(f"retrieval/{what}top1/{who}/{name}") for what in ("", "chance/"))
        if top1 and chance:
            known[f"retrieval/top1/{who}/{name}"] = (top1, chance)
    for key, (top1, chance) in known.items():
        if by_chance(key, top1, chance["value"]) < 0.05 / (recognizers * len(known)):
            attacks.append(key)
    return attacks


def _sentence(text: str) -> str:
    return f"{text[:1].upper()}{text[1:]}"


def _tile(numbers: Mapping[str, Any], key: str, title: str, note: str = "") -> Tile:
    number = numbers.get(key)
    if number is None:
        return Tile(title, "", "")
    return Tile(
        title, "", brief(number["value"]), note=f"{note}95 % interval {interval(number)}, n {number['n']:.0f}", key=key
    )


def answered(result: Mapping[str, Any]) -> str:
    """The answer for a terminal, and the faces that are not hidden."""
    lines = evaluated(result).lines(sys.stdout.isatty())
    for row in result["open"][:5]:
        near = ", ".join(f"{value:.3g} by {name}" for name, value in row["distances"].items())
        lines.append(f"  {row['verdict']}: {row['file']}, face at {_box(row)}{f' ({near})' if near else ''}")
    if len(result["open"]) > 5:
        lines.append(f"  and {len(result['open']) - 5} more: faces.csv")
    return "\n".join(lines)


def as_text(result: Mapping[str, Any]) -> str:
    """The tables, for a terminal."""
    lines = ["95 % intervals"]
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
    """For each recognizer whether some group is protected less; sentences."""
    sentences = []
    for name in result["thresholds"]:
        gap = result["after"].get(f"anonymization/accuracy/gap/{name}")
        chance = result["after"].get(f"anonymization/accuracy/gap_by_chance/{name}")
        if gap is None or chance is None:
            continue
        names = list(result["thresholds"])
        gaps = [key for key in result["after"] if "/accuracy/gap: " in key]
        pair = next((key for key in gaps if recognizer_of(key, names) == name), None)
        if pair is not None:
            worse, _, better = pair.partition("gap: ")[2].removesuffix(f"/{name}").partition(" < ")
            differ = f"{name}: {worse} is protected less than {better}, by {shown(result['after'][pair])}"
            lacking = (result["after"].get(f"anonymization/accuracy/{worse}/{name}") or {}).get("missing", 0)
            if lacking:
                differ += f"; {lacking} faces of {worse} could not be judged and count as not protected, unless a mask covers them"
        elif chance["value"] < 0.05:
            differ = f"{name}: groups are not protected alike; which is protected less cannot be told"
        else:
            differ = f"{name}: whether a group is protected less cannot be told"
        sentences.append(
            f"{differ} (if all groups were protected alike, they would differ as much with a probability of {chance['value']:.2g})"
        )
    return sentences


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
    answer = evaluated(result)
    tables = [
        (
            title,
            columns,
            [(key, words(key), cells, n, missing) for key, cells, n, missing in rows if set(cells) != {"n/a"}],
        )
        for title, columns, rows in sections(result)
    ]
    absent = [key for key, value in result["after"].items() if value is None]
    page = render(
        "evaluation.html",
        refresh=False,
        title=result["experiment"],
        made=[result["date"], f"fairanon {result['versions']['fairanon']}", f"{result['seconds']['evaluate']:.0f} s"],
        word=answer.word,
        state=answer.state,
        sentence=answer.sentence,
        tiles=answer.tiles,
        told=[*result["doubts"], *told(result)],
        result=result,
        open_faces=[
            (row["verdict"], row["file"], _box(row), ", ".join(f"{v:.3g} ({n})" for n, v in row["distances"].items()))
            for row in result["open"][:200]
        ],
        tables=[part for part in tables if part[2]],
        absent=[(words(key, tuple(result["thresholds"])), missing_needs(key)) for key in absent],
        faces=None if faces is None else data_uri(faces),
        csv=data_uri(table.getvalue().encode(), "text/csv"),
    )
    write_text(folder / "report.html", page)


def _box(row: Mapping[str, Any]) -> str:
    x0, y0, x1, y1 = (round(side) for side in row["box"])
    return f"{x0},{y0} to {x1},{y1}"
