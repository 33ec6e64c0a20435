"""What the summing up of an audit takes: judgements of a stand-in judge, everything after them as in `fairanon audit`.

python benchmarks/audit_size.py [--prompts 100] [--images 100] [--json]
"""

from __future__ import annotations

import argparse
import json
import resource
import tempfile
import time
from pathlib import Path

import torch

from fairanon.auditor import api
from fairanon.auditor.answer import sentences
from fairanon.auditor.models import Model
from fairanon.auditor.page import write_page
from fairanon.auditor.request import AuditRequest
from fairanon.auditor.sides import Errors, Targets
from fairanon.batches import PromptRow
from fairanon.evaluation.engine import Samples
from fairanon.evaluation.observed import Judged
from fairanon.evaluation.portrayal import Portrayed
from fairanon.files import write_json
from fairanon.metrics.functional.confusion import Confusion

CLASSES = {"gender": ("man", "woman"), "tone": ("1", "2", "3", "4", "5", "6")}
FEATURES = 64


class StandIn:
    """Says what it was told to say."""

    name, classes = "stand-in", CLASSES


def judgements(prompts: int, images: int) -> api._Seen:
    """A model whose prompts differ in whom they show."""
    generator = torch.Generator().manual_seed(0)
    rows = [PromptRow(f"prompt {k}", "neutral", {}) for k in range(prompts)]
    prompt = torch.arange(prompts).repeat_interleave(images)
    said: dict[str, torch.Tensor] = {}
    for name, classes in CLASSES.items():
        leaning = torch.randn(prompts, len(classes), generator=generator)[prompt]
        said[name] = (3 * (leaning + torch.randn(leaning.shape, generator=generator))).softmax(1)
        said[name][torch.rand(len(prompt), generator=generator) < 0.05] = torch.nan
    features = torch.randn(len(prompt), FEATURES, generator=generator)
    seen = Judged(rows, prompt, Portrayed(said, torch.zeros(len(prompt), dtype=torch.bool), features))
    shown = torch.zeros(min(prompts, 100) * 8, 3, 64, 64, dtype=torch.uint8)
    samples = Samples([seen], len(prompt), shown, torch.arange(min(prompts, 100)).repeat_interleave(8))
    return api._Seen(Model("stand-in", None, rows, drawn=False, told={}), rows, samples)  # type: ignore[arg-type]  # nothing is drawn


def peak() -> float:
    """GB of memory of this process at most, so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--prompts", type=int, default=100)
    parser.add_argument("--images", type=int, default=100)
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    seen = judgements(given.prompts, given.images)
    before, begin = peak(), time.perf_counter()
    wrong = {
        name: Confusion(torch.full((len(classes),) * 2, 10.0) + torch.eye(len(classes)) * 400)
        for name, classes in CLASSES.items()
    }
    errors = Errors(wrong, dict.fromkeys(CLASSES, "taken out"))
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder)
        request = AuditRequest("tiny", images=given.images)
        result = api._found(request, [seen], StandIn(), CLASSES, Targets({}), errors, {})  # type: ignore[arg-type]
        write_json(out / "audit.json", result)
        api._write_shares(out / "shares.csv", result)
        api._write_images(out / "images.csv", seen, CLASSES, [])
        write_page(out, result, sentences(result), seen.samples, seen.rows)
    row = {
        "name": f"audit: {given.prompts} prompts of {given.images} images summed up", "images": given.prompts * given.images,
        "seconds": round(time.perf_counter() - begin, 1), "gigabytes": round(peak() - before, 2),
    }  # fmt: skip
    print(json.dumps(row) if given.json else row)


if __name__ == "__main__":
    main()
