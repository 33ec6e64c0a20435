"""The page of an anonymized collection, for people who were not there: what was looked at, how, and what nobody may publish yet."""

from __future__ import annotations

import csv
import io
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from fairanon.anonymizer.attack import ENOUGH
from fairanon.anonymizer.manifest import (
    FACES,
    MANIFEST,
    PAGE,
    as_cell,
    counted,
    counts,
    hidden_of,
    kept_of,
    place_of,
    printable,
)
from fairanon.anonymizer.verdicts import HIDDEN
from fairanon.files import content_key, write_text
from fairanon.imaging import open_image
from fairanon.report.answer import Tile
from fairanon.report.page import data_uri, render

OBSCURED = (
    "obscured is not anonymized: who holds the very photograph can find a blurred or pixelated face, and something of "
    "it can be computed back; --method mask leaves nothing"
)
_PICTURES = 8
_MARK = '<meta name=fairanon content="{}'
"""In the head of our page, with a digest of the manifest that it was made of."""
_COLUMNS = ("file", "face", "x0", "y0", "x1", "y1", "verdict", "method", "strength")
_FACES = 500
"""So many are on the page, all in the table beside it."""


def write_page(
    out: Path, lines: Sequence[dict[str, Any]], about: Mapping[str, Any], foreign: Sequence[str] = ()
) -> None:
    """Write ``report.html`` and ``faces.csv`` into a result, unless they are those of this manifest.

    They show results that may be published, never originals, and nothing of what waits for somebody's eyes.

    Args:
        out: The folder of the result.
        lines: The manifest's.
        about: Method, settings, judges.
        foreign: Files among the published ones that are not ours.
    """
    page, mark = out / PAGE, content_key((out / MANIFEST).read_text(encoding="utf-8"), *foreign)
    if foreign_page(out):
        raise ValueError(f"OUT: {out / foreign_page(out)} is not ours; move it away, and run this once more.")
    if page.exists() and (out / FACES).exists() and _MARK.format(mark) in _head(page):
        return
    files = [line for line in lines if line["face"] is None]
    faces = [line for line in lines if line["face"] is not None]
    said = told_of(lines, about["judges"], foreign)
    table = io.StringIO()
    writer = csv.writer(table)
    judges = [name for name, one in about["judges"].items() if "value" in one]
    writer.writerow([*_COLUMNS, *(f"distance {name}" for name in judges)])
    for line in faces:
        near = [format(line["distances"][name], ".4f") if name in line["distances"] else "" for name in judges]
        told = [line["verdict"], line["method"], "" if line["strength"] is None else line["strength"]]
        writer.writerow([as_cell(line["file"]), line["face"], *line["box"], *told, *near])
    write_text(out / FACES, table.getvalue())
    review = [line for line in files if place_of(line) not in ("finished", "no-face")]
    review = [line for line in review if line["verdict"] != "no face" or line["result"]]
    settings = {"method": about["method"], **about["settings"]}
    attackers = [(name, f"{one['licence']}{_matches(one)}") for name, one in about["judges"].items()]
    content = render(
        "collection.html",
        refresh=False,
        mark=mark,
        title="Protocol of anonymization",
        made=[datetime.now().astimezone().isoformat(" ", "minutes"), f"fairanon {about['version']}"],
        word=said.word,
        state=said.state,
        sentence=said.sentence,
        tiles=_tiles(said, lines, about["judges"]),
        notes=said.notes,
        pictures=[(printable(line["file"]), _small(out / str(line["result"]))) for line in _spread(files, out)],
        review=[
            {**line, "file": printable(line["file"]), "result": printable(line["result"] or "")} for line in review
        ],
        faces=[{**line, "file": printable(line["file"]), "near": _near(line)} for line in faces[:_FACES]],
        more=f"The first {_FACES} of {len(faces)}; all are in {FACES}."
        if len(faces) > _FACES
        else f"The same as a table: {FACES}.",
        how=[*((name.replace("_", " "), value) for name, value in settings.items()), *attackers],
    )
    write_text(page, content)


@dataclass(frozen=True)
class Told:
    """What is said first of a collection.

    Attributes:
        word: The answer in capitals.
        state: "better", "same" or "worse": how the word is shown.
        sentence: How many files may be published, how many faces were hidden.
        notes: Further sentences.
        finished: Files that may be published.
        waiting: Files that somebody has to look at.
    """

    word: str
    state: str
    sentence: str
    notes: list[str]
    finished: int
    waiting: int


def told_of(lines: Sequence[dict[str, Any]], judges: Mapping[str, Any], foreign: Sequence[str] = ()) -> Told:
    """What came of a collection.

    Args:
        lines: The manifest's.
        judges: By name; attackers have a "value" and its "origin".
        foreign: Files among the published ones that are not ours.
    """
    found, asked, (kept, waits) = counts(lines), hidden_of(lines), kept_of(lines)
    finished = found.get("finished", 0)
    waiting = sum(found.get(kind, 0) for kind in ("review", "unreadable", "left"))
    obscured = sum(line["verdict"] == "obscured" for line in asked)
    notes, word, state = [], "READY", "better"
    if foreign:
        word, state = f"MOVE {counted(len(foreign), 'FILE').upper()} AWAY", "worse"
        notes.append(
            f"nobody looked at {len(foreign)} of the published files, which are not fairanon's: {printable(foreign[0])}"
        )
    elif waiting:
        word, state = f"{counted(waiting, 'FILE').upper()} TO BE LOOKED AT", "worse"
    elif kept:
        word, state = f"READY AS ASKED: {counted(kept, 'FACE').upper()} VISIBLE", "same"
    elif obscured:
        word, state = f"READY AS ASKED: {obscured} OF {counted(len(asked), 'FACE').upper()} ONLY OBSCURED", "same"
    notes += [
        *([told_of_kept(kept, waits)] if kept or waits else []),
        *([OBSCURED] if obscured else []),
        *_collection(lines),
    ]
    hidden = told_of_faces(asked, judges) if asked else "No face was to be hidden"
    total = sum(line["face"] is None for line in lines)
    sentence = f"{finished} of {total} files may be published. {hidden}."
    return Told(word, state, sentence, notes, finished, waiting)


def foreign_page(out: Path) -> str:
    """The name of a page or table in a result that somebody else wrote; "" if there is none."""
    page, faces = out / PAGE, out / FACES
    if page.is_symlink() or (page.exists() and _MARK.format("") not in _head(page)):
        return PAGE
    return FACES if faces.is_symlink() or (faces.exists() and not _head(faces).startswith(",".join(_COLUMNS))) else ""


def _head(path: Path) -> str:
    """How a file begins; "" of what is none."""
    if not path.is_file():
        return ""
    with path.open(encoding="utf-8", errors="replace") as file:
        return file.read(500)


def _collection(lines: Sequence[Mapping[str, Any]]) -> list[str]:
    """What came of the test of the whole collection against chance; a sentence for each outcome."""
    told = []
    for outcome in {
        json.dumps(line["collection"]): line["collection"] for line in lines if line.get("collection")
    }.values():
        if outcome == "not testable":
            told.append(
                f"the test of the whole collection was not made: it takes {ENOUGH} hidden faces that a recognizer can judge"
            )
        else:
            found = ", ".join(
                f"{name}: {outcome['found'][name]} (p {p:g})" for name, p in outcome["probability"].items()
            )
            told.append(f"tested as a whole, {outcome['faces']} faces; found, and how likely by chance: {found}")
    return told


def told_of_faces(faces: Sequence[Mapping[str, Any]], attackers: Mapping[str, Mapping[str, Any]]) -> str:
    """How many faces were hidden, with which verdicts, and how near to its original the nearest one is.

    Args:
        faces: The manifest's lines of those that were to be hidden.
        attackers: Judges by name; attackers have a "value" and its "origin".
    """
    verdicts = Counter(line["verdict"] for line in faces)
    attacked = sum(bool(line["distances"]) for line in faces)
    told = ", ".join(f"{count} {verdict}" for verdict, count in sorted(verdicts.items()))
    if not attacked and set(verdicts) == {"not attacked"}:
        return f"{counted(len(faces), 'face')} hidden, none of them attacked (--skip-attack)"
    nearest = [
        f"{least:.3g} by {name}, which takes two faces for one person up to {one['value']:.3g} ({one['origin']})"
        for name, one in attackers.items()
        if (least := _least(faces, name)) is not None
    ]
    near = f"; the one most like its original has the distance {'; '.join(nearest)}" if nearest else ""
    return f"{counted(len(faces), 'face')} hidden ({told}), {attacked} attacked{near}"


def told_of_kept(published: int, waiting: int) -> str:
    """How many faces are visible because somebody asked for it, in what may be published and in what waits for eyes."""
    stay = f"{published} {'face stays' if published == 1 else 'faces stay'} visible in the published files"
    stay += f", {waiting} in files to be looked at" if waiting else ""
    return f"{stay}, as you asked: look whether it is the right people"


def _least(faces: Sequence[Mapping[str, Any]], name: str) -> float | None:
    return min((line["distances"][name] for line in faces if name in line["distances"]), default=None)


def _matches(judge: Mapping[str, Any]) -> str:
    return f"; two faces match up to {judge['value']:g}, {judge['origin']}" if "value" in judge else ""


def _near(line: Mapping[str, Any]) -> str:
    return ", ".join(f"{value:.3g} ({name})" for name, value in line["distances"].items())


def _tiles(said: Told, lines: Sequence[dict[str, Any]], judges: Mapping[str, Any]) -> list[Tile]:
    faces, kept = hidden_of(lines), sum(kept_of(lines))
    left = sum(line["face"] is not None for line in lines) - len(faces) - kept
    verdicts = Counter(line["verdict"] for line in faces)
    hidden = sum(count for verdict, count in verdicts.items() if verdict in HIDDEN)
    told = ", ".join(f"{count} {verdict}" for verdict, count in sorted(verdicts.items()))
    tiles = [Tile("faces hidden", "", f"{hidden} of {len(faces)}", note=told)]
    if left:
        tiles.append(
            Tile(
                "faces left as they are", "", str(left), state="worse", note="somebody asked for that: they are visible"
            )
        )
    if kept:
        tiles.append(Tile("faces kept", "", str(kept), state="same", note="somebody asked for that: they are visible"))
    for name, one in judges.items():
        least = _least(faces, name)
        if "value" in one and least is not None:
            note = f"two faces match up to {one['value']:.3g}: {one['origin']}"
            state = "better" if least > one["value"] else "worse"
            tiles.append(Tile(f"smallest distance to an original ({name})", "", f"{least:.3g}", state=state, note=note))
    skipped = verdicts["not attacked"]
    untested = sum(not line["distances"] for line in faces) - skipped
    if skipped:
        tiles.append(
            Tile("not attacked", "", str(skipped), state="worse", note="nobody tested whether they are recognized")
        )
    tiles.append(Tile("could not be tested", "", str(untested), note="no recognizer could judge them"))
    state = "worse" if said.waiting else ""
    note = f"{said.finished} may be published"
    return [*tiles, Tile("files to be looked at", "", str(said.waiting), state=state, note=note)]


def _spread(files: Sequence[Mapping[str, Any]], out: Path) -> list[Mapping[str, Any]]:
    """Some of the files that may be published and show hidden faces, from all over the collection; those that are still there."""
    made = (out / MANIFEST).stat().st_mtime + 1

    def ours(path: Path) -> bool:  # not what somebody put in its place since
        return path.is_file() and not path.is_symlink() and path.stat().st_mtime <= made

    shown = [line for line in files if line["publishable"] and line["faces"] and ours(out / str(line["result"]))]
    step = max(1, len(shown) // _PICTURES)
    return shown[::step][:_PICTURES]


def _small(path: Path) -> str:
    image = open_image(path).convert("RGB")
    image.thumbnail((320, 320))
    raw = io.BytesIO()
    image.save(raw, "JPEG", quality=80)
    return data_uri(raw.getvalue(), "image/jpeg")
