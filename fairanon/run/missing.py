"""What an experiment needs and what is not there, before anything is prepared, fetched or trained."""

from __future__ import annotations

import pkgutil
import shutil
from pathlib import Path
from typing import Any

import jsonargparse
import torch
from lightning.pytorch import LightningDataModule, LightningModule

from fairanon.backbones import Backbone, hub
from fairanon.callbacks.evaluate import Evaluate
from fairanon.config.build import build
from fairanon.config.experiments import Experiment, UserError, locate
from fairanon.config.failures import expected, sentence
from fairanon.config.runs import find_run, runs_root
from fairanon.config.settings import FairAnonCLI
from fairanon.evaluators import Judge
from fairanon.methods.base import DiffusionMethod
from fairanon.prepare import Preparation
from fairanon.prepare.run import preparation, preparations, prepared
from fairanon.run.footprint import GIB, footprint, outline


def lacking(config: jsonargparse.Namespace) -> list[str]:
    """Everything that an experiment needs and that is not there, a sentence each.

    Nothing is prepared and of models nothing but configurations is fetched; judges are built, and what of them is fetched
    when they are is fetched now.

    Args:
        config: Its resolved configuration.
    """
    unfinished = {folder: recipe for folder, recipe in preparations(config).items() if not prepared(folder, recipe)}
    said: list[str] = []
    built: list[Evaluate] = []
    for key in ("model", "data", "evaluate"):
        said += _lacks(config[key], key, set(unfinished), built)
    for recipe in unfinished.values():
        said += _lacks(preparation(recipe)[1].prepare, "prepare", set(), [])
    try:
        method = None if any(line.startswith("model.backbone.") for line in said) else outline(config)
        if method is not None:
            for evaluate in built:
                evaluate.check(method)
            said += _room(config, method)
    except expected() as error:
        said.append(" ".join(sentence(str(error)).split()))
    return list(dict.fromkeys(said))


def _lacks(node: Any, key: str, unfinished: set[str], built: list[Evaluate]) -> list[str]:
    """What a node of a configuration lacks, with everything below it; what measures and lacks nothing joins ``built``."""
    if isinstance(node, (list, tuple)):
        return [line for value in node for line in _lacks(value, key, unfinished, built)]
    values = vars(node) if isinstance(node, jsonargparse.Namespace) else node
    if not isinstance(values, dict):
        return []
    if not isinstance(node, jsonargparse.Namespace) or "class_path" not in values:
        return [line for name, value in values.items() for line in _lacks(value, f"{key}.{name}", unfinished, built)]
    kind, given = pkgutil.resolve_name(values["class_path"]), values.get("init_args") or {}
    if not isinstance(kind, type) or issubclass(kind, (torch.optim.Optimizer, torch.optim.lr_scheduler.LRScheduler)):
        return []
    if issubclass(kind, Backbone):
        return _model_lacks(given)
    if given.get("folder") in unfinished:
        return []  # a preparation will make it
    waits = any(f"{folder!r}" in repr(given) for folder in unfinished)
    if not waits and not issubclass(kind, (LightningModule, Preparation)):
        try:
            found = build(node, kind)
            on_disk = any(name in given for name in ("folder", "path", "source", "sources", "annotations"))
            for name in ("look", "records", "people", "rows") if on_disk else ():  # what is asked for first
                if hasattr(found, name):
                    getattr(found, name)()
                    break
            if isinstance(found, Evaluate):
                built.append(found)
            if not isinstance(found, LightningDataModule):
                return []
        except expected() as error:
            said = " ".join(sentence(str(error)).split())
            if hasattr(kind, "records") or hasattr(kind, "people"):  # a source does not know where it was given
                said = f"{key}: {said}"
            below = _lacks(given, key, unfinished, built)
            return [*below, *(_alone(kind, given) if issubclass(kind, Judge) else [])] if below else [said]
    below = _lacks(given, key, unfinished, built)
    if issubclass(kind, Preparation):
        for name in ("images", "prompts"):
            if isinstance(given.get(name), str) and not locate(given[name]).exists():
                below.append(f"prepare.{name}: {given[name]} is missing; `fairanon prepare` reads it.")
    return below


def _alone(kind: type, given: Any) -> list[str]:
    """What a judge itself lacks, where those that it holds lack something."""
    own = {
        key: None if isinstance(value, jsonargparse.Namespace) and "class_path" in value else value
        for key, value in vars(given).items()
    }
    try:
        kind(**own)
    except expected() as error:
        return [" ".join(str(error).split())]
    except (TypeError, AttributeError):  # it cannot be without them
        pass
    return []


def _model_lacks(given: Any) -> list[str]:
    said = []
    for key in ("model", "vae", "unet"):
        try:
            _to_fetch(given, key)
        except expected() as error:
            said.append(str(error))
    for key in ("lora", "control"):
        start = (given.get(key) or {}).get("start_from")
        if start is not None and not Path(start).exists():
            said.append(f"model.backbone.{key}.start_from: {start} is missing; give a file or folder, or null.")
    return said


def _to_fetch(given: Any, key: str) -> int:
    """Bytes that a backbone's setting ("model", "vae" or "unet") would fetch."""
    if given.get(key) is None:
        return 0
    half = given.get("dtype") in ("bfloat16", "float16")
    beside = half and any(given.get(name) for name in ("lora", "control", "frozen"))
    parts: dict[str, bool] | None = {"unet": beside}
    if key == "vae":
        parts = None
    elif key == "model":
        parts = {
            "text_encoder": half and not given.get("train_text_encoder"),
            "text_encoder_2": half,
            "scheduler": False,
        }
        parts |= {"tokenizer": False, "tokenizer_2": False}
        parts |= {} if given.get("vae") else {"vae": half}
        parts |= {} if given.get("unet") else {"unet": beside}
    revision = given.get("revision") if key == "model" else None
    return hub.to_fetch(given[key], revision, f"model.backbone.{key}", parts)


def _room(config: jsonargparse.Namespace, method: DiffusionMethod) -> list[str]:
    """What the disk and the GPU are too small for."""
    given, said = config.model.init_args.backbone.init_args, []
    fetched = sum(_to_fetch(given, key) for key in ("model", "vae", "unet"))
    needed = footprint(config, method)
    every, steps = config.get("checkpoint_every"), config.trainer.max_steps
    once = every is not None and 0 <= steps < every  # otherwise the next one is written beside the last
    wanted = (1 if once else 2) * needed.checkpoint + needed.checkpoint // 3
    for what, place, size in (
        (f"a checkpoint{'' if once else ', the next one beside it'} and the trained weights take", runs_root(), wanted),
        ("the models that are to be fetched take", hub.cache(), fetched),
    ):
        root = next(folder for folder in (place.resolve(), *place.resolve().parents) if folder.exists())
        free = shutil.disk_usage(root).free
        if size > free:
            said.append(f"the disk of {root} has {free / GIB:.1f} GiB free; {what} {size / GIB:.1f} GiB: make room.")
    print(f"models: {f'{fetched / GIB:.1f} GiB to be fetched' if fetched else 'here'}; checkpoints of "
          f"{needed.checkpoint / GIB:.1f} GiB; at least {needed.total / GIB:.1f} GiB of GPU memory for training")  # fmt: skip
    if torch.cuda.is_available() and config.trainer.accelerator != "cpu":
        has = torch.cuda.get_device_properties(0).total_memory
        if needed.total > has:
            said.append(
                f"training takes at least {needed.total / GIB:.1f} GiB of GPU memory, the card has {has / GIB:.1f}; "
                "docs/performance.md says what makes it smaller."
            )
    return said


def refuse_what_is_missing(experiment: Experiment) -> None:
    """Say all of it at once, before anything is prepared, fetched or trained.

    Raises:
        UserError: Something is missing.
    """
    planned = FairAnonCLI(experiment.words(), build=False)
    planned.check_precision()
    said = lacking(planned.config)
    for name in experiment.stages():  # their own training would say it hours later
        stage = FairAnonCLI(experiment.stage(name).words(), build=False)
        if find_run(name, stage.text, finished=True) is None:
            said += [f"{name}: {line}" for line in lacking(stage.config) if line not in said]
    if said:
        raise UserError("\n".join([f"missing ({len(said)}):", *(f"- {line}" for line in said)]))
