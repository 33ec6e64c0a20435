"""torchmetrics classes with functional twins; every result says how many images it could not judge.

The classes are imported when somebody asks for one: torchmetrics takes seconds, and the formulas need it not.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fairanon.metrics.anonymization import AnonymizationAccuracy, GroupAccuracy
    from fairanon.metrics.detection import DetectionConfidence
    from fairanon.metrics.discrepancy import FairnessDiscrepancy
    from fairanon.metrics.retrieval import IdentityRetrieval

__all__ = [
    "AnonymizationAccuracy",
    "DetectionConfidence",
    "FairnessDiscrepancy",
    "GroupAccuracy",
    "IdentityRetrieval",
]
_MODULES = {
    "AnonymizationAccuracy": "anonymization", "DetectionConfidence": "detection", "FairnessDiscrepancy": "discrepancy",
    "GroupAccuracy": "anonymization", "IdentityRetrieval": "retrieval",
}  # fmt: skip


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
