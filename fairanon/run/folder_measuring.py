"""A folder of images that somebody else's program made, measured as an experiment measures its own."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from fairanon.batches import PromptRow
from fairanon.config.build import build
from fairanon.config.experiments import UserError, resolve
from fairanon.config.runs import runs_root, versions, working_on
from fairanon.config.settings import FairAnonCLI
from fairanon.engines import devices_of
from fairanon.evaluation import Measure
from fairanon.evaluation.engine import Engine
from fairanon.evaluation.image_folder import ImageFolder
from fairanon.files import TextError, content_key, write_json
from fairanon.metrics.functional.estimates import as_json
from fairanon.prompts import SETS, read_prompts
from fairanon.run.train_request import MeasureRequest, in_words

_log = logging.getLogger(__name__)
_THUMBNAIL = 128


def measure_folder(request: MeasureRequest, overlays: Sequence[str] = ()) -> Path:
    """Measure a folder of images, in any of the layouts of `ImageFolder`.

    A prompt that the experiment's own table has is of the set that it is of there, and asks for the same; others are what the
    folder's table says: prompts that name a class of what is counted are specific, all others neutral.

    Args:
        request: Which, and by which experiment.
        overlays: Of the experiment.

    Returns:
        The folder with ``metrics.json``: judges, and ``after`` with every number.

    Raises:
        UserError: No experiment is named, or it says nothing of measuring, or nothing in the folder is what its measures look at.
        TextError: A table of the folder is none.
    """
    if request.engine != "here" or request.share is not None or request.finish or "," in request.device:
        raise UserError(f"measure: {request.folder} is a folder of images; one process looks at them.")
    if not request.like:
        raise UserError(
            f"--like: {request.folder} is a folder of images; name the experiment whose measures it is to be measured by, "
            "for example fairhuman_sdxl_lora."
        )
    words = resolve(request.like, overlays, settings=in_words(request.settings)).words()
    evaluate = FairAnonCLI(words, build=False).config.get("evaluate")
    if evaluate is None:
        raise UserError(f"--like: {request.like} measures nothing; name another experiment.")
    settings = evaluate.init_args
    images = ImageFolder(request.folder, request.prompts, strict=True)
    if images.unused:
        _log.warning("%d images of %s are of no prompt and are left out", images.unused, request.folder)
    measures: list[Measure[Any]] = [build(node, Measure) for node in settings.measures]
    rows = _rows(images, settings.prompts, measures)
    (device,) = devices_of(request.device)[:1]
    for measure in measures:
        measure.to(torch.device(device))
    images.side = next(
        (judge.side for measure in measures for judge in vars(measure).values() if hasattr(judge, "side")), None
    )
    several = images.side is None and len(images.sizes()) > 1
    engine = Engine(rows, measures, batch_size=1 if several else settings.batch_size, thumbnail_side=_THUMBNAIL)
    if not engine.plan(engine.sets()):
        looked_at = sorted({name for measure in measures for name in measure.sets})
        raise UserError(
            f"measure: {request.like} looks at prompts of the sets {', '.join(looked_at)}; {request.folder} has none. "
            "A table of prompts may name the set of each; results beside their originals are measured by fairanon evaluate."
        )
    folder, chosen = request.folder.resolve(), [*map("--overlay={}".format, overlays), *in_words(request.settings)]
    chosen += [] if request.prompts is None else [f"--prompts={request.prompts}"]
    out = runs_root() / "measured" / f"{folder.name}-{content_key(str(folder), chosen)[:6]}" / request.like
    out.mkdir(parents=True, exist_ok=True)
    with working_on(out):
        samples = engine.judge(images, out / "judged", engine.sets(), f"images of {request.folder.name}")
        numbers = {key: value for estimates in engine.numbers(samples) for key, value in estimates.items()}
        judges = {what: name for measure in measures for what, name in measure.judges.items()}
        headline = [key for measure in measures for key in measure.headline(list(numbers))]
        result = {
            "folder": request.folder.resolve().name, "like": request.like, "versions": versions(), "settings": chosen, "judges": judges, "images": samples.count,
            "prompts": len(rows), "headline": list(dict.fromkeys(headline)), "after": as_json(numbers),
        }  # fmt: skip
        write_json(out / "metrics.json", result)
    return out


def _rows(images: ImageFolder, prompts: Any, measures: Sequence[Any]) -> list[PromptRow]:
    """The folder's prompts, as the experiment's own table has them where it does."""
    known = {row.prompt: row for row in read_prompts(Path(prompts))} if isinstance(prompts, str) else {}
    classes = {
        name: labels
        for measure in measures
        for name, labels in getattr(getattr(measure, "judge", None), "classes", {}).items()
    }
    expected = {name for measure in measures for name in getattr(measure, "expected", {})}
    groups = {name for measure in measures for name in getattr(measure, "attributes", ())}
    for column, where in images.differing.items():
        if column in {*classes, *expected}:
            raise TextError(where)
        _log.info("the column %s is left out: %s", column, where)
    rows = []
    for row in images.rows():
        if row.prompt in known:
            rows.append(replace(known[row.prompt], images=row.images))
            continue
        asked = {name: _said(row.prompt, name, value, classes, expected) for name, value in row.asked.items()}
        where = row.set or ("specific" if groups & asked.keys() else "neutral")
        if where not in SETS:
            raise TextError(f"measure: {row.prompt!r} is of the set {where!r}; accepted are {', '.join(SETS)}.")
        rows.append(replace(row, set=where, asked=asked))
    _tell(rows, known)
    return rows


def _said(prompt: str, name: str, value: str, classes: Mapping[str, Sequence[str]], expected: set[str]) -> str:
    """What a prompt asks for, as the judge calls it."""
    labels = {label.casefold(): label for label in classes.get(name, ())}
    if labels and value.casefold() not in labels:
        raise TextError(
            f"measure: {prompt!r} asks for the {name} {value!r}; the judge knows {', '.join(labels.values())}."
        )
    if name in expected and not value.isdecimal():
        raise TextError(f"measure: {prompt!r} asks for {value!r} of {name}; how many is a number.")
    return labels.get(value.casefold(), value)


def _tell(rows: Sequence[PromptRow], known: dict[str, PromptRow]) -> None:
    """Which of the experiment's prompts are missing, and which are others."""
    if known:
        shared = sum(row.prompt in known for row in rows)
        _log.info("%d of the experiment's %d prompts are there, and %d others", shared, len(known), len(rows) - shared)
