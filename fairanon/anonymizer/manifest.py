"""What became of each file: a journal while the work goes on, a manifest when it is done. Neither knows who was shown."""

from __future__ import annotations

import csv
import hashlib
import json
import math
import os
import secrets
import time
from array import array
from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from itertools import groupby
from pathlib import Path
from tempfile import TemporaryFile
from threading import Lock
from typing import Any, Self

from fairanon.anonymizer.verdicts import KEPT, VISIBLE
from fairanon.files import atomic_write
from fairanon.places import files_below, is_link, is_stored, make_folder, move, read_bytes, remove_file, write_bytes

MANIFEST = "manifest.jsonl"
REVIEWED = "review.csv"
PAGE = "report.html"
FACES = "faces.csv"
FOLDERS = {"finished": "published", "review": "review", "no-face": "no-face", "nowhere": None}
"""Where files go, relative to the result."""
_EVERY = 10.0
"""Seconds after which a journal in an object store is written anew."""
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
        digest: Of its picture, see `picture_digest`; "" if it has none.
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
    digest: str = ""

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

    Nothing can be added to an object of a store: there it is written anew, at the end and every ten seconds, and a kill costs
    what came since.

    Args:
        path: Its file.
        check: Refuses where another process has taken over; asked before an object is written anew.
    """

    def __init__(self, path: Path, check: Callable[[], None] = lambda: None) -> None:
        self.path, self._lock, self._whole, self._written, self._check = path, Lock(), b"", 0.0, check
        if is_stored(path):
            with suppress(FileNotFoundError):
                self._whole = read_bytes(path)
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.exists() and not path.read_bytes().endswith(b"\n"):  # a line that a kill cut off
            whole = path.read_bytes()
            with path.open("r+b") as file:
                file.truncate(whole.rfind(b"\n") + 1)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if is_stored(self.path):
            self._write()

    def add(self, outcome: Outcome) -> None:
        """Note an outcome; a later one of the same file takes its place."""
        line = json.dumps(asdict(outcome)) + "\n"
        try:
            with self._lock:
                if is_stored(self.path):
                    self._whole += line.encode()
                    if time.monotonic() - self._written > _EVERY:
                        self._write()
                else:
                    with self.path.open("a", encoding="utf-8") as file:
                        file.write(line)
        except OSError as error:
            error.filename = str(self.path)
            raise

    def _write(self) -> None:
        self._check()
        write_bytes(self.path, self._whole)
        self._written = time.monotonic()

    @staticmethod
    def read(paths: Iterable[Path]) -> dict[str, Outcome]:
        """Outcomes by name."""
        outcomes = {}
        for path in paths:
            for line in path.read_text(encoding="utf-8").split("\n"):
                try:
                    outcome = Outcome(**json.loads(line))
                except (ValueError, TypeError):
                    continue  # cut off by a kill: the file is looked at again
                outcomes[outcome.name] = outcome
        return outcomes


def picture_digest(raw: bytes) -> str:
    """Tells whether a picture that waits is still the one that was tested."""
    return hashlib.sha256(raw).hexdigest()


def is_whole(path: Path, outcome: Outcome) -> bool:
    """Whether a file is an outcome's picture as it was tested."""
    if is_link(path) or not (is_stored(path) or path.is_file()):
        return False
    try:
        return picture_digest(read_bytes(path)) == outcome.digest
    except FileNotFoundError:
        return False


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


def read_manifest(out: Path) -> Iterator[dict[str, Any]]:
    """Its lines, one after the other; none if there is none.

    Raises:
        ValueError: A line is none.
    """
    path = out / MANIFEST
    if not path.exists():
        return
    with path.open(encoding="utf-8", newline="\n") as file:
        for line in file:
            if line == "\n":
                continue
            try:
                row = json.loads(line)
            except ValueError:
                raise ValueError(f"OUT: {path} is damaged; name a new folder.") from None
            yield row


def write_manifest(out: Path, lines: Iterable[dict[str, Any]]) -> None:
    """Write it, sorted, and beside it a table of what a person has to look at.

    Names are written as JSON can write them, whatever is in them. Of each file its name and a place stay in memory.

    Args:
        out: The folder of the result.
        lines: The lines of one file follow one another.
    """
    names, starts, wanted = list[str](), array("q"), set[str]()
    with atomic_write(out / MANIFEST) as partial, TemporaryFile(dir=None if is_stored(out) else out) as spool:
        for name, group in groupby(lines, key=lambda line: str(line["file"])):
            rows = sorted(group, key=lambda line: -1 if line["face"] is None else line["face"])
            names.append(name)
            starts.append(spool.tell())
            spool.write("".join(json.dumps(row) + "\n" for row in rows).encode())
            if any(row["face"] is None and waits(row) for row in rows):
                wanted.add(name)
        starts.append(spool.tell())
        if hasattr(os, "sync") and not is_stored(out):
            os.sync()  # pictures first: the manifest must not promise what a power cut takes
        with partial.open("wb") as file:
            for k in sorted(range(len(names)), key=names.__getitem__):
                spool.seek(starts[k])
                file.write(spool.read(starts[k + 1] - starts[k]))
        _write_reviewed(out, partial, wanted)  # first: a run that finds the manifest complete does nothing


def _write_reviewed(out: Path, manifest: Path, wanted: set[str]) -> None:
    if not wanted:
        remove_file(out / REVIEWED)
        return
    with atomic_write(out / REVIEWED) as partial, partial.open("w", encoding="utf-8", newline="") as table:
        writer = csv.writer(table)
        writer.writerow(["file", "verdict", "reason", "location"])
        with manifest.open(encoding="utf-8") as lines:
            for row in map(json.loads, lines):
                if row["face"] is None and row["file"] in wanted and waits(row):
                    writer.writerow([as_cell(str(row[key] or "")) for key in ("file", "verdict", "reason", "result")])


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


def place_of(row: Mapping[str, Any]) -> str:
    """The key of `FOLDERS` of a file's line."""
    if row["publishable"]:
        return "finished"
    return "nowhere" if row["result"] is None else str(row["result"]).split("/")[0]


def waits(row: Mapping[str, Any]) -> bool:
    """Whether somebody has to look at the file of this line; not where no face was found and ``--no-face skip`` leaves it out."""
    return place_of(row) not in ("finished", "no-face") and (row["verdict"] != "no face" or row["result"] is not None)


@dataclass
class Tally:
    """What the lines of a manifest add up to.

    Attributes:
        files: How many files went where: the keys of `FOLDERS`, "skipped" (no face), "unreadable", "left" (passed over).
        verdicts: Of the faces that were to be hidden.
        attacked: Faces among them that a recognizer was asked about.
        left: Faces that stay visible although nobody named them.
        kept: Faces that stay because somebody asked for it, in what may be published.
        kept_waiting: Likewise, in what waits for somebody's eyes.
        masked: Faces that were masked in the end, since blur or pixelation, which were asked for, did not hide them.
        nearest: The smallest distance of a hidden face to its original, by recognizer.
        whose: Likewise, of which file and face that is.
        collections: What the tests of whole collections said, each once.
    """

    files: Counter[str] = field(default_factory=Counter)
    verdicts: Counter[str] = field(default_factory=Counter)
    attacked: int = 0
    left: int = 0
    kept: int = 0
    kept_waiting: int = 0
    masked: int = 0
    nearest: dict[str, float] = field(default_factory=dict)
    whose: dict[str, str] = field(default_factory=dict)
    collections: list[Any] = field(default_factory=list)
    _publishable: bool = False
    _method: str = ""

    @classmethod
    def of(cls, lines: Iterable[dict[str, Any]]) -> Tally:
        """Add up; the line of a file comes before those of its faces."""
        tally = cls()
        for line in lines:
            tally.add(line)
        return tally

    def add(self, line: dict[str, Any]) -> None:
        """Count one line."""
        if line["face"] is None:
            place = place_of(line)
            if place == "nowhere":
                place = {"no face": "skipped", LEFT: "left"}.get(line["verdict"], "unreadable")
            self.files[place] += 1
            self._publishable, self._method = line["publishable"], line["method"]
            if line.get("collection") and line["collection"] not in self.collections:
                self.collections.append(line["collection"])
        elif line["verdict"] == KEPT:
            self.kept += self._publishable
            self.kept_waiting += not self._publishable
        elif line["verdict"] in VISIBLE:
            self.left += 1
        else:
            self.verdicts[line["verdict"]] += 1
            self.attacked += bool(line["distances"])
            self.masked += line["method"] == "mask" and self._method in ("blur", "pixelate")
            for name, value in line["distances"].items():
                if value < self.nearest.get(name, math.inf):
                    self.nearest[name], self.whose[name] = value, f"{printable(line['file'])}, face {line['face']}"

    @property
    def hidden(self) -> int:
        """Faces that were to be hidden."""
        return self.verdicts.total()

    @property
    def waiting(self) -> int:
        """Files that somebody has to look at."""
        return sum(self.files[kind] for kind in ("review", "unreadable", "left"))


def counted(number: int, what: str) -> str:
    """A number of things, in words.

    Examples:
        >>> counted(1, "face"), counted(2, "face")
        ('1 face', '2 faces')
    """
    return f"{number} {what}" if number == 1 else f"{number} {what}s"


def foreign_files(out: Path) -> list[str]:
    """Files among the published ones that no line of the manifest speaks of."""
    folder = out / str(FOLDERS["finished"])
    results = (row["result"] for row in read_manifest(out) if row["face"] is None and row["result"])
    known = array("q", sorted(map(hash, results)))  # of a million names a hundredth of what the names take

    def is_ours(name: str) -> bool:
        place = bisect_left(known, hash(name))
        return place < len(known) and known[place] == hash(name)

    names = (path.relative_to(out).as_posix() for path in files_below(folder))
    return sorted(name for name in names if not is_ours(name) and not name.rpartition("/")[2].startswith("."))


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
        if is_stored(path):
            write_bytes(path, raw)
            return
        self._inside(path)
        partial = path.with_name(f"{secrets.token_hex(8)}.partial")  # two attempts at one picture do not meet
        try:
            partial.write_bytes(raw)
            partial.replace(path)
        except OSError as error:
            partial.unlink(missing_ok=True)
            error.filename = str(path)
            raise

    def move(self, source: Path, to: Path) -> bool:
        """Take a picture to where it belongs, if that has not happened yet; False if something else lies in its way."""
        if not source.exists():
            return True
        try:
            self._inside(to)
        except (ValueError, FileExistsError, NotADirectoryError):
            return False
        if to.exists() or is_link(to):
            return False
        move(source, to)
        return True

    def _inside(self, path: Path) -> None:
        if is_stored(path):
            return
        there = next(parent for parent in path.parents if parent.exists())
        if there.resolve() != self._real and not there.resolve().is_relative_to(self._real) and self._real.exists():
            raise ValueError(f"OUT: {there} leads out of {self.out}; remove that link, or name a new folder.")
        make_folder(path.parent)
