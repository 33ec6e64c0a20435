"""The engine that measures: it samples or reads images, has them judged once, and makes numbers of judgements."""

from fairanon.evaluation.anonymization import Anonymization
from fairanon.evaluation.engine import Engine, Ranks, Samples
from fairanon.evaluation.evaluation import Evaluation, Look
from fairanon.evaluation.identity_retrieval import Retrieval
from fairanon.evaluation.image_folder import ImageFolder
from fairanon.evaluation.measure import Measure
from fairanon.evaluation.population import Population
from fairanon.evaluation.portrayal import Portrayal
from fairanon.evaluation.preservation import Preservation
from fairanon.evaluation.ratings import Ratings
from fairanon.evaluation.region_quality import RegionQuality
from fairanon.evaluation.samplers import BackboneSampler, MethodSampler

__all__ = [
    "Anonymization",
    "BackboneSampler",
    "Engine",
    "Evaluation",
    "ImageFolder",
    "Look",
    "Measure",
    "MethodSampler",
    "Population",
    "Portrayal",
    "Preservation",
    "Ranks",
    "Ratings",
    "RegionQuality",
    "Retrieval",
    "Samples",
]
