import math

import pytest
import torch
from torch.nn import functional as F

from data_modules.synthetic_faces.renderer import render
from data_modules.synthetic_faces.world import draw_scenes
from fairanon.backbones import StableDiffusion
from fairanon.backbones.random_models import save_random_stable_diffusion
from fairanon.evaluators import TinyDetector
from fairanon.imaging import Square
from fairanon.pipelines import FaceAnonymizer


@pytest.fixture(scope="module")
def backbone(tmp_path_factory):
    return StableDiffusion(str(save_random_stable_diffusion(tmp_path_factory.mktemp("models") / "sd", inpainting=True)))


@pytest.fixture(scope="module")
def group():
    """Two people side by side, 64 x 128."""
    scenes = draw_scenes(9, range(2), "balanced")
    return torch.cat(list(render(scenes.replace(pose=torch.zeros_like(scenes.pose))).image), -1)


def smooth(size):
    noise = torch.rand(1, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    return (F.interpolate(noise, (size, size), mode="bicubic").clamp(0, 1)[0] * 255).to(torch.uint8)


@pytest.mark.parametrize("angle", [0.0, 20.0])
def test_a_cut_comes_back_where_it_was(angle):
    image, square = smooth(96), Square(50.0, 40.0, 48.0, angle)
    cut = square.cut(image, 48)
    again = square.put_back(image, cut, torch.ones(1, 48, 48))
    assert (again.int() - image.int()).abs().max() <= (1 if angle == 0 else 8)
    if angle == 0:
        assert torch.equal(cut, image[:, 16:64, 26:74])
    changed = square.put_back(image, 255 - cut, torch.zeros(1, 48, 48))
    assert torch.equal(changed, image)
    whole = square.put_back(torch.zeros_like(image), torch.full_like(cut, 255), torch.ones(1, 48, 48))
    assert abs(float((whole > 127).float().mean()) - (48 / 96) ** 2) < 0.01


def test_turning_is_clockwise():
    image = torch.zeros(3, 64, 64, dtype=torch.uint8)
    image[:, 30:34, 44:60] = 255  # a bar to the right of the centre
    cut = Square(32.0, 32.0, 64.0, 90.0).cut(image, 64)  # the right of the image is now above
    assert cut[:, 4:20, 30:34].float().mean() > 250 and cut[:, 44:60, 30:34].float().mean() < 5


def test_every_face_is_drawn_anew_and_nothing_else(backbone, group):
    anonymize = FaceAnonymizer(backbone, TinyDetector(), steps=2)
    result, faces = anonymize(group, "a face", seed=1)
    assert len(faces) == 2 and all(face.covered == 1 for face in faces)
    changed = (result != group).any(0)
    for face in faces:
        x, y = round(face.square.x), round(face.square.y)
        assert changed[y - 4 : y + 4, x - 4 : x + 4].float().mean() > 0.9
    assert not changed[:3].any() and not changed[:, [0, 127]].any()
    again, _ = anonymize(group, "a face", seed=1)
    other, _ = anonymize(group, "a face", seed=2)
    assert torch.equal(again, result) and not torch.equal(other, result)


def test_no_face_leaves_the_image_and_says_so(backbone):
    plain = torch.full((3, 64, 64), 90, dtype=torch.uint8)
    result, faces = FaceAnonymizer(backbone, TinyDetector(), steps=2)(plain, "a face")
    assert torch.equal(result, plain) and faces == []


class Circle:
    """A face in the middle, with a nose in it."""

    name, regions = "circle", ("face", "nose")

    def parse(self, pixels):
        axis = torch.arange(pixels.shape[-1]) - pixels.shape[-1] / 2
        away = (axis[:, None].square() + axis.square()).expand(len(pixels), 1, -1, -1)
        return {"face": away < 100, "nose": away < 16}


def test_the_parsers_region_is_the_mask_grown(backbone, group):
    covered = {}
    for region in ("face", "nose", "face-nose"):
        anonymize = FaceAnonymizer(backbone, TinyDetector(), Circle(), region, minimum=0.01, grow=0, steps=2)
        result, faces = anonymize(group, "a face")
        covered[region] = faces[0].covered
        assert faces[0].parsed
        share = (result != group).any(0).float().mean()
        assert 0 < share < 0.3
    assert covered["face-nose"] == pytest.approx(covered["face"] - covered["nose"]) and covered["nose"] > 0
    _, grown = FaceAnonymizer(backbone, TinyDetector(), Circle(), "nose", minimum=0.01, grow=3, steps=2)(
        group, "a face"
    )
    assert grown[0].covered > 2 * covered["nose"]
    with pytest.raises(ValueError, match="the regions are face, nose"):
        FaceAnonymizer(backbone, TinyDetector(), Circle(), "beard", steps=2)(group, "a face")


def test_one_identity_for_all_faces_or_one_each(backbone, group, monkeypatch):
    keys = []
    real = backbone.starting_noise
    monkeypatch.setattr(backbone, "starting_noise", lambda key, side: (keys.append(key[0]), real(key, side))[1])
    for same in (True, False):
        FaceAnonymizer(backbone, TinyDetector(), steps=2)(group, "a face", seed=5, same_identity=same)
    assert keys == [(5, "identity", 0), (5, "identity", 0), (5, "identity", 0), (5, "identity", 1)]


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


@pytest.mark.parametrize("parser", [NoMask(), Stray()])
def test_a_mask_that_misses_the_face_is_not_believed(backbone, group, parser):
    result, faces = FaceAnonymizer(backbone, TinyDetector(), parser, steps=2)(group, "a face", seed=3)
    plain, _ = FaceAnonymizer(backbone, TinyDetector(), steps=2)(group, "a face", seed=3)
    assert torch.equal(result, plain), "everything round the box is inpainted"
    assert [(face.covered, face.parsed) for face in faces] == [(1.0, False)] * 2


class Eyes:
    """Sees eyes that slope down to the right by 12 degrees, or none."""

    name = "eyes"

    def __init__(self, found=True):
        self.found = found

    def landmarks(self, pixels):
        points = torch.zeros(len(pixels), 68, 2)
        points[:, 42:48] = torch.tensor([10.0, 10 * math.tan(math.radians(12))])
        return points if self.found else points * float("nan")


def test_faces_are_turned_upright_where_eyes_are_found(backbone, group):
    for found, angle in ((True, 12.0), (False, 0.0)):
        _, faces = FaceAnonymizer(backbone, TinyDetector(), landmarks=Eyes(found), steps=2)(group, "a face")
        assert [face.square.angle for face in faces] == pytest.approx([angle, angle])


def test_a_text_to_image_model_is_refused(tmp_path):
    model = StableDiffusion(str(save_random_stable_diffusion(tmp_path / "sd")))
    with pytest.raises(ValueError, match="no inpainting model"):
        FaceAnonymizer(model, TinyDetector())
