"""Seconds a step and peak memory of every real experiment at true size with random weights, as JSON lines.

Run: ``benchmarks/on_gpu.sh`` (at most 8 minutes, with the tests that need a GPU first), or this file by itself.
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from real_steps import ARCHITECTURE, DISTINCT, configuration, method_on, step_of

from fairanon.run.footprint import GIB

STEPS = 5


def main() -> None:
    """Time what fits into the given seconds, the published precision and checkpointing first."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--seconds", type=float, default=360)
    parser.add_argument("--only", nargs="*", choices=sorted(ARCHITECTURE), default=DISTINCT)
    arguments = parser.parse_args()
    begun, device = time.perf_counter(), torch.device("cuda", 0)
    cases = [(c, d) for c, d in itertools.product((True, False), ("bfloat16", "float16"))]
    with tempfile.TemporaryDirectory() as folder:
        for (checkpointing, dtype), name in itertools.product(cases, arguments.only):
            line = {
                "experiment": name,
                "dtype": dtype,
                "checkpointing": checkpointing,
                "card": torch.cuda.get_device_name(),
            }
            if time.perf_counter() - begun > arguments.seconds:
                print(json.dumps({**line, "skipped": "out of time"}), flush=True)
                continue
            method: Any = None
            optimizer: Any = None  # the last case's are freed
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
            try:
                config = configuration(name, Path(folder), dtype, checkpointing)
                method = method_on(config, device)
                optimizer = torch.optim.AdamW([p for p in method.parameters() if p.requires_grad], lr=1e-6)
                taken = []
                for _ in range(STEPS):
                    torch.cuda.synchronize()
                    start = time.perf_counter()
                    step_of(method, config, optimizer)
                    torch.cuda.synchronize()
                    taken.append(time.perf_counter() - start)
                line |= {"seconds": round(statistics.median(taken[1:]), 3)}
            except torch.cuda.OutOfMemoryError:
                line |= {"seconds": None, "out_of_memory": True}
            except Exception as error:  # noqa: BLE001  # the other cases are worth their time all the same
                line |= {"seconds": None, "error": f"{type(error).__name__}: {error}"[:300]}
            print(json.dumps({**line, "peak_gib": round(torch.cuda.max_memory_allocated() / GIB, 2)}), flush=True)


if __name__ == "__main__":
    main()
