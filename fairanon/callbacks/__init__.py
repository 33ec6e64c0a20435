"""Where numbers, pictures and provenance leave."""

from fairanon.callbacks.evaluate import Evaluate
from fairanon.callbacks.run_record import RunRecord

__all__ = ["Evaluate", "RunRecord"]
