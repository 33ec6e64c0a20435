"""What a model or a judge makes before training."""

from fairanon.prepare.base import Preparation
from fairanon.prepare.population_preferences import PopulationPreferences
from fairanon.prepare.regions import RegionMasks

__all__ = ["PopulationPreferences", "Preparation", "RegionMasks"]
