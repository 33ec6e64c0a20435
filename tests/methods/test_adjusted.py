"""aDFT on the embedded model: what a step asks for, and that its gradient is the chain's."""

import pytest
import torch
from torch.nn import functional as F

from data_modules.prompts_to_draw import PromptsToDraw
from fairanon.backbones import StableDiffusion
from fairanon.batches import PromptBatch
from fairanon.evaluators import TinyAttributes
from fairanon.losses.chain import ddim_steps, evened, final_weights
from fairanon.methods import AdjustedFineTuning
from fairanon.seeding import keyed_randn
from tests.methods.common import PLACES

IMAGES = 4
BATCH = PromptBatch([f"0.0.{k}" for k in range(IMAGES)], ["a photo of a doctor"] * IMAGES)


def method(place="U-Net", **settings):
    backbone = StableDiffusion("tiny", **PLACES[place])
    given = {"attributes": ("gender",), "sampling_steps": 2, "guidance_scale": 1.5, "sure": 0.0} | settings
    return AdjustedFineTuning(backbone, TinyAttributes(faces=False), **given).train()


@pytest.mark.parametrize("place", PLACES)
def test_before_training_images_are_the_reference_and_half_are_asked_to_change(place):
    found = method(place)
    value, logs = found.loss(BATCH)
    assert float(logs["unlike"]) == pytest.approx(0, abs=1e-5)
    assert float(value.detach()) == pytest.approx(float(logs["crossed"]), abs=1e-4)
    assert 0 < logs["changes"] < 1 and logs["sure/gender"] == 1
    again, _ = found.loss(BATCH)
    assert torch.equal(value, again), "the same batch, the same noise and the same classes"
    other, _ = found.loss(PromptBatch([f"0.1.{k}" for k in range(IMAGES)], BATCH.prompts))
    assert not torch.equal(value, other)


@pytest.mark.parametrize("place", PLACES)
def test_the_gradient_is_that_of_the_chain_with_every_step_alike(place, monkeypatch):
    monkeypatch.setattr("fairanon.methods.adjusted._DECODED", 3)  # of four images: in two parts
    found = method(place, preserve=100.0, sure=0.8)
    adapters = [p for p in found.parameters() if p.requires_grad]
    for p in adapters:
        torch.nn.init.normal_(p, std=0.2, generator=torch.Generator().manual_seed(p.numel()))
    value, logs = found.loss(BATCH)
    gradients = torch.autograd.grad(value, adapters)
    assert 0 < logs["sure/gender"] < 1 and 0 < logs["changes"] < 1, "each of both kinds is there"

    abar, times = found.schedule()
    a, b = ddim_steps(abar, found.backbone.prediction_type)
    scale = evened(final_weights(a, b)) / final_weights(a, b)
    (condition, nothing), (kept, nobody) = (
        [found.backbone.encode_prompts([text] * IMAGES, reference=old) for text in (BATCH.prompts[0], "")]
        for old in (False, True)
    )
    side = found.backbone.unet.config.sample_size
    x = keyed_randn([(0, "train", key) for key in BATCH.keys], (found.backbone.latent_channels, side, side))
    before = x
    for k, time in enumerate(times):
        with torch.no_grad():
            before = float(a[k]) * before + float(b[k]) * found.guided(before, time, kept, nobody, reference=True)
        when = torch.full((IMAGES,), time)
        parts = [found.backbone.predict(x.detach(), when, one) for one in (condition, nothing)]
        prediction = parts[1] + 1.5 * (parts[0] - parts[1])
        adjusted = prediction.detach() + float(scale[k]) * (prediction - prediction.detach())
        x = float(a[k]) * x + float(b[k]) * adjusted
    logits, features = found.judge.differentiable(found.backbone.decode(x))
    with torch.no_grad():
        _, wanted = found.judge.differentiable(found.backbone.decode(before))
    seen = torch.ones(IMAGES, dtype=torch.bool)
    asked = found._asked(logits["gender"].softmax(1), seen, found._shares["gender"], "gender", BATCH)
    sure = asked.amax(1) >= 0.8
    crossed = F.cross_entropy(logits["gender"], asked.argmax(1), reduction="none")
    changes = sure & (asked.argmax(1) != logits["gender"].argmax(1))
    unlike = 1 - F.cosine_similarity(features, wanted)
    likeness = torch.where(changes, found.preserve_changed, 1.0)
    whole = (crossed * sure + 100.0 * likeness * unlike).mean()
    assert float(value.detach()) == pytest.approx(float(whole.detach()), rel=1e-4)
    assert (100.0 * likeness * unlike).detach().mean() > 0.01 * whole.detach(), "it counts"
    expected = torch.autograd.grad(whole, adapters)
    for one, other in zip(gradients, expected, strict=True):
        assert torch.allclose(one, other, rtol=1e-3, atol=1e-6 * float(other.abs().max() + 1))


@pytest.mark.parametrize("place", PLACES)
def test_training_leaves_the_images_that_are_to_be_kept_as_they_were(place, monkeypatch):
    found = method(place)
    kept = []
    decode = found.backbone.decode
    monkeypatch.setattr(found.backbone, "decode", lambda latents: kept.append(latents.detach()) or decode(latents))
    found.loss(BATCH)
    for p in found.parameters():
        if p.requires_grad:
            torch.nn.init.normal_(p, std=0.1, generator=torch.Generator().manual_seed(p.numel()))
    calls = len(kept)  # the kept images, the drawn ones, and these once more for their gradient
    _, logs = found.loss(BATCH)
    assert calls == 3 and torch.equal(kept[0], kept[3]) and not torch.equal(kept[1], kept[4]) and logs["unlike"] > 1e-4


def test_classes_are_assigned_by_the_images_that_are_drawn():
    found, probabilities = method(), torch.full((IMAGES, 2), 0.5)
    other = PromptBatch([f"0.1.{k}" for k in range(IMAGES)], BATCH.prompts)
    first, again, others = (
        found._asked(probabilities, torch.ones(IMAGES, dtype=torch.bool), found._shares["gender"], "gender", batch)
        for batch in (BATCH, BATCH, other)
    )
    assert torch.equal(first, again) and not torch.equal(first, others)


def test_an_image_in_which_nobody_is_seen_is_asked_for_nothing(monkeypatch):
    found = method()
    real = found.judge.classify

    def blind(pixels):
        judged = real(pixels)
        judged["gender"][1:] = torch.nan
        return judged

    monkeypatch.setattr(found.judge, "classify", blind)
    _, logs = found.loss(BATCH)
    assert logs["sure/gender"] == 1 / IMAGES
    asked = found._asked(
        torch.full((IMAGES, 2), 0.5), torch.arange(IMAGES) > 1, found._shares["gender"], "gender", BATCH
    )
    assert not asked[:2].any() and torch.allclose(asked[2:].sum(1), torch.ones(IMAGES - 2))


def test_what_cannot_be_is_refused():
    for settings, said in (
        ({"attributes": ("height",)}, "does not judge 'height'"), ({"sampling_steps": 0}, "1 to 1000"), ({"sampling_steps": 1001}, "1 to 1000"), ({"caption_dropout": 0.1}, "set it to 0"), ({"sure": 2.0}, "in .0, 1."),
        ({"shares": {"gender": {"female": 1.0}}}, "must be a share of each of female, male"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=said):
            method(**settings)


def test_images_of_a_prompt_stand_together_and_two_ranks_see_what_one_does(tmp_path):
    (tmp_path / "p.csv").write_text("prompt\na\nb\nc\n")
    data = PromptsToDraw(str(tmp_path / "p.csv"), images=3, batch_size=2)
    first = next(iter(data.train_dataloader()))
    assert len(first) == 6 and first.prompts[:3] == first.prompts[:1] * 3 and len(set(first.keys)) == 6
    assert first.prompts[0] != first.prompts[3]
    with pytest.raises(ValueError, match=r"data\.images must be at least 2"):
        PromptsToDraw(str(tmp_path / "p.csv"), images=1)
    (tmp_path / "blank.csv").write_text("prompt,set\n ,neutral\n")
    with pytest.raises(ValueError, match="has no prompt"):
        PromptsToDraw(str(tmp_path / "blank.csv")).look()
    with pytest.raises(FileNotFoundError, match=r"data\.prompts"):
        PromptsToDraw(str(tmp_path / "q.csv")).look()
