"""Folders of this disk that are kept in an object store, too: runs, prepared sets, judged images.

``FAIRANON_STORE=s3://BUCKET/FOLDER`` names the store. A folder is fetched before it is worked on, and written back meanwhile and
afterwards, so that another machine goes on where this one was stopped.
"""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path

from fairanon.files import read_json, write_json
from fairanon.places import PlaceError, get_file, is_stored, listing, place, put_file, reach, stamp
from fairanon.progress import progress_bar

_log = logging.getLogger(__name__)
VARIABLE = "FAIRANON_STORE"
_AT_ONCE = 32
"""Files that travel at once."""
_LAST = ("last.ckpt", "prepared.json", "run.json")
"""Files that say what the others are: they are written after them, in this order."""
_NOTE = ".kept.json"
"""File of a folder that tells which of its files the store has."""
_mirrors: dict[Path, Mirror] = {}
"""Those of folders that are worked on."""


def in_store(folder: Path) -> Path | None:
    """Where a folder is kept in the store; None: nowhere.

    Args:
        folder: Of this disk; one that lies elsewhere than below the folder in which the command is given is not kept.

    Raises:
        PlaceError: The variable is no address of a store.
    """
    address = os.environ.get(VARIABLE, "")
    here, root = folder.resolve(), Path.cwd().resolve()
    if not address or not here.is_relative_to(root):
        return None
    try:
        store = place(address)
    except PlaceError as error:
        raise PlaceError(f"{VARIABLE}: {error}") from None
    if not is_stored(store):
        raise PlaceError(f"{VARIABLE}: {address} is no address of an object store; write s3://BUCKET/FOLDER.")
    return store / here.relative_to(root).as_posix()


class Mirror:
    """A folder and its copy in a store.

    Args:
        folder: Of this disk.
        there: In the store.
        still_ours: Raises a `ValueError` once another process has taken the folder over.
    """

    def __init__(self, folder: Path, there: Path, still_ours: Callable[[], None] = lambda: None) -> None:
        self.folder, self.there, self._still_ours = folder, there, still_ours
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None

    def fetch(self) -> None:
        """Fetch what is not here, and what was written there since both were the same: another machine came further."""
        known, there = self._known(), listing(self.there)
        names = [
            name
            for name, mark in there.items()
            if not _is_passing(name) and (not (self.folder / name).exists() or known.get(name, ["", ""])[1] != mark)
        ]
        _travel(lambda name: get_file(self.there / name, self.folder / name), names, f"fetching {self.folder}")
        known |= {name: [stamp(self.folder / name), there[name]] for name in names}
        if names:
            self._note(known)

    def push(self) -> None:
        """Write what has changed here into the store."""
        self._still_ours()
        with self._lock:
            known, there, written = self._known(), listing(self.there), dict[str, str]()
            names = [
                path.relative_to(self.folder).as_posix()
                for path in sorted(self.folder.rglob("*"))
                if path.is_file() and not path.is_symlink() and not _is_passing(path.name)
            ]
            changed = [
                name for name in names if name not in there or known.get(name, [""])[0] != stamp(self.folder / name)
            ]

            def put(name: str) -> None:
                with suppress(FileNotFoundError):  # replaced or removed meanwhile: the next time
                    before = stamp(self.folder / name)
                    put_file(self.folder / name, self.there / name)
                    written[name] = before

            last = sorted(
                (name for name in changed if Path(name).name in _LAST), key=lambda name: _LAST.index(Path(name).name)
            )
            for part in ([name for name in changed if name not in last], *([name] for name in last)):
                _travel(put, part, f"keeping {self.folder}")
            if written:
                there = listing(self.there)
                self._note(known | {name: [mark, there[name]] for name, mark in written.items() if name in there})

    def _known(self) -> dict[str, list[str]]:
        """The files as they were when both places had the same: what is said of each here, and there."""
        path = self.folder / _NOTE
        return read_json(path, VARIABLE) if path.exists() else {}

    def _note(self, known: dict[str, list[str]]) -> None:
        write_json(self.folder / _NOTE, known)

    def push_soon(self) -> None:
        """Write it beside the work, unless that is still being done from the last time."""
        if self._thread is None or not self._thread.is_alive():
            self._thread = threading.Thread(target=self._push_or_say, daemon=True)
            self._thread.start()

    def _push_or_say(self) -> None:
        try:
            self.push()
        except (OSError, ValueError) as error:  # the network may be back the next time
            _log.warning("%s is not kept in the store yet (%s)", self.folder, error)


@contextmanager
def kept(folder: Path, still_ours: Callable[[], None] = lambda: None) -> Iterator[None]:
    """Inside, a folder is worked on that is kept in the store, too, if there is one; it is fetched first.

    Args:
        folder: Of this disk.
        still_ours: See `Mirror`.

    Raises:
        StoreError: The store does not answer.
    """
    there = in_store(folder)
    if there is None:
        yield
        return
    reach(there, VARIABLE)
    mirror = _mirrors[folder.resolve()] = Mirror(folder, there, still_ours)
    try:
        mirror.fetch()
        yield
    finally:
        del _mirrors[folder.resolve()]
        if folder.exists():
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
