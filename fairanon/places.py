"""Where files lie: on a disk, or in an object store (``s3://BUCKET/FOLDER``, ``gs://BUCKET/FOLDER``).

A place in a store is a `upath.UPath`, which is read and joined like a `pathlib.Path`. What a store does otherwise than a disk
is here: it has no folders, locks or links, and an object is written whole or not at all.
"""

from __future__ import annotations

import json
import logging
import os
import re
import secrets
import shutil
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import IO, Any, cast

_log = logging.getLogger(__name__)
_STORES = {"s3": "s3fs", "gs": "gcsfs"}
"""Stores that create an object only where there is none, and the packages that reach them."""
_AT_ONCE = 32
"""Objects that are removed at once."""
_HEAD = 65_536
"""Bytes that are fetched at once where a file is not read whole."""
_BEAT = 20.0
"""Seconds after which who holds a lock says so again."""
_DEAD = 4 * _BEAT
"""Seconds of silence after which nobody holds it any more."""


class PlaceError(ValueError):
    """A place that is none, or that cannot be reached; the message says what to do."""


def place(given: str | Path) -> Path:
    """What a user wrote as a place.

    Args:
        given: A path, or the address of a folder or an object in a store.

    Returns:
        A `pathlib.Path`, or what acts like one.

    Raises:
        PlaceError: The store is none that is known, its package is missing, or no bucket is named.
    """
    if is_stored(given) or not (found := re.match("([A-Za-z][A-Za-z0-9+.-]*)://", str(given))):
        return cast(Path, given) if is_stored(given) else Path(given)
    kind = found[1].lower()
    if kind not in _STORES:
        raise PlaceError(
            f"{given}: of addresses s3://BUCKET/FOLDER and gs://BUCKET/FOLDER are known; name one, or a path."
        )
    if not str(given)[found.end() :].strip("/"):
        raise PlaceError(f"{given} names no bucket; write {kind}://BUCKET/FOLDER.")
    try:
        from upath import UPath

        stored = cast(Any, UPath)(str(given).rstrip("/"), use_listings_cache=False)  # other processes write there, too
        _ = stored.fs
    except ImportError:
        raise PlaceError(f'{given}: object stores need {_STORES[kind]}: pip install "fairanon[stores]".') from None
    return cast(Path, stored)


def is_stored(path: Any) -> bool:
    """Whether it lies in an object store."""
    return not isinstance(path, (str, Path)) and hasattr(path, "fs")


def reach(path: Path, key: str) -> None:
    """Refuse a place in a store that does not answer, or whose bucket is not there.

    Args:
        path: A place.
        key: The option that named it, for the message.

    Raises:
        PlaceError: Says why.
    """
    if not is_stored(path):
        return
    bucket = _of(path).split("/")[0]
    try:
        if _fs(path).exists(bucket):
            return
        why = f"there is no bucket {bucket}"
    except Exception as error:  # noqa: BLE001  (whatever the store's program raises, it is about credentials or the network)
        why = " ".join(str(error).split()) or type(error).__name__
    raise PlaceError(
        f"{key}: {path} cannot be reached ({why}); check the address, the network and the store's credentials."
    )


def contains(outer: Path, inner: Path) -> bool:
    """Whether a place is another one, or lies in it."""
    if is_stored(outer) or is_stored(inner):
        return f"{inner}/".startswith(f"{outer}/")
    return inner.resolve() == outer.resolve() or inner.resolve().is_relative_to(outer.resolve())


def is_link(path: Path) -> bool:
    """Whether it is a link of a disk."""
    return not is_stored(path) and path.is_symlink()


def make_folder(path: Path) -> None:
    """Make a folder with those round it, unless it is there; a store has none."""
    if not is_stored(path):
        path.mkdir(parents=True, exist_ok=True)


def remove_folder(path: Path) -> None:
    """Remove a folder with everything in it."""
    if not is_stored(path):
        shutil.rmtree(path)
        return
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        list(pool.map(remove_file, files_below(path)))


def remove_file(path: Path) -> None:
    """Remove a file, if it is there."""
    if not is_stored(path):
        path.unlink(missing_ok=True)
        return
    with suppress(FileNotFoundError):
        _fs(path).rm_file(_of(path))  # `rm` and `mv` take ? and * of a name for any letters


def files_below(folder: Path) -> list[Path]:
    """Every file and every link below a folder, sorted; none if it is not there."""
    if not is_stored(folder):
        return sorted(path for path in folder.rglob("*") if path.is_file() or path.is_symlink())
    root = _of(folder)
    found = sorted(name[len(root) + 1 :] for name in _fs(folder).find(root) if name.startswith(f"{root}/"))
    return [
        folder / name for name in found if name and not name.endswith("/")
    ]  # some programs mark folders by an object


def opened_for_reading(path: Path) -> IO[bytes]:
    """A file to be read in parts; of one in a store the parts that are asked for are fetched."""
    return cast(IO[bytes], _fs(path).open(_of(path), "rb", block_size=_HEAD)) if is_stored(path) else path.open("rb")


def move(source: Path, to: Path) -> None:
    """Give a file another name, whole or not at all; whatever is there already is replaced."""
    if is_stored(to):
        _fs(to).cp_file(_of(source), _of(to))
        remove_file(source)
    else:
        os.replace(source, to)


def put_file(local: Path, to: Path) -> None:
    """Write a file of a disk into a store, whole or not at all."""
    _fs(to).put_file(str(local), _of(to))


def created(path: Path, text: str) -> str:
    """Write a line unless the file is there: of several processes the first one's stays, and all are told it.

    Raises:
        ValueError: What is there is no line.
    """
    if is_stored(path):
        with suppress(FileExistsError):
            _fs(path).pipe_file(_of(path), f"{text}\n".encode(), mode="create")
    elif not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        mine = path.with_name(f"{path.name}.{secrets.token_hex(4)}.partial")
        mine.write_text(f"{text}\n", encoding="utf-8")
        try:
            os.link(mine, path)  # whole or not at all
        except FileExistsError:
            pass
        except OSError:  # a file system without hard links
            with suppress(FileExistsError), path.open("x", encoding="utf-8") as file:
                file.write(f"{text}\n")
        finally:
            mine.unlink()
    for _ in range(50):
        found = path.read_text(encoding="utf-8")
        if found.endswith("\n"):
            return found.rstrip("\n")
        time.sleep(0.1)  # another process is writing it
    raise ValueError(f"OUT: {path} is damaged; name a new folder.")


class StoreLock:
    """Says that a process works on a folder of a store: an object that only one can create, and that is renewed.

    A process that was killed holds nothing: on its own machine that is seen at once, elsewhere after its silence.

    Args:
        path: Of the object.
    """

    def __init__(self, path: Path) -> None:
        self.path, self._mine, self._stop = path, "", threading.Event()
        self._beats: threading.Thread | None = None

    @property
    def is_locked(self) -> bool:
        """Whether this process holds it."""
        return self._beats is not None

    def acquire(self) -> bool:
        """Take it, if nobody holds it."""
        self._mine = secrets.token_hex(8)
        while not self._create():
            found = self._read()
            if found is not None and _is_held(found) and not self._is_silent(found):
                return False
            self._take_away(found)
        self._stop.clear()
        self._beats = threading.Thread(target=self._renew, daemon=True)
        self._beats.start()
        return True

    def release(self) -> None:
        """Let others take it."""
        if self._beats is None:
            return
        self._stop.set()
        self._beats.join()
        self._beats = None
        found = self._read()
        if found is not None and found.get("who") == self._mine:
            remove_file(self.path)

    def _said(self) -> bytes:
        about = {"who": self._mine, "host": socket.gethostname(), "process": os.getpid(), "time": time.time()}
        return json.dumps(about).encode()

    def _create(self) -> bool:
        try:
            _fs(self.path).pipe_file(_of(self.path), self._said(), mode="create")
        except FileExistsError:
            return False
        return True

    def _read(self) -> dict[str, Any] | None:
        """What the object says; None if it is gone."""
        try:
            found = json.loads(self.path.read_bytes())
        except FileNotFoundError:
            return None
        except ValueError:
            return {}
        return found if isinstance(found, dict) else {}

    def _is_silent(self, found: dict[str, Any]) -> bool:
        """Whether who holds it has said nothing for long; clocks of machines differ, so that it is watched, too."""
        said = found.get("time")
        if isinstance(said, (int, float)) and abs(time.time() - said) < _DEAD:
            return False
        end = time.monotonic() + 2 * _BEAT
        while time.monotonic() < end:
            if self._read() != found:
                return False
            time.sleep(min(1.0, _BEAT / 4))
        return True

    def _take_away(self, found: dict[str, Any] | None) -> None:
        """Remove the lock of a process that is gone; of several that want to, one does."""
        if found is None:
            return
        mark = self.path.with_name(f"{self.path.name}-{found.get('who', 'damaged')}")
        try:
            _fs(mark).pipe_file(_of(mark), b"", mode="create")
        except FileExistsError:
            time.sleep(min(1.0, _BEAT / 4))
            return
        try:
            if self._read() == found:
                remove_file(self.path)
        finally:
            remove_file(mark)

    def _renew(self) -> None:
        while not self._stop.wait(_BEAT):
            try:
                found = self._read()
                if found is None or found.get("who") == self._mine:
                    self.path.write_bytes(self._said())
            except Exception as error:  # noqa: BLE001  (the network may be back at the next beat)
                _log.warning("%s: could not be renewed (%s)", self.path, error)


def _is_held(found: dict[str, Any]) -> bool:
    """Whether who wrote it may be alive; what is said of a process of this machine is known."""
    if found.get("host") != socket.gethostname() or not isinstance(found.get("process"), int):
        return bool(found)
    try:
        os.kill(found["process"], 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True


def _fs(path: Any) -> Any:
    """What reaches a place's store: one for each process, since its connections do not outlive a fork."""
    import fsspec  # type: ignore[import-untyped]  # it has no types

    return fsspec.filesystem(path.protocol, **path.storage_options)


def _of(path: Any) -> str:
    """As its store calls it: bucket and name."""
    return str(path.path)
