"""SPO on the embedded model: its steps are DDIM's, its pairs the scorer's, its loss and gradient those of the formula."""

import math

import pytest
import torch
from diffusers import DDIMScheduler

from data_modules.prompts_to_draw import PromptsToDraw
from fairanon.backbones import StableDiffusion
from fairanon.batches import PromptBatch
from fairanon.losses.chain import noisy_ddim_steps
from fairanon.losses.preference_losses import clipped_log_ratio
from fairanon.methods import StepPreference
from tests.methods.common import PLACES
from tests.methods.test_fairhuman import run

BATCH = PromptBatch(["0.0.0", "0.0.1", "1.0.0"], ["a photo of a doctor"] * 2 + ["a photo of a nurse"])


class Light:
    """Likes light images."""

    name = "light"

    def score(self, pixels, prompts):
        return pixels.float().mean((1, 2, 3)) / 255


def method(place="U-Net", **settings):
    backbone = StableDiffusion("tiny", **PLACES[place])
    given = {"sampling_steps": 4, "first": 1, "candidates": 3, "threshold": 0.0, "guidance_scale": 1.5} | settings
    return StepPreference(backbone, Light(), **given).train()


def adapted(place="U-Net", **settings):
    """One that has been trained a little."""
    found = method(place, **settings)
    for p in found.parameters():
        if p.requires_grad:
            torch.nn.init.normal_(p, std=0.05, generator=torch.Generator().manual_seed(p.numel()))
    return found


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
def test_steps_are_those_of_diffusers(prediction, eta):
    scheduler = DDIMScheduler(
        prediction_type=prediction, clip_sample=False, set_alpha_to_one=True, timestep_spacing="trailing"
    )
    scheduler.set_timesteps(5)
    a, b, spread = noisy_ddim_steps(scheduler.alphas_cumprod[scheduler.timesteps], prediction, eta)
    generator = torch.Generator().manual_seed(0)
    x, predicted, noise = (torch.randn(1, 4, 8, 8, generator=generator) for _ in range(3))
    for k, when in enumerate(scheduler.timesteps):
        expected = scheduler.step(predicted, when, x, eta=eta, variance_noise=noise).prev_sample
        found = a[k] * x + b[k] * predicted + spread[k] * noise
        assert torch.allclose(found.float(), expected, atol=1e-4)


def test_a_clipped_ratio_is_that_of_two_gaussians():
    drawn, mean, reference = (torch.randn(5, 2, 3, generator=torch.Generator().manual_seed(k)) for k in range(3))
    densities = [torch.distributions.Normal(m, 0.7).log_prob(drawn).flatten(1).mean(1) for m in (mean, reference)]
    expected = (densities[0] - densities[1]).exp().clamp(0.9, 1.1).log()
    assert torch.allclose(clipped_log_ratio(drawn, mean, reference, 0.7, 0.1), expected, atol=1e-6)
    assert expected.min() == pytest.approx(math.log(0.9)) and expected.max() == pytest.approx(math.log(1.1))


def test_pairs_are_the_best_and_the_worst_candidate_of_one_step():
    found = method()
    noise, (encoded, _) = found.starting_noise(BATCH), found.encoded(BATCH)
    with torch.no_grad():
        pairs, scores = found._drawn(BATCH, noise, *encoded)
    assert [pair.step for pair in pairs] == [1, 2] and scores.shape == (2, 3, 3), "the last step has no noise"
    abar, timesteps = found.schedule()
    a, b, spread = noisy_ddim_steps(abar, found.backbone.prediction_type, 1.0)
    for pair, rated in zip(pairs, scores, strict=True):
        assert pair.rows.tolist() == [0, 1, 2]
        with torch.no_grad():
            mean = a[pair.step] * pair.noisy + b[pair.step] * found.guided(pair.noisy, timesteps[pair.step], *encoded)
        for drawn, best in ((pair.won, rated.amax(0)), (pair.lost, rated.amin(0))):
            deviation = (drawn - mean) / spread[pair.step]
            assert deviation.std() == pytest.approx(1, abs=0.1)
            when = torch.full((3,), timesteps[pair.step + 1])
            with torch.no_grad():
                predicted = found.guided(drawn, int(when[0]), *encoded)
                clean = found.backbone.decode(found.backbone.predict_x0(drawn, predicted, when))
            seen = Light().score(((clean / 2 + 0.5).clamp(0, 1) * 255).round(), [])
            assert torch.allclose(seen, best, atol=1e-3)
    limits = [float((rated.amax(0) - rated.amin(0)).max()) for rated in scores]
    few = method(threshold=min(limits))
    with torch.no_grad():
        pairs, _ = few._drawn(BATCH, noise, *encoded)
    assert [pair.step for pair in pairs] == [1 + limits.index(max(limits))], "a step without a pair has none"
    value, logs = few.loss(BATCH)
    assert torch.isfinite(value) and 0 < logs["pairs"] < 1


@pytest.mark.parametrize("place", PLACES)
def test_before_training_the_loss_is_log_two_and_its_gradient_that_of_the_formula(place):
    value, logs = method(place).loss(BATCH)
    assert float(value.detach()) == pytest.approx(math.log(2), abs=1e-5) and logs["pairs"] == 1
    untrained = method(place).encoded(BATCH)[0]
    found = adapted(place, clip=0.9, beta=300.0)
    value, _ = found.loss(BATCH)
    parameters = [p for p in found.parameters() if p.requires_grad]
    gradients = torch.autograd.grad(value, parameters)
    noise, (encoded, kept) = found.starting_noise(BATCH), found.encoded(BATCH)
    assert all(torch.equal(one.context, other.context) for one, other in zip(kept, untrained, strict=True))
    assert (place == "U-Net") == torch.equal(kept[0].context, encoded[0].context)
    with torch.no_grad():
        pairs, _ = found._drawn(BATCH, noise, *encoded)
    abar, timesteps = found.schedule()
    a, b, spread = noisy_ddim_steps(abar, found.backbone.prediction_type, 1.0)
    expected = torch.zeros(())
    for pair in pairs:
        k = pair.step
        now, before = (
            float(a[k]) * pair.noisy + float(b[k]) * found.guided(pair.noisy, timesteps[k], *given, reference=old)
            for old, given in ((False, encoded), (True, kept))
        )
        ratios = []
        for drawn in (pair.won, pair.lost):
            logs = [
                torch.distributions.Normal(m, float(spread[k])).log_prob(drawn).flatten(1).mean(1)
                for m in (now, before)
            ]
            ratios.append((logs[0] - logs[1]).exp().clamp(0.1, 1.9).log())
        expected = expected - torch.log(torch.sigmoid(300.0 * (ratios[0] - ratios[1]))).sum() / 6
    assert float(value.detach()) == pytest.approx(float(expected.detach()), rel=1e-3)
    for one, other in zip(gradients, torch.autograd.grad(expected, parameters), strict=True):
        assert torch.allclose(one, other, rtol=2e-2, atol=1e-4 * float(other.abs().max() + 1e-6))


def test_images_do_not_depend_on_their_neighbours_and_the_same_batch_is_the_same():
    found = adapted()
    noise, (encoded, _) = found.starting_noise(BATCH), found.encoded(BATCH)
    with torch.no_grad():
        pairs, _ = found._drawn(BATCH, noise, *encoded)
        alone = PromptBatch(BATCH.keys[1:2], BATCH.prompts[1:2])
        noise, (encoded, _) = found.starting_noise(alone), found.encoded(alone)
        single, _ = found._drawn(alone, noise, *encoded)
    for pair, one in zip(pairs, single, strict=True):
        assert torch.allclose(pair.won[1], one.won[0], atol=1e-4)
    first, again = (found.loss(BATCH)[0] for _ in range(2))
    assert torch.equal(first, again)


def test_each_step_candidate_and_image_has_noise_of_its_own():
    found = method()
    drawn = torch.cat([found._noise(BATCH, step, candidate) for step in (1, 2) for candidate in (0, 1)]).flatten(1)
    assert (torch.corrcoef(drawn) - torch.eye(12)).abs().max() < 0.3


def test_ranks_with_few_and_with_many_pairs_are_weighed_by_them(monkeypatch):
    """A mean over ranks of what is returned is the mean over all pairs."""
    found = adapted(beta=300.0)
    alone, logs = found.loss(BATCH)
    assert logs["pairs"] == 1
    # Here six pairs, on another rank two: the sum over both ranks of (pairs, ranks) is (8, 2).
    monkeypatch.setattr("fairanon.methods.step_preference.sum_over_ranks", lambda own: own + torch.tensor([2.0, 1.0]))
    shared, _ = found.loss(BATCH)
    assert float(shared.detach()) == pytest.approx(float(alone.detach()) * 6 * 2 / 8, rel=1e-5)


def test_without_a_pair_nothing_is_learned():
    found = adapted(threshold=2.0)
    value, logs = found.loss(BATCH)
    value.backward()
    assert float(value.detach()) == 0 and logs["pairs"] == 0
    assert all(not p.grad.any() for p in found.parameters() if p.requires_grad)


def test_only_the_adapters_change(tmp_path):
    table = tmp_path / "prompts.csv"
    table.write_text(
        "prompt,set\na photo of a doctor,specific\na photo of a nurse,specific\na photo of a chef,heldout\n"
    )
    data = PromptsToDraw(str(table), images=2, batch_size=2)
    assert data.prompts() == ["a photo of a doctor", "a photo of a nurse"], "held-out prompts are not drawn"
    found = method()
    before = {name: p.detach().clone() for name, p in found.named_parameters()}
    run(tmp_path, 2).fit(found, data)
    changed = {name for name, p in found.named_parameters() if not torch.equal(p, before[name])}
    trains = {name for name, p in found.named_parameters() if p.requires_grad}
    assert changed and changed <= trains, "what is frozen is bit-identical"


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"first": 3}, "first must be 0 to 2, got 3: the last step has no noise"),
        ({"candidates": 1}, "candidates must be at least 2"),
        ({"clip": 0.0}, "clip in"),
        ({"sampling_steps": 0}, "sampling_steps must be 1 to"),
        ({"caption_dropout": 0.1}, "every image is drawn of its prompt"),
    ],
)
def test_settings_that_make_no_sense_are_refused(settings, said):
    with pytest.raises(ValueError, match=said):
        method(**settings)
