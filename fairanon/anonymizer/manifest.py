"""What became of each file: a journal while the work goes on, a manifest when it is done. Neither knows who was shown."""

from __future__ import annotations

import csv
import io
import json
import os
import secrets
import shutil
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from threading import Lock
from typing import Any

from fairanon.anonymizer.verdicts import KEPT, VISIBLE
from fairanon.files import write_text

MANIFEST = "manifest.jsonl"
REVIEWED = "review.csv"
PAGE = "report.html"
FACES = "faces.csv"
FOLDERS = {"finished": "published", "review": "review", "no-face": "no-face", "nowhere": None}
"""Where files go, relative to the result."""
LEFT = "not handled"
"""Verdict of what was passed over."""


@dataclass
class Outcome:
    """What became of a file.

    Attributes:
        name: The file's.
        verdict: One of `fairanon.anonymizer.verdicts.HIDDEN`, the weakest of its faces'; "not anonymized", "not attacked",
            "no face", "unreadable" or "failed" (unforeseen).
        place: A key of `FOLDERS`.
        reason: Why it is not finished; "" if it is.
        faces: One for each face found, see `Face.record`.
        memory: The same, see `Face.memory`.
        seconds: How long it took.
        source: Digest of the original, if asked for.
        mark: Of the original, see `Treatment.mark`; "" if it could not be read.
        doubts: See `Picture`.
        boxes: See `Item.key`.
    """

    name: str
    verdict: str
    place: str
    reason: str = ""
    faces: list[dict[str, Any]] = field(default_factory=list)
    memory: list[dict[str, Any]] = field(default_factory=list)
    seconds: float = 0.0
    source: str | None = None
    mark: str = ""
    doubts: list[str] = field(default_factory=list)
    boxes: str | None = None

    def path(self, out: Path) -> Path | None:
        """Where its picture lies in the result; None if it has none."""
        folder = FOLDERS[self.place]
        return None if folder is None else out / folder / self.name

    @property
    def asked(self) -> int:
        """Faces that were to be hidden."""
        return sum(face["asked"] for face in self.memory)


class Journal:
    """Outcomes as they come; whatever was written before a kill is there afterwards.

    Args:
        path: Its file.
    """

    def __init__(self, path: Path) -> None:
        self.path, self._lock = path, Lock()
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.exists() and not path.read_bytes().endswith(b"\n"):  # a line that a kill cut off
            whole = path.read_bytes()
            with path.open("r+b") as file:
                file.truncate(whole.rfind(b"\n") + 1)

    def add(self, outcome: Outcome) -> None:
        """Note an outcome; a later one of the same file takes its place."""
        try:
            with self._lock, self.path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(asdict(outcome)) + "\n")
        except OSError as error:
            error.filename = str(self.path)
            raise

    @staticmethod
    def read(paths: Iterable[Path]) -> dict[str, Outcome]:
        """Outcomes by name."""
        found = {}
        for path in paths:
            for line in path.read_text(encoding="utf-8").split("\n"):
                try:
                    outcome = Outcome(**json.loads(line))
                except ValueError:
                    continue  # cut off by a kill: the file is looked at again
                found[outcome.name] = outcome
        return found


def lines_of(outcome: Outcome, about: dict[str, Any]) -> list[dict[str, Any]]:
    """The manifest's lines of a file: one for it, one for each of its faces.

    Args:
        outcome: What became of it.
        about: What is the same for all.
    """
    folder = FOLDERS[outcome.place]
    place = None if folder is None else (Path(folder) / outcome.name).as_posix()
    file: dict[str, Any] = {
        "file": outcome.name, "face": None, "verdict": outcome.verdict, "reason": outcome.reason, "result": place,
        "publishable": outcome.place == "finished", "faces": len(outcome.faces), **about,
        "seconds": round(outcome.seconds, 3),
    }  # fmt: skip
    if outcome.boxes is not None:
        file["boxes"] = outcome.boxes
    if outcome.source is not None:
        file["source_sha256"] = outcome.source
    return [file, *({"file": outcome.name, "face": k, **face} for k, face in enumerate(outcome.faces))]


def line_of_left(name: str, reason: str, about: dict[str, Any]) -> dict[str, Any]:
    """The manifest's line of what was passed over."""
    return lines_of(Outcome(name, LEFT, "nowhere", reason), about)[0]


def read_manifest(out: Path) -> list[dict[str, Any]]:
    """Its lines; none if there is none."""
    path = out / MANIFEST
    if not path.exists():
        return []
    try:
        return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line]
    except ValueError:
        raise ValueError(f"OUT: {path} is damaged; name a new folder.") from None


def write_manifest(out: Path, lines: Iterable[dict[str, Any]]) -> None:
    """Write it, sorted, and beside it a table of what a person has to look at.

    Names are written as JSON can write them, whatever is in them.
    """
    if hasattr(os, "sync"):
        os.sync()  # pictures first: the manifest must not promise what a power cut takes
    rows = sorted(lines, key=lambda line: (line["file"], -1 if line["face"] is None else line["face"]))
    write_text(out / MANIFEST, "".join(json.dumps(row) + "\n" for row in rows))
    table = io.StringIO()
    writer = csv.writer(table)
    writer.writerow(["file", "verdict", "reason", "location"])
    unfinished = [row for row in rows if row["face"] is None and (row["result"] is None or place_of(row) == "review")]
    writer.writerows(
        [as_cell(str(row[key] or "")) for key in ("file", "verdict", "reason", "result")] for row in unfinished
    )
    if unfinished:
        write_text(out / REVIEWED, table.getvalue())
    else:
        (out / REVIEWED).unlink(missing_ok=True)


def created(path: Path, text: str) -> str:
    """Write text unless the file is there: of several processes the first one's stays, and all are told it."""
    if not path.exists():
        mine = path.with_name(f"{path.name}.{secrets.token_hex(4)}.partial")
        write_text(mine, text)
        try:
            os.link(mine, path)
        except FileExistsError:
            pass
        except OSError:  # a file system without hard links: the last one of those that begin at once stays
            shutil.copyfile(mine, path)
        mine.unlink()
    return path.read_text(encoding="utf-8")


def printable(text: str) -> str:
    r"""Text that every file and terminal takes: bytes of a name that are no UTF-8 become ``\xe9``."""
    try:
        return os.fsencode(text).decode("utf-8", "backslashreplace")
    except UnicodeEncodeError:  # letters that no file can have either
        return text.encode("utf-8", "backslashreplace").decode()


def as_cell(text: str) -> str:
    """Text for a table that people open with a spreadsheet: one that it would take for a formula begins with an apostrophe.

    Examples:
        >>> as_cell("=1+1.jpg"), as_cell("a.jpg")
        ("'=1+1.jpg", 'a.jpg')
    """
    return f"'{printable(text)}" if text[:1] in tuple("=+-@\t\r") else printable(text)


def place_of(row: dict[str, Any]) -> str:
    """The key of `FOLDERS` of a file's line."""
    if row["publishable"]:
        return "finished"
    return "nowhere" if row["result"] is None else str(row["result"]).split("/")[0]


def counts(lines: Iterable[dict[str, Any]]) -> Counter[str]:
    """How many files went where: the keys of `FOLDERS`, "skipped" (no face), "left" (passed over)."""
    found: Counter[str] = Counter()
    for row in lines:
        if row["face"] is not None:
            continue
        place = place_of(row)
        if place == "nowhere":
            place = {"no face": "skipped", LEFT: "left"}.get(row["verdict"], "unreadable")
        found[place] += 1
    return found


def hidden_of(lines: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """The lines of faces that were to be hidden."""
    return [row for row in lines if row["face"] is not None and row["verdict"] not in VISIBLE]


def kept_of(lines: Sequence[dict[str, Any]]) -> tuple[int, int]:
    """How many faces stay because somebody asked for it: in what may be published, and in what waits for somebody's eyes."""
    published = {row["file"] for row in lines if row["face"] is None and row["publishable"]}
    kept = [row["file"] in published for row in lines if row["face"] is not None and row["verdict"] == KEPT]
    return sum(kept), len(kept) - sum(kept)


def counted(number: int, what: str) -> str:
    """A number of things, in words.

    Examples:
        >>> counted(1, "face"), counted(2, "face")
        ('1 face', '2 faces')
    """
    return f"{number} {what}" if number == 1 else f"{number} {what}s"


def foreign_files(out: Path, lines: Iterable[dict[str, Any]]) -> list[str]:
    """Files among the published ones that no line speaks of."""
    folder = out / str(FOLDERS["finished"])
    ours = {row["result"] for row in lines if row["face"] is None}
    found = [path.relative_to(out).as_posix() for path in folder.rglob("*") if path.is_file() or path.is_symlink()]
    return sorted(name for name in found if name not in ours and not name.rpartition("/")[2].startswith("."))


class Result:
    """The folder of a result: nothing is written outside of it, and nothing replaced that we did not write.

    Args:
        out: The folder.
    """

    def __init__(self, out: Path) -> None:
        self.out, self._real = out, out.resolve()

    def put(self, raw: bytes, path: Path) -> None:
        """Write a picture of ours under a temporary name, then rename it.

        `write_manifest` brings all of them to the disk at once.
        """
        self._inside(path)
        partial = path.with_name(f"{secrets.token_hex(8)}.partial")  # two attempts at one picture do not meet
        try:
            partial.write_bytes(raw)
        except OSError as error:
            partial.unlink(missing_ok=True)
            error.filename = str(path)
            raise
        partial.replace(path)

    def move(self, source: Path, to: Path) -> bool:
        """Take a picture to where it belongs, if that has not happened yet; False if something else lies in its way."""
        if not source.exists():
            return True
        try:
            self._inside(to)
        except (ValueError, FileExistsError, NotADirectoryError):
            return False
        if to.exists() or to.is_symlink():
            return False
        os.replace(source, to)
        return True

    def _inside(self, path: Path) -> None:
        there = next(parent for parent in path.parents if parent.exists())
        if there.resolve() != self._real and not there.resolve().is_relative_to(self._real) and self._real.exists():
            raise ValueError(f"OUT: {there} leads out of {self.out}; remove that link, or name a new folder.")
        path.parent.mkdir(parents=True, exist_ok=True)
