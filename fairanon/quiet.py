"""Libraries' remarks about things that are meant to be so: they would bury our own lines."""

from __future__ import annotations

import logging
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

from fairanon.progress import shown

_LOUD = (
    "lightning.pytorch", "lightning.fabric", "lightning.pytorch.utilities.rank_zero", "lightning.fabric.utilities.rank_zero",
    "lightning.fabric.utilities.seed", "lightning.pytorch.utilities.seed",
)  # fmt: skip
"""Those below the first two are named too: whoever imports Lightning later sets the levels of these."""
_MEANT_TO_BE = (
    "LightningCLI's args parameter is intended",
    "Experiment logs directory",  # `_csv_logger` keeps the old rows
    r"Found \d+ module\(s\) in eval mode",  # the frozen ones
    ".*isinstance.treespec, LeafSpec",  # between Lightning and torch
    "You defined a `validation_step` but have no `val_dataloader`",
    "You're resuming from a checkpoint that ended before the epoch",  # `StepSampler` begins where it stood
)


@contextmanager
def quiet() -> Iterator[None]:
    """Inside, libraries keep such remarks to themselves; their own progress bars are shown if ours are.

    Afterwards everything is as it was.
    """
    levels = {name: logging.getLogger(name).level for name in _LOUD}
    for name in _LOUD:
        logging.getLogger(name).setLevel(logging.WARNING)
    with warnings.catch_warnings(), _bars_as_ours():
        warnings.filterwarnings("ignore", module="torchmetrics")
        for message in _MEANT_TO_BE:
            warnings.filterwarnings("ignore", message=message)
        try:
            yield
        finally:
            for name, level in levels.items():
                logging.getLogger(name).setLevel(level)


@contextmanager
def _bars_as_ours() -> Iterator[None]:
    if shown() or "torch" not in sys.modules:
        yield
        return
    from transformers.utils import logging as loading

    were = loading.is_progress_bar_enabled()
    loading.disable_progress_bar()
    try:
        yield
    finally:
        if were:
            loading.enable_progress_bar()
