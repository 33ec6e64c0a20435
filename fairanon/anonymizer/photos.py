"""Photographs as people have them, and their way back to a file that says nothing but its pixels."""

from __future__ import annotations

import io
import warnings
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageCms, ImageOps
from PIL.TiffImagePlugin import ImageFileDirectory_v2
from torch import Tensor

from fairanon.files import IMAGES
from fairanon.imaging import CorruptImageError, opened, to_array, to_rgb

with suppress(ImportError):  # a package of the extra `photos`
    import pillow_heif

    pillow_heif.register_heif_opener(thumbnails=False)

PHOTOS = (*IMAGES, ".heic", ".heif", ".avif")
"""Ends of the names of files that are read as photographs."""
_ORIENTATION = 0x0112
_STILL = ("JPEG", "PNG", "WEBP", "BMP", "TIFF", "GIF", "HEIF", "AVIF")
_QUALITIES = {
    "JPEG": (92, 85, 75, 50), "WEBP": (92, 75, 50, 30), "HEIF": (90, 70, 50, 35), "AVIF": (85, 70, 50, 35),
    "TIFF": (92, 85, 75, 50),
}  # fmt: skip
"""Steps of what loses detail. They are few and always the same: the original's own tables would tell its camera."""
_GROWS = 1.25
"""How many times its size a file may take before the next step is tried."""
_STANDARD = 3688
"""Sum of the standard's quantization table for brightness, which is that of quality 50."""
_TIFF = {"tiff_jpeg": "jpeg", "jpeg": "jpeg", "raw": "raw", "packbits": "packbits", "tiff_lzw": "tiff_lzw",
         "tiff_deflate": "tiff_adobe_deflate", "tiff_adobe_deflate": "tiff_adobe_deflate"}  # fmt: skip
"""Compression of a TIFF file by that of the original; LZW for all others."""

DRAWN_BY_A_MODEL = (
    '<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">'
    '<rdf:Description rdf:about="" xmlns:Iptc4xmpExt="http://iptc.org/std/Iptc4xmpExt/2008-02-29/" '
    'Iptc4xmpExt:DigitalSourceType="http://cv.iptc.org/newscodes/digitalsourcetype/compositeWithTrainedAlgorithmicMedia"/>'
    "</rdf:RDF></x:xmpmeta>"
)
"""IPTC's mark of a photograph of which a trained model drew parts (XMP)."""
UNMARKED = ("BMP",)
"""Kinds of files that cannot carry it."""


@dataclass
class Photo:
    """A photograph in sRGB, upright.

    Attributes:
        pixels: uint8 (3, H, W); transparency lies on white, 16 bits are 8.
        kind: Pillow's name of the format.
        grey: It has no colours.
        settings: Of its encoder.
        palette: Its colours are 256 at most.
        steps: Qualities that may be taken, the best first; none where nothing is lost.
        size: Bytes of its file.
        orientation: As its file says how it is to be turned or mirrored (EXIF, 1 to 8); 1 if it lies as it is seen.
    """

    pixels: Tensor
    kind: str
    grey: bool
    settings: dict[str, Any]
    palette: bool = False
    steps: tuple[int, ...] = ()
    size: int = 0
    orientation: int = 1

    def encode(self, pixels: Tensor, drawn: bool = False, quality: int | None = None) -> bytes:
        """A file of the same kind with other pixels and nothing else: no metadata, no profile.

        Args:
            pixels: uint8 (3, H, W).
            drawn: A model drew parts of it: the file says so, and nothing more, see `DRAWN_BY_A_MODEL`.
            quality: Of kinds that lose detail, 1 to 100; None keeps the file about as large as it was.
        """
        if not self.steps:
            return self._written(pixels, drawn, None)
        if quality is not None:
            return self._written(pixels, drawn, quality)
        while len(self.steps) > 1 and len(self._written(self.pixels, False, self.steps[0])) > _GROWS * self.size:
            self.steps = self.steps[1:]
        self.steps = self.steps[:1]  # the original alone decides, so that all tries take the same
        return self._written(pixels, drawn, self.steps[0])

    def _written(self, pixels: Tensor, drawn: bool, quality: int | None) -> bytes:
        image = Image.fromarray(to_array(pixels))
        if self.grey:
            image = image.convert("L")
        elif self.palette:
            image = _with_palette(image)
        settings = dict(self.settings) if quality is None else {**self.settings, "quality": quality}
        if self.kind == "JPEG":
            settings["subsampling"] = 0 if settings["quality"] > 90 else 2
        file = io.BytesIO()
        image.save(file, self.kind, **settings, **(self._mark() if drawn else {}))
        return _marked_gif(file.getvalue()) if drawn and self.kind == "GIF" else file.getvalue()

    def _mark(self) -> dict[str, Any]:
        xmp = DRAWN_BY_A_MODEL.encode()
        if self.kind == "PNG":
            from PIL.PngImagePlugin import PngInfo

            info = PngInfo()
            info.add_itxt("XML:com.adobe.xmp", DRAWN_BY_A_MODEL)
            return {"pnginfo": info}
        if self.kind == "TIFF":
            tags = ImageFileDirectory_v2()
            tags[700] = xmp
            tags.tagtype[700] = 1  # bytes
            return {"tiffinfo": tags}
        return {} if self.kind in (*UNMARKED, "GIF") else {"xmp": xmp}


def _marked_gif(raw: bytes) -> bytes:
    """A GIF file with the mark as its XMP block, behind the palette (XMP specification, part 3)."""
    flags = raw[10]
    place = 13 + (3 * 2 ** ((flags & 7) + 1) if flags & 0x80 else 0)
    trailer = b"\x01" + bytes(range(255, -1, -1)) + b"\0"
    return raw[:place] + b"\x21\xff\x0bXMP DataXMP" + DRAWN_BY_A_MODEL.encode() + trailer + raw[place:]


def _with_palette(image: Image.Image) -> Image.Image:
    """Exactly the same colours from a palette, if they are few enough."""
    colour_counts = image.getcolors(256)
    if colour_counts is None:
        return image
    colours = np.array([colour for _, colour in colour_counts])
    keys = colours @ (65536, 256, 1)  # Pillow's own search takes near colours for the same
    order = keys.argsort()
    rows = np.searchsorted(keys[order], np.asarray(image).astype(np.int64) @ (65536, 256, 1))
    indexed = Image.fromarray(rows.astype(np.uint8))
    indexed.putpalette(colours[order].astype(np.uint8).tobytes())
    return indexed


def read_photo(raw: bytes, name: str) -> Photo:
    """Decode a file.

    Args:
        raw: What is in it.
        name: What an error calls it.

    Raises:
        CorruptImageError: It is damaged, too large, moves, or is of a kind that cannot be written again.
    """
    with warnings.catch_warnings(), opened(io.BytesIO(raw), name) as image:
        warnings.simplefilter("ignore")  # of odd metadata, which is dropped
        kind = "JPEG" if image.format == "MPO" else str(image.format)  # further pictures beside the first are dropped
        if kind not in _STILL:
            raise CorruptImageError(f"{name} is a {kind} file; handled are {', '.join(_STILL)}")
        frames = 1 if image.format == "MPO" else getattr(image, "n_frames", 1)
        if frames > 1:
            raise CorruptImageError(f"{name} has {frames} frames or pages; only still pictures are handled")
        settings: dict[str, Any] = {}
        steps: tuple[int, ...] = _QUALITIES.get(kind, ())
        if kind == "JPEG":
            steps = (_quality(image),)
        elif kind == "WEBP" and raw[12:16] != b"VP8 " and b"VP8L" in raw[12:64]:
            settings, steps = {"lossless": True}, ()
        elif kind == "TIFF":
            settings = {"compression": _TIFF.get(str(image.info.get("compression")), "tiff_lzw")}
            steps = steps if settings["compression"] == "jpeg" else ()
        elif kind == "PNG":
            settings = {"compress_level": 6}
        profile = image.info.get("icc_profile")
        image.load()
        grey = image.mode in ("1", "L", "LA") or image.mode.startswith("I")
        palette = image.mode == "P" and kind in ("PNG", "GIF")
        orientation = int(image.getexif().get(_ORIENTATION, 1))
        if orientation != 1:  # it copies what is upright, too
            image = ImageOps.exif_transpose(image)
        image = _in_srgb(image, profile)
        pixels = torch.from_numpy(np.array(image))
    return Photo(pixels.permute(2, 0, 1), kind, grey, settings, palette, steps, len(raw), orientation)


def _quality(image: Any) -> int:
    """The step that is about as good as a JPEG file is, by how coarsely it was quantized."""
    if image.mode not in ("L", "RGB"):  # four inks have tables of their own
        return _QUALITIES["JPEG"][0]
    coarse = sum(image.quantization[min(image.quantization)]) / _STANDARD
    quality = 100 - 50 * coarse if coarse <= 1 else 50 / coarse
    return min((step for step in _QUALITIES["JPEG"] if step >= quality - 2), default=_QUALITIES["JPEG"][0])


def upright(boxes: Tensor, orientation: int, height: int, width: int) -> Tensor:
    """Boxes (N, 4) of a file as it lies, in the photograph of this size as it is seen."""
    x0, y0, x1, y1 = boxes.unbind(1)
    if orientation >= 5:  # rows and columns are exchanged first
        x0, y0, x1, y1 = y0, x0, y1, x1
    if orientation in (2, 3, 6, 7):
        x0, x1 = width - x1, width - x0
    if orientation in (3, 4, 7, 8):
        y0, y1 = height - y1, height - y0
    return torch.stack([x0, y0, x1, y1], 1)


def _in_srgb(image: Image.Image, profile: bytes | None) -> Image.Image:
    """8 bits of sRGB; a profile that says nothing sensible, or that is of other channels, counts as sRGB."""
    if not profile:
        return to_rgb(image)
    opacity = None
    if image.has_transparency_data:
        image = image.convert("RGBA")
        opacity = image.getchannel("A")
    if image.mode not in ("L", "RGB", "CMYK"):
        image = to_rgb(image) if opacity is None else image.convert("RGB")
    with suppress(ImageCms.PyCMSError, OSError):
        source = ImageCms.getOpenProfile(io.BytesIO(profile))
        if source.profile.xcolor_space.strip() == "GRAY" and image.mode == "RGB":
            image = image.convert("L")
        if "sRGB" not in ImageCms.getProfileDescription(source):
            converted = ImageCms.profileToProfile(image, source, ImageCms.createProfile("sRGB"), outputMode="RGB")
            assert converted is not None
            image = converted
    if opacity is not None:
        image = image.convert("RGB")
        image.putalpha(opacity)
    return to_rgb(image)
