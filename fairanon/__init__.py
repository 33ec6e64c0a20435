"""fairanon: fair and private face generation with PyTorch Lightning.

>>> import fairanon
>>> request = fairanon.AnonymizeRequest("photographs", "hidden")
>>> request.method
'mask'
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from fairanon.anonymizer.anonymizing import AnonymizeResult
    from fairanon.anonymizer.calibrate import CalibrateResult
    from fairanon.anonymizer.compare import EvaluateResult
    from fairanon.anonymizer.request import AnonymizeRequest, CalibrateRequest, EvaluateRequest
    from fairanon.api import RunResult, anonymize, audit, calibrate, evaluate, load_run, measure, rehearse, train
    from fairanon.auditor.audit_request import AuditRequest
    from fairanon.auditor.auditing import AuditResult
    from fairanon.config.experiments import UserError
    from fairanon.run.train_request import MeasureRequest, TrainRequest

_WHERE = {
    "AnonymizeRequest": "anonymizer.request", "AuditRequest": "auditor.audit_request", "AuditResult": "auditor.auditing", "CalibrateRequest": "anonymizer.request", "EvaluateRequest": "anonymizer.request",
    "MeasureRequest": "run.train_request", "TrainRequest": "run.train_request", "UserError": "config.experiments",
    "AnonymizeResult": "anonymizer.anonymizing", "CalibrateResult": "anonymizer.calibrate", "EvaluateResult": "anonymizer.compare",
    "RunResult": "api", "anonymize": "api", "audit": "api", "calibrate": "api", "evaluate": "api", "load_run": "api", "measure": "api",
    "rehearse": "api", "train": "api",
}  # fmt: skip

__all__ = [
    "AnonymizeRequest", "AnonymizeResult", "AuditRequest", "AuditResult", "CalibrateRequest", "CalibrateResult", "EvaluateRequest", "EvaluateResult",
    "MeasureRequest", "RunResult", "TrainRequest", "UserError", "anonymize", "audit", "calibrate", "evaluate", "load_run", "measure",
    "rehearse", "train",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    """The Python door; what a name needs is imported when it is first used."""
    if name not in _WHERE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f"{__name__}.{_WHERE[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
