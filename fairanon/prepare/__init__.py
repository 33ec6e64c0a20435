"""What a model or a judge makes before training."""

from fairanon.prepare.base import Preparation
from fairanon.prepare.class_images import ClassImages
from fairanon.prepare.image_masks import FaceMasks, RegionMasks
from fairanon.prepare.population_sets import PopulationSets
from fairanon.prepare.preference_pairs import PreferencePairs

__all__ = ["ClassImages", "FaceMasks", "PopulationSets", "PreferencePairs", "Preparation", "RegionMasks"]
