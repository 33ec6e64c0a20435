"""Boxes of several scales, tiles and detectors are boxes of the photograph, one for each face."""

import pytest
import torch
import torchvision

from fairanon.anonymizer.find import Finder, _noise, overlap
from fairanon.protocols import Detections


class White:
    """Finds white rectangles whose larger side has between 10 and 350 pixels."""

    name, kinds, licence, any_scale = "white", ("face",), "none", True

    def __init__(self, shift=0.0, score=0.9):
        self.shift, self.score, self.seen = shift, score, []

    def detect(self, pixels):
        results = []
        for image in pixels:
            self.seen.append(tuple(image.shape[-2:]))
            places = (image.float().mean(0) > 200).nonzero()
            boxes = torch.empty(0, 4)
            if len(places):
                (y0, x0), (y1, x1) = places.amin(0).tolist(), (places.amax(0) + 1).tolist()
                if 10 <= max(x1 - x0, y1 - y0) <= 350:
                    boxes = torch.tensor([[x0 + self.shift, y0 + self.shift, x1 + self.shift, y1 + self.shift]]).float()
            results.append({"face": Detections(boxes, torch.full((len(boxes),), self.score))})
        return results


def photograph(height, width, *box):
    image = torch.zeros(height, width, 3, dtype=torch.uint8)
    x0, y0, x1, y1 = box
    image[y0:y1, x0:x1] = 255
    return image.permute(2, 0, 1)


@pytest.mark.parametrize(
    "box", [(2900, 1950, 2925, 1980), (1270, 640, 1300, 670), (0, 0, 24, 24), (2976, 1976, 3000, 2000)]
)
def test_a_small_face_in_a_large_photograph_is_found_where_it_is(box):
    image, detector = photograph(2000, 3000, *box), White()
    found = Finder([detector]).find(image)
    assert len(found.boxes) == 1 and (found.boxes[0] - torch.tensor(box)).abs().max() <= 3
    assert max(max(shape) for shape in detector.seen) <= 1280
    assert len(Finder([White()], tiles=False).find(image).boxes) <= 1


def test_without_tiles_it_is_missed():
    image = photograph(2000, 3000, 2900, 1950, 2923, 1973)
    assert len(Finder([White()], smallest=15, tiles=False).find(image).boxes) == 0
    assert len(Finder([White()], smallest=15).find(image).boxes) == 1


def test_a_face_that_fills_the_photograph_is_found():
    found = Finder([White()]).find(photograph(1200, 1200, 200, 100, 900, 1000))
    assert len(found.boxes) == 1 and overlap(found.boxes[0], torch.tensor([[200.0, 100, 900, 1000]])) > 0.95


def test_tiles_cover_every_pixel():
    seen = torch.zeros(2500, 4000)
    finder = Finder([White()])
    for look in finder._tiles(photograph(2500, 4000, 0, 0, 1, 1), 1536):
        (height, width), (left, top), scale = look.part.shape[-2:], look.corner, look.scale
        seen[round(top) : round(top + height / scale[1]), round(left) : round(left + width / scale[0])] += (
            scale[0] > 0.45
        )
    assert seen.min() >= 1


def test_two_detectors_are_united():
    image = photograph(400, 400, 100, 100, 160, 160)
    found = Finder([White(), White(shift=12.0, score=0.5)], fast=True).find(image)  # seen at twice the size
    assert len(found.boxes) == 1 and found.scores.tolist() == pytest.approx([0.9])
    assert (found.boxes[0] - torch.tensor([100.0, 100, 166, 166])).abs().max() <= 2, "the hull of both"
    apart = Finder([White(), White(shift=70.0)], fast=True).find(image)
    assert len(apart.boxes) == 2


def test_nothing_is_found_in_nothing():
    found = Finder([White()]).find(photograph(50, 70, 0, 0, 0, 0))
    assert found.boxes.shape == (0, 4) and found.scores.shape == (0,)
    assert len(Finder([White()]).find(photograph(1, 1, 0, 0, 1, 1)).boxes) == 0


class Lying(White):
    """Finds a white rectangle whose left end is grey: nobody, unless the photograph is turned."""

    def detect(self, pixels):
        found = super().detect(pixels)
        for image, one in zip(pixels, found, strict=True):
            if len(one["face"].boxes):
                x0, y0, x1, y1 = (round(v) for v in one["face"].boxes[0].tolist())
                if x1 - x0 > y1 - y0 or image[:, y0 : y0 + max(1, (y1 - y0) // 4), x0:x1].float().mean() > 240:
                    one["face"] = Detections(torch.empty(0, 4), torch.empty(0))
        return found


@pytest.mark.parametrize("quarters", [0, 1, 2, 3])
@pytest.mark.parametrize("shape", [(300, 500), (900, 1200)])
def test_who_lies_is_found_where_they_lie(quarters, shape):
    image = photograph(*shape, 100, 60, 160, 140)
    image[:, 60:80, 100:160] = 210
    turned = image.rot90(quarters, (1, 2))
    found = Finder([Lying()]).find(turned)
    assert len(found) == 1 and int(found.quarters) == -quarters % 4
    ys, xs = (turned[0] > 200).nonzero(as_tuple=True)
    expected = torch.tensor([xs.min(), ys.min(), xs.max() + 1, ys.max() + 1]).float()
    assert (found.boxes[0] - expected).abs().max() <= 3
    assert len(Finder([Lying()], fast=True).find(turned)) == (quarters == 0)


class Own(White):
    """Finds them at the photograph's own size alone."""

    def detect(self, pixels):
        found = super().detect(pixels)
        return found if pixels.shape[-2:] == (400, 500) else [{"face": Detections(torch.empty(0, 4), torch.empty(0))}]


def test_a_photograph_is_seen_at_its_own_size():
    image = photograph(400, 500, 100, 60, 160, 140)
    assert len(Finder([Own()]).find(image)) == 1 and len(Finder([Own()], fast=True).find(image)) == 0


def test_a_noisy_photograph_is_smoothed():
    generator = torch.Generator().manual_seed(0)
    quiet = torch.full((3, 200, 200), 128.0)
    noisy = (quiet + 30 * torch.randn(3, 200, 200, generator=generator)).clamp(0, 255).to(torch.uint8)
    assert _noise(noisy) == pytest.approx(30, rel=0.05) and _noise(quiet.to(torch.uint8)) == 0
    seen = White()
    Finder([seen]).find(noisy)
    plain = White()
    Finder([plain]).find(quiet.to(torch.uint8))
    assert len(seen.seen) == len(plain.seen) + 1


@pytest.mark.parametrize("shape", [(1, 65_535), (65_535, 1), (3, 2000)])
def test_pictures_of_one_line_are_looked_at(shape):
    assert len(Finder([White()]).find(photograph(*shape, 0, 0, 0, 0))) == 0


def test_overlap_is_the_intersection_over_the_union():
    corners = torch.rand(50, 2, 2, generator=torch.Generator().manual_seed(0)) * 100
    boxes = torch.cat([corners.amin(1), corners.amax(1)], 1)
    expected = torchvision.ops.box_iou(boxes, boxes)
    assert torch.allclose(torch.stack([overlap(box, boxes) for box in boxes]), expected)
    assert overlap(torch.zeros(4), torch.zeros(1, 4)).tolist() == [0.0], "of nothing with nothing"
