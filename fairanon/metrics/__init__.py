"""torchmetrics classes with functional twins; every result says how many images it could not judge."""

from fairanon.metrics.detection import DetectionConfidence
from fairanon.metrics.discrepancy import FairnessDiscrepancy
from fairanon.metrics.recall import AttributeRecall

__all__ = ["AttributeRecall", "DetectionConfidence", "FairnessDiscrepancy"]
