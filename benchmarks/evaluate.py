"""Seconds and peak memory of `fairanon evaluate` on stored embeddings, without labels and with identities and groups.

python benchmarks/evaluate.py [--pairs 30000] [--width 512] [--json]
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path

import torch
from common import command
from safetensors.torch import save_file
from torch.nn import functional as F


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pairs", type=int, default=30_000)
    parser.add_argument("--width", type=int, default=512)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    generator = torch.Generator().manual_seed(0)
    originals = F.normalize(torch.randn(arguments.pairs, arguments.width, generator=generator), dim=1)
    hidden = F.normalize(torch.randn(arguments.pairs, arguments.width, generator=generator) + 0.2 * originals, dim=1)
    with tempfile.TemporaryDirectory() as root:
        names = [str(Path(root) / f"{name}.safetensors") for name in ("originals", "hidden")]
        for path, rows in zip(names, (originals, hidden), strict=True):
            save_file({"judge": rows}, path)
        labels = [f"{k},person {k // 2},group {k % 4}" for k in range(arguments.pairs)]
        table = Path(root) / "table.csv"
        table.write_text("\n".join(["original,identity,group", *labels]))
        for name, words in (("without labels", []), ("identities and groups", ["--table", str(table)])):
            verb = [str(Path(sys.executable).parent / "fairanon"), "evaluate", *names, "--out", f"{root}/out"]
            seconds, peak = command(*verb, *words)
            row = {"name": f"evaluate {arguments.pairs} pairs, {name}", "seconds": round(seconds, 1), "MB": round(peak)}
            print(json.dumps(row) if arguments.json else row)


if __name__ == "__main__":
    main()
