"""A run's folder: what it is called, which code and versions it is of, who works in it, whether it is finished.

Imports nothing heavy.
"""

from __future__ import annotations

import ast
import errno
import hashlib
import json
import logging
import os
import platform
import re
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from datetime import datetime
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

import yaml
from filelock import BaseFileLock, FileLock, Timeout

import fairanon
from fairanon.config.experiments import UserError, resolve
from fairanon.config.ranks import ask_for_folder, first_process, started_together, tell
from fairanon.embedded import embedded
from fairanon.files import read_json, remove_half_written, write_json, write_text
from fairanon.locks import StoreLock
from fairanon.mirror import Mirror, in_store, kept
from fairanon.places import create_object, is_stored, listing, read_bytes

_log = logging.getLogger(__name__)
_ROOT_VARIABLE = "FAIRANON_RUNS"
_RUN_VARIABLE = "FAIRANON_RUN"
"""Tells the processes that DDP starts which folder the first one chose."""


_PACKAGES = ("torch", "torchvision", "lightning", "diffusers", "transformers", "peft", "torchmetrics", "jsonargparse")


WITHOUT_NUMBERS = (
    "__init__", "__main__", "anonymizer", "api", "app", "auditor", "backbones.export", "callbacks.dashboard", "cli", "config.build", "config.experiments", "config.failures", "config.prepare_request",
    "config.runs", "config.spelling", "engines", "locks", "mirror", "offline", "places", "progress", "quiet", "report", "run.folder_measuring", "run.footprint", "run.forecast", "run.loggers", "run.missing", "run.rehearsal",
)  # fmt: skip
"""Rooms of fairanon, and modules of rooms, whose code changes no number: a run stays what it was when they change. Every
other one counts, a new one too: forgetting it here costs a training, forgetting it in a list of those that count would cost a
wrong number."""


@cache
def code_version(root: Path = Path(fairanon.__file__).parent.parent) -> str:
    """A digest of what the Python files that can change a number do: names the code with or without git.

    Comments, docstrings and layout do not count. Another version of Python may give another digest.

    Args:
        root: Where the packages are.
    """
    total = hashlib.sha256()
    for package in ("fairanon", "data_modules"):
        for path in sorted((root / package).rglob("*.py")):
            module = ".".join(path.relative_to(root / package).with_suffix("").parts)
            if package == "data_modules" or not f"{module}.".startswith(tuple(f"{name}." for name in WITHOUT_NUMBERS)):
                total.update(str(path.relative_to(root)).encode())
                total.update(_what_it_does(path.read_text(encoding="utf-8")).encode())
    return total.hexdigest()[:16]


def _what_it_does(source: str) -> str:
    """A module's syntax tree without the texts that stand by themselves, which document."""
    tree = ast.parse(source)
    for node in ast.walk(tree):
        if isinstance(body := getattr(node, "body", None), list):
            node.body = [line for line in body if not _is_text(line)]  # type: ignore[attr-defined]
    return ast.dump(tree)


def _is_text(line: ast.stmt) -> bool:
    return isinstance(line, ast.Expr) and isinstance(line.value, ast.Constant) and isinstance(line.value.value, str)


def versions() -> dict[str, str]:
    """Versions of everything that can change a number, and the state of git."""
    import torch

    environment = {"fairanon": fairanon.__version__, "python": platform.python_version(), "code": code_version()}
    environment |= {name: metadata.version(name) for name in _PACKAGES}
    environment["device"] = torch.cuda.get_device_name() if torch.cuda.is_available() else platform.processor() or "cpu"
    root = Path(fairanon.__file__).parent.parent
    for name, command in (
        ("git", ["rev-parse", "HEAD"]),
        ("git_changes", ["status", "--porcelain", "--untracked-files=no"]),
    ):
        with suppress(OSError):  # no git here
            done = subprocess.run(["git", "-C", str(root), *command], capture_output=True, text=True, check=False)
            if done.returncode == 0:
                environment[name] = done.stdout.strip() or "none"
    return environment


def runs_root() -> Path:
    """Where runs lie; a rehearsal has a place of its own, and tells the processes that DDP starts."""
    return Path(os.environ.get(_ROOT_VARIABLE, "runs"))


def find_settings(folder: Path, settings: Sequence[str] = ()) -> tuple[Path, list[str]]:
    """A finished run's folder and its configuration as words of a command line, with further settings.

    Args:
        folder: Of the run; or of the latest run of an experiment whose weights come with fairanon, if there is none. A folder
            called ``shipped`` asks for these.
        settings: ``--KEY=VALUE`` each.

    Raises:
        UserError: It is none.
    """
    folder = _fetched(folder)
    if (folder / "config.yaml").exists():
        source = folder.resolve()
        return source, ["--config", str(source / "config.yaml"), *settings]
    name = folder.parent.name
    if folder.name in ("latest", "shipped") and embedded(name, SHIPPED).exists():
        return runs_root() / name / "shipped", resolve(name, settings=settings).words()
    latest = runs_root() / folder.name / "latest"
    hint = f"; {latest} is one" if (latest / "config.yaml").exists() else "; `fairanon train NAME` makes one"
    raise UserError(f"{folder} is no run's folder, it has no config.yaml{hint}.")


def _fetched(folder: Path) -> Path:
    """A run's folder; one that is not here comes from the store, ``latest`` as the newest one there that is finished."""
    if in_store(folder) is None:
        return folder
    if folder.name == "latest" and not folder.exists():
        finished = (found for found, record in _runs_of(folder.parent.name) if record.get("finished"))
        folder = next(finished, folder)
    bring(folder)
    return folder


SHIPPED = "trained.safetensors"
"""What an experiment trained whose weights come with fairanon, in its folder among the assets."""


def find_run(name: str, text: str, finished: bool) -> Path | None:
    """The newest run of this experiment with this resolved configuration and this code."""
    wanted = _identity(name, text, finished)
    same = wanted if finished else {key: value for key, value in wanted.items() if key != "machines"}
    return next((folder for folder, record in _runs_of(name) if same.items() <= record.items()), None)


def bring(folder: Path) -> None:
    """Fetch a run that the store has finished, unless it is here; ``latest`` points to it."""
    there = in_store(folder)
    here = folder / "run.json"
    if there is None or (here.exists() and read_json(here, "run").get("finished")):
        return
    try:
        finished = json.loads(read_bytes(there / "run.json")).get("finished")
    except FileNotFoundError:
        return
    if finished:
        Mirror(folder, there).fetch()
        _point_to(folder)


def is_finished(folder: Path) -> bool:
    """Whether the run of a folder has come to its end; without a record nobody knows otherwise."""
    record = folder / "run.json"
    return not record.exists() or bool(read_json(record, "run").get("finished"))


def _runs_of(name: str) -> Iterator[tuple[Path, dict[str, Any]]]:
    """An experiment's runs and their records, the newest first; those in the store, too."""
    there = in_store(runs_root() / name)
    stored = [] if there is None else [record for record in listing(there) if re.fullmatch("[^/]+/run.json", record)]
    local = [path.parent for path in runs_root().glob(f"{name}/*/run.json") if not path.parent.is_symlink()]
    for folder in sorted({*local, *(runs_root() / name / Path(record).parent for record in stored)}, reverse=True):
        try:
            records = [read_json(folder / "run.json", "run")] if folder in local else []
            if there is not None and f"{folder.name}/run.json" in stored:
                records.append(json.loads(read_bytes(there / folder.name / "run.json")))
            if not all(isinstance(record, dict) for record in records):
                raise ValueError(f"{folder}/run.json is no JSON object")
            yield folder, max(records, key=lambda record: bool(record.get("finished")))
        except (ValueError, FileNotFoundError) as error:  # another run's damage is not this one's
            _log.warning("passed over: %s", error)


_ELSEWHERE = ("devices", "num_nodes", "strategy")
"""Settings of the trainer that a run need not keep: it goes on with other machines than it began with. One that is finished is
taken for the same only with the same ones: the global batch grows with their number."""


def _identity(name: str, text: str, finished: bool) -> dict[str, Any]:
    settings: Any = yaml.safe_load(text)
    machines: dict[str, Any] = {}
    if isinstance(settings, dict) and isinstance(trainer := settings.get("trainer"), dict):
        settings["trainer"] = {key: value for key, value in trainer.items() if key not in _ELSEWHERE}
        machines = {key: str(trainer[key]) for key in _ELSEWHERE if key in trainer}
    digest = hashlib.sha256(json.dumps(settings, default=str).encode()).hexdigest()[:16]
    return {"experiment": name, "config": digest, "machines": machines, "code": code_version(), "finished": finished}


@contextmanager
def run_folder(name: str, text: str, fresh: bool) -> Iterator[tuple[Path, Path | None]]:
    """Inside, this process works in a run's folder: where an unfinished run goes on, or a new one.

    An unfinished run of the same experiment, resolved configuration and code version is continued; a finished one
    is never touched. Further ranks are started inside, and a variable of their environment says which folder it is; those
    that were started together with the first one ask it.

    Args:
        name: The experiment's.
        text: Its resolved configuration.
        fresh: Begin a new run, even if one is unfinished.

    Yields:
        The folder, and the checkpoint to go on from if there is one.
    """
    if not first_process() and (started_together() or _RUN_VARIABLE in os.environ):
        chosen = ask_for_folder("the run's folder") if started_together() else Path(os.environ[_RUN_VARIABLE])
        yield chosen, _last(chosen)
        return
    folder = None if fresh else find_run(name, text, finished=False)
    if folder is not None:
        otherwise = ", or add --fresh"
    else:
        if not fresh:
            _say_what_is_passed_over(name, text)
        folder, otherwise = _new_folder(runs_root() / name), ""
    with working_on(folder, otherwise), _kept_by_us(folder, otherwise):
        if otherwise:
            remove_half_written(folder)
            print(f"going on with the unfinished run {folder} (--fresh starts a new one)")
        else:
            write_text(folder / "config.yaml", text)
            write_json(folder / "run.json", _identity(name, text, finished=False))
        os.environ[_RUN_VARIABLE] = str(folder)
        tell("the run's folder", str(folder.resolve()))
        try:
            yield folder, _last(folder)
        finally:
            del os.environ[_RUN_VARIABLE]


@contextmanager
def _kept_by_us(folder: Path, otherwise: str) -> Iterator[None]:
    """Inside, a run is kept in the store, if there is one, and nobody else works on it, on any machine."""
    there = in_store(folder)
    alone = nullcontext() if there is None else working_on(there, otherwise)
    with alone, kept(folder, still_ours=lambda: None if there is None else still_working_on(there)):
        yield


def _last(folder: Path) -> Path | None:
    checkpoint = folder / "checkpoints" / "last.ckpt"
    return checkpoint if checkpoint.exists() else None


def _say_what_is_passed_over(name: str, text: str) -> None:
    """One line about the newest unfinished run of this experiment, which is not gone on with."""
    now = _identity(name, text, finished=False)
    for folder, record in _runs_of(name):
        if record.get("finished") is not False or _last(folder) is None:
            continue
        changed = [what for key, what in (("config", "settings"), ("code", "code")) if record.get(key) != now[key]]
        print(
            f"not going on with the unfinished run {folder}: it has other {' and '.join(changed)}. To go on with it all the "
            f"same, add --ckpt_path {_last(folder)}"
        )
        return


def _new_folder(parent: Path) -> Path:
    """A folder named by the time that no other process made."""
    parent.mkdir(parents=True, exist_ok=True)
    name, there = datetime.now().strftime("%Y%m%d-%H%M%S"), in_store(parent)
    while True:
        try:
            (parent / name).mkdir()
        except FileExistsError:
            name += "-1"
            continue
        try:
            if there is None or create_object(there / name / ".lock-made", b""):
                return parent / name
        except BaseException:
            (parent / name).rmdir()
            raise
        (parent / name).rmdir()  # another machine's
        name += "-1"


class BusyError(ValueError):
    """Another process works there."""


def claim(folder: Path, otherwise: str = "") -> None:
    """Lock a folder for the life of this process, so that the same command typed twice does not share its files.

    Args:
        folder: A run's or a preparation's.
        otherwise: What else one can do than wait, for the error message.
    """
    lock = _locks.get(folder.resolve())
    if lock is None:
        lock = StoreLock(folder / ".lock") if is_stored(folder) else FileLock(folder / ".lock")
    taken = True
    try:
        if isinstance(lock, StoreLock):
            taken = lock.is_locked or lock.acquire()
        elif not lock.is_locked:
            lock.acquire(blocking=False)
    except Timeout:
        taken = False
    except OSError as error:
        if error.errno not in (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS):
            raise
        _log.warning("%s: its file system knows no locks; do not give the same command twice at a time", folder)
    if not taken:
        who = lock.holder() if isinstance(lock, StoreLock) else ""
        raise BusyError(
            f"{folder} is being worked on by another process{who and f' on {who}'}; wait for it{otherwise}"
            f"{', two minutes if it was killed' if who else ''}."
        )
    _locks[folder.resolve()] = lock


def still_working_on(folder: Path) -> None:
    """Refuse to go on where another process has taken a folder of a store, since this one said nothing for long.

    Raises:
        BusyError: That has happened.
    """
    lock = _locks.get(folder.resolve())
    if isinstance(lock, StoreLock) and lock.lost:
        raise BusyError(
            f"{folder} was taken over by another process, since this one was not heard of; it goes on there."
        )


@contextmanager
def working_on(folder: Path, otherwise: str = "") -> Iterator[None]:
    """Inside, nobody else works on a folder; arguments and errors as `claim`."""
    claim(folder, otherwise)
    try:
        yield
    finally:
        if lock := _locks.pop(folder.resolve(), None):
            lock.release()


_locks: dict[Path, BaseFileLock | StoreLock] = {}
"""What this process has claimed."""


def finish(folder: Path) -> None:
    """Mark a run as finished and let ``latest`` point to it."""
    record = read_json(folder / "run.json", "run")
    write_json(folder / "run.json", {**record, "finished": True})
    _point_to(folder)


def _point_to(folder: Path) -> None:
    """Let ``latest`` point to a run."""
    link = folder.parent / "latest"
    temporary = folder.parent / ".latest.partial"
    temporary.unlink(missing_ok=True)
    temporary.symlink_to(folder.name)
    temporary.replace(link)
