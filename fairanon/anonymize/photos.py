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
from PIL.JpegImagePlugin import get_sampling
from torch import Tensor

from fairanon.files import IMAGES
from fairanon.imaging import CorruptImageError, opened, to_rgb

with suppress(ImportError):  # a package of the extra `photos`
    import pillow_heif

    pillow_heif.register_heif_opener(thumbnails=False)

PHOTOS = (*IMAGES, ".heic", ".heif", ".avif")
"""Ends of the names of files that are read as photographs."""
_ORIENTATION = 0x0112
_STILL = ("JPEG", "PNG", "WEBP", "BMP", "TIFF", "GIF", "HEIF", "AVIF")
_WRITTEN: dict[str, dict[str, Any]] = {
    "JPEG": {"quality": 92}, "PNG": {"compress_level": 4}, "WEBP": {"quality": 92}, "BMP": {},
    "TIFF": {"compression": "tiff_lzw"}, "GIF": {}, "HEIF": {"quality": 90}, "AVIF": {"quality": 85},
}  # fmt: skip
"""How each kind is written; a JPEG with the quantization of the original."""


@dataclass
class Photo:
    """A photograph in sRGB, upright.

    Attributes:
        pixels: uint8 (3, H, W); transparency lies on white, 16 bits are 8.
        kind: Pillow's name of the format.
        grey: It has no colours.
        settings: Of its encoder.
    """

    pixels: Tensor
    kind: str
    grey: bool
    settings: dict[str, Any]

    def encode(self, pixels: Tensor) -> bytes:
        """A file of the same kind with other pixels, uint8 (3, H, W), and nothing else: no metadata, no profile."""
        image = Image.fromarray(np.ascontiguousarray(pixels.permute(1, 2, 0).numpy()))
        file = io.BytesIO()
        (image.convert("L") if self.grey else image).save(file, self.kind, **self.settings)
        return file.getvalue()


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
        settings = dict(_WRITTEN[kind])
        tables = getattr(image, "quantization", None)
        if kind == "JPEG" and tables and image.mode in ("L", "RGB"):
            settings = {"qtables": tables}
            if image.mode == "RGB" and (sampling := get_sampling(image)) >= 0:
                settings["subsampling"] = sampling
        profile = image.info.get("icc_profile")
        image.load()
        grey = image.mode in ("1", "L", "LA") or image.mode.startswith("I")
        if image.getexif().get(_ORIENTATION, 1) != 1:  # it copies what is upright, too
            image = ImageOps.exif_transpose(image)
        image = _in_srgb(image, profile)
        pixels = torch.from_numpy(np.array(image))
    return Photo(pixels.permute(2, 0, 1), kind, grey, settings)


def _in_srgb(image: Image.Image, profile: bytes | None) -> Image.Image:
    """8 bits of sRGB; a profile that says nothing sensible counts as sRGB."""
    if profile and image.mode in ("RGB", "CMYK") and not image.has_transparency_data:
        with suppress(ImageCms.PyCMSError, OSError):
            source = ImageCms.getOpenProfile(io.BytesIO(profile))
            if "sRGB" not in ImageCms.getProfileDescription(source):
                found = ImageCms.profileToProfile(image, source, ImageCms.createProfile("sRGB"), outputMode="RGB")
                assert found is not None
                return found
    if profile and image.has_transparency_data and image.mode == "RGBA":
        opaque = _in_srgb(image.convert("RGB"), profile)
        opaque.putalpha(image.getchannel("A"))
        return to_rgb(opaque)
    return to_rgb(image)
