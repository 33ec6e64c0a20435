"""Folders of this disk that are kept in an object store, too: runs, prepared sets, judged images.

``FAIRANON_STORE=s3://BUCKET/FOLDER`` names the store. A folder is fetched before it is worked on, and written back meanwhile and
afterwards, so that another machine goes on where this one was stopped.
"""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from fairanon.files import read_json, write_json
from fairanon.places import PlaceError, get_file, is_stored, listing, place, put_file, reach, stamp
from fairanon.progress import progress_bar

_log = logging.getLogger(__name__)
VARIABLE = "FAIRANON_STORE"
_AT_ONCE = 32
"""Files that travel at once."""
_NOTE = ".kept.json"
"""In a folder: the size and time of each file, and the store's mark of it, when both were last the same."""
_mirrors: dict[Path, Mirror] = {}
"""Those of folders that are worked on."""


def in_store(folder: Path) -> Path | None:
    """Where a folder is kept in the store; None: nowhere.

    Args:
        folder: Of this disk; one that lies elsewhere than below the folder in which the command is given has no place there. A link
            that leads out of it leads elsewhere.

    Raises:
        PlaceError: The variable is no address of a store.
    """
    address = os.environ.get(VARIABLE, "")
    here, root = folder.resolve(), Path.cwd().resolve()
    if not address:
        return None
    try:
        store = place(address)
    except PlaceError as error:
        raise PlaceError(f"{VARIABLE}: {error}") from None
    if not is_stored(store):
        raise PlaceError(f"{VARIABLE}: {address} is no address of an object store; write s3://BUCKET/FOLDER.")
    if not here.is_relative_to(root):
        return None
    return store / here.relative_to(root).as_posix()


class Mirror:
    """A folder and its copy in a store.

    Args:
        folder: Of this disk.
        there: In the store.
        still_ours: Raises a `ValueError` once another process has taken the folder over.
        last: Names of files that say what the others are: they are written after them, in this order.

    What lies in a folder called ``judged`` or ``.judged`` is written once: a file of it that is damaged here replaces none there.
    """

    def __init__(
        self,
        folder: Path,
        there: Path,
        still_ours: Callable[[], None] = lambda: None,
        last: Sequence[str] = ("last.ckpt", "run.json"),
    ) -> None:
        self.folder, self.there, self._still_ours, self._last = folder, there, still_ours, tuple(last)
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None
        self._taken: ValueError | None = None
        here, root = folder.resolve(), Path.cwd().resolve()
        self._parts = {*here.relative_to(root).parts} if here.is_relative_to(root) else {here.name}

    def fetch(self) -> None:
        """Fetch what is not here, and what was written there since both were the same: another machine came further."""
        known, there = self._known(), listing(self.there)
        names = [
            name
            for name, mark in there.items()
            if not _is_passing(name)
            and (
                not (self.folder / name).exists()
                or (known.get(name, ["", ""])[1] != mark and not self._is_written_once(name))
            )
        ]
        for part in self._in_order(names):
            _travel(lambda name: get_file(self.there / name, self.folder / name), part, f"fetching {self.folder}")
        known |= {name: [stamp(self.folder / name), there[name]] for name in names}
        if names:
            self._note(known)

    def _in_order(self, names: Sequence[str]) -> list[list[str]]:
        """Names of files, those that say what the others are after them, each by itself."""
        last = sorted(
            (name for name in names if Path(name).name in self._last),
            key=lambda name: self._last.index(Path(name).name),
        )
        return [[name for name in names if name not in last], *([name] for name in last)]

    def push(self) -> None:
        """Write what has changed here into the store."""
        with self._lock:
            known, there, written = self._known(), listing(self.there), dict[str, str]()
            names = [
                path.relative_to(self.folder).as_posix()
                for path in sorted(self.folder.rglob("*"))
                if path.is_file() and not path.is_symlink() and not _is_passing(path.name)
            ]
            changed = [
                name
                for name in names
                if name not in there
                or (known.get(name, [""])[0] != stamp(self.folder / name) and not self._is_written_once(name))
            ]

            def put(name: str) -> None:
                self._check()
                with suppress(FileNotFoundError):  # replaced or removed meanwhile: the next time
                    before = stamp(self.folder / name)
                    put_file(self.folder / name, self.there / name)
                    written[name] = before

            for part in self._in_order(changed):
                try:
                    _travel(put, part, f"keeping {self.folder}")
                finally:  # what is there is known to be, whatever stops this
                    if written:
                        there = listing(self.there)
                        known |= {name: [mark, there[name]] for name, mark in written.items() if name in there}
                        self._note(known)
                        written.clear()

    def _check(self) -> None:
        try:
            self._still_ours()
        except ValueError as error:
            self._taken = error
            raise

    def _is_written_once(self, name: str) -> bool:
        return bool({"judged", ".judged"} & {*self._parts, *Path(name).parts})

    def _known(self) -> dict[str, list[str]]:
        """The files as they were when both places had the same: what is said of each here, and there."""
        path = self.folder / _NOTE
        return read_json(path, VARIABLE) if path.exists() else {}

    def _note(self, known: dict[str, list[str]]) -> None:
        write_json(self.folder / _NOTE, known)

    def push_soon(self) -> None:
        """Write it beside the work, unless that is still being done from the last time.

        Raises:
            ValueError: See ``still_ours``; it was found out the last time.
        """
        if self._taken is not None:
            raise self._taken
        if self._thread is None or not self._thread.is_alive():
            self._thread = threading.Thread(target=self._push_or_say, daemon=True)
            self._thread.start()

    def _push_or_say(self) -> None:
        try:
            self.push()
        except Exception as error:  # noqa: BLE001  (the work goes on, or ends with an error of its own)
            _log.warning("%s is not kept in the store yet (%s)", self.folder, error)

    def end(self) -> None:
        """Wait until nothing is written any more."""
        if self._thread is not None:
            self._thread.join()


@contextmanager
def kept(folder: Path, **how: Any) -> Iterator[None]:
    """Inside, a folder is worked on that is kept in the store, too, if there is one; it is fetched first.

    Args:
        folder: Of this disk; nothing more is done for one that is kept already.
        how: See `Mirror`.

    Raises:
        PlaceError: A store is named, and the folder has no place in it.
        StoreError: The store does not answer.
    """
    there, here = in_store(folder), folder.resolve()
    if there is None and os.environ.get(VARIABLE):
        raise PlaceError(
            f"{VARIABLE}: {folder} ({here}) lies outside of {Path.cwd()} and would not be kept; give the command in a folder above "
            "it, or unset the variable."
        )
    if there is None or here in _mirrors:
        yield
        return
    reach(there, VARIABLE)
    mirror = Mirror(folder, there, **how)
    mirror.fetch()  # whatever goes wrong here, what the store has stays
    _mirrors[here] = mirror
    try:
        yield
    except BaseException:
        _mirrors.pop(here, None)
        mirror.end()
        if folder.exists():
            mirror._push_or_say()  # what was reached; the error is another one
        raise
    _mirrors.pop(here, None)
    mirror.end()
    mirror.push()


def keep_soon(folder: Path) -> None:
    """Write what has changed in a folder into the store beside the work, if it is kept there."""
    if mirror := _mirrors.get(folder.resolve()):
        mirror.push_soon()


def _is_passing(name: str) -> bool:
    """Whether a file is none of the result: a lock, half of a file, our own note."""
    return name.endswith(".partial") or name.startswith(".lock") or name == _NOTE


def _travel(move: Callable[[str], None], names: Iterable[str], desc: str) -> None:
    todo = list(names)
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        for _ in progress_bar(pool.map(move, todo), total=len(todo), desc=desc, unit="file", disable=len(todo) < 20):
            pass
