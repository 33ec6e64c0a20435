"""torchmetrics classes with functional twins; every result says how many images it could not judge."""

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
