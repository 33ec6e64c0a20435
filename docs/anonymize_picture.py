"""Draws docs/anonymize.png: a drawn scene, and ten ways in which `fairanon anonymize` hides its faces.

.venv/bin/python -m docs.anonymize_picture
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw

import fairanon
from docs.results_picture import text
from fairanon.imaging import write_image
from tests.anonymizer.scenes import scene

ROOT = Path(__file__).resolve().parent.parent
TINY: dict[str, Any] = {"detector": "tiny_detector", "recognizer": "tiny_embedder_b"}
NEW: dict[str, Any] = {
    "checkpoint": "runs/id2face_tiny/latest",
    "landmarks": "tiny_landmarks",
    "cut_scale": 2.76,
    "seed": 1,
}
WAYS: list[tuple[str, dict[str, Any]]] = [
    ("--method mask (default)", {}),
    ("--shape ellipse", {"shape": "ellipse"}),
    ("--colour 000000", {"colour": "000000"}),
    ("--method pixelate", {"method": "pixelate"}),
    ("--method pixelate --shape box", {"method": "pixelate", "shape": "box"}),
    ("--method blur", {"method": "blur"}),
    ("--method blur --strength 1", {"method": "blur", "strength": 1.0}),
    ("--keep-person FOLDER", {"keep_person": "person"}),
    ("--only-person FOLDER", {"only_person": "person"}),
    ("--method id2face", {"method": "id2face", **NEW}),
]
TIMES, MARGIN, LINE, COLUMNS = 2, 12, 24, 3


def main() -> None:
    """Draw the picture."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "anonymize.png")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        write_image(scene(0, 3), root / "in" / "scene.png")
        cells = [("before", Image.open(root / "in" / "scene.png").convert("RGB"))]
        box = first_face(root)
        (root / "person").mkdir()
        cells[0][1].crop(box).save(root / "person" / "one.png")
        for number, (said, settings) in enumerate(WAYS):
            changed = {name: root / value if value == "person" else value for name, value in settings.items()}
            request = fairanon.AnonymizeRequest(root / "in", root / f"out{number}", **TINY, **changed)
            result = fairanon.anonymize(request, progress=False)
            print(said, dict(result.verdicts), result.files)
            line = next(line for line in result.lines if line["face"] is None)
            cells.append((f"{said}: {line['verdict']}", Image.open(result.out / line["result"]).convert("RGB")))
    width, height = (TIMES * side for side in cells[0][1].size)
    rows = -(-len(cells) // COLUMNS)
    sheet = Image.new("RGB", (COLUMNS * (width + MARGIN) + MARGIN, rows * (height + LINE + MARGIN) + MARGIN), "white")
    draw = ImageDraw.Draw(sheet)
    for number, (said, image) in enumerate(cells):
        left, top = MARGIN + number % COLUMNS * (width + MARGIN), MARGIN + number // COLUMNS * (height + LINE + MARGIN)
        text(draw, (left, top), said, 15)
        sheet.paste(image.resize((width, height), Image.Resampling.NEAREST), (left, top + LINE))
    sheet.save(given.out, optimize=True)
    print(given.out)


def first_face(root: Path) -> tuple[int, int, int, int]:
    """The tile of the scene in which its first person is."""
    result = fairanon.anonymize(fairanon.AnonymizeRequest(root / "in", root / "first", **TINY), progress=False)
    x0, y0, x1, y1 = next(line for line in result.lines if line["face"] is not None)["box"]
    left, top = int((x0 + x1) / 2 // 64 * 64), int((y0 + y1) / 2 // 64 * 64)
    return left, top, left + 64, top + 64


if __name__ == "__main__":
    main()
