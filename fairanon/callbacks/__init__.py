"""Where numbers, pictures and provenance leave."""

from fairanon.callbacks.anonymization import Anonymization
from fairanon.callbacks.evaluate import Evaluate
from fairanon.callbacks.identity_removal import IdentityRemoval
from fairanon.callbacks.measures import Population
from fairanon.callbacks.ratings import Ratings
from fairanon.callbacks.region_quality import RegionQuality
from fairanon.callbacks.run_record import RunRecord

__all__ = ["Anonymization", "Evaluate", "IdentityRemoval", "Population", "Ratings", "RegionQuality", "RunRecord"]
