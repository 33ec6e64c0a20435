"""A finished run, measured again."""

from __future__ import annotations

import re
from pathlib import Path

from fairanon.callbacks.evaluate import Evaluate
from fairanon.config.experiments import UserError
from fairanon.config.runs import find_settings
from fairanon.config.settings import FairAnonCLI, device_of
from fairanon.evaluation import Ranks
from fairanon.methods.load import load_into
from fairanon.run.train_request import MeasureRequest, in_words


def measure(request: MeasureRequest) -> Path:
    """Measure what a run trained.

    Args:
        request: Which, and how.

    Returns:
        The folder with ``metrics.json`` and the report.

    Raises:
        UserError: It is no finished run, or says nothing of measuring.
    """
    settings = in_words(request.settings)
    source, words = find_settings(request.folder, settings)
    parsed = FairAnonCLI(words)
    model = load_into(parsed.model, source)
    evaluate = parsed.config_init.get("evaluate")
    if not isinstance(evaluate, Evaluate):
        raise UserError(f"{source} has no `evaluate` in its configuration; add it to the experiment.")
    evaluate.stages = {}  # those of other runs were measured with other settings
    changed = [re.sub(r"[^\w+.=-]", "_", word.removeprefix("--").removeprefix("evaluate.")) for word in settings]
    folder = source / f"measure-{'-'.join(changed) or evaluate.engine.images}".replace("=", "-")[:120]
    folder.mkdir(parents=True, exist_ok=True)
    model.to(device_of(parsed.config))
    evaluate.finish(model, parsed.datamodule, folder, source.parent.name, Ranks())
    return folder
