"""What the summing up of an audit takes: judgements of a stand-in judge, everything after them as in `fairanon audit`.

python benchmarks/audit_size.py [--prompts 100] [--images 100] [--json]
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from common import own_peak

from fairanon.auditor import auditing
from fairanon.auditor.audit_page import write_page
from fairanon.auditor.audit_request import AuditRequest
from fairanon.auditor.models import Model
from fairanon.auditor.sentences import sentences
from fairanon.auditor.sides import Targets
from fairanon.batches import PromptRow
from fairanon.evaluation.confusions import Errors
from fairanon.evaluation.engine import THUMBNAILS, Drawn, Samples
from fairanon.evaluation.observed import Judged
from fairanon.evaluation.portrayal import Portrayed
from fairanon.files import write_json
from fairanon.metrics.functional.confusion import Confusion

CLASSES = {"gender": ("man", "woman"), "tone": ("1", "2", "3", "4", "5", "6")}
FEATURES = 64


CHUNK = 32


class StandIn:
    """A judge who says what it was told to say, and what is kept of it."""

    name, classes = "stand-in", CLASSES

    def __init__(self, rows: list[PromptRow], images: int) -> None:
        self.rows, self.images = rows, images

    def parts(self, drawn: Drawn) -> Iterator[Samples]:
        """As `Engine.parts`: chunks of prompts that differ in whom they show."""
        generator, prompts = torch.Generator().manual_seed(0), len(self.rows)
        leaning = {name: torch.randn(prompts, len(classes), generator=generator) for name, classes in CLASSES.items()}
        for first in range(0, drawn.count, CHUNK):
            prompt = torch.arange(first, min(first + CHUNK, drawn.count)) // self.images
            probabilities: dict[str, torch.Tensor] = {}
            for name in CLASSES:
                rows = leaning[name][prompt]
                probabilities[name] = (3 * (rows + torch.randn(rows.shape, generator=generator))).softmax(1)
                probabilities[name][torch.rand(len(prompt), generator=generator) < 0.05] = torch.nan
            features = torch.randn(len(prompt), FEATURES, generator=generator)
            seen = Judged(
                self.rows, prompt, Portrayed(probabilities, torch.zeros(len(prompt), dtype=torch.bool), features)
            )
            new = prompt[
                torch.arange(first, first + len(prompt)) % self.images < THUMBNAILS
            ]  # as the engine keeps them
            yield Samples([seen], 0, torch.zeros(len(new), 3, 64, 64, dtype=torch.uint8), new)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--prompts", type=int, default=100)
    parser.add_argument("--images", type=int, default=100)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    rows = [PromptRow(f"prompt {k}", "neutral", {}) for k in range(arguments.prompts)]
    count = arguments.prompts * arguments.images
    wrong = {
        name: Confusion(torch.full((len(classes),) * 2, 10.0) + torch.eye(len(classes)) * 400)
        for name, classes in CLASSES.items()
    }
    errors = Errors(wrong, dict.fromkeys(CLASSES, "taken out"))
    judge: Any = StandIn(rows, arguments.images)
    model, drawn = Model("stand-in", judge, rows, drawn=False, told={}), Drawn(Path(), -(-count // CHUNK), count)
    request = AuditRequest("tiny", images=arguments.images)

    def summed_up() -> None:
        with tempfile.TemporaryDirectory() as folder:
            out = Path(folder)
            with auditing._images(out / "images.csv", rows, CLASSES, []) as tell:
                seen = auditing._counted(model, judge, drawn, judge, list(CLASSES), {}, tell)
            result = auditing._found(request, [seen], judge, CLASSES, Targets({}), errors, {})
            write_json(out / "audit.json", result)
            auditing._write_shares(out / "shares.csv", result, rows)
            write_page(out, result, sentences(result), seen.shown, seen.rows)

    begin = time.perf_counter()
    gigabytes = own_peak(summed_up) / 1024
    row = {
        "name": f"audit: {arguments.prompts} prompts of {arguments.images} images summed up", "images": count,
        "seconds": round(time.perf_counter() - begin, 1), "gigabytes": round(gigabytes, 2),
    }  # fmt: skip
    print(json.dumps(row) if arguments.json else row)


if __name__ == "__main__":
    main()
