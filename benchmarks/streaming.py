"""Streaming of Pick-a-Pic: speed next to the plain `datasets` loader, and memory from row 1,000 to the end.

Writes a generated data set in Pick-a-Pic's schema to a temporary folder (or --folder, and keeps it there) and reads all of
it twice, with the same files, images decoded and resized alike, one process each.
"""

from __future__ import annotations

import argparse
import io
import json
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from common import row as row_of
from PIL import Image

SIDE = 64


def write(folder: Path, rows: int, files: int = 8, group: int = 1000) -> None:
    """Generated pairs: 200 different JPEG images, every tenth pair a tie."""
    draw = random.Random(0)
    images = []
    for _ in range(200):
        buffer = io.BytesIO()
        noise = Image.frombytes("RGB", (12, 12), draw.randbytes(432)).resize((96, 96), Image.Resampling.BICUBIC)
        noise.save(buffer, "JPEG", quality=90)
        images.append(buffer.getvalue())
    folder.mkdir(parents=True, exist_ok=True)
    for k in range(files):
        numbers = range(k * rows // files, (k + 1) * rows // files)
        with pq.ParquetWriter(folder / f"train-{k:05d}.parquet", _schema()) as writer:
            for first in range(numbers.start, numbers.stop, group):
                part = range(first, min(first + group, numbers.stop))
                writer.write_table(
                    pa.table(
                        {
                            "caption": [f"prompt {n}" for n in part],
                            "jpg_0": [images[draw.randrange(200)] for _ in part],
                            "jpg_1": [images[draw.randrange(200)] for _ in part],
                            "label_0": [0.5 if n % 10 == 0 else float(n % 2) for n in part],
                        },
                        schema=_schema(),
                    )
                )


def _schema() -> pa.Schema:
    return pa.schema(
        [("caption", pa.string()), ("jpg_0", pa.binary()), ("jpg_1", pa.binary()), ("label_0", pa.float64())]
    )


def ours(folder: Path) -> Iterator[int]:
    """One for each pair of one pass."""
    from data_modules.pick_a_pic import PairStream, parquet_files

    stream = PairStream(parquet_files(str(folder), "train"), SIDE, passes=1)
    for _ in stream:
        yield 1


def theirs(folder: Path) -> Iterator[int]:
    """The same pairs by the `datasets` library: streamed, shuffled in a buffer of the same size, decoded alike."""
    import datasets

    from fairanon.imaging import joint_crop, read_image

    files = [str(path) for path in sorted(folder.glob("train-*.parquet"))]
    stream = datasets.load_dataset("parquet", data_files=files, split="train", streaming=True)
    for record in stream.shuffle(seed=0, buffer_size=256):
        if record["label_0"] == 0.5:
            continue
        joint_crop([read_image(io.BytesIO(record[k]), k) for k in ("jpg_0", "jpg_1")], SIDE)
        yield 1


def resident() -> float:
    """Resident set of this process in MB (Linux)."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * 4096 / 2**20


def measure(name: str, folder: Path) -> dict[str, float]:
    """Seconds of a pass and how much the resident set grew after row 1,000."""
    start, count, base, peak = time.perf_counter(), 0, 0.0, 0.0
    for number in {"ours": ours, "theirs": theirs}[name](folder):
        count += number
        if count == 1000:
            base = resident()
        elif count % 1000 == 0:
            peak = max(peak, resident())
    return {"seconds": time.perf_counter() - start, "pairs": count, "grown": max(peak, resident()) - base}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=200_000)
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--folder", type=Path, help="where the generated files are, or go")
    parser.add_argument("--json", action="store_true", help="one JSON object per line")
    parser.add_argument("--only", choices=["ours", "theirs"], help="only measure this one, for the process it runs in")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = arguments.folder or Path(temporary)
        if not list(folder.glob("train-*.parquet")):
            write(folder, arguments.rows)
        if arguments.only:
            print(json.dumps(measure(arguments.only, folder)))
            return
        measurements: dict[str, list[dict[str, float]]] = {"ours": [], "theirs": []}
        for _ in range(arguments.repeats):
            for name, results in measurements.items():
                command = [sys.executable, __file__, "--only", name, "--folder", str(folder)]
                done = subprocess.run(command, capture_output=True, text=True, check=True)
                results.append(json.loads(done.stdout.splitlines()[-1]))
    for what, unit in (("seconds", "s"), ("grown", "MB")):
        a, b = ([max(result[what], 1e-3) for result in measurements[name]] for name in ("ours", "theirs"))
        row = row_of(f"streaming/{what}", a, b, unit)
        text = f"{row['name']}: ours {row['ours']} {unit}, datasets {row['theirs']} {unit}, ratio {row['ratio']}"
        print(json.dumps(row) if arguments.json else text)
    print(f"{measurements['ours'][0]['pairs']:.0f} and {measurements['theirs'][0]['pairs']:.0f} pairs", file=sys.stderr)


if __name__ == "__main__":
    main()
