"""torchmetrics classes with functional twins; every result says how many images it could not judge.

The classes are imported when somebody asks for one: torchmetrics takes seconds, and the formulas need it not.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fairanon.metrics.classes import (
        AnonymizationAccuracy,
        DetectionConfidence,
        FairnessDiscrepancy,
        GroupAccuracy,
        IdentityRetrieval,
    )

__all__ = [
    "AnonymizationAccuracy",
    "DetectionConfidence",
    "FairnessDiscrepancy",
    "GroupAccuracy",
    "IdentityRetrieval",
]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from fairanon.metrics import classes

    return getattr(classes, name)
