"""How light the skin of a face appears: measured in CIELAB, not asked of a network."""

from __future__ import annotations

import torch
from torch import Tensor

from fairanon.evaluators.judge import Judge
from fairanon.imaging import Square
from fairanon.protocols import Detector, FaceParser

MONK = ("f6ede4", "f3e7db", "f7ead0", "eadaba", "d7bd96", "a07e56", "825c43", "604134", "3a312a", "292420")
"""The ten tones of the Monk scale (E. Monk, 2019), in sRGB."""
_ITA = {"very light": 55.0, "light": 41.0, "intermediate": 28.0, "tan": 10.0, "brown": -30.0, "dark": -91.0}
"""Individual typology angles above which skin belongs to a class, in degrees (Del Bino and Bernerd 2013)."""
_FEWEST = 20
"""Pixels of skin that say something."""
_SIDE = 256
_XYZ = torch.tensor(
    [[0.4124564, 0.3575761, 0.1804375], [0.2126729, 0.7151522, 0.0721750], [0.0193339, 0.1191920, 0.9503041]]
).double()
"""Linear sRGB to XYZ (IEC 61966-2-1)."""
_WHITE = torch.tensor([0.95047, 1.0, 1.08883]).double()


class SkinTone(Judge):
    """The nearest Monk tone and the class of the individual typology angle (ITA) of a face's skin.

    The median of L*, a* and b* over the skin that a parser finds: face without eyes, brows and lips. Light moves both, by up to three
    tones: this is how skin appears in an image.

    Args:
        detector: Finds the face.
        parser: Finds its skin.
    """

    def __init__(self, detector: Detector, parser: FaceParser) -> None:
        self.detector, self.parser = detector, parser
        self.name = f"skin-cielab+{parser.name}+{detector.name}"
        self.classes = {"monk": tuple(f"monk {k}" for k in range(1, 11)), "ita": tuple(_ITA)}

    def classify(self, pixels: Tensor) -> dict[str, Tensor]:
        """See `AttributeClassifier`: 1 for the class, since nothing is guessed."""
        probabilities = {
            name: torch.full((len(pixels), len(values)), torch.nan) for name, values in self.classes.items()
        }
        for n, (image, faces) in enumerate(zip(pixels, self.detector.detect(pixels), strict=True)):
            boxes = faces["face"].boxes
            tone = None if not len(boxes) else self._tone(image, boxes[0])
            if tone is not None:
                for name, k in (("monk", nearest_monk(tone)), ("ita", ita_class(tone))):
                    probabilities[name][n] = torch.arange(len(self.classes[name])).eq(k).float()
        return probabilities

    def _tone(self, image: Tensor, box: Tensor) -> Tensor | None:
        """Median L*, a*, b* of the skin in a box; None where a parser sees hardly any."""
        x0, y0, x1, y1 = box.tolist()
        square = Square((x0 + x1) / 2, (y0 + y1) / 2, 2 * max(x1 - x0, y1 - y0))
        face = square.crop(image, _SIDE)
        regions = {name: mask[0, 0] for name, mask in self.parser.parse(face[None]).items()}
        skin = regions["face"].clone()
        for name in ("eyes", "brows", "lips"):
            if name in regions:
                skin &= ~regions[name]
        return None if int(skin.sum()) < _FEWEST else to_lab(face)[:, skin].median(1).values


def to_lab(pixels: Tensor) -> Tensor:
    """L*, a*, b* (D65) of an sRGB image uint8 (3, H, W): float32 (3, H, W), L* in 0 to 100."""
    value = pixels.double() / 255
    linear = torch.where(value <= 0.04045, value / 12.92, ((value + 0.055) / 1.055) ** 2.4)
    part = torch.einsum("ij,jhw->ihw", _XYZ, linear) / _WHITE[:, None, None]
    x, y, z = torch.where(part > 216 / 24389, part ** (1 / 3), (24389 / 27 * part + 16) / 116)
    return torch.stack([116 * y - 16, 500 * (x - y), 200 * (y - z)]).float()


def typology_angle(tone: Tensor) -> float:
    """ITA of L*, a*, b* in degrees: the angle of (b*, L* - 50).

    Examples:
        >>> round(typology_angle(torch.tensor([70.0, 10.0, 20.0])))
        45
    """
    return float(torch.rad2deg(torch.atan2(tone[0] - 50, tone[2])))


def ita_class(tone: Tensor) -> int:
    """Which of the six classes of ITA."""
    angle = typology_angle(tone)
    return next(k for k, least in enumerate(_ITA.values()) if angle > least or k == len(_ITA) - 1)


def nearest_monk(tone: Tensor) -> int:
    """The Monk tone with the smallest distance in CIELAB to L*, a*, b*: 0 to 9."""
    return int((_monk_tones() - tone).norm(dim=1).argmin())


def _monk_tones() -> Tensor:
    """float32 (10, 3)."""
    colours = torch.tensor([[int(code[k : k + 2], 16) for k in (0, 2, 4)] for code in MONK], dtype=torch.uint8)
    return to_lab(colours.T[:, :, None])[:, :, 0].T
