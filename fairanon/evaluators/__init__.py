"""Judges behind small protocols: third-party ones and the embedded world's own."""

from fairanon.evaluators.asked import AskedAttributes
from fairanon.evaluators.description import FaceDescription
from fairanon.evaluators.dlib_centerface import CenterFaceDetector, DlibEmbedder
from fairanon.evaluators.geometry import HopeNetPose, JoinedGeometry, MediaPipeGeometry
from fairanon.evaluators.inception import InceptionFeatures
from fairanon.evaluators.insight_face import (
    InsightFaceDetector,
    InsightFaceEmbedder,
    InsightFaceGeometry,
    OnnxEmbedder,
)
from fairanon.evaluators.judge import Judge
from fairanon.evaluators.listed import ListedAttributes
from fairanon.evaluators.parsers import FacexlibParser, PointRendParser
from fairanon.evaluators.people import JoinedDetectors, MediaPipePeople
from fairanon.evaluators.recognizers import ConvNextFeatures, FacexlibArcFace, TinyFeatureMaps, TinyRecognizer
from fairanon.evaluators.scorers import ImageReward, LaionAesthetics, Musiq, OpenClipScore, PickScore
from fairanon.evaluators.skin import SkinTone
from fairanon.evaluators.tiny import (
    TinyAttributes,
    TinyBackground,
    TinyDetector,
    TinyEmbedder,
    TinyGeometry,
    TinyPerceptual,
)
from fairanon.evaluators.zero_shot import Couples, GroundingDinoDetector, OpenClipAttributes

__all__ = [
    "AskedAttributes",
    "CenterFaceDetector",
    "ConvNextFeatures",
    "Couples",
    "DlibEmbedder",
    "FaceDescription",
    "FacexlibArcFace",
    "FacexlibParser",
    "GroundingDinoDetector",
    "HopeNetPose",
    "ImageReward",
    "InceptionFeatures",
    "InsightFaceDetector",
    "InsightFaceEmbedder",
    "InsightFaceGeometry",
    "JoinedDetectors",
    "JoinedGeometry",
    "Judge",
    "LaionAesthetics",
    "ListedAttributes",
    "MediaPipeGeometry",
    "MediaPipePeople",
    "Musiq",
    "OnnxEmbedder",
    "OpenClipAttributes",
    "OpenClipScore",
    "PickScore",
    "PointRendParser",
    "SkinTone",
    "TinyAttributes",
    "TinyBackground",
    "TinyDetector",
    "TinyEmbedder",
    "TinyFeatureMaps",
    "TinyGeometry",
    "TinyPerceptual",
    "TinyRecognizer",
]
