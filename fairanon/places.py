"""Where files lie: on a disk, or in an object store (``s3://BUCKET/FOLDER``, ``gs://BUCKET/FOLDER``).

A place in a store is a `upath.UPath`, which is joined and named like a `pathlib.Path`. This module holds what differs: a store has
no folders, locks or links, it writes an object whole or not at all, and it may not answer.
"""

from __future__ import annotations

import errno
import logging
import os
import re
import secrets
import shutil
import socket
import time
import urllib.request
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import IO, Any, cast
from urllib.parse import urlsplit

_STORES = {"s3": "s3fs", "gs": "gcsfs"}
"""Stores that create an object only where there is none, and the packages that reach them."""
_AT_ONCE = 32
"""Objects that are removed at once."""
_HEAD = 65_536
"""Bytes that are fetched at once where a file is not read whole."""


class StoreError(OSError):
    """A store did not do what it was asked to; nobody knows whether it will the next time. The same command goes on."""


def is_of_a_store(error: BaseException) -> bool:
    """Whether an error comes from a program that reaches stores."""
    return type(error).__module__.partition(".")[0] in _PROGRAMS


_PROGRAMS = ("botocore", "aiobotocore", "aiohttp", "gcsfs", "google", "s3fs")


class PlaceError(ValueError):
    """A place that is none, or that cannot be reached; the message says what to do."""


def place(location: str | Path) -> Path:
    """What a user wrote as a place.

    Args:
        location: A path, or the address of a folder or an object in a store.

    Returns:
        A `pathlib.Path`, or what acts like one.

    Raises:
        PlaceError: The address is of an unknown store, its package is missing, or no bucket is named.
    """
    if is_stored(location):
        return cast(Path, location)
    match = re.match("([A-Za-z][A-Za-z0-9+.-]*)://(.*)", str(location), re.DOTALL)
    if match is None:
        return Path(location)
    kind, rest = match[1].lower(), match[2].rstrip("/")
    if kind not in _STORES:
        raise PlaceError(
            f"{location} is no address that is known; write s3://BUCKET/FOLDER, gs://BUCKET/FOLDER or a path."
        )
    if not rest:
        raise PlaceError(f"{location} names no bucket; write {kind}://BUCKET/FOLDER.")
    if "" in rest.split("/"):
        raise PlaceError(
            f"{location} has an empty part (//); write {kind}://BUCKET/FOLDER with one / between two names."
        )
    emulator = os.environ.get("STORAGE_EMULATOR_HOST", "")
    google = "https://storage.googleapis.com"
    if emulator not in ("", "default"):
        google = emulator if "://" in emulator else f"http://{emulator}"
    if kind == "gs" and has_no_address(google):  # gcsfs asks for a minute
        raise PlaceError(f"{location} cannot be reached ({google} has no address here); check the network.")
    try:
        from upath import UPath

        stored = cast(Any, UPath)(f"{kind}://{rest}", use_listings_cache=False)  # other processes write there, too
        _ = stored.fs
    except ImportError:
        raise PlaceError(f'{location}: object stores need {_STORES[kind]}: pip install "fairanon[stores]".') from None
    return cast(Path, stored)


@dataclass(frozen=True)
class Member:
    """A file in a tar that is not compressed, on a disk or in a store; read like any other one.

    Attributes:
        tar: The tar.
        inside: Its name in it.
        start: Where its bytes begin.
        size: How many there are.
        mark: Of the tar, see `stamp`.
    """

    tar: Path
    inside: str
    start: int
    size: int
    mark: str = ""

    def __str__(self) -> str:
        return f"{self.tar}/{self.inside}"

    def exists(self) -> bool:
        """As of a path."""
        return True

    def stat(self) -> Any:
        """As of a path: what tells that it has changed."""
        return SimpleNamespace(st_size=self.size, st_mtime_ns=f"{self.start} {self.mark}")

    def read_bytes(self) -> bytes:
        """What is in it."""
        if is_stored(self.tar):
            with _asking(self.tar):
                return cast(bytes, _fs(self.tar).cat_file(_of(self.tar), start=self.start, end=self.start + self.size))
        with self.tar.open("rb") as file:
            file.seek(self.start)
            return file.read(self.size)


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
    logging.getLogger("gcsfs").setLevel(logging.CRITICAL)  # it writes tracebacks of what it raises
    bucket = _of(path).split("/")[0]
    try:
        _fs(path).info(_of(path))
        return
    except FileNotFoundError:
        if bucket == _of(path) or not _fs(path).exists(bucket):
            raise PlaceError(
                f"{key}: {path} cannot be reached (there is no bucket {bucket}); check the address."
            ) from None
    except Exception as error:  # noqa: BLE001  (whatever the store's program raises: credentials, rights, the network)
        why = " ".join(str(error).split()) or type(error).__name__
        raise PlaceError(
            f"{key}: {path} cannot be reached ({why}); check the network, the store's credentials and rights."
        ) from None


def has_no_address(url: str) -> bool:
    """Whether nobody here knows the host of a URL: then libraries ask again and again for half a minute."""
    address = urlsplit(url)
    proxies = {address.scheme, "all"} & set(urllib.request.getproxies())
    if proxies and not urllib.request.proxy_bypass(str(address.hostname)):
        return False  # a proxy knows it
    try:
        socket.getaddrinfo(address.hostname, None)
    except OSError:
        return True
    return False


def contains(outer: Path, inner: Path) -> bool:
    """Whether a place is another one, or lies in it."""
    if is_stored(outer) or is_stored(inner):
        return f"{str(inner).rstrip('/')}/".startswith(f"{str(outer).rstrip('/')}/")
    return inner.resolve() == outer.resolve() or inner.resolve().is_relative_to(outer.resolve())


def is_link(path: Path) -> bool:
    """Whether it is a link of a disk."""
    return not is_stored(path) and path.is_symlink()


def make_folder(path: Path) -> None:
    """Make a folder with those round it, unless it is there; a store has none."""
    if not is_stored(path):
        path.mkdir(parents=True, exist_ok=True)


def remove_folder(path: Path, last: str = "") -> None:
    """Remove a folder with everything in it.

    Args:
        path: The folder.
        last: The name of a file in it that goes after all others: while it is there, the folder is known.

    Raises:
        OSError: Something cannot be removed.
    """
    if last:
        for file in [file for file in files_below(path) if file != path / last]:
            remove_file(file)
    if not is_stored(path):
        shutil.rmtree(path)
        return
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        list(pool.map(remove_file, list(files_below(path))))


def remove_file(path: Path) -> None:
    """Remove a file, if it is there.

    Raises:
        OSError: It cannot be removed.
    """
    if not is_stored(path):
        path.unlink(missing_ok=True)
        return
    with suppress(FileNotFoundError), _asking(path):
        _fs(path).rm_file(_of(path))  # `rm` and `mv` take ? and * of a name for any letters


def exists(path: Path) -> bool:
    """Whether a file is there; in a process that was forked, too."""
    if not is_stored(path):
        return path.exists()
    with _asking(path):
        try:
            _fs(path).info(_of(path))  # `exists` hides what went wrong
        except FileNotFoundError:
            return False
    return True


def read_bytes(path: Path) -> bytes:
    """What is in a file.

    Raises:
        FileNotFoundError: It is not there.
        StoreError: Its store does not answer.
    """
    if not is_stored(path):
        return path.read_bytes()
    with _asking(path):
        return cast(bytes, _fs(path).cat_file(_of(path)))


def write_bytes(path: Path, raw: bytes) -> None:
    """Write an object of a store, whole or not at all.

    Raises:
        StoreError: The store does not take it.
    """
    with _asking(path):
        _fs(path).pipe_file(_of(path), raw)


def create_object(path: Path, raw: bytes) -> bool:
    """Write an object of a store unless it is there; whether this did. A request that is repeated may say that it did not.

    Raises:
        StoreError: The store does not answer.
    """
    try:
        with _asking(path):
            _fs(path).pipe_file(_of(path), raw, mode="create")
    except FileExistsError:
        return False
    return True


@contextmanager
def _asking(path: Path) -> Iterator[None]:
    """Whatever a store's program raises is one kind of error, but for a file that is not there, and one that is."""
    try:
        yield
    except (FileNotFoundError, FileExistsError):
        raise
    except Exception as error:
        why = " ".join(str(error).split()) or type(error).__name__
        raise StoreError(errno.EIO, f"its store failed ({why}); the same command goes on", str(path)) from error


def names_in(folder: Path) -> list[str]:
    """What lies directly in a folder, sorted.

    Raises:
        StoreError: The store does not answer.
    """
    if not is_stored(folder):
        return sorted(path.name for path in folder.iterdir())
    root = _of(folder)
    with _asking(folder):
        entries = (str(name).rstrip("/") for name in _fs(folder).ls(root, detail=False))
        return sorted(
            name[len(root) + 1 :] for name in entries if name.startswith(f"{root}/")
        )  # an object may mark the folder


def files_below(folder: Path) -> Iterator[Path]:
    """Every file and every link below a folder, those of a store sorted; none if it is not there.

    Raises:
        StoreError: The store does not answer.
    """
    if not is_stored(folder):
        yield from (path for path in folder.rglob("*") if path.is_file() or path.is_symlink())
        return
    root = _of(folder)
    with _asking(folder):
        names = sorted(name[len(root) + 1 :] for name in _fs(folder).find(root) if name.startswith(f"{root}/"))
    yield from (folder / name for name in names if name and not name.endswith("/"))  # an object may mark a folder


def opened_for_reading(path: Path) -> IO[bytes]:
    """A file to be read in parts; of one in a store the parts that are asked for are fetched."""
    return cast(IO[bytes], _fs(path).open(_of(path), "rb", block_size=_HEAD)) if is_stored(path) else path.open("rb")


def move(source: Path, to: Path) -> None:
    """Give a file another name, whole or not at all; whatever is there already is replaced."""
    if is_stored(to):
        with _asking(to):
            _fs(to).cp_file(_of(source), _of(to))
        remove_file(source)
    else:
        os.replace(source, to)


def listing(folder: Path) -> dict[str, str]:
    """The objects below a folder of a store by their names in it, each with what changes when it is written again.

    Raises:
        StoreError: The store does not answer.
    """
    root = _of(folder)
    with _asking(folder):
        entries = _fs(folder).find(root, detail=True)
    return {
        name[len(root) + 1 :]: _mark(about)
        for name, about in entries.items()
        if name.startswith(f"{root}/") and not name.endswith("/")
    }


def get_file(stored: Path, to: Path) -> None:
    """Write an object onto a disk, whole or not at all.

    Raises:
        FileNotFoundError: It is not there.
        StoreError: Its store does not answer.
    """
    to.parent.mkdir(parents=True, exist_ok=True)
    partial = to.with_name(f"{to.name[:200]}.{secrets.token_hex(4)}.partial")
    try:
        with _asking(stored):
            _fs(stored).get_file(_of(stored), str(partial))
        os.replace(partial, to)
    finally:
        partial.unlink(missing_ok=True)


def put_file(local: Path, to: Path) -> None:
    """Write a file of a disk into a store, whole or not at all."""
    with _asking(to):
        _fs(to).put_file(str(local), _of(to))


def stamp(path: Path) -> str:
    """What changes when a file is written again: its size and time, of an object what its store says of it.

    Raises:
        FileNotFoundError: It is not there.
        StoreError: Its store does not answer.
    """
    if not is_stored(path):
        state = path.stat()
        return f"{state.st_size} {state.st_mtime_ns}"
    with _asking(path):
        about = _fs(path).info(_of(path))
    return _mark(about)


def _mark(about: Mapping[str, Any]) -> str:
    """What a store says of an object that changes with what is in it."""
    return " ".join(str(about[name]) for name in ("size", "ETag", "etag", "generation") if name in about)


def created(path: Path, text: str) -> str:
    """Write text unless the file is there: of several processes the first one's stays, and all are told it.

    Raises:
        ValueError: What is there was not written to its end.
    """
    if is_stored(path):
        create_object(path, f"{text}\n".encode())
        return read_bytes(path).decode().rstrip("\n")
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        mine = path.with_name(f"{path.name}.{secrets.token_hex(4)}.partial")
        try:
            with mine.open("w", encoding="utf-8") as file:
                file.write(f"{text}\n")
                file.flush()
                os.fsync(file.fileno())
            os.link(mine, path)  # whole or not at all
        except FileExistsError:
            pass
        except OSError:
            if not mine.exists() or mine.stat().st_size <= len(text):
                raise  # the disk is full
            with suppress(FileExistsError), path.open("x", encoding="utf-8") as file:  # no hard links here
                file.write(f"{text}\n")
        finally:
            mine.unlink(missing_ok=True)
    for _ in range(50):
        content = path.read_text(encoding="utf-8")
        if content.endswith("\n"):
            return content.rstrip("\n")
        time.sleep(0.1)  # another process is writing it
    raise ValueError(f"{path} is damaged; name a new folder.")


def _fs(path: Any) -> Any:
    """What reaches a place's store: one for each process, since its connections do not outlive a fork."""
    import fsspec  # type: ignore[import-untyped]  # it has no types

    return fsspec.filesystem(path.protocol, **path.storage_options)


def _of(path: Any) -> str:
    """As its store calls it: bucket and name."""
    return str(path.path).rstrip("/")
