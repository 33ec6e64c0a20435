"""What an engine costs beside one process: CPU seconds of `fairanon anonymize` on the same photographs, on an idle Linux machine.

The whole machine's CPU seconds are counted, so that Ray's own processes are in them. Two numbers of photographs tell what an
engine costs once from what it costs for each photograph. Needs `pip install "fairanon[cluster]"`.

python benchmarks/engines.py [--count 60] [--width 800] [--repeats 3] [--json]
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import tempfile
from pathlib import Path

from anonymize import BIN, pictures
from tqdm import tqdm

ENGINES = {"here": (), "processes": ("--device", "cpu,cpu"), "ray": ("--engine", "ray")}


def busy() -> float:
    """CPU seconds that this machine has worked since it was started."""
    fields = Path("/proc/stat").read_text().splitlines()[0].split()
    user, nice, system, _, _, irq, softirq, *_ = (int(value) for value in fields[1:])
    return (user + nice + system + irq + softirq) / os.sysconf("SC_CLK_TCK")


def cost(folder: Path, words: tuple[str, ...]) -> float:
    """CPU seconds of a command."""
    with tempfile.TemporaryDirectory() as out:
        begin = busy()
        command = [str(BIN / "fairanon"), "anonymize", str(folder), f"{out}/out", "--workers", "1", *words]
        code = subprocess.run(command, capture_output=True, check=False).returncode
        assert code in (0, 3), code
        return busy() - begin


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=60)
    parser.add_argument("--width", type=int, default=800)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as root:
        many, few = Path(root) / "many", Path(root) / "few"
        pictures(many, 4 * arguments.count, arguments.width)
        few.mkdir()
        for path in sorted(many.iterdir())[: arguments.count]:
            os.link(path, few / path.name)
        each: dict[str, list[float]] = {name: [] for name in ENGINES}
        once: dict[str, list[float]] = {name: [] for name in ENGINES}
        for name in tqdm([*ENGINES] * arguments.repeats, desc="runs"):
            less, more = cost(few, ENGINES[name]), cost(many, ENGINES[name])
            each[name].append((more - less) / (3 * arguments.count))
            once[name].append(less - arguments.count * each[name][-1])
    for name in ENGINES:
        ratios = sorted(one / other for one, other in zip(each[name], each["here"], strict=True))
        row = {
            "name": name, "seconds_each": round(statistics.median(each[name]), 3), "ratio": round(statistics.median(ratios), 3),
            "low": round(ratios[0], 3), "high": round(ratios[-1], 3), "seconds_once": round(statistics.median(once[name]), 1),
        }  # fmt: skip
        print(json.dumps(row) if arguments.json else row)


if __name__ == "__main__":
    main()
