"""What a model or a judge makes before training."""

from fairanon.prepare.base import Preparation
from fairanon.prepare.population_preferences import PopulationPreferences

__all__ = ["PopulationPreferences", "Preparation"]
