"""The images of an audit: models, judge and prompts are opened, and what was not judged yet is drawn and judged, on every device."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from fairanon.anonymizer.judges import judge as build_judge
from fairanon.anonymizer.judges import judges
from fairanon.auditor.audit_request import AuditRequest
from fairanon.auditor.models import Model, check_names, open_model, prompts_of
from fairanon.batches import PromptRow
from fairanon.config.experiments import UserError
from fairanon.engines import Task, Tell, Work
from fairanon.evaluation.engine import Drawn, Engine, Ranks
from fairanon.evaluation.image_folder import ImageFolder
from fairanon.evaluation.portrayal import Portrayal
from fairanon.protocols import AttributeClassifier, Scorer

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
        scorers: What else rates the images.
        attributes: What is counted.
        rows: The prompts of each model.
    """

    models: list[Model]
    which: str
    judge: AttributeClassifier
    scorers: list[Scorer]
    attributes: tuple[str, ...]
    rows: list[list[PromptRow]]

    def put_aside(self) -> None:
        """Move the models off their device, whose memory others need."""
        for model in self.models:
            sampler = getattr(model.sampler, "sampler", model.sampler)  # of one that is steered
            for network in (getattr(sampler, "method", None), getattr(sampler, "backbone", None)):
                if isinstance(network, nn.Module):
                    network.to("cpu")
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


def open_all(request: AuditRequest, device: str) -> Opened:
    """Find and load what a request names.

    Args:
        request: What is wanted.
        device: Where models work.

    Raises:
        UserError: Something is not there, or does not fit.
    """
    check_names(request)
    models = [open_model(request.model, request, device)]
    if request.compare:
        models.append(open_model(request.compare, request, device, steers=False))
    _tell_apart(models)
    which = request.judge or ("tiny_attributes" if all(model.drawn for model in models) else "race_popalign")
    judge: AttributeClassifier = build_judge(which, "--judge")
    if not hasattr(judge, "classify"):
        raise UserError(f"--judge: {which} says nothing of people's appearance; take another one.")
    attributes = _attributes(request, judge)
    scorers = judges(request.scorers, "--scorers", ("score",)) if request.scorers else []
    return Opened(models, which, judge, scorers, attributes, prompts_of(request, models, judge.classes, attributes))


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


def draw_all(opened: Opened, request: AuditRequest, out: Path, ranks: Ranks) -> list[tuple[Engine, Drawn]]:
    """Draw or read, and judge, what was not judged before: an engine and where its images' judgements are, for each model.

    Args:
        opened: What is audited.
        request: What is wanted.
        out: The audit's folder.
        ranks: Which share of the batches.

    Raises:
        UserError: There is no image to judge.
    """
    drawn = []
    for model, rows in zip(opened.models, opened.rows, strict=True):
        size, side = request.batch_size, None
        if isinstance(model.sampler, ImageFolder) and len(model.sampler.sizes()) > 1:
            size, side = 1, _THUMBNAIL
        engine = Engine(
            rows,
            [Portrayal(opened.judge, opened.scorers)],
            request.images,
            request.specific_images,
            size,
            request.seed,
            ranks,
            side,
        )
        if not engine.plan(engine.sets()):
            raise UserError("--prompts: there is no image to judge.")
        drawn.append((engine, engine.draw(model.sampler, out / "judged", engine.sets(), f"images of {model.name}")))
    return drawn


def shares(request: AuditRequest, out: Path, device: str, stack: ExitStack) -> Work:
    """Who draws and judges shares of the batches, see `fairanon.engines.Start`."""
    del stack  # nothing is to be undone
    opened = open_all(request, device)

    def work(task: Task, tell: Tell) -> None:
        draw_all(opened, request, out, Ranks(*task.about))
        tell("done", False)

    return work
