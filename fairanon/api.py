"""What three lines of Python can do: all that the command line can, by the same requests.

``import fairanon`` gives these names and loads nothing heavy before one is used.
"""

from __future__ import annotations

import json
import os
import random
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fairanon.anonymizer import anonymizing, compare
from fairanon.anonymizer import calibrate as _calibrate
from fairanon.anonymizer.anonymizing import AnonymizeResult
from fairanon.anonymizer.calibrate import CalibrateResult
from fairanon.anonymizer.compare import EvaluateResult
from fairanon.anonymizer.request import AnonymizeRequest, CalibrateRequest, EvaluateRequest
from fairanon.auditor import auditing
from fairanon.auditor.audit_request import AuditRequest
from fairanon.auditor.auditing import AuditResult
from fairanon.config.failures import as_user_error
from fairanon.methods import load
from fairanon.methods.base import DiffusionMethod
from fairanon.progress import progress as bars
from fairanon.quiet import quiet
from fairanon.run import measuring, rehearsal, training
from fairanon.run.train_request import MeasureRequest, TrainRequest


@dataclass(frozen=True)
class RunResult:
    """A finished run, or a measuring of one.

    Attributes:
        folder: Its folder, with ``report.html``.
        metrics: What its ``metrics.json`` says: "before" and "after", each number by its key with interval, n and missing;
            {} of a run that is not measured.
    """

    folder: Path
    metrics: dict[str, Any]


def train(request: TrainRequest, progress: bool = True) -> RunResult:
    """Prepare the data, train an experiment, measure it before and after, write the report; an unfinished run goes on.

    Args:
        request: What.
        progress: Show progress bars.

    Raises:
        UserError: Something is missing or makes no sense; the sentence says what to do.

    Examples:
        >>> fairanon.train(fairanon.TrainRequest("popalign_gaussian"), progress=False).folder  # doctest: +SKIP
        PosixPath('runs/popalign_gaussian/20261129-120000')
    """
    with _asked(progress):
        return _result(training.train(request.experiment(), request.fresh, request.log, request.log_images))


def rehearse(request: TrainRequest, progress: bool = True) -> None:
    """Go through an experiment at minimum counts and print what the whole will take; arguments and errors as `train`."""
    with _asked(progress):
        rehearsal.rehearse(request.experiment())


def measure(request: MeasureRequest, progress: bool = True) -> RunResult:
    """Measure a finished run again; arguments and errors as `train`."""
    with _asked(progress):
        folder = measuring.measure(request)
        return _result(folder) if request.part is None else RunResult(folder, {})


def load_run(
    folder: str | Path, device: str | torch.device = "cpu", progress: bool = True
) -> DiffusionMethod:  # fmt: skip
    """The model that a finished run trained; see `fairanon.methods.load.load_run`.

    Raises:
        UserError: There is no such run, or it has not finished.
    """
    with _asked(progress):
        return load.load_run(folder, device)


def anonymize(request: AnonymizeRequest, progress: bool = True) -> AnonymizeResult:
    """Hide the faces of photographs, test each with a recognizer, and say which may be published.

    Args:
        request: What.
        progress: Show progress bars.

    Returns:
        ``complete`` is true if nobody has to look at anything; ``published`` is the folder of what may be published.

    Raises:
        UserError: Something is missing or makes no sense; the sentence says what to do.
    """
    with _asked(progress):
        return anonymizing.anonymize(request)


def evaluate(request: EvaluateRequest, progress: bool = True) -> EvaluateResult:
    """Compare originals with what anybody's anonymizer made of them; arguments and errors as `anonymize`."""
    with _asked(progress):
        return compare.evaluate(request)


def audit(request: AuditRequest, progress: bool = True) -> AuditResult:
    """Count how a text-to-image model, or a folder of its images, portrays people; arguments and errors as `anonymize`."""
    with _asked(progress):
        return auditing.audit(request)


def calibrate(request: CalibrateRequest, progress: bool = True) -> CalibrateResult:
    """Find the distance above which a recognizer takes two faces for two people; arguments and errors as `anonymize`."""
    with _asked(progress):
        return _calibrate.calibrate(request)


@contextmanager
def _asked(progress: bool) -> Iterator[None]:
    """Errors in sentences, bars or none, and the host program as it was: environment and random numbers too."""
    with _ONE_AT_A_TIME, as_user_error(), bars(progress), quiet(), _undisturbed():
        yield


_ONE_AT_A_TIME = threading.RLock()
"""What libraries keep for a whole process (levels of their logs, resolvers) would be another call's: threads take turns."""


@contextmanager
def _undisturbed() -> Iterator[None]:
    environment, drawn, numbers = dict(os.environ), random.getstate(), np.random.get_state()
    with torch.random.fork_rng((torch.cuda.is_available() and list(range(torch.cuda.device_count()))) or []):
        try:
            yield
        finally:
            os.environ.clear()
            os.environ.update(environment)
            random.setstate(drawn)
            np.random.set_state(numbers)


def _result(folder: Path) -> RunResult:
    path = folder / "metrics.json"
    return RunResult(folder, json.loads(path.read_text()) if path.exists() else {})
