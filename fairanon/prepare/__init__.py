"""What a model or a judge makes before training."""

from fairanon.prepare.base import Preparation
from fairanon.prepare.class_images import ClassImages
from fairanon.prepare.population_preferences import PopulationSets
from fairanon.prepare.preference_pairs import PreferencePairs
from fairanon.prepare.regions import FaceMasks, RegionMasks

__all__ = ["ClassImages", "FaceMasks", "PopulationSets", "PreferencePairs", "Preparation", "RegionMasks"]
