"""What a face does and wears in one vector."""

import pytest
import torch

from data_modules.synthetic_faces.renderer import render
from data_modules.synthetic_faces.world import draw_scenes
from fairanon.evaluators import FaceDescription, TinyAttributes, TinyGeometry


def test_it_is_what_its_judges_say_in_any_precision():
    geometry, attributes = TinyGeometry(), TinyAttributes(faces=False)
    judge = FaceDescription(geometry, attributes, ("glasses", "occupation"))
    images = render(draw_scenes(3, range(6), "balanced")).image
    images[5] = 90  # nobody
    found = judge.see(images)
    measured, seen = geometry.measure(images), attributes.classify(images)
    assert found.shape == (6, judge.width) and found.isfinite().all()
    torch.testing.assert_close(found[:5, :3], measured["pose"][:5] / 10)
    torch.testing.assert_close(found[:5, 3:7], measured["expression"][:5] / 0.1)
    torch.testing.assert_close(found[:5, 9:], torch.cat([seen["glasses"], seen["occupation"]], 1)[:5])
    assert (found[5, :9] == 0).all()
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(judge.see(images), found)
    assert FaceDescription(geometry).width == 9 and judge.name == "tiny-geometry-1+tiny-attributes-1"
    with pytest.raises(ValueError, match=r"description\.shown: nobody judges height"):
        FaceDescription(geometry, attributes, ("height",))
