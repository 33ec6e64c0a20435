"""Runs preparations: which ones an experiment wants, which are finished, and of what they were made."""

from __future__ import annotations

import hashlib
import json
import os
import pkgutil
import shutil
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import jsonargparse
import torch

from fairanon.config.experiments import UserError, experiments_folder, locate, preparation_file, read_yaml
from fairanon.config.precision import replace_bfloat16
from fairanon.config.prepare_request import PrepareRequest
from fairanon.config.ranks import ask, first_process, started_together, tell
from fairanon.config.runs import working_on
from fairanon.config.settings import parsing
from fairanon.engines import Start, Task, Tell, Work, devices_of, in_shares
from fairanon.files import content_key, read_json, remove_half_written, write_json
from fairanon.mirror import in_store, kept
from fairanon.places import exists, read_bytes
from fairanon.prepare.base import Preparation


def prepare_for(config: jsonargparse.Namespace) -> None:
    """Make those folders of an experiment that are missing and that a preparation it names makes.

    Args:
        config: Its resolved configuration.
    """
    if not first_process():
        if started_together():
            ask("data is prepared")
        return
    device = "cpu" if config.trainer.accelerator == "cpu" else "auto"
    for recipe in preparations(config).values():
        prepare(PrepareRequest(str(recipe), device=device), keep=True)
    tell("data is prepared", "yes")


def prepared(folder: str, recipe: Path) -> bool:
    """Whether the folder of a preparation is finished, whoever made it."""
    kind = preparation(recipe)[1].prepare.class_path
    result, there = pkgutil.resolve_name(kind).result, in_store(Path(folder))
    if (Path(folder) / result).exists() or there is None:
        return (Path(folder) / result).exists()
    return exists(there / _MARK) and json.loads(read_bytes(there / _MARK)).get("recipe") is not None


def preparations(config: jsonargparse.Namespace) -> dict[str, Path]:
    """The folders that an experiment's data and measuring name and that a preparation it names makes, each with its file."""
    wanted = {Path(folder) for folder in _folders([config.data, config.evaluate])}
    recipes = {}
    for name in config.prepare:
        recipe = experiments_folder() / "prepare" / f"{name}.yaml"
        if not recipe.exists():
            raise UserError(f"prepare: there is no {recipe}; `fairanon prepare` lists what there is.")
        folder = preparation(recipe)[1].prepare.init_args.folder
        if Path(folder) in wanted:  # an experiment that extends this one may have other data
            recipes[folder] = recipe
    return recipes


def _folders(settings: Any) -> Iterator[str]:
    """Values of the keys ``folder`` and ``annotations`` (a list) at any depth of a configuration."""
    if isinstance(settings, list):
        for value in settings:
            yield from _folders(value)
    elif isinstance(settings, (dict, jsonargparse.Namespace)):
        for key, value in vars(settings).items() if isinstance(settings, jsonargparse.Namespace) else settings.items():
            if key == "folder" and isinstance(value, str):
                yield value
            elif key == "annotations" and isinstance(value, list):
                yield from value
            else:
                yield from _folders(value)


def prepare(request: PrepareRequest, keep: bool = False) -> None:
    """Run a preparation unless this very one is finished.

    Args:
        request: Which, and how.
        keep: Whatever is finished stays, by whichever recipe it was made.
    """
    parser, parsed = _parsed(request)
    folder = Path(parsed.prepare.init_args.folder)
    result = pkgutil.resolve_name(parsed.prepare.class_path).result
    with kept(folder, last=(result, _MARK)):
        _prepare(request, keep, parser, parsed, folder)


def _prepare(
    request: PrepareRequest,
    keep: bool,
    parser: jsonargparse.ArgumentParser,
    parsed: jsonargparse.Namespace,
    folder: Path,
) -> None:
    config = parsed.prepare
    kind = pkgutil.resolve_name(config.class_path)
    finished = (folder / kind.result).exists()
    if request.finish and not folder.exists():
        raise UserError(f"--finish: nothing was begun in {folder}; begin with --part, or leave --finish out.")
    if keep and finished:
        return
    seen = origin(folder, config.init_args.get("images"))
    recipe, mark = recipe_key(config.as_dict()), mark_of(folder)
    if mark is not None and mark["recipe"] == recipe:
        print(f"{folder} is prepared")
        return
    if seen is not None and finished and (mark is None or mark.get("images") != seen):
        raise UserError(
            f"prepare.folder: {folder} is finished and was made of other images; name another folder with "
            f"--prepare.init_args.folder, or delete it{'' if in_store(folder) is None else f', and {in_store(folder)}'}."
        )
    devices = _devices(request)
    alone = request.engine == "here" and len(devices) == 1
    replace_bfloat16(config, devices[0])
    folder.mkdir(parents=True, exist_ok=True)

    def others() -> None:
        start = Start(_shares, (replace(request, part=None),))
        in_shares(start, request.engine, devices, request.device, request.share, f"preparing {folder.name}")

    if request.share is not None:  # parts work beside one another
        if alone:
            share, of = request.share
            parser.instantiate_classes(parsed).prepare.run(devices[0], (share - 1, of))
        else:
            others()
        print(
            f"part {request.part} of {folder} is made; nothing is put together before the same command with --finish in place of "
            "--part"
        )
        return
    with working_on(folder):
        remove_half_written(folder)
        mark_prepared(folder, None, seen)
        try:
            if not alone:
                others()
            parser.instantiate_classes(parsed).prepare.run(devices[0])
        except BaseException:
            drop_empty(folder)
            raise
        mark_prepared(folder, recipe, seen)
    if devices[0] != "cpu":
        torch.cuda.empty_cache()  # what comes next wants it


def _devices(request: PrepareRequest) -> list[str]:
    """Where models work; without being asked, one of them."""
    return devices_of(request.device)[: 1 if request.device == "auto" and request.engine == "here" else None]


def _parsed(request: PrepareRequest) -> tuple[jsonargparse.ArgumentParser, jsonargparse.Namespace]:
    return preparation(preparation_file(request.name), request.images, request.settings)


def _shares(request: PrepareRequest, device: str, stack: ExitStack) -> Work:
    """Who makes shares of the pieces, see `fairanon.engines.Start`."""
    del stack  # nothing is to be undone
    parser, parsed = _parsed(request)
    replace_bfloat16(parsed.prepare, device)
    maker = parser.instantiate_classes(parsed).prepare

    def work(task: Task, tell: Tell) -> None:
        maker.run(device, task.about)
        tell("done", False)

    return work


def preparation(
    file: Path, images: str | None = None, settings: Sequence[str] = ()
) -> tuple[jsonargparse.ArgumentParser, jsonargparse.Namespace]:
    """Parser and settings of a preparation; arguments as `prepare`."""
    read_yaml(file)  # whatever is wrong with it is one sentence
    parser = jsonargparse.ArgumentParser("fairanon prepare", parser_mode="omegaconf+", exit_on_error=False)
    parser.add_argument("--config", action="config")
    parser.add_argument("--prepare", type=Preparation, required=True)
    words = [] if images is None else ["--prepare.init_args.images", images]
    with parsing():
        return parser, parser.parse_args(["--config", str(file), *words, *settings])


# --- what a folder was made of ---------------------------------------------------------------------------

_MARK = "prepared.json"


def recipe_key(settings: dict[str, Any]) -> str:
    """Names a preparation by its settings and by the files and folders that they name, without building anything.

    Args:
        settings: The resolved configuration of a `Preparation`. Where it writes (the first ``folder``) does not count;
            files count by their content, folders by the names, sizes and times of what they hold.
    """
    relevant = {**settings, "init_args": {k: v for k, v in settings["init_args"].items() if k != "folder"}}
    return content_key(relevant, _inputs(relevant))


def _inputs(settings: Any) -> list[str]:
    if isinstance(settings, dict):
        return [entry for value in settings.values() for entry in _inputs(value)]
    if isinstance(settings, (list, tuple)):
        return [entry for value in settings for entry in _inputs(value)]
    if not isinstance(settings, str) or not 0 < len(settings) < 250:  # no name of a file is longer
        return []
    path = locate(Path(settings).expanduser())
    if path.is_file():
        state = path.stat()
        large = state.st_size > 64 * 2**20  # weights: reading them takes longer than anything else here
        return [
            content_key(state.st_size, state.st_mtime_ns) if large else hashlib.sha256(path.read_bytes()).hexdigest()
        ]
    if path.is_dir():
        files = sorted(entry for entry in path.rglob("*") if entry.is_file())
        stamps = [(str(entry.relative_to(path)), entry.stat().st_size, entry.stat().st_mtime_ns) for entry in files]
        return [content_key(stamps)]
    return []


def mark_prepared(folder: Path, recipe: str | None, images: str | None) -> None:
    """Note how a folder is made: before it is, without a recipe, and when everything else is there.

    Args:
        folder: The preparation's.
        recipe: See `recipe_key`.
        images: Where the images are that it is made of, see `origin`.
    """
    write_json(folder / _MARK, {"recipe": recipe, "images": images})


def mark_of(folder: Path) -> dict[str, str | None] | None:
    """What `mark_prepared` noted; None of a folder that nobody noted anything of."""
    path = folder / _MARK
    return read_json(path, "prepare.folder") if path.exists() else None


def drop_empty(folder: Path) -> None:
    """Remove the folder of a preparation that failed before it made anything."""
    if all(path.is_dir() or path.name in (_MARK, ".lock") for path in folder.rglob("*")):
        shutil.rmtree(folder)
        with suppress(OSError):
            folder.parent.rmdir()  # made for it, if it is empty


def origin(folder: Path, images: str | None) -> str | None:
    """Where images are as seen from a preparation's folder: both may move together. None for one that draws its own."""
    return None if images is None else os.path.relpath(Path(images).resolve(), folder.resolve())
