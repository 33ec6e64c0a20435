"""bfloat16 on a processor that has none."""

import logging

import pytest
import torch
from jsonargparse import Namespace

from fairanon.config import precision
from fairanon.config.experiments import resolve
from fairanon.config.precision import has_bfloat16, mixed, replace_bfloat16
from fairanon.config.settings import FairAnonCLI


@pytest.fixture(params=[False, True], ids=["absent", "there"])
def there(request, monkeypatch):
    monkeypatch.setattr(precision, "has_bfloat16", lambda device: request.param)
    precision._say.cache_clear()
    return request.param


@pytest.mark.parametrize("declared", ["0", "1"])
def test_a_user_can_declare_it(monkeypatch, declared):
    monkeypatch.setenv("FAIRANON_BFLOAT16", declared)
    assert has_bfloat16("cpu") is has_bfloat16("cuda:0") is (declared == "1")


@pytest.mark.parametrize(("major", "expected"), [(7, False), (8, True), (9, True)])
def test_gpus_have_it_from_the_a100_on(monkeypatch, major, expected):
    monkeypatch.delenv("FAIRANON_BFLOAT16", raising=False)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (major, 5))
    assert has_bfloat16("cuda:1") is expected


@pytest.mark.parametrize(("name", "overlays"), [("id2face_tiny", []), ("popalign_tiny", ["bf16"])])
def test_every_experiment_computes_float32_instead_and_is_the_same_run(there, name, overlays, caplog):
    caplog.set_level(logging.INFO, "fairanon")
    parsed = FairAnonCLI(resolve(name, overlays).words(), build=False)
    assert "precision: bf16-mixed" in parsed.text and "dtype: bfloat16" in parsed.text, "the run's name and record"
    assert parsed.config.trainer.precision == ("bf16-mixed" if there else "32-true")
    assert parsed.config.model.init_args.backbone.init_args.dtype == ("bfloat16" if there else "float32")
    assert caplog.text.count("this processor has no bfloat16: float32 is computed instead") == (not there)


def test_a_preparation_too_and_other_precisions_stay(there):
    deep = Namespace(backbone=Namespace(init_args=Namespace(dtype="bfloat16", vae="x-bfloat16")), precision="16-mixed")
    settings = {"a": [deep], "precision": None, "dtype": "float16"}
    replace_bfloat16(settings, "cpu")
    assert deep.backbone.init_args.dtype == ("bfloat16" if there else "float32")
    assert (
        deep.backbone.init_args.vae == "x-bfloat16" and deep.precision == "16-mixed" and settings["dtype"] == "float16"
    )


def test_what_trains_the_assets_asks_too(there):
    with mixed("cpu"):
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == (torch.bfloat16 if there else torch.float32)
