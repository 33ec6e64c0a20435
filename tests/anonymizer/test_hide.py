"""What is hidden, and of which shape: all of the face whole, whatever the box looks like."""

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw

from fairanon.anonymizer.attack import covered
from fairanon.anonymizer.faces import Face, Picture
from fairanon.anonymizer.hide import GREY, Classical, ellipse, region
from fairanon.anonymizer.photos import Photo
from fairanon.anonymizer.request import AnonymizeRequest
from fairanon.config.experiments import UserError


def picture(*boxes, side=120, seed=1):
    pixels = torch.randint(0, 256, (3, side, side), generator=torch.Generator().manual_seed(seed)).to(torch.uint8)
    faces = [Face(box, 0.9, True) for box in boxes]
    return Picture("a.png", Photo(pixels, "PNG", False, {}), faces)


@pytest.mark.parametrize("scale", [1.0, 1.2, 1.3, 1.4, 2.0])
@pytest.mark.parametrize("box", [(40, 40, 60, 60), (30.5, 20.2, 52.1, 71.9), (-8, 50, 20, 90), (100, 100, 130, 140)])
def test_the_whole_face_is_hidden_whole(box, scale):
    x0, y0, x1, y1 = region(box, scale, 120, 120)
    weight = ellipse(box, scale, (x0, y0, x1, y1))
    assert weight.shape == (y1 - y0, x1 - x0) and float(weight.min()) >= 0 and float(weight.max()) == 1
    left, top = max(0, int(box[0])), max(0, int(box[1]))
    inside = weight[top - y0 + 1 : int(min(box[3], 120)) - y0 - 1, left - x0 + 1 : int(min(box[2], 120)) - x0 - 1]
    assert inside.numel() and float(inside.min()) == 1


def test_it_fades_towards_its_edge_and_leaves_the_corners():
    weight = ellipse((40, 40, 80, 80), 1.5, region((40, 40, 80, 80), 1.5, 120, 120))
    middle = weight[weight.shape[0] // 2]
    assert (
        middle[0] < 0.3 and torch.equal(middle, middle.flip(0)) and bool((middle[: len(middle) // 2].diff() >= 0).all())
    )
    assert weight[0, 0] == weight[-1, -1] == 0


@pytest.mark.parametrize(("kind", "shape", "whole"), [("blur", "auto", False), ("blur", "box", True), ("mask", "auto", True),
                                                      ("mask", "ellipse", False), ("pixelate", "ellipse", False)])  # fmt: skip
def test_the_default_shape_is_an_ellipse_for_what_one_sees_through(kind, shape, whole):
    one = picture((40, 40, 80, 80))
    result = Classical(kind, shape=shape).apply(one)
    x0, y0, x1, y1 = one.faces[0].region
    changed = (result != one.photo.pixels).any(0)
    assert not changed[:, :x0].any() and not changed[:, x1:].any() and not changed[:y0].any() and not changed[y1:].any()
    assert bool(changed[y0 : y0 + 2, x0 : x0 + 2].any()) is whole
    assert changed[41:79, 41:79].float().mean() > 0.98


def test_the_last_mask_of_a_blur_is_a_box():
    one = picture((40, 40, 80, 80))
    one.faces[0].attempt = 3
    result = Classical("blur").apply(one)
    x0, y0, x1, y1 = one.faces[0].region
    assert one.faces[0].method == "mask" and bool((result[:, y0:y1, x0:x1] == GREY).all())


def test_a_mask_of_any_shape_covers_the_face_and_has_one_colour():
    for shape in ("box", "ellipse"):
        one = picture((40, 40, 80, 80), (-5, 3, 18, 30))
        result = Classical("mask", shape=shape).apply(one)
        assert [covered(face, result) for face in one.faces] == [1.0, 1.0]
        changed = (result != one.photo.pixels).any(0)
        assert bool((result[:, changed] == GREY).all()), "paint does not fade"


@pytest.mark.parametrize(("grey", "expected"), [(False, (200, 16, 46)), (True, (74, 74, 74))])
def test_a_mask_may_have_a_colour_and_counts_as_covering_all_the_same(grey, expected):
    one = picture((40, 40, 80, 80))
    one.photo.grey = grey
    result = Classical("mask", colour=(200, 16, 46)).apply(one)
    assert tuple(result[:, 60, 60].tolist()) == expected
    assert covered(one.faces[0], result) == 1.0
    assert covered(one.faces[0], one.photo.pixels) < 0.5


def test_colours_are_six_digits():
    assert AnonymizeRequest("in", "out", colour="#C8102E").paint == (200, 16, 46)
    with pytest.raises(UserError, match="--colour must be six hexadecimal digits, for example 000000, got 'red'"):
        AnonymizeRequest("in", "out", colour="red")


def test_what_nobody_can_test_is_hidden_at_full_strength_and_not_twice_as_large():
    one = picture((40, 40, 80, 80), (10, 10, 30, 30))
    one.faces[0].testable = False
    Classical("blur", strength=0.3).apply(one)
    assert [face.strength for face in one.faces] == [1.0, 0.3] and one.faces[0].method == "blur"
    assert one.faces[0].region == region((40, 40, 80, 80), 1.4, 120, 120)


@pytest.fixture
def smiley(tmp_path):
    image = Image.new("RGBA", (40, 20), (0, 0, 0, 0))  # transparent round a yellow disc
    ImageDraw.Draw(image).ellipse((2, 2, 37, 17), fill=(255, 204, 0, 255))
    image.save(tmp_path / "smiley.png")
    return tmp_path / "smiley.png"


@pytest.mark.parametrize("shape", ["auto", "ellipse"])
def test_a_mask_may_show_an_image_and_nothing_of_the_face_shines_through(smiley, shape):
    shown = []
    for seed in (0, 1):
        one = picture((40, 40, 80, 80), (-5, 3, 18, 30), seed=seed)
        shown.append(Classical("mask", shape=shape, colour=(0, 0, 90), image=smiley).apply(one))
        assert [covered(face, shown[-1]) for face in one.faces] == [1.0, 1.0]
        assert [covered(face, one.photo.pixels) < 0.9 for face in one.faces] == [True, True]
    assert torch.equal(shown[0][:, 40:80, 40:80], shown[1][:, 40:80, 40:80]), "other people, the same image"
    assert tuple(shown[0][:, 60, 60].tolist()) == (255, 204, 0)
    if shape == "auto":
        assert tuple(shown[0][:, 34, 34].tolist()) == (0, 0, 90), "transparent is the colour, not the face"


def test_an_image_that_is_none_is_said_before_the_first_picture(tmp_path, monkeypatch):
    (tmp_path / "no.png").write_text("no image")
    Image.new("RGB", (300, 300)).save(tmp_path / "large.png")
    monkeypatch.setenv("FAIRANON_MAX_PIXELS", "80000")
    whys = {
        "no.png": "cannot be read .no image",
        "missing.png": "is missing",
        ".": "cannot be read",
        "large.png": "is too large",
    }
    for name, why in whys.items():
        with pytest.raises(UserError, match=f"--replace-with: .*{name} {why}.*; name an image"):
            Classical("mask", image=tmp_path / name)
    with pytest.raises(UserError, match="--replace-with: --method blur does not use it, only mask; leave it out"):
        AnonymizeRequest("in", "out", method="blur", replace_with="a.png")


def test_a_grey_image_of_16_bits_keeps_its_shade(tmp_path):
    Image.fromarray(np.full((8, 8), 40_000, dtype=np.uint16)).save(tmp_path / "grey.png")
    one = picture((40, 40, 80, 80))
    result = Classical("mask", image=tmp_path / "grey.png").apply(one)
    assert tuple(result[:, 60, 60].tolist()) == (155, 155, 155)


class KeepsAll:
    regions = ("face", "eyes")

    def parse(self, images):
        return {name: torch.ones(len(images), 1, *images.shape[-2:], dtype=torch.bool) for name in self.regions}


def test_what_was_not_painted_is_not_covered_however_like_the_paint_it_is(tmp_path):
    one = picture((40, 40, 80, 80))
    noise = torch.randint(-8, 9, (3, 120, 120), generator=torch.Generator().manual_seed(3))
    one.photo.pixels = (torch.tensor([200, 150, 120])[:, None, None] + noise).to(torch.uint8)
    Image.new("RGB", (20, 20), (200, 150, 120)).save(tmp_path / "skin.png")
    hider = Classical("mask", image=tmp_path / "skin.png", parser=KeepsAll(), keep="eyes")
    assert torch.equal(hider.apply(one), one.photo.pixels) and covered(one.faces[0], one.photo.pixels) == 0.0


@pytest.mark.parametrize("cells", [8, 29])
def test_an_image_of_fine_lines_does_not_cover_what_it_was_not_painted_on(tmp_path, cells):
    squares = torch.randint(0, 2, (cells, cells), generator=torch.Generator().manual_seed(2)) * 255
    Image.fromarray(squares.to(torch.uint8).numpy()).resize((290, 290), Image.Resampling.NEAREST).save(
        tmp_path / "code.png"
    )
    one = picture((40, 40, 80, 80))
    result = Classical("mask", image=tmp_path / "code.png").apply(one)
    assert covered(one.faces[0], result) == 1.0 and covered(one.faces[0], one.photo.pixels) < 0.5


def test_masks_that_lie_upon_one_another_cover_both(smiley):
    one = picture((40, 40, 80, 80), (60, 50, 100, 90))
    result = Classical("mask", image=smiley).apply(one)
    assert [covered(face, result) for face in one.faces] == [1.0, 1.0]


def test_the_last_mask_shows_the_colour_alone(smiley):
    one = picture((40, 40, 80, 80))
    one.faces[0].attempt = 3
    result = Classical("mask", colour=(9, 8, 7), image=smiley).apply(one)
    x0, y0, x1, y1 = one.faces[0].region
    assert bool((result[:, y0:y1, x0:x1] == torch.tensor([9, 8, 7])[:, None, None]).all())


def test_an_image_is_in_the_settings_by_what_it_is_and_not_by_where_it_lies(smiley):
    about = AnonymizeRequest("in", "out", replace_with=smiley).about()["settings"]["replace_with"]
    before = str(about)
    assert before.startswith("smiley.png ") and str(smiley.parent) not in before
    Image.new("RGB", (4, 4), "red").save(smiley)
    assert AnonymizeRequest("in", "out", replace_with=smiley).about()["settings"]["replace_with"] != before
