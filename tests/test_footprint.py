"""What a training takes, counted without weights, against what is there."""

import re
import sys
from pathlib import Path

import pytest
import torch

from fairanon.backbones import StableDiffusion
from fairanon.config.experiments import resolve
from fairanon.config.settings import FairAnonCLI
from fairanon.run.footprint import GIB, footprint, outline
from tests.conftest import REPOSITORY


def counted(config):
    return footprint(config, outline(config))


@pytest.fixture
def real_steps(monkeypatch):
    monkeypatch.setattr(sys, "path", [str(REPOSITORY / "benchmarks"), *sys.path])
    monkeypatch.setenv("FAIRANON_BFLOAT16", "1")  # as the cards that are counted for have
    monkeypatch.chdir(REPOSITORY)
    import real_steps

    return real_steps


def test_the_embedded_model_by_hand(monkeypatch):
    monkeypatch.chdir(REPOSITORY)
    config = FairAnonCLI(resolve("popalign_tiny").words(), build=False).config
    config.model.init_args.backbone.init_args.lora = None
    found = footprint(config, outline(config))
    backbone = StableDiffusion("tiny")
    size = {
        name: sum(p.numel() for p in getattr(backbone, name).parameters()) * 4
        for name in ("unet", "vae", "text_encoder")
    }
    assert found.weights == sum(size.values()) and found.reference == found.gradients == size["unet"]
    assert found.optimizer == 2 * size["unet"] and found.checkpoint == 3 * size["unet"]


@pytest.mark.slow
def test_sdxl_in_full_takes_what_the_paper_had_to_offload(real_steps, tmp_path):
    """2.567 B parameters: 9.56 GiB each for weights and gradients, 19.13 for Adam, 4.78 for a half-precision reference."""
    whole = counted(real_steps.configuration("popalign_sdxl", tmp_path))
    assert whole.gradients / GIB == pytest.approx(2.567463684e9 * 4 / GIB, abs=1e-3)
    assert whole.optimizer == 2 * whole.gradients and whole.checkpoint == 3 * whole.gradients
    assert whole.reference / GIB == pytest.approx(4.78, abs=0.01)
    adapters = counted(real_steps.configuration("popalign_sdxl_lora", tmp_path))
    assert adapters.reference == 0 and adapters.checkpoint < whole.checkpoint / 20


@pytest.mark.slow
def test_checkpointing_and_size_change_what_a_step_keeps(real_steps, tmp_path):
    from activations import activations, card

    def kept(name="popalign_sd15", **settings):
        config = real_steps.configuration(name, tmp_path, **settings)
        return activations(config, outline(config))

    plain, checkpointed, large = (kept(checkpointing=c, size=s) for c, s in ((False, 512), (True, 512), (False, 1024)))
    assert plain > 3 * checkpointed
    assert 3.4 < large / plain < 4, "attention keeps no matrix of weights, which would be 16 times as large"
    for name, smallest in (("popalign_sdxl", 80), ("popalign_sdxl_lora", 24)):
        assert card(counted(real_steps.configuration(name, tmp_path)).total + kept(name)) == smallest


def test_the_architectures_are_those_of_the_published_models():
    from fairanon.backbones import architectures

    counts = {
        "sd15": 859.52,
        "sd21-base": 865.91,
        "sd21": 865.91,
        "sd2-inpainting": 865.93,
        "sdxl": 2567.46,
    }  # millions
    with torch.device("meta"):
        found = {name: sum(p.numel() for p in architectures.unet(name).parameters()) / 1e6 for name in counts}
        text = [sum(p.numel() for p in e.parameters()) / 1e6 for e in architectures.text_encoders("sdxl")]
    assert found == pytest.approx(counts, abs=0.01) and text == pytest.approx([123.06, 694.66], abs=0.01)
    import open_clip

    tokenizer = architectures.tokenizer()
    for words in ("a photo of a doctor", "an engineer, 30 y.o.; smiling!"):
        assert tokenizer(words).input_ids == [n for n in open_clip.tokenize([words])[0].tolist() if n]


def test_every_real_experiment_that_trains_has_a_row(real_steps):
    shipped = {path.stem for path in Path("experiments").glob("[!_]*.yaml")}
    real = {name for name in shipped if not re.search("_tiny|gaussian", name)}
    ends = ("_simpo", "_rivals", "_uce", "_iti_gen", "_adft")  # put together, steered, edited, tokens alone, drawn
    untrained = {name for name in real if name.startswith("inpaint_") or name.endswith(ends)}
    assert real - untrained == set(real_steps.ARCHITECTURE) and set(real_steps.DISTINCT) <= real
