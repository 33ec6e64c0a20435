import pytest
import torch
from torch.nn import functional as F

from data_modules.pick_a_pic import PickAPic
from fairanon.backbones import Lora, StableDiffusion
from fairanon.backbones.random_models import save_random_stable_diffusion
from fairanon.batches import PreferenceBatch
from fairanon.evaluation.evaluation import held_out
from fairanon.losses.preference_losses import dpo_loss, mapo_loss
from fairanon.methods import PairwisePreference
from tests.data_modules.test_pick_a_pic import write
from tests.methods.common import trained, trainer

OBJECTIVES = ("simpo", "simpo_hinge", "dpo", "ipo", "mapo", "orpo", "sft")


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory):
    return str(save_random_stable_diffusion(tmp_path_factory.mktemp("models") / "sd"))


def method(model_folder, kind=PairwisePreference, **settings):
    torch.manual_seed(0)
    module = kind(StableDiffusion(model_folder, lora=Lora(rank=2)), **settings)
    with torch.no_grad():  # adapters begin as nothing
        for parameter in module.parameters():
            if parameter.requires_grad:
                parameter.normal_(0, 0.05, generator=torch.Generator().manual_seed(0))
    return module


def batch(pairs=4):
    images = torch.randint(0, 256, (2, pairs, 3, 32, 32), generator=torch.Generator().manual_seed(5)).to(torch.uint8)
    return PreferenceBatch([f"{n}.0" for n in range(pairs)], images[0], images[1], ["a doctor", "a nurse"] * 2)


def errors(module, pairs):
    """Errors of winners and losers by hand: the same noise and timestep for both."""
    keys = pairs.keys
    won, lost = module.latents(pairs.winners, keys, "winner"), module.latents(pairs.losers, keys, "loser")
    one = module.noised(won, keys, pairs.captions)
    noise, t, condition = one.noise, one.timesteps, one.condition
    result = []
    for predict in (module.backbone.predict, module.backbone.predict_reference):
        for x in (won, lost):
            noisy = module.backbone.add_noise(x, noise, t)
            error = predict(noisy, t, condition) - module.backbone.target(x, noise, t)
            result.append(error.square().mean((1, 2, 3)).detach())
    return result


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_each_objective_is_its_formula(model_folder, objective):
    module, pairs = method(model_folder, objective=objective, beta=3.0, margin=0.1).eval(), batch()
    won, lost, ref_won, ref_lost = errors(module, pairs)
    logits = 3.0 * (lost - won - 0.1)
    expected = {
        "simpo": -F.logsigmoid(logits).mean(),
        "simpo_hinge": F.relu(1 - logits).mean(),
        "dpo": dpo_loss(ref_won - won, ref_lost - lost, 3.0),
        "ipo": ((ref_won - won) - (ref_lost - lost) - 1 / 6).square().mean(),
        "mapo": mapo_loss(won, lost, 3.0, 1000.0),
        "sft": won.mean(),
    }
    value, logs = module.loss(pairs)
    if objective in expected:
        torch.testing.assert_close(value.detach(), expected[objective])
    torch.testing.assert_close(logs["error_winner"], won.mean())
    torch.testing.assert_close(logs["loss_ratio"], won.mean() / lost.mean())
    torch.testing.assert_close(logs["margin"], (lost - won).mean())
    assert ("saturated" in logs) == objective.startswith("simpo") and ("gain_winner" in logs) == (
        objective in ("dpo", "ipo")
    )


def test_the_margins_unit(model_folder):
    def value(**settings):
        return method(model_folder, beta=20.0, **settings).eval().loss(batch())[0]

    torch.testing.assert_close(value(margin=10.0, margin_unit="reward"), value(margin=0.5, margin_unit="error"))


def test_the_published_setting_saturates_and_one_in_range_does_not(model_folder):
    _, published = method(model_folder, beta=200.0, margin=0.5).eval().loss(batch())
    _, small = method(model_folder, beta=1.0, margin=0.0).eval().loss(batch())
    assert published["saturated"] == 1.0 and small["saturated"] == 0.0


def test_an_anchor_adds_the_winners_error_and_micro_batches_change_nothing(model_folder):
    pairs = batch()
    plain, logs = method(model_folder).eval().loss(pairs)
    anchored, _ = method(model_folder, prior_weight=2.0).eval().loss(pairs)
    torch.testing.assert_close(anchored - plain, 2 * logs["error_winner"])
    gradients = []
    for size in (None, 3):
        module = method(model_folder, beta=5.0, micro_batch_size=size).train()
        module.loss(pairs)[0].backward()
        gradients.append([p.grad for p in module.parameters() if p.requires_grad])
    for a, b in zip(*gradients, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("settings, words", [
    ({"beta": 2001.0}, "gradients explode"), ({"margin": 1.6}, "destabilise"),
    ({"margin": 400.0, "margin_unit": "reward"}, "destabilise"), ({"beta": 0.0}, "must be positive"),
    ({"objective": "rlhf"}, "must be one of simpo"), ({"margin": -0.1}, "must not be negative"),
])  # fmt: skip
def test_what_the_paper_found_unstable_is_refused(model_folder, settings, words):
    with pytest.raises(ValueError, match=words):
        method(model_folder, **settings)
    if "explode" in words or "destabilise" in words:
        method(model_folder, allow_unstable=True, **settings)


@pytest.mark.parametrize("objective", ["simpo", "mapo", "sft"])
def test_training_on_parquet_moves_the_adapters_and_reports_held_out_accuracy(model_folder, tmp_path, objective):
    folder = write(tmp_path / "pairs", 40)
    write(folder, 8, files=1, split="validation")
    data = PickAPic(str(folder), batch_size=4, size=32)
    module = method(
        model_folder, objective=objective, optimizer=lambda p: torch.optim.AdamW(p, lr=1e-2), beta=50.0, margin=0.0
    )
    before, start = trained(module), held_out(module, data, reference=True)
    trainer(tmp_path, 4).fit(module, data)
    after = held_out(module, data)
    assert all(not torch.equal(value, before[name]) for name, value in trained(module).items())
    assert set(start) == {"reward_accuracy/val", "loss/val/winner", "loss/val/loser"}
    assert set(after) - set(start) == {"reward_accuracy/implicit"} and len(after["reward_accuracy/val"]) == 8
    assert torch.equal(start["loss/val/winner"], held_out(module, data, reference=True)["loss/val/winner"])
    assert not torch.equal(start["loss/val/winner"], after["loss/val/winner"])
    torch.testing.assert_close(
        after["reward_accuracy/val"], (after["loss/val/winner"] < after["loss/val/loser"]).float()
    )


def test_a_run_that_goes_on_equals_an_uninterrupted_one(model_folder, tmp_path):
    folder = write(tmp_path / "pairs", 60)
    settings = {"optimizer": lambda p: torch.optim.AdamW(p, lr=1e-2), "margin": 0.0, "caption_dropout": 0.3}
    whole, first, second = (method(model_folder, **settings) for _ in range(3))

    def data():
        return PickAPic(str(folder), batch_size=3, size=32, flip=True)

    accumulate = {"accumulate_grad_batches": 2}
    trainer(tmp_path / "a", 4, **accumulate).fit(whole, data())
    part = trainer(tmp_path / "b", 2, **accumulate)
    part.fit(first, data())
    part.save_checkpoint(tmp_path / "half.ckpt")
    trainer(tmp_path / "c", 4, **accumulate).fit(second, data(), ckpt_path=tmp_path / "half.ckpt", weights_only=True)
    for name, value in trained(whole).items():
        assert torch.equal(value, trained(second)[name]), name
