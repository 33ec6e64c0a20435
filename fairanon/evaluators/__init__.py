"""Judges behind small protocols: third-party ones and the embedded world's own."""

from fairanon.evaluators.asked import AskedAttributes
from fairanon.evaluators.insight_face import InsightFaceDetector, InsightFaceEmbedder
from fairanon.evaluators.parsers import FacexlibParser, PointRendParser
from fairanon.evaluators.people import JoinedDetectors, MediaPipePeople
from fairanon.evaluators.scorers import ImageReward, LaionAesthetics, OpenClipScore, PickScore
from fairanon.evaluators.tiny import TinyAttributes, TinyDetector, TinyEmbedder, TinyGeometry, TinyPerceptual
from fairanon.evaluators.zero_shot import Couples, GroundingDinoDetector, OpenClipAttributes

__all__ = [
    "AskedAttributes",
    "Couples",
    "FacexlibParser",
    "GroundingDinoDetector",
    "ImageReward",
    "InsightFaceDetector",
    "InsightFaceEmbedder",
    "JoinedDetectors",
    "LaionAesthetics",
    "MediaPipePeople",
    "OpenClipAttributes",
    "OpenClipScore",
    "PickScore",
    "PointRendParser",
    "TinyAttributes",
    "TinyDetector",
    "TinyEmbedder",
    "TinyGeometry",
    "TinyPerceptual",
]
