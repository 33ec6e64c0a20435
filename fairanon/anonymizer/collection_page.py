"""The page of an anonymized collection, for people who were not there: what was looked at, how, and what nobody may publish yet."""

from __future__ import annotations

import csv
import hashlib
import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from fairanon.anonymizer.chance import ENOUGH, FEWEST
from fairanon.anonymizer.manifest import (
    FACES,
    MANIFEST,
    PAGE,
    REVIEWED,
    Tally,
    as_cell,
    counted,
    printable,
    read_manifest,
    waits,
)
from fairanon.anonymizer.verdicts import HIDDEN
from fairanon.files import atomic_write, content_key, write_text
from fairanon.imaging import open_image
from fairanon.places import is_link
from fairanon.report.answer import Tile
from fairanon.report.page import data_uri, render

OBSCURED = (
    "obscured is not anonymized: who holds the very photograph can find a blurred or pixelated face, and something of "
    "it can be computed back; --method mask leaves nothing"
)
NOT_TESTABLE = (
    f"the test of the whole collection was not made: it takes {ENOUGH} hidden faces of one run that a recognizer can judge (blocks "
    f"of files with fewer than {FEWEST} of them do not count)"
)
_PICTURES = 8
_MARK = '<meta name=fairanon content="{}'
"""In the head of our page, with a digest of the manifest that it was made of."""
_COLUMNS = ("file", "face", "x0", "y0", "x1", "y1", "verdict", "method", "strength")
_ROWS = 500
"""So many are on the page, all in the tables beside it."""


def write_page(out: Path, tally: Tally, about: Mapping[str, Any], foreign: Sequence[str] = ()) -> None:
    """Write ``report.html`` and ``faces.csv`` into a result, unless they are those of this manifest.

    They show results that may be published, never originals, and nothing of what waits for somebody's eyes.

    Args:
        out: The folder of the result.
        tally: Of its manifest.
        about: Method, settings, judges.
        foreign: Files among the published ones that are not ours.
    """
    with (out / MANIFEST).open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    page, mark = out / PAGE, content_key(digest, *foreign)
    if foreign_page(out):
        raise ValueError(f"OUT: {out / foreign_page(out)} is not ours; move it away, and run this once more.")
    if page.exists() and (out / FACES).exists() and _MARK.format(mark) in _head(page):
        return
    summary = told_of(tally, about["judges"], foreign)
    publishable, step = 0, max(1, tally.files["finished"] // _PICTURES)
    number, faces, review, shown = 0, list[dict[str, Any]](), list[dict[str, Any]](), list[tuple[str, str]]()
    judges = [name for name, judge in about["judges"].items() if "value" in judge]
    with atomic_write(out / FACES) as partial, partial.open("w", encoding="utf-8", newline="") as table:
        writer = csv.writer(table)
        writer.writerow([*_COLUMNS, *(f"distance {name}" for name in judges)])
        for line in read_manifest(out):
            if line["face"] is None:
                if line["publishable"] and line["faces"]:
                    if publishable % step == 0:
                        shown.append((line["file"], line["result"]))
                    publishable += 1
                if len(review) < _ROWS and waits(line):
                    review.append(line)
                continue
            near = [format(line["distances"][name], ".4f") if name in line["distances"] else "" for name in judges]
            cells = [line["verdict"], line["method"], "" if line["strength"] is None else line["strength"]]
            writer.writerow([as_cell(line["file"]), line["face"], *line["box"], *cells, *near])
            number += 1
            if number <= _ROWS:
                faces.append(line)
    settings = {"method": about["method"], **about["settings"]}
    attackers = [(name, f"{judge['licence']}{_matches(judge)}") for name, judge in about["judges"].items()]
    content = render(
        "collection.html",
        refresh=False,
        mark=mark,
        title="Protocol of anonymization",
        made=[datetime.now().astimezone().isoformat(" ", "minutes"), f"fairanon {about['version']}"],
        word=summary.word,
        state=summary.state,
        sentence=summary.sentence,
        tiles=_tiles(summary, tally, about["judges"]),
        notes=summary.notes,
        pictures=[(printable(name), _small(out / result)) for name, result in _still_there(shown, out)],
        review=[
            {**line, "file": printable(line["file"]), "result": printable(line["result"] or "")} for line in review
        ],
        rest=f"The first {_ROWS}; all are in {REVIEWED}." if len(review) == _ROWS < summary.waiting else "",
        faces=[{**line, "file": printable(line["file"]), "near": _near(line)} for line in faces],
        more=f"The first {_ROWS} of {number}; all are in {FACES}."
        if number > _ROWS
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


def told_of(tally: Tally, judges: Mapping[str, Any], foreign: Sequence[str] = ()) -> Told:
    """What came of a collection.

    Args:
        tally: Of its manifest.
        judges: By name; attackers have a "value" and its "origin".
        foreign: Files among the published ones that are not ours.
    """
    finished, waiting, obscured = tally.files["finished"], tally.waiting, tally.verdicts["obscured"]
    notes, word, state = [], "READY", "better"
    if foreign:
        word, state = f"MOVE {counted(len(foreign), 'FILE').upper()} AWAY", "worse"
        notes.append(
            f"nobody looked at {len(foreign)} of the published files, which are not fairanon's: {printable(foreign[0])}"
        )
    elif waiting:
        word, state = f"{counted(waiting, 'FILE').upper()} TO BE LOOKED AT", "worse"
    elif tally.kept:
        word, state = f"READY AS ASKED: {counted(tally.kept, 'FACE').upper()} VISIBLE", "same"
    elif obscured:
        word, state = f"READY AS ASKED: {obscured} OF {counted(tally.hidden, 'FACE').upper()} ONLY OBSCURED", "same"
    notes += [
        *([told_of_kept(tally)] if tally.kept or tally.kept_waiting else []),
        *([OBSCURED] if obscured else []),
        *map(_collection, tally.collections),
    ]
    hidden = told_of_faces(tally, judges) if tally.hidden else "No face was to be hidden"
    sentence = f"{finished} of {tally.files.total()} files may be published. {hidden}."
    return Told(word, state, sentence, notes, finished, waiting)


def foreign_page(out: Path) -> str:
    """The name of a page or table in a result that somebody else wrote; "" if there is none."""
    page, faces = out / PAGE, out / FACES
    if is_link(page) or (page.exists() and _MARK.format("") not in _head(page)):
        return PAGE
    return FACES if is_link(faces) or (faces.exists() and not _head(faces).startswith(",".join(_COLUMNS))) else ""


def _head(path: Path) -> str:
    """How a file begins; "" of what is none."""
    if not path.is_file():
        return ""
    with path.open(encoding="utf-8", errors="replace") as file:
        return file.read(500)


def _collection(outcome: Any) -> str:
    """What came of a test of the whole collection against chance."""
    if outcome == "not testable":
        return (
            f"the test of the whole collection was not made: it takes {ENOUGH} hidden faces that a recognizer can judge"
        )
    findings = ", ".join(f"{name}: {outcome['found'][name]} (p {p:g})" for name, p in outcome["probability"].items())
    return f"tested as a whole, {outcome['faces']} faces; found, and how likely by chance: {findings}"


def told_of_faces(tally: Tally, attackers: Mapping[str, Mapping[str, Any]]) -> str:
    """How many faces were hidden, with which verdicts, and how near to its original the nearest one is.

    Args:
        tally: Of the manifest.
        attackers: Judges by name; attackers have a "value" and its "origin".
    """
    verdicts = ", ".join(f"{count} {verdict}" for verdict, count in sorted(tally.verdicts.items()))
    if not tally.attacked and set(tally.verdicts) == {"not attacked"}:
        return f"{counted(tally.hidden, 'face')} hidden, none of them attacked (--skip-attack)"
    nearest = [
        f"{tally.nearest[name]:.3g} by {name} ({tally.whose[name]}), which takes two faces for one person up to "
        f"{attacker['value']:.3g} ({attacker['origin']})"
        for name, attacker in attackers.items()
        if name in tally.nearest
    ]
    stopped = any(
        tally.nearest.get(name, math.inf) <= attacker["value"]
        for name, attacker in attackers.items()
        if "value" in attacker
    )
    least = "at most the distance" if stopped else "the distance"  # who is recognized is attacked no further
    near = f"; the one most like its original has {least} {'; '.join(nearest)}" if nearest else ""
    untested = tally.hidden - tally.attacked - tally.verdicts["not attacked"]
    untested_too = f", {untested} not testable: no recognizer could compare them" if untested else ""
    masked = f"; {tally.masked} masked at the last try: the method did not hide them" if tally.masked else ""
    return f"{counted(tally.hidden, 'face')} hidden ({verdicts}), {tally.attacked} attacked{untested_too}{masked}{near}"


def told_of_kept(tally: Tally) -> str:
    """How many faces are visible because somebody asked for it, in what may be published and in what waits for eyes."""
    stay = f"{tally.kept} {'face stays' if tally.kept == 1 else 'faces stay'} visible in the published files"
    stay += f", {tally.kept_waiting} in files to be looked at" if tally.kept_waiting else ""
    return f"{stay}, as you asked: look whether it is the right people"


def _matches(judge: Mapping[str, Any]) -> str:
    return f"; two faces match up to {judge['value']:g}, {judge['origin']}" if "value" in judge else ""


def _near(line: Mapping[str, Any]) -> str:
    return ", ".join(f"{value:.3g} ({name})" for name, value in line["distances"].items())


def _tiles(summary: Told, tally: Tally, judges: Mapping[str, Any]) -> list[Tile]:
    hidden, kept = sum(tally.verdicts[verdict] for verdict in HIDDEN), tally.kept + tally.kept_waiting
    verdicts = ", ".join(f"{count} {verdict}" for verdict, count in sorted(tally.verdicts.items()))
    tiles = [Tile("faces hidden", "", f"{hidden} of {tally.hidden}", note=verdicts)]
    stay = "somebody asked for that: they are visible"
    if tally.left:
        tiles.append(Tile("faces left as they are", "", str(tally.left), state="worse", note=stay))
    if kept:
        tiles.append(Tile("faces kept", "", str(kept), state="same", note=stay))
    for name, judge in judges.items():
        if "value" in judge and name in tally.nearest:
            least = tally.nearest[name]
            note = f"{tally.whose[name]}; two faces match up to {judge['value']:.3g}: {judge['origin']}"
            state = "better" if least > judge["value"] else "worse"
            shown = f"{least:.3g}" if least > judge["value"] else f"{least:.3g} or less"
            tiles.append(Tile(f"smallest distance to an original ({name})", "", shown, state=state, note=note))
    if skipped := tally.verdicts["not attacked"]:
        tiles.append(
            Tile("not attacked", "", str(skipped), state="worse", note="nobody tested whether they are recognized")
        )
    untested = tally.hidden - tally.attacked - skipped
    tiles.append(Tile("could not be tested", "", str(untested), note="no recognizer could judge them"))
    state = "worse" if summary.waiting else ""
    note = f"{summary.finished} may be published"
    return [*tiles, Tile("files to be looked at", "", str(summary.waiting), state=state, note=note)]


def _still_there(shown: Sequence[tuple[str, str]], out: Path) -> list[tuple[str, str]]:
    """Those of the results that nobody has exchanged, eight at most."""
    made = (out / MANIFEST).stat().st_mtime + 1

    def ours(path: Path) -> bool:  # not what somebody put in its place since
        return path.is_file() and not is_link(path) and path.stat().st_mtime <= made

    return [(name, result) for name, result in shown if ours(out / result)][:_PICTURES]


def _small(path: Path) -> str:
    image = open_image(path).convert("RGB")
    image.thumbnail((320, 320))
    raw = io.BytesIO()
    image.save(raw, "JPEG", quality=80)
    return data_uri(raw.getvalue(), "image/jpeg")
