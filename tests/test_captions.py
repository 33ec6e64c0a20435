"""Captions that teach less than their authors meant are said before training."""

import logging
from types import SimpleNamespace

import pytest

from fairanon.backbones import StableDiffusion
from fairanon.backbones.adapters import Lora
from fairanon.backbones.base import cut_off
from fairanon.methods import FairHuman
from fairanon.run.training import _say_of_captions

LONG = "a photo of a person, " + ", ".join(["wearing a blue shirt"] * 30) + ", a woman with dark skin"


class Data:
    def __init__(self, captions):
        self.texts, self.ready = captions, False

    def setup(self, stage):
        self.ready = True

    def captions(self):
        assert self.ready
        return self.texts


@pytest.fixture(scope="module")
def model():
    return FairHuman(StableDiffusion("tiny", lora=Lora(rank=2)))


def test_what_is_cut_off_is_what_the_encoder_does_not_read(model):
    tokenizer = model.backbone.tokenizer
    lost = cut_off(tokenizer, [LONG, "a photo", ""])
    assert lost[0].endswith("a woman with dark skin") and lost[1:] == ["", ""]
    shorter = LONG.removesuffix("a woman with dark skin") + "a man"
    assert tokenizer(LONG, truncation=True).input_ids == tokenizer(shorter, truncation=True).input_ids


def test_long_and_empty_captions_are_counted(model, caplog):
    caplog.set_level(logging.INFO, "fairanon")
    _say_of_captions(SimpleNamespace(model=model, datamodule=Data([LONG, "a photo", LONG, "", "  "])))
    assert "2 of 5 captions are empty" in caplog.text
    assert "2 of 5 captions are longer than the" in caplog.text and 'a woman with dark skin"' in caplog.text
    caplog.clear()
    _say_of_captions(SimpleNamespace(model=model, datamodule=Data(["a photo of a person"])))
    assert not caplog.text
