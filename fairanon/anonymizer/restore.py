"""What anybody can do to a blurred or pixelated face before they show it to a recognizer."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fairanon.imaging import to_array
from fairanon.redaction import Redaction

_SIDE = 256
"""Pixels at which a face is restored: no recognizer sees more of it."""
_NOISE = (1e-2, 1e-3, 1e-4)
"""Shares of noise that the filters take for granted: the smaller, the sharper."""


def restorations(near: Tensor, kind: Redaction, strength: float) -> Iterator[Tensor]:
    """A handful of simple restorations of a redacted region; whoever does this knows the method and its strength.

    Pixels are smoothed, in two ways; a blur of known radius is undone by a Wiener filter, at three sharpnesses.

    Args:
        near: uint8 (3, h, w), the region.
        kind: How it was redacted, see `redact`.
        strength: How strongly.

    Yields:
        uint8 (3, h, w).
    """
    import cv2

    height, width = near.shape[-2:]
    small = min(1.0, _SIDE / min(height, width))
    shape = (max(1, round(width * small)), max(1, round(height * small)))
    whole = to_array(near)
    array = cv2.resize(whole, shape, interpolation=cv2.INTER_AREA)
    if kind == "pixelate":
        block = max(1.0, strength * min(height, width) / 2)
        grid = (max(1, round(width / block)), max(1, round(height / block)))
        blocks = cv2.resize(whole, grid, interpolation=cv2.INTER_AREA)
        images = [cv2.resize(blocks, shape, interpolation=how) for how in (cv2.INTER_CUBIC, cv2.INTER_LANCZOS4)]
    else:
        images = [_sharpened(array, strength * min(shape) / 4, noise) for noise in _NOISE]
    for image in images:
        large = cv2.resize(image, (width, height), interpolation=cv2.INTER_LINEAR)
        yield torch.from_numpy(np.ascontiguousarray(large)).permute(2, 0, 1)


def _sharpened(array: Any, sigma: float, noise: float) -> Any:
    """A Gaussian blur undone by a Wiener filter: uint8 (h, w, 3)."""
    import cv2

    reach = int(3 * sigma) + 1
    wide = cv2.copyMakeBorder(array, reach, reach, reach, reach, cv2.BORDER_REFLECT).astype(np.float64)
    along_y, along_x = np.fft.fftfreq(wide.shape[0])[:, None], np.fft.fftfreq(wide.shape[1])[None]
    blur = np.exp(-2 * np.pi**2 * sigma**2 * (along_x**2 + along_y**2))[..., None]
    sharp = np.fft.ifft2(np.fft.fft2(wide, axes=(0, 1)) * blur / (blur**2 + noise), axes=(0, 1)).real
    inside = sharp[reach : reach + array.shape[0], reach : reach + array.shape[1]]
    return np.clip(inside, 0, 255).astype(np.uint8)
