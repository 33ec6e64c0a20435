"""The one place of value ranges, decoding, resizes and joint geometric transforms.

Images travel as uint8 in [0, 255] between data sets, judges and files, and as float32 in [-1, 1] inside a
backbone. Shapes: (3, H, W) or (B, 3, H, W), RGB.
"""

from __future__ import annotations

import io
import math
import os
import re
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, cast

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor
from torch.nn import functional as F

from fairanon.files import atomic_write
from fairanon.places import Member, StoreError, is_stored, read_bytes


class CorruptImageError(OSError):
    """An image that cannot be read; the message names it."""


def to_model(pixels: Tensor) -> Tensor:
    """uint8 [0, 255] to float32 [-1, 1], any shape."""
    if pixels.dtype != torch.uint8:
        raise ValueError(f"images must be uint8, got {pixels.dtype}.")
    return pixels.float() / 127.5 - 1


def to_pixels(images: Tensor) -> Tensor:
    """Float [-1, 1] to uint8 [0, 255], clamped and rounded, any shape."""
    return ((images.float().clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)


def to_array(image: Tensor) -> np.ndarray[Any, Any]:
    """A uint8 (3, H, W) image as an array (H, W, 3) in one piece, as other libraries take it."""
    return np.ascontiguousarray(image.permute(1, 2, 0).cpu().numpy())


def imagenet(pixels: Tensor, side: int) -> Tensor:
    """uint8 (B, 3, H, W) resized to a square and normalized by ImageNet's mean and deviation: float32 (B, 3, side, side)."""
    mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    return (F.interpolate(pixels.float() / 255, (side, side), mode="bilinear", antialias=True) - mean) / std


def read_image(source: str | Path | IO[bytes], name: str) -> Tensor:
    """Decode an image as a viewer shows it: turned as its metadata says, transparency on white, 16 bits as 8.

    Args:
        source: A path or an open file.
        name: What the error message calls it.

    Returns:
        uint8 (3, H, W).

    Raises:
        CorruptImageError: It is missing, unreadable, larger than `MAX_PIXELS` or of a kind that 8 bits cannot show.
    """
    with opened(source, name) as image:
        pixels = np.asarray(to_rgb(ImageOps.exif_transpose(image)))
    return torch.from_numpy(pixels.copy()).permute(2, 0, 1)


def read_mask(source: str | Path, name: str) -> Tensor:
    """Decode a mask: turned as its metadata says; what is brighter than 127 belongs to it.

    A mask of zeros and ones is taken as one. Where parts are transparent they decide: of white the opaque part, of black
    the transparent part belongs to it.

    Args:
        source: A path.
        name: What the error message calls it.

    Returns:
        bool (H, W).

    Raises:
        CorruptImageError: See `read_image`; or it is neither black and white nor transparent in parts.
    """
    with opened(source, name) as image:
        image = ImageOps.exif_transpose(image)
        if image.has_transparency_data:
            layers = np.asarray(image.convert("LA"))
            opaque = layers[..., 1] > 127
            if not opaque.all():
                return torch.from_numpy(_by_transparency(layers[..., 0], opaque, name))
        grey = np.asarray(to_rgb(image).convert("L") if image.mode not in ("1", "L") else image.convert("L"))
        brightest = int(grey.max())
        if 1 < brightest <= 127:
            raise CorruptImageError(
                f"{name} is no mask: its brightest pixel is {brightest} of 255; a mask is black and white"
            )
        return torch.from_numpy(grey > (0 if brightest == 1 else 127))


def _by_transparency(grey: np.ndarray[Any, Any], opaque: np.ndarray[Any, Any], name: str) -> np.ndarray[Any, Any]:
    seen = grey[opaque]
    if (seen > 127).all():
        return opaque
    if (seen <= 127).all():
        return ~opaque
    raise CorruptImageError(
        f"{name} is no mask: it is transparent in parts and of several colours elsewhere; save the mask alone, in black and "
        "white"
    )


def read_labels(source: str | Path, name: str) -> Tensor:
    """Decode a parsing map: the numbers of its pixels, or of their colours in a palette: int64 (H, W).

    Raises:
        CorruptImageError: See `read_image`; or it has several channels.
    """
    with opened(source, name) as image:
        image = ImageOps.exif_transpose(image)
        if image.mode not in ("1", "L", "P") and not image.mode.startswith("I"):
            raise CorruptImageError(f"{name} is no parsing map: it has the channels {image.mode}, wanted one")
        return torch.from_numpy(np.asarray(image).astype(np.int64))


def image_size(source: str | Path, name: str) -> tuple[int, int]:
    """Width and height of an image as a viewer shows it; the whole of it is decoded, so that a damaged one is found.

    Raises:
        CorruptImageError: See `read_image`.
    """
    with opened(source, name) as image:
        image = ImageOps.exif_transpose(image)
        to_rgb(image)
        return image.size


MAX_PIXELS = 150_000_000
"""Larger images are not decoded, they would fill the memory; the variable FAIRANON_MAX_PIXELS sets another limit."""


_PILLOWS_LIMIT = threading.Lock()


def open_image(source: str | Path | IO[bytes]) -> Image.Image:
    """`PIL.Image.open` without Pillow's own limit, which stays as it is for whatever program this is part of."""
    with _PILLOWS_LIMIT:
        kept, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
        try:
            apart = is_stored(source) or isinstance(source, Member)
            return Image.open(io.BytesIO(read_bytes(cast(Path, source))) if apart else source)
        finally:
            Image.MAX_IMAGE_PIXELS = kept


def most_pixels() -> int:
    """Of an image that is decoded, see `MAX_PIXELS`.

    Raises:
        ValueError: The variable is no number.
    """
    limit = os.environ.get("FAIRANON_MAX_PIXELS", str(MAX_PIXELS))
    if not limit.isdecimal() or int(limit) < 1:
        raise ValueError(f"FAIRANON_MAX_PIXELS must be a whole number above 0, got {limit!r}.")
    return int(limit)


@contextmanager
def opened(source: str | Path | IO[bytes], name: str) -> Iterator[Image.Image]:
    """An image as it is stored; whatever a decoder trips over inside is one error that names it."""
    limit = most_pixels()
    try:
        with open_image(source) as image:
            if image.width * image.height > limit:
                raise CorruptImageError(
                    f"{name} is too large ({image.width} x {image.height} pixels); FAIRANON_MAX_PIXELS, now {limit}, "
                    "allows more"
                )
            yield image
    except (CorruptImageError, StoreError):
        raise
    except FileNotFoundError:
        raise CorruptImageError(f"{name} is missing") from None
    except UnidentifiedImageError:
        raise CorruptImageError(f"{name} cannot be read (no image, or of an unknown kind)") from None
    except Exception as error:  # noqa: BLE001  (decoders raise whatever they like)
        raise CorruptImageError(f"{name} cannot be read ({error})") from None


def to_rgb(image: Image.Image) -> Image.Image:
    """An image in 8 bits of red, green and blue, transparency on white."""
    if image.mode == "F":
        raise ValueError("numbers of 32 bits have no white")
    if image.mode.startswith("I"):  # 16 bits of grey: Pillow would cut them off at 255
        image = Image.fromarray((np.asarray(image).clip(0, 65535) // 257).astype(np.uint8))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image if image.mode == "RGB" else image.convert("RGB")


def write_image(pixels: Tensor, path: Path) -> None:
    """Write a uint8 (3, H, W) image without metadata, under a temporary name first."""
    with atomic_write(path) as partial:
        Image.fromarray(pixels.permute(1, 2, 0).numpy()).save(partial, format="PNG")


def joint_crop(images: Sequence[Tensor], size: int) -> list[Tensor]:
    """Resize the shorter side to ``size`` (bicubic, antialiased) and crop the centre, each image alike.

    Args:
        images: uint8 (C, H, W) each.
        size: Side of the results.

    Returns:
        uint8 (C, size, size) each.
    """
    results = []
    for image in images:
        height, width = image.shape[-2:]
        if (height, width) != (size, size):
            scale = size / min(height, width)
            shape = (max(size, round(height * scale)), max(size, round(width * scale)))
            resized = F.interpolate(image[None].float(), shape, mode="bicubic", antialias=True)
            image = resized[0].round().clamp(0, 255).to(torch.uint8)
            top, left = (shape[0] - size) // 2, (shape[1] - size) // 2
            image = image[:, top : top + size, left : left + size]
        results.append(image)
    return results


def crop_corner(height: int, width: int, size: int) -> tuple[int, int]:
    """Where `joint_crop` cuts an image: top and left, in pixels of the resized image."""
    scale = size / min(height, width)
    resized = (max(size, round(side * scale)) for side in (height, width))
    top, left = ((side - size) // 2 for side in resized)
    return top, left


def joint_flip(images: Sequence[Tensor], mirror: bool) -> list[Tensor]:
    """Mirror all images (and masks) or none: one draw for everything that belongs together."""
    return [image.flip(-1) if mirror else image for image in images]


def dilate(masks: Tensor, radius: int) -> Tensor:
    """Grow masks by ``radius`` pixels in every direction (a square), as the official masks are by 16.

    Args:
        masks: bool (..., H, W).
        radius: Pixels.

    Returns:
        bool, same shape.
    """
    if radius == 0:
        return masks
    flat = masks.float().flatten(0, -3)[:, None]
    return (F.max_pool2d(flat, 2 * radius + 1, stride=1, padding=radius) > 0).view_as(masks)


def blur(images: Tensor, sigma: float) -> Tensor:
    """Gaussian blur by two passes along the sides: a wide kernel in both at once takes hours where this takes seconds.

    Args:
        images: float (B, C, H, W).
        sigma: Standard deviation in pixels.

    Returns:
        float (B, C, H, W); the border is mirrored, and the kernel ends at three deviations or at the border's mirror.
    """
    channels = images.shape[1]
    for axis in (2, 3):
        reach = min(round(3 * sigma), images.shape[axis] - 1)
        if reach < 1:
            continue
        places = torch.arange(-reach, reach + 1, device=images.device, dtype=images.dtype)
        kernel = (-0.5 * (places / sigma).square()).exp()
        shape = (1, 1, -1, 1) if axis == 2 else (1, 1, 1, -1)
        weight = (kernel / kernel.sum()).view(shape).repeat(channels, 1, 1, 1)
        padding = (0, 0, reach, reach) if axis == 2 else (reach, reach, 0, 0)
        images = F.conv2d(F.pad(images, padding, mode="reflect"), weight, groups=channels)
    return images


def resized(pixels: Tensor, side: int) -> Tensor:
    """Images as squares of one size, which are squeezed if they were none.

    Args:
        pixels: uint8 (B, 3, H, W).
        side: Of the squares.

    Returns:
        uint8 (B, 3, side, side).
    """
    if pixels.shape[-2:] == (side, side):
        return pixels
    return F.interpolate(pixels.float(), (side, side), mode="bilinear", antialias=True).round().to(torch.uint8)


def resize_masks(masks: Tensor, size: Sequence[int]) -> Tensor:
    """Masks of another size, by the nearest pixel.

    Args:
        masks: bool (B, R, H, W).
        size: h and w.

    Returns:
        bool (B, R, h, w).
    """
    return F.interpolate(masks.float(), tuple(size)) > 0


def latent_masks(masks: Tensor, height: int, width: int) -> Tensor:
    """Masks at latent size: a latent belongs to a region if any of its pixels does, so that no hand vanishes.

    Args:
        masks: bool (B, R, H, W).
        height: h.
        width: w.

    Returns:
        bool (B, R, h, w).
    """
    if not masks.shape[1]:
        return masks.new_zeros(len(masks), 0, height, width)
    return F.adaptive_max_pool2d(masks.float(), (height, width)) > 0


GAP = 2
"""Pixels between the images of a sheet."""


def grid(pixels: Tensor, columns: int, gap: int = GAP) -> Tensor:
    """Lay images out row by row on white.

    Args:
        pixels: uint8 (N, 3, H, W).
        columns: Images per row.
        gap: White pixels between images.

    Returns:
        uint8 (3, rows * (H + gap) - gap, columns * (W + gap) - gap).
    """
    count, _, height, width = pixels.shape
    rows = -(-count // columns)
    sheet = torch.full((3, rows * (height + gap) - gap, columns * (width + gap) - gap), 255, dtype=torch.uint8)
    for n, image in enumerate(pixels):
        top, left = n // columns * (height + gap), n % columns * (width + gap)
        sheet[:, top : top + height, left : left + width] = image
    return sheet


def read_regions(expression: str, known: Iterable[str]) -> list[tuple[bool, str]]:
    """Read an expression of regions: "eyes+nose", "face-lips".

    Args:
        expression: Names joined by "+" (as well) and "-" (but not), from left to right.
        known: The names that there are.

    Returns:
        For each name whether it is added (True) or taken away.

    Raises:
        ValueError: It names no region, or one that is not there.
    """
    words = re.split(r"([+-])", expression.replace(" ", ""))
    names = list(known)
    if unknown := [name for name in words[::2] if name not in names]:
        raise ValueError(
            f"mask {expression!r} names {unknown[0] or 'nothing'!r}; the regions are {', '.join(names)}, joined by + or -."
        )
    return [(sign == "+", name) for sign, name in zip(["+", *words[1::2]], words[::2], strict=True)]


def combine_regions(masks: Mapping[str, Tensor], expression: str) -> Tensor:
    """Masks of named regions, bool (..., H, W) each, to one; see `read_regions`."""
    result = torch.zeros_like(next(iter(masks.values())))
    for added, name in read_regions(expression, masks):
        result = result | masks[name] if added else result & ~masks[name]
    return result


@dataclass(frozen=True)
class Square:
    """A square in an image, possibly turned and possibly reaching beyond the border.

    Attributes:
        x: Centre, in pixels.
        y: Likewise.
        side: In pixels.
        angle: In degrees, clockwise as seen.
    """

    x: float
    y: float
    side: float
    angle: float = 0.0

    @classmethod
    def of_similarity(cls, matrix: Tensor, size: int) -> Square:
        """The square that a similarity transform (2, 3) takes to the square of ``size`` pixels at the origin."""
        (a, _, dx), (b, _, dy) = matrix.tolist()
        scale = math.hypot(a, b)
        x, y = size / 2 - dx, size / 2 - dy
        return cls(
            (a * x + b * y) / scale**2, (a * y - b * x) / scale**2, size / scale, -math.degrees(math.atan2(b, a))
        )

    def window(self, height: int, width: int) -> tuple[slice, slice]:
        """Rows and columns of an image of this size that the square touches, with a margin; at least one pixel."""
        cos, sin = (abs(part) for part in self._turn())
        reach = self.side / 2 * (cos + sin) + 2 + self.side / 64
        return (
            slice(min(max(0, math.floor(self.y - reach)), height - 1), max(1, min(height, math.ceil(self.y + reach)))),
            slice(min(max(0, math.floor(self.x - reach)), width - 1), max(1, min(width, math.ceil(self.x + reach)))),
        )

    def crop(self, image: Tensor, size: int) -> Tensor:
        """What it shows, upright and resized; the border goes on beyond it.

        Args:
            image: uint8 (C, H, W).
            size: Side of the result.

        Returns:
            uint8 (C, size, size).
        """
        rows, columns = self.window(*image.shape[-2:])
        near = image[:, rows, columns]
        source, shrink = near[None].float(), min(1.0, size / self.side)
        if shrink < 1:  # sampling alone would alias
            shape = [max(1, round(n * shrink)) for n in near.shape[-2:]]
            source = F.interpolate(source, shape, mode="bilinear", antialias=True)
        axis = (torch.arange(size) + 0.5) / size - 0.5
        v, u = torch.meshgrid(axis * self.side, axis * self.side, indexing="ij")
        cos, sin = self._turn()
        x, y = self.x - columns.start + u * cos - v * sin, self.y - rows.start + u * sin + v * cos
        grid = torch.stack([2 * x / near.shape[-1] - 1, 2 * y / near.shape[-2] - 1], -1)
        sampled = F.grid_sample(source, grid[None], padding_mode="border", align_corners=False)
        return sampled[0].round().clamp(0, 255).to(torch.uint8)

    def put_back(self, image: Tensor, drawn: Tensor, weight: Tensor) -> None:
        """Blend a changed `crop` into the image it came from, in place.

        Args:
            image: uint8 (C, H, W); stays exactly as it is wherever the weight is 0 and outside the square.
            drawn: uint8 (C, S, S).
            weight: float (1, S, S) in [0, 1], how much of ``drawn`` is taken.
        """
        if self.side < drawn.shape[-1]:  # sampling alone would alias
            drawn, weight = (
                F.interpolate(part[None].float(), (max(1, round(self.side)),) * 2, mode="bilinear", antialias=True)[0]
                for part in (drawn, weight)
            )
        rows, columns = self.window(*image.shape[-2:])
        near = image[:, rows, columns]
        y = torch.arange(rows.start, rows.start + near.shape[-2]) + 0.5 - self.y
        x = torch.arange(columns.start, columns.start + near.shape[-1]) + 0.5 - self.x
        y, x = torch.meshgrid(y, x, indexing="ij")
        cos, sin = self._turn()
        grid = torch.stack([(x * cos + y * sin) * 2 / self.side, (y * cos - x * sin) * 2 / self.side], -1)[None]
        colours = F.grid_sample(drawn[None].float(), grid, padding_mode="border", align_corners=False)[0]
        share = F.grid_sample(weight[None].float(), grid, padding_mode="zeros", align_corners=False)[0]
        mixed = (near + share * (colours - near)).round().clamp(0, 255).to(torch.uint8)
        near.copy_(torch.where(share > 0, mixed, near))

    def _turn(self) -> tuple[float, float]:
        return math.cos(math.radians(self.angle)), math.sin(math.radians(self.angle))
