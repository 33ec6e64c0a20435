"""Where numbers, images and provenance leave."""

from fairanon.callbacks.dashboard import Dashboard, Described
from fairanon.callbacks.evaluate import Evaluate
from fairanon.callbacks.results import Results
from fairanon.callbacks.run_record import RunRecord

__all__ = ["Dashboard", "Described", "Evaluate", "Results", "RunRecord"]
