"""Skin measured in CIELAB: a card of known colours is read right, also where other audits see nobody."""

import pytest
import torch
from skimage.color import rgb2lab

from fairanon.evaluators import PointRendParser, SkinTone, TinyDetector
from fairanon.evaluators.skin import MONK, ita_class, nearest_monk, to_lab, typology_angle
from fairanon.protocols import Detections


class Card:
    """Finds a face in the middle of every image, and takes all of it for skin but an eye."""

    name, kinds, regions = "card", ("face",), ("face", "eyes")

    def detect(self, pixels):
        side = pixels.shape[-1]
        box = torch.tensor([[side / 4, side / 4, 3 * side / 4, 3 * side / 4]])
        return [{"face": Detections(box, torch.ones(1))} for _ in pixels]

    def parse(self, pixels):
        face = torch.ones(len(pixels), 1, *pixels.shape[-2:], dtype=torch.bool)
        eyes = torch.zeros_like(face)
        eyes[..., :20, :20] = True
        return {"face": face, "eyes": eyes}


def colours():
    return torch.tensor([[int(code[k : k + 2], 16) for k in (0, 2, 4)] for code in MONK], dtype=torch.uint8)


def test_a_card_of_the_ten_tones_is_read_right():
    cards = colours()[:, :, None, None].expand(-1, -1, 64, 64).contiguous()
    found = SkinTone(Card(), Card()).classify(cards)
    assert found["monk"].argmax(1).tolist() == list(range(10))
    assert found["ita"].argmax(1).tolist() == [0, 0, 0, 0, 1, 3, 4, 5, 5, 5]


def test_angles_are_those_of_the_scale_and_colours_those_of_another_program():
    tones = to_lab(colours().T[:, :, None])[:, :, 0].T
    assert [round(typology_angle(tone)) for tone in tones] == pytest.approx(
        [83, 80, 72, 65, 50, 11, -20, -55, -78, -84], abs=1.1
    )
    theirs = torch.from_numpy(rgb2lab(colours()[None].numpy()))[0]
    assert torch.allclose(tones, theirs.float(), atol=5e-3), "their matrix has six digits"


def test_the_ends_of_classes_and_a_distance():
    assert [
        ita_class(torch.tensor([50 + 20 * torch.tan(torch.deg2rad(torch.tensor(a))), 0.0, 20.0]))
        for a in (56.0, 54.0, 29.0, 11.0, -29.0, -31.0)
    ] == [0, 1, 2, 3, 4, 5]
    assert nearest_monk(torch.tensor([100.0, 0, 0])) == 0 and nearest_monk(torch.tensor([0.0, 0, 0])) == 9


def test_nobody_has_no_skin(monkeypatch):
    found = SkinTone(TinyDetector(), PointRendParser()).classify(torch.full((2, 3, 64, 64), 200, dtype=torch.uint8))
    assert found["monk"].isnan().all() and found["ita"].isnan().all()
    card = Card()
    monkeypatch.setattr(
        card, "parse", lambda pixels: {"face": torch.zeros(len(pixels), 1, *pixels.shape[-2:], dtype=torch.bool)}
    )
    assert SkinTone(Card(), card).classify(torch.full((1, 3, 64, 64), 90, dtype=torch.uint8))["monk"].isnan().all()
