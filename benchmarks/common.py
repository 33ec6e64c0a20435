"""What the benchmarks share: a row of results, and the peak memory of some steps."""

from __future__ import annotations

import re
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path


def row(name: str, ours: Sequence[float], theirs: Sequence[float], unit: str) -> dict[str, str | float]:
    """Median ratio of paired measurements with its range."""
    ratios = sorted(a / b for a, b in zip(ours, theirs, strict=True))
    return {
        "name": name,
        "ratio": round(statistics.median(ratios), 3),
        "low": round(ratios[0], 3),
        "high": round(ratios[-1], 3),
        "ours": round(statistics.median(ours), 4),
        "theirs": round(statistics.median(theirs), 4),
        "unit": unit,
        "repeats": len(ratios),
    }


def own_peak(steps: Callable[[], None]) -> float:
    """Peak memory of some steps in this process, in MB, beyond what it holds before them (Linux).

    The kernel's own mark, reset before: ru_maxrss would begin at the size of the process that started this one.
    """

    def mark(name: str) -> int:
        match = re.search(rf"{name}:\s+(\d+)", Path("/proc/self/status").read_text())
        assert match is not None
        return int(match[1])

    Path("/proc/self/clear_refs").write_text("5")
    start = mark("VmRSS")
    steps()
    return (mark("VmHWM") - start) / 1024


def peak_of(file: str, name: str, size: int) -> float:
    """What a benchmark prints for ``--peak-of name --size size``, in a process of its own."""
    command = [sys.executable, file, "--size", str(size), "--peak-of", name]
    return float(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


def command(*words: str) -> tuple[float, float]:
    """Seconds and peak memory in MB of a command that ends well, or with fairanon's exit code 3 (GNU time)."""
    begin = time.perf_counter()
    done = subprocess.run(["/usr/bin/env", "time", "-v", *words], capture_output=True, text=True, check=False)
    peak = re.search(r"Maximum resident set size \(kbytes\): (\d+)", done.stderr)
    assert done.returncode in (0, 3) and peak is not None, done.stderr[-2000:]
    return time.perf_counter() - begin, int(peak[1]) / 1024


def share(name: str, ours: Sequence[bool], theirs: Sequence[bool]) -> dict[str, str | float]:
    """How many of the same cases each of two ways manages."""
    pairs = list(zip(ours, theirs, strict=True))
    return {
        "name": name,
        "ratio": round(sum(ours) / sum(theirs), 3),
        "ours": round(sum(ours) / len(pairs), 4),
        "theirs": round(sum(theirs) / len(pairs), 4),
        "both": sum(a and b for a, b in pairs),
        "ours alone": sum(a and not b for a, b in pairs),
        "theirs alone": sum(b and not a for a, b in pairs),
        "neither": sum(not a and not b for a, b in pairs),
    }
