"""A whole collection: its blocks are done, the whole is tested against chance, and only then published. Goes on after a kill."""

from __future__ import annotations

import json
import os
import re
import secrets
import time
from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import chain
from pathlib import Path
from types import MappingProxyType
from typing import Any

from fairanon.anonymizer.block import Block, Unit, Wanted, blocks_for, in_blocks
from fairanon.anonymizer.chance import against_chance
from fairanon.anonymizer.collection_page import foreign_page
from fairanon.anonymizer.manifest import (
    FACES,
    FOLDERS,
    LEFT,
    MANIFEST,
    PAGE,
    REVIEWED,
    Outcome,
    Result,
    counted,
    is_whole,
    line_of_left,
    lines_of,
    read_manifest,
    write_manifest,
)
from fairanon.anonymizer.picture import Treatment
from fairanon.anonymizer.sources import Item, Source
from fairanon.config.runs import BusyError, still_working_on, working_on
from fairanon.engines import Tell
from fairanon.files import content_key, read_json, write_json
from fairanon.places import (
    contains,
    created,
    is_link,
    is_stored,
    make_folder,
    move,
    names_in,
    reach,
    remove_file,
    remove_folder,
)
from fairanon.progress import progress_bar

UNFINISHED = ".unfinished"
PREVIEW = "preview"
"""Folder of what shows originals: boxes, pictures before and after. A real run removes it."""
_MARK = ".fairanon"
"""File that says that a preview is ours and may be removed."""
PEOPLE = "people.jsonl"
PEOPLE_NOTED = "people"
"""Key of the settings that tells whether named people's photographs are still the same."""
SETTINGS = "settings.json"
"""File of what results depend on."""
_DECIDED = "decided.json"
"""What the test of the whole collection said: from then on pictures are published."""
_OURS = {
    PAGE,
    FACES,
    UNFINISHED,
    PREVIEW,
    PEOPLE,
    SETTINGS,
    MANIFEST,
    REVIEWED,
    *(name for name in FOLDERS.values() if name),
}
Engine = Callable[[Sequence[tuple[Block, Unit]], Tell], None]
"""Does units of work, here or elsewhere."""
_HALF = re.compile(rf"({'|'.join(map(re.escape, (SETTINGS, MANIFEST, REVIEWED, PAGE, FACES)))})\..*\.partial")
"""What a kill left half written."""
_MOVERS = 32
"""Pictures that are moved at once in an object store."""
_REMEMBERED = 64
"""Blocks whose faces stay in memory, so that they need not be attacked again if they are to be hidden again."""


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
        self.blocks: dict[int, Block] = {}
        self._todo: list[Item] = []

    # --- the whole ---------------------------------------------------------------------------------------

    def run(self, engine: Engine | None = None, first: Callable[[], None] = lambda: None) -> None:
        """Do what is not done yet, test the whole against chance, and publish.

        Args:
            engine: Works on blocks; None: this process does.
            first: What has to be known of the whole collection before anything is hidden.
        """
        self._begin()
        passed = sorted(line["file"] for line in read_manifest(self.out) if line["verdict"] == LEFT)
        if not self._todo and not self.pending.exists() and passed == sorted(name for name, _ in self.source.left):
            return
        make_folder(self.pending)
        with working_on(self.pending):
            for name in [] if is_stored(self.out) else filter(_HALF.fullmatch, os.listdir(self.out)):  # a kill left it
                (self.out / name).unlink(missing_ok=True)
            self.join()
            self._divide()
            if self._todo:
                first()
            decided = self.pending / _DECIDED
            if not decided.exists() or self._take_back():
                decision = self._decide(engine or self._here) if self._todo else None
                still_working_on(self.pending)
                write_json(decided, decision)
            collection = read_json(decided, "OUT")
            for block in self.blocks.values():
                if block.folder.exists():
                    with working_on(block.folder):  # a part that still works keeps all from being published
                        pass
            self._publish(collection)
        remove_folder(self.pending)  # outside: an open lock would keep a folder of NFS from being removed

    def run_part(self, part: int, parts: int, engine: Engine | None = None) -> Counter[str] | None:
        """Do the blocks of one part, and neither decide nor publish.

        Args:
            part: From 1 on.
            parts: How many there are.
            engine: See `run`.

        Returns:
            How many of its files went where, see `Outcome.place`; None if everything is published already.

        Raises:
            ValueError: The collection is being published.
            BusyError: Others work on some of its blocks; the rest is done.
        """
        self._begin()
        if not self._todo:
            if self.pending.exists():
                return Counter()  # what a kill left is for --finish
            self.keep_settings()
            return None if self.source.items else Counter()
        self.join()
        self._begin()
        if not self._todo:  # published meanwhile
            remove_folder(self.pending)
            return None
        self._divide()
        if (self.pending / _DECIDED).exists():
            raise ValueError(f"--part: {self.out} is being published; give the command without --part.")
        mine = {number: block for number, block in self.blocks.items() if number % parts == part - 1}
        self._do(engine or self._here, 0, {}, mine)
        return Counter(outcome.place for block in mine.values() for outcome in block.outcomes().values())

    def _begin(self) -> None:
        """Refuse what does not belong together, and see what is left to do."""
        self._remove_previews()
        if (self.out / SETTINGS).exists():
            self.keep_settings()
        known = finished_files(self.out)
        changed = [
            source_item.name
            for source_item in self.source.items
            if source_item.name in known and known[source_item.name] != source_item.key()
        ]
        if changed:
            raise ValueError(f"OUT: the boxes of {changed[0]} are others than when it was finished; name a new folder.")
        self._todo = [item for item in self.source.items if item.name not in known]

    def join(self) -> None:
        """Take part in the work: all processes have the same settings and the same secret, which is forgotten with it."""
        self.keep_settings()
        path = self.pending / "secret"
        secret = created(path, secrets.token_hex(32))
        if not re.fullmatch("[0-9a-f]{64}", secret):
            raise ValueError(f"OUT: {path} is damaged; name a new folder.")
        self.treatment.secret = bytes.fromhex(secret)

    def block(self, number: int, items: Sequence[Item]) -> Block:
        """A block of this collection."""
        return Block(number, items, self.pending, self.result, self.treatment, self.workers)

    def _divide(self) -> None:
        """Into blocks, as many as there were when the work began."""
        path = self.pending / "blocks.txt"
        text = created(path, str(blocks_for(len(self._todo))))
        if not text.isdecimal() or not (blocks := int(text)):
            raise ValueError(f"OUT: {path} is damaged; name a new folder.")
        self.blocks = {number: self.block(number, items) for number, items in in_blocks(self._todo, blocks).items()}

    @staticmethod
    def _here(work: Sequence[tuple[Block, Unit]], tell: Tell) -> None:
        """Do units of work in this process."""
        held = 0
        for block, unit in work:
            try:
                block.run(unit, tell)
            except BusyError:
                held += 1
            if block.number >= _REMEMBERED:
                block.forget_faces()
        refuse_held(held)

    def _do(self, engine: Engine, number: int, wanted: Mapping[int, Wanted], blocks: Mapping[int, Block]) -> None:
        """Have all blocks counted."""
        units = [(block, Unit(number, wanted.get(block_number, {}))) for block_number, block in blocks.items()]
        units = [(block, unit) for block, unit in units if block.count(unit) is None]
        tally: Counter[str] = Counter()
        files = sum(len(block.items) for block, _ in units)
        bar = progress_bar(
            total=files, desc="attacked again" if wanted else "anonymized", unit="img", disable=not files
        )

        def tell(place: str, retried: bool) -> None:
            tally[place] += 1
            tally["retried"] += retried
            bar.set_postfix(
                done=tally["finished"],
                retried=tally["retried"],
                refresh=False,
                review=tally["review"] + tally["nowhere"],
            )
            bar.update()

        with bar:
            engine(units, tell)

    def _decide(self, engine: Engine) -> Any:
        """Hide those again that are found more often than by chance, until nobody is; what the manifest says of it."""
        path = self.pending / "again.json"
        while True:
            again: Any = read_json(path, "OUT") if path.exists() else {"round": 0, "wanted": {}}
            try:
                number, wanted = (
                    int(again["round"]),
                    {int(block_number): faces for block_number, faces in again["wanted"].items()},
                )
            except (KeyError, TypeError, AttributeError):
                raise ValueError(f"OUT: {path} is damaged; name a new folder.") from None
            self._do(engine, number, wanted, self.blocks)
            if self.treatment.attacker is None:
                return None
            counts = [block.count(Unit()) for block in self.blocks.values()]
            known = [count for count in counts if count is not None]
            if len(known) < len(counts):
                raise ValueError("IN: its files have changed while others worked on them; give the command again.")
            collection = against_chance([count.compared for count in known])
            more: dict[int, dict[str, dict[str, int]]] = {}
            for block, row in collection.hits:
                if row in known[block].again:
                    name, k, attempt = known[block].again[row]
                    more.setdefault(block, {}).setdefault(name, {})[str(k)] = attempt + 1
            if not more:
                return collection.record()
            write_json(path, {"round": number + 1, "wanted": more})

    def _take_back(self) -> bool:
        """Where files have joined since it was decided, what a kill caught while it was published waits again; whether so."""
        outcomes = {number: block.outcomes() for number, block in self.blocks.items()}
        if not any(
            block.items.keys() - outcomes[k].keys() | block.changed(outcomes[k]) for k, block in self.blocks.items()
        ):
            return False
        known = finished_files(self.out)  # what the manifest says is done stays where it is
        for number, block in self.blocks.items():
            for outcome in outcomes[number].values():
                place, waiting = outcome.path(self.out), block.waiting(outcome.name)
                if outcome.name in known or place is None or not is_whole(place, outcome):
                    continue
                if waiting.exists():
                    remove_file(place)  # a store had copied it, and not removed the first one
                else:
                    make_folder(waiting.parent)
                    move(place, waiting)
        remove_file(self.pending / _DECIDED)  # last: a kill before that begins here again
        return True

    def keep_settings(self) -> None:
        """Note what results depend on; refuse others than those that the folder was begun with."""
        path = self.out / SETTINGS
        about = json.loads(
            json.dumps(
                {
                    **self.about,
                    **self.noted,
                    "input": content_key(*sorted(str(root.resolve()) for root in self.source.roots)),
                }
            )
        )
        created(path, json.dumps(about, indent=2))
        before = read_json(path, "OUT")
        if before.get("input") != about["input"]:
            raise ValueError(
                f"OUT: {self.out} was begun with other photographs, or with these at another path; give the same path, "
                "or name a new folder."
            )
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

    def _remove_previews(self) -> None:
        folder = self.out / PREVIEW
        if not is_link(folder) and (folder / _MARK).exists():
            try:
                remove_folder(folder, _MARK)
            except OSError as error:
                raise ValueError(
                    f"OUT: {folder} shows originals and cannot be removed ({error}); remove it, and give the command again."
                ) from None

    def preview(self) -> Path:
        """The folder of what shows originals, with a mark that it is ours."""
        folder = self.out / PREVIEW
        if folder.exists() and not (folder / _MARK).exists():
            raise ValueError(f"OUT: {folder} is not ours; move it away, or name a new folder.")
        self.result.put(b"", folder / _MARK)
        return folder

    def _publish(self, collection: Any) -> None:
        known = finished_files(self.out)
        names = sorted(name for block in self.blocks.values() for name in block.outcomes() if name not in known)
        write_manifest(self.out, chain(_done(self.out), self._published(names, collection), self._left()))

    def _published(self, names: Sequence[str], collection: Any) -> Iterator[dict[str, Any]]:
        """Move pictures to where they belong; the lines of the manifest."""
        about, now = {**self.about, "collection": collection}, time.time()
        threads = _MOVERS if is_stored(self.out) else 1  # a store copies what it moves, many at once
        with ThreadPoolExecutor(threads) as pool:
            for block in progress_bar(self.blocks.values(), desc="published", unit="block", disable=len(names) < 2000):
                wanted = [
                    (block, outcome, now, order / 1000)  # the order of names
                    for outcome in block.outcomes().values()
                    if names[(order := bisect_left(names, outcome.name)) : order + 1] == [outcome.name]
                ]
                still_working_on(self.pending)
                for outcome in (pool.map if threads > 1 else map)(lambda arguments: self._placed(*arguments), wanted):
                    yield from lines_of(outcome, about)
        still_working_on(self.pending)

    def _placed(self, block: Block, outcome: Outcome, now: float, later: float) -> Outcome:
        """Move a picture to where it belongs, as of so many seconds after now or its day; what then is to be said of it."""
        place, waiting = outcome.path(self.out), block.waiting(outcome.name)
        there = place is not None and is_whole(place, outcome)  # since before a kill
        if outcome.name not in block.items and outcome.place == "finished" and not there:
            outcome.verdict, outcome.place = "not anonymized", "review"
            outcome.reason = (
                "it is not among the files that were tested as a whole: its original is gone, or joined late"
            )
            place = outcome.path(self.out)
        if place is None or there:
            return outcome
        if not is_whole(waiting, outcome):
            _fail(outcome, "its picture is gone or was changed: run this once more")
            return outcome
        item = block.items.get(outcome.name) if self.keep_date else None
        day = None if item is None else item.day()
        if not is_stored(waiting):
            moment = (now if day is None else day.timestamp()) + later
            os.utime(waiting, (moment, moment))
        if not self.result.move(waiting, place):
            where = place.relative_to(self.out)
            _fail(outcome, f"{where} is not ours and stays: move it away, and run this once more")
        return outcome

    def _left(self) -> Iterator[dict[str, Any]]:
        """The lines of what was passed over."""
        return (line_of_left(*leftover, self.about) for leftover in self.source.left)


def _fail(outcome: Outcome, reason: str) -> None:
    outcome.verdict, outcome.place, outcome.reason = "failed", "nowhere", reason


def refuse_held(blocks: int) -> None:
    """Say that others work on some blocks.

    Raises:
        BusyError: There are some.
    """
    if blocks:
        raise BusyError(
            f"other processes work on {counted(blocks, 'block')} of the collection, the rest is done; give the command again when "
            "they have ended."
        )


def _words(key: str, value: Any) -> str:
    """A setting as the command says it."""
    text = ", ".join(value) if isinstance(value, dict) else "not given" if value is None else str(value)
    return f"{'the judges' if key == 'judges' else '--' + key.replace('_', '-')} {text}"


def _done(out: Path) -> Iterator[dict[str, Any]]:
    """The manifest's lines of what need not be done again."""
    failed = {line["file"] for line in read_manifest(out) if line["verdict"] == "failed"}
    return (line for line in read_manifest(out) if line["verdict"] != LEFT and line["file"] not in failed)


def finished_files(out: Path) -> dict[str, str | None]:
    """The files that need not be done again, and which boxes of the user's own they were done with."""
    return {line["file"]: line.get("boxes") for line in _done(out) if line["face"] is None}


def is_done(out: Path, source: Source) -> bool:
    """Whether every file was brought to its end."""
    known = finished_files(out)
    return not (out / UNFINISHED).exists() and all(item.name in known for item in source.items)


def check_out(inputs: Sequence[Path], out: Path) -> None:
    """Refuse a folder that is not for results: nobody's file is ever overwritten.

    Args:
        inputs: What is anonymized.
        out: The folder.

    Raises:
        ValueError: It is something else's.
    """
    reach(out, "OUT")
    if is_link(out) and not out.exists():
        raise ValueError(f"OUT: {out} is a link that leads nowhere; name a folder.")
    for path in inputs:
        if contains(out, path) and contains(path, out):
            raise ValueError(f"OUT: {out} is IN; name another folder.")
        if contains(out, path) or contains(path, out):
            raise ValueError(f"OUT: {out} must not be {path}, nor lie in it or round it; name a folder apart from it.")
    if is_stored(out) and out.is_file():
        raise ValueError(f"OUT: {out} is a file; name a folder.")
    if not out.exists():
        return
    if not out.is_dir():
        raise ValueError(f"OUT: {out} is a file; name a folder.")
    ours = _OURS if (out / SETTINGS).exists() else ({PREVIEW} if (out / PREVIEW / _MARK).exists() else set())
    names = names_in(out)
    others = [name for name in names if name not in ours and not name.startswith(".") and not _HALF.fullmatch(name)]
    if others and not (out / SETTINGS).exists():
        raise ValueError(f"OUT: {out} holds other files ({others[0]}); name a new folder.")
    if (out / SETTINGS).exists() and (name := foreign_page(out)):
        raise ValueError(f"OUT: {out / name} is not ours; move it away.")
    links = [name for name in sorted(_OURS) if is_link(out / name)]
    if links:
        raise ValueError(f"OUT: {out / links[0]} is a link; remove it, or name a new folder.")
