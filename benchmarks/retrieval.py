"""Blockwise retrieval next to the plain way (whole similarity matrix, sorted), and its time and memory at 30,000 x 30,000.

python benchmarks/retrieval.py [--size 30000] [--compare 5000] [--repeats 3] [--json]
"""

from __future__ import annotations

import argparse
import json
import time

import torch
from common import own_peak, peak_of
from common import row as row_of
from torch import Tensor
from torch.nn import functional as F

from fairanon.metrics.functional.retrieval import retrieve

WIDTH = 512


def images(size: int) -> tuple[Tensor, Tensor, Tensor]:
    """Embeddings of probes and gallery, and who is shown: two images of each person."""
    generator = torch.Generator().manual_seed(0)
    gallery = F.normalize(torch.randn(size, WIDTH, generator=generator), dim=1)
    probes = F.normalize(gallery + 0.1 * torch.randn(size, WIDTH, generator=generator), dim=1)
    return probes, gallery, torch.arange(size) // 2


def ours(probes: Tensor, gallery: Tensor, people: Tensor) -> Tensor:
    """Ranks."""
    return retrieve(probes, gallery, people).ranks


def theirs(probes: Tensor, gallery: Tensor, people: Tensor) -> Tensor:
    """The same ranks from the sorted matrix."""
    order = (probes @ gallery.T).argsort(1, descending=True)
    return (order == torch.arange(len(order))[:, None]).int().argmax(1) + 1


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", type=int, default=30_000)
    parser.add_argument("--compare", type=int, default=5_000)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--peak-of", choices=("ours", "theirs"))
    arguments = parser.parse_args()
    if arguments.peak_of:
        sets = images(arguments.size)
        print(own_peak(lambda: {"ours": ours, "theirs": theirs}[arguments.peak_of](*sets)))
        return
    sets = images(arguments.compare)
    assert torch.equal(ours(*sets), theirs(*sets))
    times: dict[str, list[float]] = {"ours": [], "theirs": []}
    for _ in range(arguments.repeats):
        for name, function in (("ours", ours), ("theirs", theirs)):
            start = time.perf_counter()
            function(*sets)
            times[name].append(time.perf_counter() - start)
    rows = [row_of(f"retrieval {arguments.compare}: time", times["ours"], times["theirs"], "s")]
    peaks = {name: [peak_of(__file__, name, arguments.compare)] for name in times}
    rows.append(row_of(f"retrieval {arguments.compare}: memory", peaks["ours"], peaks["theirs"], "MB"))
    whole = images(arguments.size)
    start = time.perf_counter()
    ours(*whole)
    seconds = time.perf_counter() - start
    for row in rows:
        print(json.dumps(row) if arguments.json else row)
    print(
        f"{arguments.size} x {arguments.size}: {seconds:.1f} s, {peak_of(__file__, 'ours', arguments.size):.0f} MB beside the embeddings"
    )


if __name__ == "__main__":
    main()
