"""Judges behind small protocols: third-party ones and the embedded world's own."""

from fairanon.evaluators.tiny import TinyAttributes, TinyDetector, TinyEmbedder, TinyGeometry
from fairanon.evaluators.zero_shot import Couples, GroundingDinoDetector, InsightFaceDetector, OpenClipAttributes

__all__ = [
    "Couples",
    "GroundingDinoDetector",
    "InsightFaceDetector",
    "OpenClipAttributes",
    "TinyAttributes",
    "TinyDetector",
    "TinyEmbedder",
    "TinyGeometry",
]
