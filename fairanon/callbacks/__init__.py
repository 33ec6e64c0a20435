"""Where numbers, images and provenance leave."""

from fairanon.callbacks.evaluate import Evaluate
from fairanon.callbacks.results import Results
from fairanon.callbacks.run_record import RunRecord

__all__ = ["Evaluate", "Results", "RunRecord"]
