"""Where numbers, pictures and provenance leave."""

from fairanon.callbacks.anonymization import Anonymization
from fairanon.callbacks.evaluate import Evaluate
from fairanon.callbacks.measures import Population
from fairanon.callbacks.ratings import Ratings
from fairanon.callbacks.region_quality import RegionQuality
from fairanon.callbacks.run_record import RunRecord

__all__ = ["Anonymization", "Evaluate", "Population", "Ratings", "RegionQuality", "RunRecord"]
