"""A whole collection: every picture is treated, the whole tested against chance, and only then published. Goes on after a kill."""

from __future__ import annotations

import errno
import json
import logging
import os
import secrets
import shutil
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch

from fairanon.anonymizer.attack import ENOUGH, FOUND, Collection, test_against_chance
from fairanon.anonymizer.faces import Face, Picture
from fairanon.anonymizer.hide import Classical
from fairanon.anonymizer.manifest import (
    FACES,
    FOLDERS,
    LEFT,
    MANIFEST,
    PAGE,
    REVIEWED,
    Journal,
    Outcome,
    Result,
    line_of_left,
    lines_of,
    read_manifest,
    write_manifest,
)
from fairanon.anonymizer.page import foreign_page
from fairanon.anonymizer.photos import read_photo
from fairanon.anonymizer.picture import Treatment
from fairanon.anonymizer.sources import Item, Source
from fairanon.anonymizer.verdicts import HIDDEN
from fairanon.config.experiments import UserError
from fairanon.config.runs import working_on
from fairanon.files import content_key, read_json, write_json, write_text
from fairanon.imaging import CorruptImageError
from fairanon.progress import progress_bar

_log = logging.getLogger(__name__)
UNFINISHED = ".unfinished"
PREVIEW = "preview"
"""Folder of what shows originals: boxes, pictures before and after. A real run removes it."""
_MARK = ".fairanon"
"""File that says that a preview is ours and may be removed."""
PEOPLE = "people.jsonl"
PEOPLE_NOTED = "people"
"""Key of the settings that tells whether named people's photographs are still the same."""
_SETTINGS = "settings.json"
_OURS = {
    PAGE,
    FACES,
    UNFINISHED,
    PREVIEW,
    PEOPLE,
    _SETTINGS,
    MANIFEST,
    REVIEWED,
    *(name for name in FOLDERS.values() if name),
}
_IN_FLIGHT = 20_000_000
"""Pixels of the photographs that are worked on at once, for each worker; a larger one is worked on alone."""


@dataclass
class Embeddings:
    """Faces of one picture with what recognizers see of them and of their sources; kept in memory only."""

    name: str
    faces: list[Face]


class Job:
    """Anonymizes a collection into a folder.

    Args:
        source: What.
        out: Where; `check_out` knows it.
        treatment: What happens to each picture.
        about: What every line of the manifest says, and whatever else the result depends on: settings, judges, licences.
        workers: Threads.
        keep_date: Files get the day of their originals as their time.
        noted: What results depend on and the manifest must not say.
    """

    def __init__(
        self,
        source: Source,
        out: Path,
        treatment: Treatment,
        about: dict[str, Any],
        workers: int = 2,
        keep_date: bool = False,
        noted: Mapping[str, str] = MappingProxyType({}),
    ) -> None:
        self.noted = dict(noted)
        self.source, self.out, self.treatment, self.about = source, out, treatment, about
        self.workers, self.keep_date = workers, keep_date
        self.result, self.pending = Result(out), out / UNFINISHED
        self._attacked: dict[str, list[Face]] = {}
        treatment.done = self._keep

    # --- the whole ---------------------------------------------------------------------------------------

    def run(
        self,
        elsewhere: Callable[[list[Item]], Iterator[Embeddings]] | None = None,
        first: Callable[[], None] = lambda: None,
    ) -> list[dict[str, Any]]:
        """Do what is not done yet.

        Args:
            elsewhere: Goes through items in other processes instead of this one, see `go_through`.
            first: What has to be known of the whole collection before anything is hidden.

        Returns:
            The manifest's lines.
        """
        self._remove_previews()
        if (self.out / _SETTINGS).exists():
            self.keep_settings()
        lines, passed = _done(self.out)
        known = {line["file"]: line.get("boxes") for line in lines if line["face"] is None}
        changed = [one.name for one in self.source.items if one.name in known and known[one.name] != one.key()]
        if changed:
            raise ValueError(f"OUT: the boxes of {changed[0]} are others than when it was finished; name a new folder.")
        if is_done(self.out, self.source):
            left = [line_of_left(*one, self.about) for one in self.source.left]
            if sorted(line["file"] for line in left) != passed:
                write_manifest(self.out, [*lines, *left])
            return [*lines, *left]
        self.pending.mkdir(parents=True, exist_ok=True)
        with working_on(self.pending):
            self.keep_settings()
            self.share_secret()
            first()
            before = self._still_meant(Journal.read(self.journals()))
            todo = [item for item in self.source.items if item.name not in known and item.name not in before]
            judged = self.pending / "judged.json"
            if todo:
                judged.unlink(missing_ok=True)
                self._take_back(before)
            fresh = list((elsewhere or self.go_through)(todo))
            if not judged.exists():
                collection = self._against_chance(before, fresh)
                write_json(judged, None if collection is None else collection.record())
            self._publish(lines, json.loads(judged.read_text()))
            shutil.rmtree(self.pending)
        return read_manifest(self.out)

    def _still_meant(self, before: dict[str, Outcome]) -> dict[str, Outcome]:
        """What a killed run did, but for files whose boxes have changed since: they are looked at anew."""
        boxes = {item.name: item.key() for item in self.source.items}
        changed = {name for name, outcome in before.items() if name in boxes and boxes[name] != outcome.boxes}
        for name in changed:
            place, waiting = before[name].path(self.out), self._waiting(name)
            if waiting.exists():
                waiting.unlink()
            elif place is not None:
                place.unlink(missing_ok=True)  # a kill caught it while it was published
        return {name: outcome for name, outcome in before.items() if name not in changed}

    def _take_back(self, before: dict[str, Outcome]) -> None:
        """Pictures that a kill caught while they were published wait again for those that have joined."""
        for outcome in before.values():
            place, waiting = outcome.path(self.out), self._waiting(outcome.name)
            if place is not None and not waiting.exists() and place.is_file():
                waiting.parent.mkdir(parents=True, exist_ok=True)
                os.replace(place, waiting)

    def keep_settings(self) -> None:
        """Note what results depend on; refuse others than those that the folder was begun with."""
        path = self.out / _SETTINGS
        about = json.loads(
            json.dumps(
                {
                    **self.about,
                    **self.noted,
                    "input": content_key(*sorted(str(root.resolve()) for root in self.source.roots)),
                }
            )
        )
        before = read_json(path, "OUT") if path.exists() else about
        if before.get("input") != about["input"]:
            raise ValueError(f"OUT: {self.out} was begun with other photographs; name a new folder for each input.")
        if before.get(PEOPLE_NOTED) != about.get(PEOPLE_NOTED):
            raise ValueError(
                f"--keep-person, --only-person: {self.out} was begun with other photographs of people; take those, or name a new "
                "folder."
            )
        for old, new in ((before, about), (before["settings"], about["settings"])):
            for key in {**old, **new}:
                if key not in ("settings", PEOPLE_NOTED) and old.get(key) != new.get(key):
                    raise ValueError(
                        f"OUT: {self.out} was begun with {_words(key, old.get(key))}, now it is {_words(key, new.get(key))}; "
                        "name a new folder, or give the first command again."
                    )
        write_json(path, about)

    def share_secret(self) -> None:
        """Take the run's secret, which is forgotten with it; all its processes have the same."""
        path = self.pending / "secret"
        if not path.exists():
            write_text(path, secrets.token_hex(32))
        self.treatment.secret = bytes.fromhex(path.read_text())

    def _remove_previews(self) -> None:
        folder = self.out / PREVIEW
        if not folder.is_symlink() and (folder / _MARK).exists():
            shutil.rmtree(folder, ignore_errors=True)

    def preview(self) -> Path:
        """The folder of what shows originals, with a mark that it is ours."""
        folder = self.out / PREVIEW
        if folder.exists() and not (folder / _MARK).exists():
            raise ValueError(f"OUT: {folder} is not ours; move it away, or name a new folder.")
        self.result.put(b"", folder / _MARK)
        return folder

    def journals(self) -> list[Path]:
        """Those of all processes that worked on this, in the order of their names."""
        return sorted(self.pending.glob("journal*.jsonl"))

    def _keep(self, picture: Picture) -> None:
        """Put a picture where it waits for the others."""
        self.result.put(picture.encoded, self._waiting(picture.name))
        if picture.asked and self.treatment.attacker is not None:
            self._attacked[picture.name] = picture.faces

    def _waiting(self, name: str) -> Path:
        return self.pending / "files" / name

    def _publish(self, lines: list[dict[str, Any]], collection: Any) -> None:
        outcomes = Journal.read(self.journals())
        about = {**self.about, "collection": collection}
        days = {item.name: item for item in self.source.items} if self.keep_date else {}
        now = time.time()
        for number, outcome in enumerate(sorted(outcomes.values(), key=lambda one: one.name)):
            place, waiting = outcome.path(self.out), self._waiting(outcome.name)
            if place is None or not waiting.exists():
                continue
            day = days[outcome.name].day() if outcome.name in days else None
            moment = (now if day is None else day.timestamp()) + number / 1000  # the order of names
            os.utime(waiting, (moment, moment))
            if not self.result.move(waiting, place):
                outcome.verdict, outcome.place = "failed", "nowhere"
                outcome.reason = (
                    f"{place.relative_to(self.out)} is not ours and stays: move it away, and run this once more"
                )
        kept = [line for line in lines if line["file"] not in outcomes]
        done = [line for one in outcomes.values() for line in lines_of(one, about)]
        left = [line_of_left(*one, about) for one in self.source.left]
        write_manifest(self.out, [*kept, *done, *left])

    # --- one file after the other ------------------------------------------------------------------------

    def go_through(self, items: Sequence[Item], journal: str = "journal.jsonl") -> Iterator[Embeddings]:
        """Find, hide and attack; yields the faces of each picture that was attacked.

        Args:
            items: Files that nobody else goes through.
            journal: Of this process.
        """
        waiting = iter(items)
        ahead: Item | None = next(waiting, None)
        log = Journal(self.pending / journal)
        in_flight: dict[str, int] = {}
        pictures: list[Picture] = []
        running: set[Future[Outcome | Picture]] = set()
        tally: Counter[str] = Counter()
        progress = progress_bar(total=len(items), desc="anonymized", unit="img", disable=not items)
        with ThreadPoolExecutor(self.workers) as pool:
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
                        found = future.result()
                        if isinstance(found, Picture):
                            pictures.append(found)
                            continue
                        log.add(found)
                        in_flight.pop(found.name)
                        if (faces := self._attacked.pop(found.name, None)) is not None:
                            yield Embeddings(found.name, faces)
                        tally[found.place] += 1
                        tally["retried"] += any(face["attempt"] for face in found.memory)
                        progress.set_postfix(
                            done=tally["finished"], retried=tally["retried"], refresh=False,
                            review=tally["review"] + tally["nowhere"],
                        )  # fmt: skip
                        progress.update()
                    if running and self.treatment.hider.wants_more(pictures):
                        continue
                    self.treatment.hider.draw(pictures)
                    running |= {pool.submit(self._guarded, one.name, self.treatment.attempt, one) for one in pictures}
                    pictures = []
            except BaseException:
                pool.shutdown(cancel_futures=True)
                raise
        progress.close()

    def _guarded(self, name: str, step: Callable[[Any], Outcome | Picture], what: Any) -> Outcome | Picture:
        """Take a step; what nobody foresaw costs one picture, not the collection, and that picture is not published."""
        try:
            return step(what)
        except UserError:
            raise
        except Exception as error:
            number = error.errno if isinstance(error, OSError) else None  # codecs raise OSErrors without one
            system = number not in (None, errno.ENAMETOOLONG, errno.EILSEQ, errno.EINVAL)
            if system or isinstance(error, torch.OutOfMemoryError) or os.environ.get("FAIRANON_DEBUG"):
                raise  # a full disk, a full memory: the same command goes on
            _log.exception("%s failed", name)
            return Outcome(name, "failed", "nowhere", f"a bug of fairanon's: {type(error).__name__}: {error}")

    # --- the collection ----------------------------------------------------------------------------------

    def _against_chance(self, before: dict[str, Outcome], fresh: Sequence[Embeddings]) -> Collection | None:
        """Hide those again that are found more often than by chance; what was attacked before a kill is attacked again."""
        attacker = self.treatment.attacker
        if attacker is None:
            return None
        known = {one.name: one.faces for one in fresh}
        items = {item.name: item for item in self.source.items}
        attacked = {name: one for name, one in before.items() if name in items and one.asked}  # some may be gone since
        asked = sum(face.asked for faces in known.values() for face in faces)
        if asked + sum(one.asked for one in attacked.values()) >= ENOUGH:
            with ThreadPoolExecutor(self.workers) as pool:
                bar = progress_bar(total=len(attacked), desc="attacked before", unit="img", disable=not attacked)
                again = pool.map(lambda name: self._recall(items[name], attacked[name]), attacked)
                for name, faces in zip(attacked, again, strict=True):
                    known[name] = self._anew(items[name]) if faces is None else faces
                    bar.update()
                bar.close()
        plan = self.pending / "again.json"
        if plan.exists():  # a kill came between
            self._hide_again(plan, known)
        while True:
            owners = [(name, k) for name in sorted(known) for k in range(len(known[name]))]
            found = test_against_chance([known[name][k] for name, k in owners], attacker.matchers, attacker.thresholds)
            todo: dict[str, dict[str, int]] = {}
            for name, k in (owners[row] for row in found.hits):
                if known[name][k].verdict in HIDDEN:
                    todo.setdefault(name, {})[str(k)] = known[name][k].attempt + 1
            if not todo:
                return found
            write_json(plan, todo)
            self._hide_again(plan, known)

    def _hide_again(self, plan: Path, known: dict[str, list[Face]]) -> None:
        """Hide faces that were found among all; those that were hidden often enough are given up."""
        items, marks = {item.name: item for item in self.source.items}, Journal.read(self.journals())
        tries = self.treatment.choices.tries
        for name, wanted in progress_bar(
            json.loads(plan.read_text()).items(), desc="found among all, hidden again", unit="img"
        ):
            if name not in items or name not in known:
                self._give_up(marks[name])
                continue
            faces = known[name]
            for k, attempt in wanted.items():
                if int(k) >= len(faces):  # it was looked at anew meanwhile
                    continue
                face = faces[int(k)]
                face.given_up = attempt >= tries
                face.attempt = max(face.attempt, min(attempt, tries - 1))
            known[name] = self._from(items[name], marks[name], faces)
        plan.unlink()

    def _give_up(self, outcome: Outcome) -> None:
        """A face is found among all and cannot be hidden again: its original is gone."""
        outcome.verdict, outcome.place = "not anonymized", "review"
        outcome.reason = "a face is found among all, and the original is gone, so that it cannot be hidden again"
        self._log().add(outcome)

    def _log(self) -> Journal:
        return Journal(self.pending / "journal.jsonl")

    def _recall(self, item: Item, outcome: Outcome) -> list[Face] | None:
        """Faces that were attacked before a kill; None if the original has changed."""
        attacker = self.treatment.attacker
        assert attacker is not None
        faces = [Face.recalled(row, memory) for row, memory in zip(outcome.faces, outcome.memory, strict=True)]
        try:
            raw = item.read()
            if self.treatment.mark(raw) != outcome.mark:
                return None
            picture = Picture(item.name, read_photo(raw, item.name), faces)
            pixels = read_photo(self._waiting(item.name).read_bytes(), item.name).pixels
        except (CorruptImageError, FileNotFoundError):
            return None
        attacker.meet(picture)
        if isinstance(self.treatment.hider, Classical):
            self.treatment.hider.apply(picture)  # says with what each face was painted over
        for face, row in zip(faces, outcome.faces, strict=True):
            face.given_up = row["verdict"] == FOUND
            if face.asked:
                attacker.judge(face, pixels)
        return faces

    def _from(self, item: Item, outcome: Outcome, faces: list[Face]) -> list[Face]:
        """Hide a picture's faces again, and note what became of it; an original that has changed is looked at anew."""
        try:
            raw = item.read()
            photo = read_photo(raw, item.name)
        except CorruptImageError:
            return self._anew(item)
        mark = self.treatment.mark(raw)
        if mark != outcome.mark:
            return self._anew(item)
        return self._through(
            Picture(item.name, photo, faces, outcome.doubts, outcome.boxes, mark=mark, source=outcome.source)
        )

    def _anew(self, item: Item) -> list[Face]:
        """Look at a file as if for the first time: its boxes of before say nothing about what it shows now."""
        _log.warning("%s has changed since it was looked at; it is looked at anew", item.name)
        self._waiting(item.name).unlink(missing_ok=True)
        return self._through(self._guarded(item.name, self.treatment.open, item))

    def _through(self, found: Outcome | Picture) -> list[Face]:
        """Bring a picture to its end; its faces."""
        while isinstance(found, Picture):
            self.treatment.hider.draw([found])
            found = self._guarded(found.name, self.treatment.attempt, found)
        self._log().add(found)
        return self._attacked.pop(found.name, [])


def _words(key: str, value: Any) -> str:
    """A setting as the command says it."""
    said = ", ".join(value) if isinstance(value, dict) else "not given" if value is None else str(value)
    return f"{'the judges' if key == 'judges' else '--' + key.replace('_', '-')} {said}"


def _done(out: Path) -> tuple[list[dict[str, Any]], list[str]]:
    """The manifest's lines of what need not be done again, and the names of what was passed over."""
    lines = read_manifest(out)
    failed = {line["file"] for line in lines if line["verdict"] == "failed"}
    passed = sorted(line["file"] for line in lines if line["verdict"] == LEFT)
    return [line for line in lines if line["verdict"] != LEFT and line["file"] not in failed], passed


def is_done(out: Path, source: Source) -> bool:
    """Whether every file was brought to its end."""
    known = {line["file"] for line in _done(out)[0]}
    return not (out / UNFINISHED).exists() and all(item.name in known for item in source.items)


def check_out(given: Sequence[Path], out: Path) -> None:
    """Refuse a folder that is not for results: nobody's file is ever overwritten.

    Args:
        given: What is anonymized.
        out: The folder.

    Raises:
        ValueError: It is something else's.
    """
    if out.is_symlink() and not out.exists():
        raise ValueError(f"OUT: {out} is a link that leads nowhere; name a folder.")
    place = out.resolve()
    for path in (one.resolve() for one in given):
        if place == path or place.is_relative_to(path) or path.is_relative_to(place):
            raise ValueError(f"OUT: {out} must not be {path}, nor lie in it or round it; name a folder apart from it.")
    if not out.exists():
        return
    if not out.is_dir():
        raise ValueError(f"OUT: {out} is a file; name a folder.")
    ours = _OURS if (out / _SETTINGS).exists() else ({PREVIEW} if (out / PREVIEW / _MARK).exists() else set())
    others = sorted(path.name for path in out.iterdir() if path.name not in ours and not path.name.startswith("."))
    if others and not (out / _SETTINGS).exists():
        raise ValueError(f"OUT: {out} holds other files ({others[0]}); name a new folder.")
    if (out / _SETTINGS).exists() and (name := foreign_page(out)):
        raise ValueError(f"OUT: {out / name} is not ours; move it away.")
    links = [name for name in sorted(_OURS) if (out / name).is_symlink()]
    if links:
        raise ValueError(f"OUT: {out / links[0]} is a link; remove it, or name a new folder.")
