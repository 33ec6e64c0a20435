"""The methods, one LightningModule each."""

from fairanon.methods.adjusted import AdjustedFineTuning
from fairanon.methods.ano_face_fair import AnoFaceFair
from fairanon.methods.base_model import BaseModel
from fairanon.methods.concept_editing import ConceptEditing
from fairanon.methods.face_segmenter import FaceSegmenter
from fairanon.methods.fairhuman import FairHuman
from fairanon.methods.id2face import ID2Face
from fairanon.methods.inclusive_tokens import InclusiveTokens
from fairanon.methods.popalign import PopAlign
from fairanon.methods.popalign_gaussian import PopAlignGaussian
from fairanon.methods.preference import PairwisePreference
from fairanon.methods.step_preference import StepPreference

__all__ = [
    "AdjustedFineTuning",
    "AnoFaceFair",
    "BaseModel",
    "ConceptEditing",
    "FaceSegmenter",
    "FairHuman",
    "ID2Face",
    "InclusiveTokens",
    "PairwisePreference",
    "PopAlign",
    "PopAlignGaussian",
    "StepPreference",
]
