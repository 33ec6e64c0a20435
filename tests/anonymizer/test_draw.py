"""New faces in place of old ones: where they lie, what they depend on."""

import hashlib
import hmac
import math

import pytest
import torch
from torch.nn import functional as F

from data_modules.synthetic_faces.renderer import render
from data_modules.synthetic_faces.world import draw_scenes
from fairanon.anonymizer.draw import Generative, InpaintDrawer
from fairanon.anonymizer.faces import Face, Picture
from fairanon.anonymizer.photos import Photo
from fairanon.anonymizer.register import People
from fairanon.backbones import Sampling, StableDiffusion
from fairanon.backbones.random_models import save_random_stable_diffusion
from fairanon.evaluators import TinyDetector
from fairanon.imaging import Square


@pytest.fixture(scope="module")
def drawer(tmp_path_factory):
    path = save_random_stable_diffusion(tmp_path_factory.mktemp("models") / "sd", inpainting=True)
    return InpaintDrawer(StableDiffusion(str(path)), "a face", Sampling(2, 7.5))


def group(first=0):
    """Two people side by side, 64 x 128."""
    scenes = draw_scenes(9, range(first, first + 2), "balanced")
    return torch.cat(list(render(scenes.replace(pose=torch.zeros_like(scenes.pose))).image), -1)


def picture(pixels, name="group.png"):
    boxes = TinyDetector().detect(pixels[None])[0]["face"].boxes.tolist()
    return Picture(name, Photo(pixels, "PNG", False, {}), [Face(tuple(box), 1.0) for box in boxes])


def drawn(hider, *pictures):
    hider.draw(pictures)
    return [hider.apply(one) for one in pictures]


def smooth(size):
    noise = torch.rand(1, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    return (F.interpolate(noise, (size, size), mode="bicubic").clamp(0, 1)[0] * 255).to(torch.uint8)


@pytest.mark.parametrize("angle", [0.0, 20.0])
def test_a_cut_comes_back_where_it_was(angle):
    image, square = smooth(96), Square(50.0, 40.0, 48.0, angle)
    cut = square.crop(image, 48)
    again = image.clone()
    square.put_back(again, cut, torch.ones(1, 48, 48))
    assert (again.int() - image.int()).abs().max() <= (1 if angle == 0 else 8)
    if angle == 0:
        assert torch.equal(cut, image[:, 16:64, 26:74])
    changed = image.clone()
    square.put_back(changed, 255 - cut, torch.zeros(1, 48, 48))
    assert torch.equal(changed, image)
    whole = torch.zeros_like(image)
    square.put_back(whole, torch.full_like(cut, 255), torch.ones(1, 48, 48))
    assert abs(float((whole > 127).float().mean()) - (48 / 96) ** 2) < 0.01


def test_a_cut_does_not_depend_on_what_lies_far_away():
    image = smooth(400)
    far = image.clone()
    far[:, :100], far[:, :, 300:] = 0, 255
    for square in (Square(200.0, 220.0, 60.0, 33.0), Square(210.0, 230.0, 90.0)):
        assert torch.equal(square.crop(image, 24), square.crop(far, 24))
    outside = Square(-50.0, 900.0, 40.0)
    assert outside.crop(image, 8).shape == (3, 8, 8)


def test_a_large_drawing_of_a_small_face_is_reduced_smoothly():
    image, noise = torch.zeros(3, 64, 64, dtype=torch.uint8), torch.randint(0, 256, (3, 256, 256)).to(torch.uint8)
    Square(32.0, 32.0, 16.0).put_back(image, noise, torch.ones(1, 256, 256))
    inside = image[:, 26:38, 26:38].float()
    assert abs(float(inside.mean()) - 127) < 10 and inside.std() < 20, "one pixel is the mean of 256"


def test_turning_is_clockwise():
    image = torch.zeros(3, 64, 64, dtype=torch.uint8)
    image[:, 30:34, 44:60] = 255  # a bar to the right of the centre
    cut = Square(32.0, 32.0, 64.0, 90.0).crop(image, 64)  # the right of the image is now above
    assert cut[:, 4:20, 30:34].float().mean() > 250 and cut[:, 44:60, 30:34].float().mean() < 5


def test_a_similarity_transform_is_a_square():
    square = Square(50.0, 40.0, 48.0, 20.0)
    angle, scale = math.radians(-20.0), 32 / 48
    rotation = scale * torch.tensor([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
    shift = torch.tensor([[16.0], [16.0]]) - rotation @ torch.tensor([[50.0], [40.0]])
    found = Square.of_similarity(torch.cat([rotation, shift], 1), 32)
    assert (found.x, found.y, found.side, found.angle) == pytest.approx((50.0, 40.0, 48.0, 20.0), abs=1e-4)
    assert square == pytest.approx(square)


def test_every_face_is_drawn_anew_and_nothing_else(drawer):
    one = picture(group())
    hider = Generative(drawer, seed=1, scale=2.0)
    (result,) = drawn(hider, one)
    assert len(one.faces) == 2
    changed = (result != group()).any(0)
    for face in one.faces:
        square = hider.square(group(), face)
        x, y = round(square.x), round(square.y)
        assert changed[y - 4 : y + 4, x - 4 : x + 4].float().mean() > 0.9
    assert not changed[:3].any() and not changed[:, [0, 127]].any()
    assert torch.equal(drawn(Generative(drawer, 1, scale=2.0), picture(group()))[0], result)
    assert not torch.equal(drawn(Generative(drawer, 2, scale=2.0), picture(group()))[0], result)
    assert not torch.equal(drawn(Generative(drawer, 1, scale=2.0), picture(group(), "other.png"))[0], result)


def test_neighbours_in_a_batch_change_nothing(drawer):
    pictures = [picture(group(2 * k), f"{k}.png") for k in range(5)]
    together = drawn(Generative(drawer, 1, batch_size=4), *pictures)
    alone = [drawn(Generative(drawer, 1, batch_size=4), one)[0] for one in pictures]
    assert all(torch.equal(a, b) for a, b in zip(together, alone, strict=True)), "bit for bit: a batch is filled up"


@pytest.mark.parametrize("batch_size", [1, 3])
def test_a_face_depends_neither_on_the_batch_nor_on_the_order(drawer, batch_size):
    pictures = [picture(group(2 * k), f"{k}.png") for k in range(3)]
    together = drawn(Generative(drawer, 1, batch_size=8), *pictures)
    apart = drawn(Generative(drawer, 1, batch_size=batch_size), *reversed(pictures))
    for first, second in zip(together, reversed(apart), strict=True):
        assert (first.int() - second.int()).abs().max() <= 1


def test_a_face_that_failed_is_somebody_else_the_next_time_and_the_others_stay(drawer):
    one, hider = picture(group()), Generative(drawer, 1)
    (before,) = drawn(hider, one)
    one.faces[0].attempt = 1
    (after,) = drawn(hider, one)
    changed = (before != after).any(0)
    left = one.faces[0].box[0] < 64
    assert changed[:, :64].any() == left and changed[:, 64:].any() != left


def test_a_full_memory_halves_the_batch(drawer, monkeypatch):
    sizes, real = [], drawer.draw

    def draw(cuts, *rest):
        sizes.append(len(cuts))
        if len(cuts) > 2:
            raise torch.OutOfMemoryError("full")
        return real(cuts, *rest)

    pictures = [picture(group(2 * k), f"{k}.png") for k in range(3)]
    plain = drawn(Generative(drawer, 1), *pictures)
    monkeypatch.setattr(drawer, "draw", draw)
    again = drawn(Generative(drawer, 1), *pictures)
    assert sizes == [8, 4, 2, 2, 2]
    assert all((a.int() - b.int()).abs().max() <= 1 for a, b in zip(plain, again, strict=True))


def test_with_a_key_the_person_says_who_is_drawn(drawer):
    pictures = [picture(group(), f"{k}.png") for k in range(2)]
    where = [(one.name, number) for one in pictures for number in range(2)]
    results = {}
    for key in (b"k" * 16, b"l" * 16):
        hider = Generative(drawer, 1)
        hider.people = People(key, dict(zip(where, ["a", "b", "a", "b"], strict=True)), None)
        results[key] = drawn(hider, *pictures)
        noise = hmac.new(key, b"a", hashlib.sha256).hexdigest()
        assert hider._key("0.png", 0, pictures[0].faces[0]) == (noise, "identity")
        assert hider.new_face("0.png", 0) == hider.new_face("1.png", 0) not in ("", noise), (
            "what is counted draws nobody"
        )
        assert hider.new_face("0.png", 1) != hider.new_face("0.png", 0) and hider.new_face("new.png", 0) == ""
        assert (results[key][0].int() - results[key][1].int()).abs().max() <= 1, "the same people in both pictures"
    assert not torch.equal(results[b"k" * 16][0], results[b"l" * 16][0])


class Circle:
    """A face in the middle, with a nose in it."""

    name, regions = "circle", ("face", "nose")

    def parse(self, pixels):
        axis = torch.arange(pixels.shape[-1]) - pixels.shape[-1] / 2
        away = (axis[:, None].square() + axis.square()).expand(len(pixels), 1, -1, -1)
        return {"face": away < 100, "nose": away < 16}


class NoMask:
    name, regions = "none", ("face",)

    def parse(self, pixels):
        return {"face": torch.zeros(len(pixels), 1, *pixels.shape[-2:], dtype=torch.bool)}


class Stray(NoMask):
    """Sees a few pixels in the corner of the cut: somebody else's face."""

    def parse(self, pixels):
        mask = super().parse(pixels)["face"]
        mask[..., :6, :6] = True
        return {"face": mask}


def test_the_parsers_region_is_the_mask(drawer):
    share = {}
    for region in ("face", "face-nose"):
        hider = Generative(drawer, 1, parser=Circle(), region=region, grow=0)
        share[region] = (drawn(hider, picture(group()))[0] != group()).any(0).float().mean()
    assert 0 < share["face-nose"] < share["face"] < 0.3
    with pytest.raises(ValueError, match="the regions are face, nose"):
        drawn(Generative(drawer, 1, parser=Circle(), region="beard"), picture(group()))


@pytest.mark.parametrize("parser", [NoMask(), Stray()])
def test_a_mask_that_misses_the_face_is_not_believed(drawer, parser):
    (result,) = drawn(Generative(drawer, 3, parser=parser), picture(group()))
    (plain,) = drawn(Generative(drawer, 3), picture(group()))
    assert torch.equal(result, plain), "everything round the box is drawn"


class Leaning:
    """Says that faces lean by 12 degrees, or sees none."""

    def __init__(self, found):
        self.found = found

    def align(self, image, box):
        return Square(0.0, 0.0, 1.0, 12.0) if self.found else None


@pytest.mark.parametrize(("found", "angle"), [(True, 12.0), (False, 0.0)])
def test_faces_are_turned_upright_where_somebody_says_how_they_lean(drawer, found, angle):
    one = picture(group())
    assert Generative(drawer, 1, Leaning(found)).square(group(), one.faces[0]).angle == angle


def test_a_text_to_image_model_is_refused(tmp_path):
    model = StableDiffusion(str(save_random_stable_diffusion(tmp_path / "sd")))
    with pytest.raises(ValueError, match="no inpainting model"):
        InpaintDrawer(model, "a face", Sampling(20, 7.5))
