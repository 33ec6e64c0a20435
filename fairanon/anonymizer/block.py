"""A block: files of a collection that one process brings to their end, and whose faces are compared with one another."""

from __future__ import annotations

import errno
import hashlib
import logging
import os
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from fairanon.anonymizer.attack import FOUND
from fairanon.anonymizer.chance import Compared, Draw, compare
from fairanon.anonymizer.faces import Face, Picture
from fairanon.anonymizer.hide import Classical
from fairanon.anonymizer.manifest import Journal, Outcome, Result, is_whole
from fairanon.anonymizer.photos import read_photo
from fairanon.anonymizer.picture import Treatment
from fairanon.anonymizer.sources import Item
from fairanon.anonymizer.verdicts import HIDDEN
from fairanon.config.experiments import UserError
from fairanon.config.runs import still_working_on, working_on
from fairanon.engines import Tell
from fairanon.files import TextError, content_key, read_json, write_json
from fairanon.imaging import CorruptImageError
from fairanon.places import StoreError, is_stored, make_folder, read_bytes, remove_file

_log = logging.getLogger(__name__)
_FILES = 400
"""Files of a block, about: more show a leak of a few faces better, fewer a slight leak of all of them."""
_IN_FLIGHT = 20_000_000
"""Pixels of the photographs that are worked on at once, for each worker; a larger one is worked on alone."""

Wanted = Mapping[str, Mapping[str, int]]
"""Faces that are to be hidden again: by name the number of each and its attempt."""


def blocks_for(files: int) -> int:
    """Into how many blocks a collection is divided.

    Examples:
        >>> blocks_for(599), blocks_for(1_000_000)
        (1, 2500)
    """
    return max(1, round(files / _FILES))


def block_of(name: str, blocks: int) -> int:
    """In which block a file is: by a digest of its name.

    A folder shows the same people again and again. Their other photographs would be found first, and hide what leaks.
    """
    return int.from_bytes(hashlib.sha256(os.fsencode(name)).digest()[:8], "big") % blocks


@dataclass(frozen=True)
class Unit:
    """What is asked of a block.

    Attributes:
        round: How often faces of the collection were hidden again, this time included.
        wanted: Faces of the block that are to be hidden again now.
    """

    round: int = 0
    wanted: Wanted = field(default_factory=dict)


@dataclass(frozen=True)
class Count:
    """What a block says to the test of the whole collection.

    Attributes:
        compared: See `fairanon.anonymizer.chance.compare`.
        again: The faces among the found ones that may be hidden once more, by row: name, number, attempts.
    """

    compared: dict[str, Compared]
    again: dict[int, tuple[str, int, int]]


class Block:
    """Brings files to their end, and counts whose faces are found among the originals of the block.

    Args:
        number: Its own.
        items: Its files.
        pending: Folder of the unfinished collection.
        result: Writes pictures.
        treatment: What happens to each picture.
        workers: Threads.
    """

    def __init__(
        self, number: int, items: Sequence[Item], pending: Path, result: Result, treatment: Treatment, workers: int
    ) -> None:
        self.number = number
        self.items = {item.name: item for item in items}
        self.pending, self.result, self.treatment, self.workers = pending, result, treatment, workers
        self.folder = pending / "blocks" / f"{number:06}"
        self._counted, self.journal = self.folder / "counted.json", self.folder / "journal.jsonl"
        self._faces: dict[str, list[Face]] = {}

    # --- what is known of it ------------------------------------------------------------------------------

    def outcomes(self) -> dict[str, Outcome]:
        """What became of its files so far, by name."""
        return Journal.read([self.journal] if self.journal.exists() else [])

    def changed(self, outcomes: Mapping[str, Outcome]) -> set[str]:
        """Files that were done with other boxes of the user's own."""
        return {
            name for name, outcome in outcomes.items() if name in self.items and self.items[name].key() != outcome.boxes
        }

    def count(self, unit: Unit) -> Count | None:
        """Its count, if everything is done that is asked for."""
        if not self._counted.exists():
            return None
        try:
            record = read_json(self._counted, "OUT")
            if record["files"] != self._files() or (unit.wanted and record["round"] < unit.round):
                return None
            compared = {
                key: Compared(entry["faces"], {Draw(*draw): n for *draw, n in entry["draws"]}, tuple(entry["found"]))
                for key, entry in record["compared"].items()
            }
            return Count(compared, {int(row): tuple(face) for row, face in record["again"].items()})
        except (TextError, KeyError, TypeError, ValueError, AttributeError):
            return None  # damaged: it is counted again

    def forget_faces(self) -> None:
        """Free the memory; whoever needs them attacks them again."""
        self._faces = {}

    def _log(self) -> Journal:
        return Journal(self.journal, lambda: still_working_on(self.folder))

    def waiting(self, name: str) -> Path:
        """Where a picture waits for the others."""
        return self.pending / "files" / name

    def _files(self) -> str:
        return content_key(*((name, item.key()) for name, item in sorted(self.items.items())))

    # --- the whole ----------------------------------------------------------------------------------------

    def run(self, unit: Unit, tell: Tell) -> None:
        """Do what is not done yet, hide again what is to be hidden again, and count.

        Args:
            unit: What is asked for.
            tell: Is told of each file where it ended, and whether one of its faces was hidden more than once; again if its
                process died.
        """
        if not self.pending.exists():
            raise ValueError(f"OUT: {self.result.out} was published meanwhile; there is nothing left to do.")
        make_folder(self.folder)
        with working_on(self.folder):
            if self.count(unit) is not None:
                return
            self.treatment.done = self._keep
            before = self.outcomes()
            for name in self.changed(before):
                self._forget(before.pop(name))
            self._go_through([item for name, item in self.items.items() if name not in before], tell)
            self._recall_all(before, unit.wanted, tell)
            if unit.wanted:
                self._hide_again(unit.wanted, tell)
            if hasattr(os, "sync") and not is_stored(self.pending):
                os.sync()  # pictures first: what is counted is not looked at again
            self.note(unit, self._count_faces())

    def note(self, unit: Unit, count: Count) -> None:
        """Write what the block says, when everything that was asked for is done."""
        compared = {
            key: {
                "faces": comparison.faces,
                "draws": [(*draw, n) for draw, n in comparison.draws.items()],
                "found": comparison.found,
            }
            for key, comparison in count.compared.items()
        }  # JSON has no numbers as keys
        still_working_on(self.folder)
        record = {"files": self._files(), "round": unit.round, "compared": compared, "again": count.again}
        write_json(self._counted, record)

    def _count_faces(self) -> Count:
        attacker = self.treatment.attacker
        if attacker is None:
            return Count({}, {})
        owners = [(name, k) for name in sorted(self._faces) for k in range(len(self._faces[name]))]
        faces = [self._faces[name][k] for name, k in owners]
        new_faces = [self.treatment.hider.new_face(name, k) for name, k in owners]
        compared = compare(faces, attacker.matchers, attacker.thresholds, new_faces)
        found_rows = {row for comparison in compared.values() for row in comparison.found}
        again = {row: (*owners[row], faces[row].attempt) for row in sorted(found_rows) if faces[row].verdict in HIDDEN}
        return Count(compared, again)

    def _keep(self, picture: Picture) -> None:
        """Put a picture where it waits for the others."""
        self.result.put(picture.encoded, self.waiting(picture.name))
        if picture.asked and self.treatment.attacker is not None:
            self._faces[picture.name] = picture.faces

    def _forget(self, outcome: Outcome) -> None:
        place, waiting = outcome.path(self.result.out), self.waiting(outcome.name)
        remove_file(waiting)
        if place is not None and is_whole(place, outcome):
            remove_file(place)  # a kill caught it while it was published
        self._faces.pop(outcome.name, None)

    # --- one file after the other -------------------------------------------------------------------------

    def _go_through(self, items: Sequence[Item], tell: Tell) -> None:
        """Find, hide and attack."""
        waiting = iter(items)
        ahead: Item | None = next(waiting, None)
        in_flight: dict[str, int] = {}
        pictures: list[Picture] = []
        running: set[Future[Outcome | Picture]] = set()
        with self._log() as log, ThreadPoolExecutor(self.workers) as pool:
            try:
                while ahead is not None or running:
                    while ahead is not None and len(running) < 2 * self.workers:
                        size = ahead.pixels()
                        if in_flight and sum(in_flight.values()) + size > _IN_FLIGHT * self.workers:
                            break
                        in_flight[ahead.name] = size
                        running.add(pool.submit(self._guarded, ahead.name, self.treatment.open, ahead))
                        ahead = next(waiting, None)
                    done, running = wait(running, return_when=FIRST_COMPLETED)
                    for future in done:
                        result = future.result()
                        if isinstance(result, Picture):
                            pictures.append(result)
                            continue
                        log.add(result)
                        in_flight.pop(result.name)
                        tell(*_told(result))
                    if running and self.treatment.hider.wants_more(pictures):
                        continue
                    self.treatment.hider.draw(pictures)
                    running |= {
                        pool.submit(self._guarded, picture.name, self.treatment.attempt, picture)
                        for picture in pictures
                    }
                    pictures = []
            except BaseException:
                pool.shutdown(cancel_futures=True)
                raise

    def _guarded(self, name: str, step: Callable[[Any], Outcome | Picture], what: Any) -> Outcome | Picture:
        """Take a step; what nobody foresaw costs one picture, not the collection, and that picture is not published."""
        try:
            return step(what)
        except (UserError, StoreError):
            raise
        except (FileExistsError, NotADirectoryError, IsADirectoryError):
            return Outcome(name, "failed", "nowhere", "a file lies where a folder must be, or a folder; name a new OUT")
        except Exception as error:
            number = error.errno if isinstance(error, OSError) else None  # codecs raise OSErrors without one
            system = number not in (None, errno.ENAMETOOLONG, errno.EILSEQ, errno.EINVAL)
            if system or isinstance(error, torch.OutOfMemoryError) or os.environ.get("FAIRANON_DEBUG"):
                raise  # a full disk, a full memory: the same command goes on
            _log.exception("%s failed", name)
            return Outcome(name, "failed", "nowhere", f"a bug of fairanon's: {type(error).__name__}: {error}")

    # --- once more ----------------------------------------------------------------------------------------

    def _recall_all(self, before: Mapping[str, Outcome], wanted: Wanted, tell: Tell) -> None:
        """Attack again what another process attacked, or this one before a kill: nobody keeps embeddings on a disk."""
        lost = [
            name
            for name, past_outcome in before.items()
            if name in self.items and past_outcome.asked and name not in self._faces
        ]
        if self.treatment.attacker is None:
            lost = []
        with ThreadPoolExecutor(self.workers) as pool:
            try:
                recalled_faces = pool.map(lambda name: self._recall(self.items[name], before[name]), lost)
                for name, faces in zip(lost, recalled_faces, strict=True):
                    outcome = before[name]
                    if faces is None:
                        outcome = self._anew(self.items[name])
                    else:
                        self._faces[name] = faces
                    if name not in wanted:
                        tell(*_told(outcome))
            except BaseException:
                pool.shutdown(cancel_futures=True)
                raise
        for name in before.keys() - set(lost) - wanted.keys():
            tell(*_told(before[name]))

    def _hide_again(self, wanted: Wanted, tell: Tell) -> None:
        """Hide faces that were found among all; those that were hidden often enough are given up."""
        outcomes, tries = self.outcomes(), self.treatment.choices.tries
        for name, attempts in wanted.items():
            outcome = outcomes[name]
            if name not in self.items:
                self._give_up(outcome)
            elif name in self._faces:
                faces = self._faces[name]
                for k, attempt in attempts.items():
                    if int(k) >= len(faces):  # it was looked at anew meanwhile
                        continue
                    face = faces[int(k)]
                    face.given_up = attempt >= tries
                    face.attempt = max(face.attempt, min(attempt, tries - 1))
                outcome = self._from(self.items[name], outcome, faces)
            tell(*_told(outcome))  # one that failed before a kill has no faces any more, and is not published

    def _give_up(self, outcome: Outcome) -> None:
        """A face is found among all and cannot be hidden again: its original is gone."""
        outcome.verdict, outcome.place = "not anonymized", "review"
        outcome.reason = "a face is found among all, and the original is gone, so that it cannot be hidden again"
        with self._log() as log:
            log.add(outcome)

    def _recall(self, item: Item, outcome: Outcome) -> list[Face] | None:
        """Faces that were attacked before; None if the original has changed."""
        attacker = self.treatment.attacker
        assert attacker is not None
        faces = [Face.recalled(row, memory) for row, memory in zip(outcome.faces, outcome.memory, strict=True)]
        try:
            raw = item.read()
            if self.treatment.mark(raw) != outcome.mark:
                return None
            picture = Picture(item.name, read_photo(raw, item.name), faces)
            pixels = read_photo(read_bytes(self.waiting(item.name)), item.name).pixels
        except (CorruptImageError, FileNotFoundError, NotADirectoryError, IsADirectoryError):
            return None
        attacker.meet(picture)
        if isinstance(self.treatment.hider, Classical):
            self.treatment.hider.apply(picture)  # says with what each face was painted over
        for face, row in zip(faces, outcome.faces, strict=True):
            face.given_up = row["verdict"] == FOUND
            if face.asked:
                attacker.judge(face, pixels)
        return faces

    def _from(self, item: Item, outcome: Outcome, faces: list[Face]) -> Outcome:
        """Hide a picture's faces again, and note what became of it; an original that has changed is looked at anew."""
        try:
            raw = item.read()
            photo = read_photo(raw, item.name)
        except CorruptImageError:
            return self._anew(item)
        mark = self.treatment.mark(raw)
        if mark != outcome.mark:
            return self._anew(item)
        self._faces.pop(item.name, None)  # if it fails, it has none
        return self._through(
            Picture(item.name, photo, faces, outcome.doubts, outcome.boxes, mark=mark, source=outcome.source)
        )

    def _anew(self, item: Item) -> Outcome:
        """Look at a file as if for the first time: its boxes of before say nothing about what it shows now."""
        _log.warning("%s has changed since it was looked at; it is looked at anew", item.name)
        remove_file(self.waiting(item.name))
        self._faces.pop(item.name, None)
        return self._through(self._guarded(item.name, self.treatment.open, item))

    def _through(self, result: Outcome | Picture) -> Outcome:
        """Bring a picture to its end."""
        while isinstance(result, Picture):
            self.treatment.hider.draw([result])
            result = self._guarded(result.name, self.treatment.attempt, result)
        with self._log() as log:
            log.add(result)
        return result


def _told(outcome: Outcome) -> tuple[str, bool]:
    return outcome.place, any(face["attempt"] for face in outcome.memory)


def in_blocks(items: Sequence[Item], blocks: int) -> dict[int, list[Item]]:
    """Items by their blocks; each block is there, an empty one too."""
    by_block: dict[int, list[Item]] = {number: [] for number in range(blocks)}
    for item in items:
        by_block[block_of(item.name, blocks)].append(item)
    return by_block
