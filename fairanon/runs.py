"""A run's folder: what it is called, which code and versions it is of, who works in it, whether it is finished."""

from __future__ import annotations

import errno
import hashlib
import logging
import os
import platform
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock, Timeout

import fairanon
from fairanon.files import read_json, write_json, write_text

_log = logging.getLogger(__name__)
_ROOT_VARIABLE = "FAIRANON_RUNS"
_RUN_VARIABLE = "FAIRANON_RUN"
"""Tells the processes that DDP starts which folder the first one chose."""


_PACKAGES = ("torch", "torchvision", "lightning", "diffusers", "transformers", "peft", "torchmetrics", "jsonargparse")


WITHOUT_NUMBERS = {
    "__init__", "__main__", "anonymize", "cli", "experiments", "export", "failures", "footprint", "photographs", "rehearsal",
    "report", "runs", "verbs",
}  # fmt: skip
"""Rooms of fairanon whose code changes no number: a run stays what it was when they change. Every other one counts, a new
one too: forgetting it here costs a training, forgetting it in a list of those that count would cost a wrong number."""


def code_version(root: Path = Path(fairanon.__file__).parent.parent) -> str:
    """A digest of the Python files that can change a number: names the code with or without git.

    Args:
        root: Where the packages are.
    """
    total = hashlib.sha256()
    for package in ("fairanon", "data_modules"):
        for path in sorted((root / package).rglob("*.py")):
            room = path.relative_to(root / package).parts[0].removesuffix(".py")
            if package == "data_modules" or room not in WITHOUT_NUMBERS:
                total.update(str(path.relative_to(root)).encode())
                total.update(path.read_bytes())
    return total.hexdigest()[:16]


def versions() -> dict[str, str]:
    """Versions of everything that can change a number, and the state of git."""
    found = {"fairanon": fairanon.__version__, "python": platform.python_version(), "code": code_version()}
    found |= {name: metadata.version(name) for name in _PACKAGES}
    found["device"] = torch.cuda.get_device_name() if torch.cuda.is_available() else platform.processor() or "cpu"
    root = Path(fairanon.__file__).parent.parent
    for name, command in (
        ("git", ["rev-parse", "HEAD"]),
        ("git_changes", ["status", "--porcelain", "--untracked-files=no"]),
    ):
        with suppress(OSError):  # no git here
            done = subprocess.run(["git", "-C", str(root), *command], capture_output=True, text=True, check=False)
            if done.returncode == 0:
                found[name] = done.stdout.strip() or "none"
    return found


def runs_root() -> Path:
    """Where runs lie; a rehearsal has a place of its own, and tells the processes that DDP starts."""
    return Path(os.environ.get(_ROOT_VARIABLE, "runs"))


def find_run(name: str, text: str, finished: bool) -> Path | None:
    """The newest run of this experiment with this resolved configuration and this code."""
    for record in sorted(runs_root().glob(f"{name}/*/run.json"), reverse=True):
        if record.parent.is_symlink():
            continue
        try:
            if read_json(record, "run") == _identity(name, text, finished):
                return record.parent
        except (ValueError, FileNotFoundError) as error:  # another run's damage is not this one's
            _log.warning("passed over: %s", error)
    return None


def _identity(name: str, text: str, finished: bool) -> dict[str, Any]:
    digest = hashlib.sha256(text.encode()).hexdigest()[:16]
    return {"experiment": name, "config": digest, "code": code_version(), "finished": finished}


def run_folder(name: str, text: str, fresh: bool) -> tuple[Path, Path | None]:
    """Where this run goes on, or a new folder.

    An unfinished run of the same experiment, resolved configuration and code version is continued; a finished one
    is never touched.

    Returns:
        The folder and the checkpoint to go on from, if there is one.
    """
    if chosen := os.environ.get(_RUN_VARIABLE):  # a further rank of a run that the first one started
        folder = Path(chosen)
    elif not fresh and (unfinished := find_run(name, text, finished=False)):
        folder = unfinished
        claim(folder, ", or add --fresh")
        print(f"going on with the unfinished run {folder} (--fresh starts a new one)")
        os.environ[_RUN_VARIABLE] = str(folder)
    else:
        folder = _new_folder(runs_root() / name)
        claim(folder)
        write_text(folder / "config.yaml", text)
        write_json(folder / "run.json", _identity(name, text, finished=False))
        os.environ[_RUN_VARIABLE] = str(folder)
    checkpoint = folder / "checkpoints" / "last.ckpt"
    return folder, checkpoint if checkpoint.exists() else None


def _new_folder(parent: Path) -> Path:
    """A folder named by the time that no other process made."""
    parent.mkdir(parents=True, exist_ok=True)
    name = datetime.now().strftime("%Y%m%d-%H%M%S")
    while True:
        try:
            (parent / name).mkdir()
        except FileExistsError:
            name += "-1"
        else:
            return parent / name


def claim(folder: Path, otherwise: str = "") -> None:
    """Lock a folder for the life of this process, so that the same command typed twice does not share its files.

    Args:
        folder: A run's or a preparation's.
        otherwise: What else one can do than wait, for the error message.
    """
    lock = _locks.setdefault(folder.resolve(), FileLock(folder / ".lock"))
    try:
        lock.is_locked or lock.acquire(blocking=False)
    except Timeout:
        raise ValueError(f"{folder} is being worked on by another process; wait for it{otherwise}.") from None
    except OSError as error:
        if error.errno not in (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS):
            raise
        _log.warning("%s: its file system knows no locks; do not give the same command twice at a time", folder)


@contextmanager
def working_on(folder: Path) -> Iterator[None]:
    """Inside, nobody else works on a folder, see `claim`."""
    claim(folder)
    try:
        yield
    finally:
        _locks.pop(folder.resolve()).release()


_locks: dict[Path, FileLock] = {}
"""What this process has claimed."""


def finish(folder: Path) -> None:
    """Mark a run as finished and let ``latest`` point to it."""
    record = read_json(folder / "run.json", "run")
    write_json(folder / "run.json", {**record, "finished": True})
    link = folder.parent / "latest"
    temporary = folder.parent / ".latest.partial"
    temporary.unlink(missing_ok=True)
    temporary.symlink_to(folder.name)
    temporary.replace(link)
