"""A finished run, measured again."""

from __future__ import annotations

import logging
import re
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from fairanon.callbacks.evaluate import Evaluate
from fairanon.config.experiments import UserError
from fairanon.config.runs import find_settings
from fairanon.config.settings import FairAnonCLI
from fairanon.engines import Start, Task, Tell, Work, devices_of, in_shares
from fairanon.evaluation import Ranks
from fairanon.evaluation.image_folder import is_image_folder
from fairanon.methods.base import DiffusionMethod
from fairanon.methods.load import load_into
from fairanon.mirror import kept
from fairanon.run.folder_measuring import measure_folder
from fairanon.run.train_request import MeasureRequest, in_words

_log = logging.getLogger(__name__)


@dataclass
class _Run:
    """What is measured.

    Attributes:
        folder: Of the numbers.
        name: The experiment's.
        parsed: Its configuration, with data.
        method: What was trained.
        evaluate: How it is measured.
    """

    folder: Path
    name: str
    parsed: FairAnonCLI
    method: DiffusionMethod
    evaluate: Evaluate


def measure(request: MeasureRequest) -> Path:
    """Measure what a run trained.

    Args:
        request: Which, and how.

    Returns:
        The folder with ``metrics.json`` and the report; without them after a part. Of a folder of images see `measure_folder`.

    Raises:
        UserError: It is no finished run, or says nothing of measuring.
    """
    if (request.like or request.prompts) and not request.folder.exists():
        raise UserError(f"measure: {request.folder} is missing; name a folder of images.")
    if is_image_folder(request.folder):
        return measure_folder(request)
    if request.like or request.prompts:
        raise UserError(
            f"--like, --prompts: {request.folder} is no folder of images; put some there, or leave both out to measure a run."
        )
    run = _opened(request)
    begun = run.folder.exists()
    run.folder.mkdir(parents=True, exist_ok=True)
    with kept(run.folder):
        if request.finish and not begun and not (run.folder / "judged").exists():
            raise UserError(f"--finish: nothing was begun in {run.folder}; begin with --part, or leave --finish out.")
        _measure(request, run)
    return run.folder


def _measure(request: MeasureRequest, run: _Run) -> None:
    devices = devices_of(request.device, on_the_cpu=run.parsed.config.trainer.accelerator == "cpu")
    if request.engine != "here" or len(devices) > 1:
        in_shares(Start(_shares, (request,)), request.engine, devices, request.device, request.share, "measured")
    elif request.share is not None:
        run.method.to(devices[0])
        most = run.evaluate.draw(run.method, run.folder, Ranks(request.share[0] - 1, request.share[1]))
        if request.share[0] > most:
            _log.warning("part %s: no batch falls to it; take at most %d parts", request.part, most)
    if request.share is None:
        run.method.to(devices[0])
        run.evaluate.finish(run.method, run.parsed.datamodule, run.folder, run.name, Ranks())


def _opened(request: MeasureRequest) -> _Run:
    settings = in_words(request.settings)
    source, words = find_settings(request.folder, settings)
    parsed = FairAnonCLI(words)
    model = load_into(parsed.model, source)
    evaluate = parsed.config_init.get("evaluate")
    if not isinstance(evaluate, Evaluate):
        raise UserError(f"{source} has no `evaluate` in its configuration; add it to the experiment.")
    evaluate.stages = {}  # those of other runs were measured with other settings
    changed = [re.sub(r"[^\w+.=-]", "_", word.removeprefix("--").removeprefix("evaluate.")) for word in settings]
    folder = source / f"measure-{'-'.join(changed) or evaluate.engine.images}".replace("=", "-")[:120]
    return _Run(folder, source.parent.name, parsed, model, evaluate)


def _shares(request: MeasureRequest, device: str, stack: ExitStack) -> Work:
    """Who draws and judges shares of the images, see `fairanon.engines.Start`."""
    del stack  # nothing is to be undone
    run = _opened(request)
    run.method.to(device)

    def work(task: Task, tell: Tell) -> None:
        run.evaluate.draw(run.method, run.folder, Ranks(*task.about))
        tell("done", False)

    return work
