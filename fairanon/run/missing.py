"""What an experiment needs and what is not there, before anything is prepared, fetched or trained."""

from __future__ import annotations

import pkgutil
import shutil
from typing import Any

import jsonargparse
import torch
from lightning.pytorch import LightningDataModule, LightningModule

from fairanon.backbones import Backbone, hub
from fairanon.callbacks.evaluate import Evaluate
from fairanon.config.build import build
from fairanon.config.experiments import Experiment, UserError
from fairanon.config.failures import expected, sentence
from fairanon.config.runs import find_run, runs_root
from fairanon.config.settings import FairAnonCLI, device_of
from fairanon.evaluators import Judge
from fairanon.methods.base import DiffusionMethod
from fairanon.prepare import Preparation
from fairanon.prepare.run import preparation, preparations, prepared
from fairanon.protocols import OnDisk
from fairanon.run.footprint import GIB, footprint, outline


def lacking(config: jsonargparse.Namespace) -> list[str]:
    """Everything that an experiment needs and that is not there, a sentence each.

    Nothing is prepared and of models nothing but configurations is fetched; judges are built, and what of them is fetched
    when they are is fetched now.

    Args:
        config: Its resolved configuration.
    """
    unfinished = {folder: recipe for folder, recipe in preparations(config).items() if not prepared(folder, recipe)}
    problems: list[str] = []
    built: list[Evaluate] = []
    for key in ("model", "data", "evaluate"):
        problems += _lacks(config[key], key, set(unfinished), built)
    for recipe in unfinished.values():
        problems += _lacks(preparation(recipe)[1].prepare, "prepare", set(), [])
    try:
        method = None if any(line.startswith("model.backbone.") for line in problems) else outline(config)
        if method is not None:
            for evaluate in built:
                evaluate.check(method)
            problems += _room(config, method)
    except expected() as error:
        problems.append(" ".join(sentence(str(error)).split()))
    return list(dict.fromkeys(problems))


def _lacks(node: Any, key: str, unfinished: set[str], built: list[Evaluate]) -> list[str]:
    """What a node of a configuration lacks, with everything below it; what measures and lacks nothing joins ``built``."""
    if isinstance(node, (list, tuple)):
        return [line for value in node for line in _lacks(value, key, unfinished, built)]
    values = vars(node) if isinstance(node, jsonargparse.Namespace) else node
    if not isinstance(values, dict):
        return []
    if not isinstance(node, jsonargparse.Namespace) or "class_path" not in values:
        return [line for name, value in values.items() for line in _lacks(value, f"{key}.{name}", unfinished, built)]
    kind, init_args = pkgutil.resolve_name(values["class_path"]), values.get("init_args") or {}
    if not isinstance(kind, type) or issubclass(kind, (torch.optim.Optimizer, torch.optim.lr_scheduler.LRScheduler)):
        return []
    if issubclass(kind, Backbone):
        return kind.missing(**vars(init_args))
    made_later = init_args.get("folder") in unfinished  # by a preparation
    if issubclass(kind, Preparation):
        return [*_lacks(init_args, key, unfinished, built), *kind.missing(**vars(init_args))]
    waits = not made_later and any(f"{folder!r}" in repr(init_args) for folder in unfinished)
    if issubclass(kind, LightningModule) or waits:
        return _lacks(init_args, key, unfinished, built)
    try:
        instance = build(node, kind)
        if isinstance(instance, OnDisk) and not made_later:
            instance.look()
    except expected() as error:
        if below := _lacks(init_args, key, unfinished, built):
            return [*below, *(_alone(kind, init_args) if issubclass(kind, Judge) else [])]
        problem = " ".join(sentence(str(error)).split())
        return [
            problem if problem.startswith(key.partition(".")[0]) else f"{key}: {problem}"
        ]  # a source does not know its key
    if isinstance(instance, Evaluate):
        built.append(instance)
    return _lacks(init_args, key, unfinished, built) if isinstance(instance, LightningDataModule) else []


def _alone(kind: type, init_args: Any) -> list[str]:
    """What a judge itself lacks, where those that it holds lack something."""
    own = {
        key: None if isinstance(value, jsonargparse.Namespace) and "class_path" in value else value
        for key, value in vars(init_args).items()
    }
    try:
        kind(**own)
    except expected() as error:
        return [" ".join(str(error).split())]
    except (TypeError, AttributeError):  # it cannot be without them
        pass
    return []


def _room(config: jsonargparse.Namespace, method: DiffusionMethod) -> list[str]:
    """What the disk and the GPU are too small for."""
    backbone, problems = config.model.init_args.backbone, []
    wanted = pkgutil.resolve_name(backbone.class_path).wanted(**vars(backbone.init_args))
    fetched = sum(hub.to_fetch(*model) for model in wanted.values())
    needed = footprint(config, method)
    every, steps = config.get("checkpoint_every"), config.trainer.max_steps
    once = every is not None and 0 <= steps < every  # otherwise the next one is written beside the last
    kept = (1 if once else 2) * needed.checkpoint + needed.checkpoint // 3
    for what, place, size in (
        (f"a checkpoint{'' if once else ', the next one beside it'} and the trained weights take", runs_root(), kept),
        ("the models that are to be fetched take", hub.cache(), fetched),
    ):
        root = next(folder for folder in (place.resolve(), *place.resolve().parents) if folder.exists())
        free = shutil.disk_usage(root).free
        if size > free:
            problems.append(
                f"the disk of {root} has {free / GIB:.1f} GiB free; {what} {size / GIB:.1f} GiB: make room."
            )
    where = "GPU memory" if device_of(config).type == "cuda" else "memory"
    sizes = {
        "models to be fetched": fetched, "a checkpoint": needed.checkpoint, f"training, at least, of {where}": needed.total,
    }  # fmt: skip
    if amounts := [f"{what} {size / GIB:.1f} GiB" for what, size in sizes.items() if size >= GIB / 10]:
        print("; ".join(amounts))
    if torch.cuda.is_available() and config.trainer.accelerator != "cpu":
        has = torch.cuda.get_device_properties(0).total_memory
        if needed.total > has:
            problems.append(
                f"training takes at least {needed.total / GIB:.1f} GiB of GPU memory, the card has {has / GIB:.1f}; "
                "docs/performance.md says what makes it smaller."
            )
    return problems


def refuse_what_is_missing(experiment: Experiment) -> None:
    """Say all of it at once, before anything is prepared, fetched or trained.

    Raises:
        UserError: Something is missing.
    """
    planned = FairAnonCLI(experiment.words(), build=False)
    planned.check_precision()
    problems = lacking(planned.config)
    for name in experiment.stages():  # their own training would say it hours later
        stage = FairAnonCLI(experiment.stage(name).words(), build=False)
        if find_run(name, stage.text, finished=True) is None:
            problems += [f"{name}: {line}" for line in lacking(stage.config) if line not in problems]
    if problems:
        raise UserError("\n".join([f"missing or wrong ({len(problems)}):", *(f"- {line}" for line in problems)]))
