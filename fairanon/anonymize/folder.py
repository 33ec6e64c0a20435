"""A whole collection: finds, hides, attacks, and only then calls a picture anonymized. Goes on after a kill."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from tqdm import tqdm

from fairanon.anonymize.attack import ENOUGH, FOUND, Attacker, Collection, test_against_chance
from fairanon.anonymize.faces import Face, Picture
from fairanon.anonymize.find import Finder
from fairanon.anonymize.hide import Hider
from fairanon.anonymize.manifest import (
    MANIFEST,
    REVIEWED,
    Journal,
    Outcome,
    counts,
    lines_of,
    move,
    put,
    read_manifest,
    write_manifest,
)
from fairanon.anonymize.photos import Photo, read_photo
from fairanon.anonymize.sources import Item, Source
from fairanon.files import read_json, write_json
from fairanon.imaging import CorruptImageError
from fairanon.runs import working_on

_log = logging.getLogger(__name__)
UNFINISHED = ".unfinished"
_SETTINGS = "settings.json"
_OURS = {UNFINISHED, _SETTINGS, MANIFEST, REVIEWED, "review", "no-face", "dry-run", "preview.png"}
_IN_FLIGHT = 20_000_000
"""Pixels of the photographs that are worked on at once, for each worker; a larger one is worked on alone."""


@dataclass(frozen=True)
class Choices:
    """What a user decides about a collection.

    Attributes:
        faces: Whose are hidden.
        min_face: Faces whose larger side has fewer pixels are left as they are.
        no_face: What becomes of pictures without a face.
        tries: How often a face is hidden before somebody has to look at it.
        attack: Attack what was hidden; otherwise nothing is called anonymized.
        hashes: Note a digest of each original in the manifest: it links the two.
    """

    faces: Literal["all", "largest"] = "all"
    min_face: float = 0
    no_face: Literal["review", "copy", "skip"] = "review"
    tries: int = 4
    attack: bool = True
    hashes: bool = False


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
        hider: Hides faces.
        finder: Finds them.
        attacker: Attacks them; None where nobody does.
        choices: The user's.
        about: What every line of the manifest says, and whatever else the result depends on: settings, judges, licences.
        workers: Threads.
    """

    def __init__(
        self,
        source: Source,
        out: Path,
        hider: Hider,
        finder: Finder,
        attacker: Attacker | None,
        choices: Choices,
        about: dict[str, Any],
        workers: int = 2,
    ) -> None:
        self.source, self.out, self.hider, self.finder, self.attacker = source, out, hider, finder, attacker
        self.choices, self.about, self.workers = choices, about, workers
        self.pending = out / UNFINISHED
        self._attacked: dict[str, list[Face]] = {}

    # --- the whole ---------------------------------------------------------------------------------------

    def run(self, elsewhere: Callable[[list[Item]], Iterator[Embeddings]] | None = None) -> Counter[str]:
        """Do what is not done yet.

        Args:
            elsewhere: Goes through items in other processes instead of this one, see `go_through`.

        Returns:
            How many files went where, see `fairanon.anonymize.manifest.counts`.
        """
        if (self.out / _SETTINGS).exists():
            self._keep_settings()
        lines = read_manifest(self.out)
        known = {line["file"] for line in lines}
        if not self.pending.exists() and all(item.name in known for item in self.source.items):
            return counts(lines)
        self.pending.mkdir(parents=True, exist_ok=True)
        with working_on(self.pending):
            for name in ("dry-run", "preview.png"):  # they show the originals
                path = self.out / name
                shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
            self._keep_settings()
            before = Journal.read(self.journals())
            todo = [item for item in self.source.items if item.name not in known and item.name not in before]
            judged = self.pending / "judged.json"
            if todo:
                judged.unlink(missing_ok=True)
            fresh = list((elsewhere or self.go_through)(todo))
            if not judged.exists():
                collection = self._against_chance(before, fresh)
                write_json(judged, None if collection is None else collection.record())
            self._publish(lines, json.loads(judged.read_text()))
            shutil.rmtree(self.pending)
        return counts(read_manifest(self.out))

    def _keep_settings(self) -> None:
        """Note what results depend on; refuse others than those that the folder was begun with."""
        path = self.out / _SETTINGS
        about = json.loads(json.dumps(self.about))
        before = read_json(path, "OUT") if path.exists() else about
        for old, new in ((before, about), (before["settings"], about["settings"])):
            for key in {**old, **new}:
                if key != "settings" and old.get(key) != new.get(key):
                    raise ValueError(
                        f"OUT: {self.out} was begun with {key} {old.get(key)}, now it is {new.get(key)}; name a new folder."
                    )
        write_json(path, self.about)

    def journals(self) -> list[Path]:
        """Those of all processes that worked on this, in the order of their names."""
        return sorted(self.pending.glob("journal*.jsonl"))

    def _publish(self, lines: list[dict[str, Any]], collection: Any) -> None:
        outcomes = Journal.read(self.journals())
        about = {**self.about, "collection": collection}
        for outcome in outcomes.values():
            place = outcome.path(self.out)
            if place is not None:
                move(self.pending / "files" / outcome.name, place)
        kept = [line for line in lines if line["file"] not in outcomes]
        write_manifest(self.out, [*kept, *(line for one in outcomes.values() for line in lines_of(one, about))])

    # --- one file after the other ------------------------------------------------------------------------

    def go_through(
        self, items: Sequence[Item], journal: str = "journal.jsonl", bar: bool = True
    ) -> Iterator[Embeddings]:
        """Find, hide and attack; yields the faces of each picture that was attacked.

        Args:
            items: Files that nobody else goes through.
            journal: Of this process.
            bar: Show the progress.
        """
        waiting = iter(items)
        ahead: Item | None = next(waiting, None)
        log = Journal(self.pending / journal)
        in_flight: dict[str, int] = {}
        pictures: list[Picture] = []
        running: set[Future[Outcome | Picture]] = set()
        tally: Counter[str] = Counter()
        progress = tqdm(total=len(items), desc="anonymized", unit="img", disable=not bar or not items)
        with ThreadPoolExecutor(self.workers) as pool:
            try:
                while ahead is not None or running:
                    while ahead is not None and len(running) < 2 * self.workers:
                        size = ahead.pixels()
                        if in_flight and sum(in_flight.values()) + size > _IN_FLIGHT * self.workers:
                            break
                        in_flight[ahead.name] = size
                        running.add(pool.submit(self._guarded, ahead.name, self._open, ahead))
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
                        tally["retried"] += any(attempt or 0 for attempt in found.attempts)
                        progress.set_postfix(
                            done=tally["finished"], retried=tally["retried"], refresh=False,
                            review=tally["review"] + tally["nowhere"],
                        )  # fmt: skip
                        progress.update()
                    if running and self.hider.wants_more(pictures):
                        continue
                    self.hider.draw(pictures)
                    running |= {pool.submit(self._guarded, one.name, self._attempt, one) for one in pictures}
                    pictures = []
            except BaseException:
                pool.shutdown(cancel_futures=True)
                raise
        progress.close()

    def _guarded(self, name: str, step: Callable[[Any], Outcome | Picture], what: Any) -> Outcome | Picture:
        """Take a step; what nobody foresaw costs one picture, not the collection, and that picture is not published."""
        try:
            return step(what)
        except Exception as error:
            system = isinstance(error, OSError) and error.errno is not None  # codecs raise OSErrors without a number
            if system or isinstance(error, torch.OutOfMemoryError) or os.environ.get("FAIRANON_DEBUG"):
                raise  # a full disk, a full memory: the same command goes on
            _log.exception("%s failed", name)
            return Outcome(name, "failed", "nowhere", f"a bug of fairanon's: {type(error).__name__}: {error}")

    def look_at(self, item: Item) -> Outcome | Picture:
        """Read a file and find its faces; an outcome if it cannot be read."""
        begin = time.perf_counter()
        try:
            raw = item.read()
            photo = read_photo(raw, item.name)
        except CorruptImageError as error:
            seconds = time.perf_counter() - begin
            return Outcome(item.name, "unreadable", "nowhere", str(error), seconds=seconds)
        return Picture(item.name, photo, self._faces(item, photo), source=self._digest(raw))

    def _open(self, item: Item) -> Outcome | Picture:
        """The same, ready to be hidden; an outcome, too, if there is nothing to hide."""
        begin = time.perf_counter()
        picture = self.look_at(item)
        if isinstance(picture, Outcome):
            return picture
        if not picture.asked:
            faces = picture.faces
            photo = picture.photo
            if self.choices.no_face != "skip":
                put(photo.encode(photo.pixels), self.pending / "files" / item.name)
            place = {"review": "review", "copy": "no-face", "skip": "nowhere"}[self.choices.no_face]
            small = f"; {len(faces)} are smaller than {self.choices.min_face:g} pixels" if faces else ""
            return self._outcome(picture, "no face", place, f"no face was found{small}", time.perf_counter() - begin)
        if self.attacker is not None:
            self.attacker.meet(picture)
        picture.seconds = time.perf_counter() - begin
        return picture

    def _digest(self, raw: bytes) -> str | None:
        return hashlib.sha256(raw).hexdigest() if self.choices.hashes else None

    def _faces(self, item: Item, photo: Photo) -> list[Face]:
        if item.boxes is not None:
            height, width = photo.pixels.shape[-2:]
            limit = torch.tensor([width, height, width, height])
            boxes = item.boxes.clamp_min(0).minimum(limit)
            scores = torch.ones(len(boxes))
        else:
            found = self.finder.find(photo.pixels)
            boxes, scores = found.boxes, found.scores
        faces = []
        for box, score in zip(boxes.tolist(), scores.tolist(), strict=True):
            x0, y0, x1, y1 = (round(value, 1) for value in box)  # as the manifest has them
            large = max(x1 - x0, y1 - y0) >= self.choices.min_face
            faces.append(Face((x0, y0, x1, y1), score, asked=large))
        if self.choices.faces == "largest" and faces:
            largest = max(faces, key=lambda face: (face.box[2] - face.box[0]) * (face.box[3] - face.box[1]))
            for face in faces:
                face.asked = face.asked and face is largest
        return faces

    def _attempt(self, picture: Picture) -> Outcome | Picture:
        """Try once; the picture again if one of its faces is to be hidden anew."""
        begin = time.perf_counter()
        again = self.try_once(picture)
        picture.seconds += time.perf_counter() - begin
        if again:
            return picture
        self.hider.forget(picture)
        return self._finish(picture)

    def try_once(self, picture: Picture) -> bool:
        """Hide all faces, write, read and attack them; whether another attempt is due."""
        picture.encoded = picture.photo.encode(self.hider.apply(picture))
        return self._judge(picture)

    def _judge(self, picture: Picture) -> bool:
        """Attack what was written; whether another attempt is due."""
        if self.attacker is None:
            for face in picture.asked:
                face.verdict = "not attacked"
            return False
        pixels = read_photo(picture.encoded, picture.name).pixels
        failed = []
        for face in picture.asked:
            self.attacker.judge(face, pixels)
            if face.verdict != "anonymized":
                failed.append(face)
        if not failed or any(face.attempt + 1 >= self.choices.tries for face in failed):
            return False
        for face in failed:
            face.attempt += 1
        return True

    def _finish(self, picture: Picture) -> Outcome:
        """Write a picture where it waits for the others, with what became of it."""
        put(picture.encoded, self.pending / "files" / picture.name)
        if self.attacker is not None:
            self._attacked[picture.name] = picture.faces
        if self.attacker is None:
            return self._outcome(picture, "not attacked", "review", "nobody attacked what was hidden", picture.seconds)
        failed = Counter(face.verdict for face in picture.asked if face.verdict != "anonymized")
        reasons = [f"{count} of {len(picture.asked)} faces {verdict}" for verdict, count in failed.items()]
        large = [face for face in picture.faces if max(_sides(face)) >= self.choices.min_face]
        if left := len(large) - len(picture.asked):
            reasons.append(f"{left} other faces left as they are")
        if reasons:
            return self._outcome(picture, "not anonymized", "review", "; ".join(reasons), picture.seconds)
        return self._outcome(picture, "anonymized", "finished", "", picture.seconds)

    def _outcome(self, picture: Picture, verdict: str, place: str, reason: str, seconds: float) -> Outcome:
        attempts = [face.attempt if face.asked else None for face in picture.faces]
        faces = [face.record() for face in picture.faces]
        return Outcome(picture.name, verdict, place, reason, faces, attempts, seconds, picture.source)

    # --- the collection ----------------------------------------------------------------------------------

    def _against_chance(self, before: dict[str, Outcome], fresh: Sequence[Embeddings]) -> Collection | None:
        """Hide those again that are found more often than by chance; what was attacked before a kill is attacked again."""
        if self.attacker is None:
            return None
        known = {one.name: one.faces for one in fresh}
        items = {item.name: item for item in self.source.items}
        before = {name: outcome for name, outcome in before.items() if name in items}  # some may be gone since
        asked = sum(face.asked for faces in known.values() for face in faces)
        attacked = {name: outcome for name, outcome in before.items() if any(a is not None for a in outcome.attempts)}
        asked += sum(attempt is not None for outcome in attacked.values() for attempt in outcome.attempts)
        if asked >= ENOUGH:
            with ThreadPoolExecutor(self.workers) as pool:
                bar = tqdm(total=len(attacked), desc="attacked before", unit="img", disable=not attacked)
                again = pool.map(lambda name: self._recall(items[name], attacked[name]), attacked)
                for name, faces in zip(attacked, again, strict=True):
                    known[name] = faces
                    bar.update()
                bar.close()
        plan = self.pending / "again.json"
        if plan.exists():  # a kill came between
            self._hide_again(plan, known)
        while True:
            owners = [(name, k) for name in sorted(known) for k in range(len(known[name]))]
            found = test_against_chance([known[name][k] for name, k in owners], self.attacker.matchers)
            todo: dict[str, dict[str, int]] = {}
            for name, k in (owners[row] for row in found.hits):
                if known[name][k].verdict == "anonymized":
                    todo.setdefault(name, {})[str(k)] = known[name][k].attempt + 1
            if not todo:
                return found
            write_json(plan, todo)
            self._hide_again(plan, known)

    def _hide_again(self, plan: Path, known: dict[str, list[Face]]) -> None:
        """Hide faces that were found among all; those that were hidden often enough are given up."""
        log, items = Journal(self.pending / "journal.jsonl"), {item.name: item for item in self.source.items}
        for name, wanted in tqdm(
            json.loads(plan.read_text()).items(), desc="found among all, hidden again", unit="img"
        ):
            faces = known[name]
            for k, attempt in wanted.items():
                face = faces[int(k)]
                face.given_up = attempt >= self.choices.tries
                face.attempt = max(face.attempt, min(attempt, self.choices.tries - 1))
            raw = items[name].read()
            found: Outcome | Picture = Picture(name, read_photo(raw, name), faces, source=self._digest(raw))
            while isinstance(found, Picture):
                self.hider.draw([found])
                found = self._attempt(found)
            self._attacked.pop(name)
            log.add(found)
        plan.unlink()

    def _recall(self, item: Item, outcome: Outcome) -> list[Face]:
        """Faces that were attacked before a kill."""
        assert self.attacker is not None
        faces = [
            Face(tuple(row["box"]), row["score"], attempt is not None, attempt or 0, row["method"], row["strength"])
            for row, attempt in zip(outcome.faces, outcome.attempts, strict=True)
        ]
        picture = Picture(item.name, read_photo(item.read(), item.name), faces)
        self.attacker.meet(picture)
        pixels = read_photo((self.pending / "files" / item.name).read_bytes(), item.name).pixels
        for face, row in zip(faces, outcome.faces, strict=True):
            face.given_up = row["verdict"] == FOUND
            if face.asked:
                self.attacker.judge(face, pixels)
        return faces


def _sides(face: Face) -> tuple[float, float]:
    x0, y0, x1, y1 = face.box
    return x1 - x0, y1 - y0


def check_out(given: Sequence[Path], out: Path) -> None:
    """Refuse a folder that is not for results: nobody's file is ever overwritten.

    Args:
        given: What is anonymized.
        out: The folder.

    Raises:
        ValueError: It is something else's.
    """
    place = out.resolve()
    for path in (one.resolve() for one in given):
        if place == path or place.is_relative_to(path) or path.is_relative_to(place):
            raise ValueError(f"OUT: {out} and {path} lie in one another; choose a folder apart from the originals.")
    if not out.exists():
        return
    if not out.is_dir():
        raise ValueError(f"OUT: {out} is a file; name a folder.")
    others = sorted(path.name for path in out.iterdir() if path.name not in _OURS)
    if others and not (out / _SETTINGS).exists():
        raise ValueError(f"OUT: {out} holds other files ({others[0]}); name a new folder.")
