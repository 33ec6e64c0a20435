"""Real photographs that packages carry, in the states in which people have them."""

from __future__ import annotations

from pathlib import Path

import insightface.data
import numpy as np
import skimage.data
from PIL import Image, PngImagePlugin

NAMES = {
    "turned": "turned by EXIF.jpg", "cmyk": "cmyk.jpg", "deep": "sixteen bits.png", "grey": "grey.jpg",
    "palette": "palette.png", "giant": "giant.jpg", "small": "small face.png", "cut": "cut by the border.jpg",
    "overlap": "overlapping.jpg", "name": "Größe und 🙂.jpg", "group": "group.jpg",
}  # fmt: skip
FACES = {name: 1 for name in NAMES} | {"overlap": 2, "group": 6, "small": 1}
"""How many people each shows."""


def astronaut() -> Image.Image:
    """One woman, 512 x 512; her face is about 90 pixels wide."""
    return Image.fromarray(skimage.data.astronaut())


def group() -> Image.Image:
    """Six people, 1280 x 886."""
    return Image.fromarray(np.ascontiguousarray(insightface.data.get_image("t1")[:, :, ::-1]))


def coffee() -> Image.Image:
    """Nobody."""
    return Image.fromarray(skimage.data.coffee())


def _exif(orientation: int = 1) -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112], exif[0x010F], exif[0x013B] = orientation, "A camera", "A photographer"
    exif.get_ifd(0x8825).update({1: "N", 2: (52.0, 31.0, 12.0), 3: "E", 4: (13.0, 24.0, 18.0)})
    exif.get_ifd(0x8769)[0x927C] = b"maker's notes: 4711"
    return exif


def write(which: str, folder: Path) -> Path:
    """Write one of them, with whatever metadata its format takes."""
    path, portrait = folder / NAMES[which], astronaut()
    folder.mkdir(parents=True, exist_ok=True)
    if which == "turned":  # a viewer shows it upright
        portrait.rotate(90, expand=True).save(
            path, exif=_exif(6), comment=b"a comment", xmp=b"<x:xmpmeta>me</x:xmpmeta>"
        )
    elif which == "cmyk":
        portrait.convert("CMYK").save(path, exif=_exif())
    elif which == "deep":
        deep = np.asarray(portrait.convert("L"), dtype=np.uint16) * 257
        text = PngImagePlugin.PngInfo()
        text.add_text("Author", "somebody")
        Image.fromarray(deep).save(path, pnginfo=text)
    elif which == "grey":
        portrait.convert("L").save(path, exif=_exif())
    elif which == "palette":
        portrait.convert("P", palette=Image.Palette.ADAPTIVE).save(path, transparency=0)
    elif which == "giant":
        giant = Image.new("RGB", (12_000, 9_000), (90, 110, 90))
        giant.paste(portrait, (7_300, 5_100))
        giant.save(path, quality=80)
    elif which == "small":
        width = round(512 * 20 / 90)
        picture = coffee()
        picture.paste(portrait.resize((width, width), Image.Resampling.LANCZOS), (300, 200))
        picture.save(path)
    elif which == "cut":
        portrait.crop((225, 0, 512, 512)).save(path, quality=95)  # through the middle of the face
    elif which == "overlap":
        picture, second = portrait.copy(), portrait.transpose(Image.Transpose.FLIP_LEFT_RIGHT).crop((215, 40, 345, 300))
        picture.paste(second, (270, 60))
        picture.save(path, quality=95)
    elif which == "name":
        portrait.save(path, quality=95)
    else:
        group().save(path, quality=95)
    return path
