"""Draws docs/results.png of `make demo`'s run: the same prompts before and after, and a picture before and after `anonymize`.

make demo && .venv/bin/python docs/results_picture.py runs/popalign_tiny/shipped/measure-*
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

import fairanon
from tests.anonymizer.scenes import write_scenes

ROOT = Path(__file__).resolve().parent.parent


CELL, GAP, SHOWN, ROWS = 64, 2, 7, 4
TITLE, SMALL = 20, 15


def text(draw: ImageDraw.ImageDraw, place: tuple[int, int], said: str, size: int, colour: str = "#1d2329") -> None:
    """Words in the font that Pillow brings along."""
    draw.text(place, said, colour, font=ImageFont.load_default(size))


def rows_of(path: Path, chosen: list[int]) -> list[Image.Image]:
    """The first images of some prompts."""
    sheet, step = Image.open(path).convert("RGB"), CELL + GAP
    return [sheet.crop((0, row * step, SHOWN * step - GAP, row * step + CELL)) for row in chosen]


def main() -> None:
    """Draw the picture."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path, help="folder with metrics.json and grids")
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "results.png")
    given = parser.parse_args()
    result = json.loads((given.run / "metrics.json").read_text())
    prompts = json.loads((given.run / "grids" / "prompts.json").read_text())["neutral"]
    women = {row["prompt"]: row for row in result["shares"] if row["class"] == "female"}
    ranked = sorted(range(len(prompts)), key=lambda k: women[prompts[k]]["before"]["value"])
    chosen = [*ranked[: ROWS - 1], ranked[-1]]  # those with the fewest women, and the one with the most
    width = SHOWN * (CELL + GAP)
    sheet = Image.new("RGB", (20 + 2 * (width + 20) + 270, 60 + ROWS * (CELL + 28)), "white")
    draw = ImageDraw.Draw(sheet)
    for column, stage in enumerate(("before", "after")):
        left = 20 + column * (width + 20)
        text(draw, (left, 10), f"{stage}: the same prompts, the same noise", TITLE)
        for k, image in enumerate(rows_of(given.run / "grids" / f"neutral-{stage}.png", chosen)):
            row = women[prompts[chosen[k]]]
            share, ends = row[stage]["value"], (row[stage]["low"], row[stage]["high"])
            top = 50 + k * (CELL + 28)
            sheet.paste(image, (left, top))
            said = f"{prompts[chosen[k]]}: women {100 * share:.0f} % [{100 * ends[0]:.0f}, {100 * ends[1]:.0f}]"
            text(draw, (left, top + CELL + 2), said, SMALL, "#5b6670")
    left = 20 + 2 * (width + 20)
    text(draw, (left, 10), "faces hidden by masks", TITLE)
    with tempfile.TemporaryDirectory() as folder:
        photos, out = Path(folder) / "photos", Path(folder) / "out"
        write_scenes(photos, [3])
        request = fairanon.AnonymizeRequest([photos], out, detector="tiny_detector", recognizer="tiny_embedder_b")
        done = fairanon.anonymize(request, progress=False)
        for k, path in enumerate((next(photos.rglob("*.png")), next(done.published.rglob("*.png")))):
            image = Image.open(path).convert("RGB")
            sheet.paste(image.resize((240, 160), Image.Resampling.NEAREST), (left, 50 + k * 170))
        said = ", ".join(f"{count} {verdict}" for verdict, count in done.verdicts.items())
        text(draw, (left, 50 + 2 * 170), f"{sum(done.verdicts.values())} faces: {said}", SMALL, "#5b6670")
    sheet.save(given.out, optimize=True)
    print(given.out)


if __name__ == "__main__":
    main()
