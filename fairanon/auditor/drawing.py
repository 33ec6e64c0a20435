"""The images of an audit: models, judge and prompts are opened, and what was not judged yet is drawn and judged, on every device."""

from __future__ import annotations

import logging
import multiprocessing
import os
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import torch

from fairanon.anonymizer.judges import judge as build_judge
from fairanon.auditor.audit_request import AuditRequest
from fairanon.auditor.models import Model, open_model, prompts_of
from fairanon.batches import PromptRow
from fairanon.config.experiments import UserError
from fairanon.engines import end_with
from fairanon.evaluation.engine import Drawn, Engine, Ranks
from fairanon.evaluation.image_folder import ImageFolder
from fairanon.evaluation.portrayal import Portrayal
from fairanon.protocols import AttributeClassifier

_log = logging.getLogger(__name__)
_PEOPLE = ("gender", "tone", "race", "age", "couple", "monk", "ita")
"""Attributes that are counted by default, if the judge knows them."""
_THUMBNAIL = 128


@dataclass(frozen=True)
class Opened:
    """What is audited, and by whom.

    Attributes:
        models: One, or two that are compared.
        which: Name of the judge's file.
        judge: The judge, loaded.
        attributes: What is counted.
        rows: The prompts of each model.
    """

    models: list[Model]
    which: str
    judge: AttributeClassifier
    attributes: tuple[str, ...]
    rows: list[list[PromptRow]]


def open_all(request: AuditRequest, device: str) -> Opened:
    """Find and load what a request names.

    Args:
        request: What is wanted.
        device: Where models work.

    Raises:
        UserError: Something is not there, or does not fit.
    """
    models = [open_model(request.model, request, device)]
    if request.compare:
        models.append(open_model(request.compare, request, device, steers=False))
    _tell_apart(models)
    which = request.judge or ("tiny_attributes" if all(model.drawn for model in models) else "race_popalign")
    judge: AttributeClassifier = build_judge(which, "--judge")
    if not hasattr(judge, "classify"):
        raise UserError(f"--judge: {which} says nothing of people's appearance; take another one.")
    attributes = _attributes(request, judge)
    return Opened(models, which, judge, attributes, prompts_of(request, models, judge.classes, attributes))


def _tell_apart(models: Sequence[Model]) -> None:
    """Give two models of one name the names of the folders that they lie in, too."""
    if len(models) > 1 and models[0].name == models[1].name:
        for model in models:
            place = Path(model.place)
            model.name = f"{place.parent.name}/{place.name}" if model.place else model.name
        if models[0].name == models[1].name and models[0].place != models[1].place:
            for model in models:
                model.name = model.place


def _attributes(request: AuditRequest, judge: AttributeClassifier) -> tuple[str, ...]:
    asked = tuple(name.strip() for name in request.attributes.split(",") if name.strip())
    for name in asked:
        if name not in judge.classes:
            raise UserError(f"--attributes: {judge.name} does not judge {name!r}, only {', '.join(judge.classes)}.")
    names = asked or tuple(name for name in _PEOPLE if name in judge.classes) or tuple(judge.classes)
    for name in names:
        if len(judge.classes[name]) < 2:
            raise UserError(f"--judge: {judge.name} knows one class of {name}; there is nothing to count.")
    if not names:
        raise UserError(f"--judge: {judge.name} has no classes; take another one.")
    return tuple(dict.fromkeys(names))


def draw_all(opened: Opened, request: AuditRequest, out: Path, devices: Sequence[str]) -> list[tuple[Engine, Drawn]]:
    """Draw or read, and judge, what was not judged before: an engine and where its images' judgements are, for each model.

    Every device has a process, and takes its share of the batches; what one that fails leaves, this process does.

    Args:
        opened: On the first device.
        request: What is wanted.
        out: The audit's folder.
        devices: Where models work.

    Raises:
        UserError: There is no image to judge.
    """
    if len(devices) == 1:
        return _draw(opened, request, out, Ranks())
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(len(devices) - 1, context, end_with, (os.getpid(),)) as pool:
        others = [pool.submit(_help, request, out, device, k, len(devices)) for k, device in enumerate(devices[1:], 1)]
        try:
            _draw(opened, request, out, Ranks(0, len(devices)))
        except BaseException:
            for process in pool._processes.values():  # nobody waits for their share
                process.terminate()
            raise
        for device, future in zip(devices[1:], others, strict=True):
            if (error := future.exception()) is not None:
                _log.warning("%s failed (%s); its images are drawn on %s", device, error, devices[0])
    return _draw(opened, request, out, Ranks())


def _help(request: AuditRequest, out: Path, device: str, rank: int, count: int) -> None:
    """Do a share of the batches in a process of its own."""
    if device == "cpu":
        torch.set_num_threads(max(1, (os.cpu_count() or 1) // count))
    _draw(open_all(request, device), request, out, Ranks(rank, count))


def _draw(opened: Opened, request: AuditRequest, out: Path, ranks: Ranks) -> list[tuple[Engine, Drawn]]:
    drawn = []
    for model, rows in zip(opened.models, opened.rows, strict=True):
        size, side = request.batch_size, None
        if isinstance(model.sampler, ImageFolder) and len(model.sampler.sizes()) > 1:
            size, side = 1, _THUMBNAIL
        engine = Engine(
            rows, [Portrayal(opened.judge)], request.images, request.specific_images, size, request.seed, ranks, side
        )
        if not engine.plan(engine.sets()):
            raise UserError("--prompts: there is no image to judge.")
        drawn.append((engine, engine.draw(model.sampler, out / "judged", engine.sets(), f"images of {model.name}")))
    return drawn
