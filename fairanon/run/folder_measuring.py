"""A folder of images that somebody else's program made, measured as an experiment measures its own."""

from __future__ import annotations

import logging
from collections.abc import Sequence
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
from fairanon.evaluation.image_folder import ImageFolder, is_image_folder
from fairanon.files import content_key, write_json
from fairanon.metrics.functional.estimates import as_json
from fairanon.prompts import SETS, read_prompts
from fairanon.run.train_request import MeasureRequest, in_words

_log = logging.getLogger(__name__)
_THUMBNAIL = 128


def is_somebodys(folder: Path) -> bool:
    """Whether a folder has images and is no run."""
    return is_image_folder(folder) and not (folder / "config.yaml").exists()


def measure_folder(request: MeasureRequest, overlays: Sequence[str] = ()) -> Path:
    """Measure a folder of images, in any of the layouts of `ImageFolder`.

    A prompt that the experiment's own table has is of the set that it is of there, and asks for the same; others are what the
    folder's table says, or neutral.

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
    images = ImageFolder(request.folder, request.prompts)
    if images.unused:
        _log.warning("%d images of %s are of no prompt and are left out", images.unused, request.folder)
    rows = _rows(images, settings.prompts)
    measures: list[Measure[Any]] = [build(node, Measure) for node in settings.measures]
    _check_columns(rows, measures)
    (device,) = devices_of(request.device)[:1]
    for measure in measures:
        measure.to(torch.device(device))
    several = len(images.sizes()) > 1
    engine = Engine(rows, measures, batch_size=1 if several else settings.batch_size, thumbnail_side=_THUMBNAIL)
    if not engine.plan(engine.sets()):
        looked_at = sorted({name for measure in measures for name in measure.sets})
        raise UserError(
            f"measure: {request.like} looks at prompts of the sets {', '.join(looked_at)}; {request.folder} has none."
        )
    out = (
        runs_root()
        / "measured"
        / f"{request.folder.resolve().name}-{content_key(str(request.folder.resolve()))[:6]}"
        / request.like
    )
    out.mkdir(parents=True, exist_ok=True)
    with working_on(out):
        samples = engine.judge(images, out / "judged", engine.sets(), f"images of {request.folder.name}")
        numbers = {key: value for estimates in engine.numbers(samples) for key, value in estimates.items()}
        judges = {what: name for measure in measures for what, name in measure.judges.items()}
        headline = [key for measure in measures for key in measure.headline(list(numbers))]
        result = {
            "folder": request.folder.resolve().name, "like": request.like, "versions": versions(), "judges": judges, "images": samples.count,
            "prompts": len(rows), "headline": list(dict.fromkeys(headline)), "after": as_json(numbers),
        }  # fmt: skip
        write_json(out / "metrics.json", result)
    return out


def _rows(images: ImageFolder, prompts: Any) -> list[PromptRow]:
    """The folder's prompts, as the experiment's own table has them where it does."""
    known = {row.prompt: row for row in read_prompts(Path(prompts))} if isinstance(prompts, str) else {}
    rows = []
    for row in images.rows():
        own = known.get(row.prompt)
        if own is not None:
            row = replace(own, images=row.images)
        elif row.set and row.set not in SETS:
            raise UserError(f"measure: {row.prompt!r} is of the set {row.set!r}; accepted are {', '.join(SETS)}.")
        rows.append(row if row.set else replace(row, set="neutral"))
    _tell(rows, known)
    return rows


def _check_columns(rows: Sequence[PromptRow], measures: Sequence[Any]) -> None:
    """Refuse what a prompt asks for and no judge knows, before anything is judged."""
    for measure in measures:
        classes, expected = getattr(getattr(measure, "judge", None), "classes", {}), getattr(measure, "expected", {})
        for row, name in ((one, column) for one in rows for column in one.asked):
            value = row.asked[name]
            if name in classes and value not in classes[name]:
                raise UserError(
                    f"measure: {row.prompt!r} asks for the {name} {value!r}; {measure.judge.name} knows {', '.join(classes[name])}."
                )
            if name in expected and not value.isdigit():
                raise UserError(f"measure: {row.prompt!r} asks for {value!r} of {name}; how many is a number.")


def _tell(rows: Sequence[PromptRow], known: dict[str, PromptRow]) -> None:
    """Which of the experiment's prompts are missing, and which are others."""
    if known:
        shared = sum(row.prompt in known for row in rows)
        _log.info("%d of the experiment's %d prompts are there, and %d others", shared, len(known), len(rows) - shared)
