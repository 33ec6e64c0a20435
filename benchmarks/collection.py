"""What a large collection costs the process that decides and publishes: memory and minutes, with a stand-in for the work.

python benchmarks/collection.py                   a million files of one face each, outcomes written by a stand-in
python benchmarks/collection.py --files 10000
"""

from __future__ import annotations

import argparse
import io
import random
import resource
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from PIL import Image

from fairanon.anonymizer.anonymizing import write_results
from fairanon.anonymizer.block import Block, Count, Unit
from fairanon.anonymizer.chance import Compared, Draw
from fairanon.anonymizer.folder import Job
from fairanon.anonymizer.manifest import Journal, Outcome, picture_digest
from fairanon.anonymizer.sources import Item, Source
from fairanon.engines import Tell

_PICTURE = io.BytesIO()
Image.new("RGB", (8, 8)).save(_PICTURE, "PNG")


def peak() -> float:
    """The most that this process ever had in memory, in GB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6


def outcome(name: str) -> Outcome:
    """Of a picture with one face, which was hidden at the first try."""
    face = {
        "box": [100.0, 120.0, 220.0, 260.0], "score": 0.91, "method": "mask", "strength": None, "region": [76, 92, 244, 288],
        "ellipse": 0.0, "tries": 1, "covered": 1.0, "found_again": False, "found_late": False, "distances": {"dlib": 0.8123},
        "verdict": "anonymized",
    }  # fmt: skip
    known = {"asked": True, "found": True, "quarters": 0, "attempt": 0, "ellipse": 0.0}
    return Outcome(
        name,
        "anonymized",
        "finished",
        "",
        [face],
        [known],
        0.7,
        mark="0" * 64,
        digest=picture_digest(_PICTURE.getvalue()),
    )


def stand_in(work: Sequence[tuple[Block, Unit]], tell: Tell) -> None:
    """Writes what a worker writes: outcomes, tiny pictures, and how many faces were found by chance."""
    chance = random.Random(0)
    for block, unit in work:
        block.folder.mkdir(parents=True, exist_ok=True)
        journal = Journal(block.journal)
        for name in block.items:
            place = block.waiting(name)
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_bytes(_PICTURE.getvalue())
            journal.add(outcome(name))
            tell("finished", False)
        count = max(1, len(block.items))
        hits = tuple(row for row in range(count) if chance.random() < 1 / count)
        block.note(unit, Count({"dlib": Compared(count, {Draw(1 / count, 1): count}, hits)}, {}))


def main(words: Sequence[str] | None = None) -> None:
    """Print a row for each step."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--files", type=int, default=1_000_000)
    arguments = parser.parse_args(words)
    print("| step | minutes | GB in memory at most, beside what was there before |\n|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        for name, minutes, most in steps(Path(folder), arguments.files):
            print(f"| {name} | {minutes:.1f} | {most:.2f} |", flush=True)


def steps(folder: Path, files: int) -> Iterator[tuple[str, float, float]]:
    """What each step takes: its name, minutes, and how many GB the process has more than at the beginning."""
    begun = peak()
    items = [Item(f"{k // 1000:05}/IMG_{k:08}.jpg", folder / "in") for k in range(files)]
    about: dict[str, Any] = {
        "method": "mask",
        "version": "0",
        "settings": {},
        "judges": {"dlib": {"licence": "", "value": 0.6, "origin": ""}},
    }
    treatment: Any = SimpleNamespace(attacker=object(), secret=b"")
    job = Job(Source(items, (folder / "in",)), folder / "out", treatment, about)
    since, worked = time.perf_counter(), 0.0

    def engine(work: Sequence[tuple[Block, Unit]], tell: Tell) -> None:
        nonlocal worked
        start = time.perf_counter()
        stand_in(work, tell)
        worked += time.perf_counter() - start

    job.run(engine)
    took = time.perf_counter() - since - worked
    yield "the stand-in", worked / 60, peak() - begun
    yield "planned, decided, published", took / 60, peak() - begun
    since = time.perf_counter()
    tally, _ = write_results(folder / "out", about)
    assert tally.files["finished"] == files
    yield "report and tables", (time.perf_counter() - since) / 60, peak() - begun


if __name__ == "__main__":
    main()
