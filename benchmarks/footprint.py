"""Memory that every real experiment takes in training, counted on the meta device; the smallest card that holds it.

Run: ``python benchmarks/footprint.py [--json]``: seconds, without a GPU, a network or weights.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
from pathlib import Path

from activations import activations, card
from real_steps import ARCHITECTURE, configuration

from fairanon.run.footprint import GIB, footprint, outline

_SHARD = ("--model.reference=beforehand", "--trainer.strategy=fairanon.run.sharded.Sharded")  # OVERLAY=shard
SETTINGS = {
    "popalign_sdxl": [
        ("--model.reference=beforehand",), *((*_SHARD, f"--trainer.devices={devices}") for devices in (2, 4, 8)),
    ],
    "popalign_sd15": [("--model.reference=beforehand",)],
}  # fmt: skip
"""What an experiment is counted with once more."""
PARTS = ("weights", "gradients", "optimizer", "reference", "activations", "total", "checkpoint")


def main() -> None:
    """Print the table."""
    os.environ["FAIRANON_BFLOAT16"] = "1"  # as the cards have that are counted for
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    if not arguments.json:
        print("| experiment | " + " | ".join(PARTS) + " | card |\n|---|" + "---|" * (len(PARTS) + 1))
    with tempfile.TemporaryDirectory() as folder:
        rows = [(name, further) for name in ARCHITECTURE for further in ((), *SETTINGS.get(name, []))]
        for name, further in rows:
            config = configuration(name, Path(folder), further=further)
            method = outline(config)
            assert method is not None
            needed = footprint(config, method)
            kept = activations(config, method)
            bytes_of = {**vars(needed), "activations": kept, "total": needed.total + kept}
            sizes = {part: round(bytes_of[part] / GIB, 1) for part in PARTS}
            smallest = card(bytes_of["total"])
            if arguments.json:
                print(json.dumps({"experiment": name, "settings": further, **sizes, "card": smallest}))
            else:
                last = f"{smallest} GB" if smallest else "none"
                words = " ".join((name, *further)).replace(_SHARD[1], "--overlay=shard")
                print(f"| `{words}` | " + " | ".join(f"{value:.1f}" for value in sizes.values()) + f" | {last} |")


if __name__ == "__main__":
    main()
