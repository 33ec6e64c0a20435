import copy
import os
from dataclasses import replace

import pytest
import torch
from safetensors import safe_open

from data_modules.population_preferences import PopulationPreferences
from fairanon.backbones import Lora, StableDiffusion
from fairanon.backbones.random_models import save_random_stable_diffusion
from fairanon.batches import PreferenceBatch
from fairanon.config.experiments import UserError
from fairanon.methods import PairwisePreference, PopAlign
from fairanon.methods.base import NonFiniteLossError
from tests.methods.common import trained, trainer, two_ranks


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory):
    return str(save_random_stable_diffusion(tmp_path_factory.mktemp("models") / "sd"))


def plain_steps(parameters):
    """Adam's first steps have the same size however small a gradient is: they would compare rounding errors."""
    return torch.optim.SGD(parameters, lr=0.1)


def method(model_folder, lora=True, **settings):
    torch.manual_seed(0)
    backbone = StableDiffusion(model_folder, lora=Lora(rank=2) if lora else None)
    defaults = {"beta": 20.0, "caption_dropout": 0.2, "optimizer": lambda p: torch.optim.AdamW(p, lr=1e-3)}
    kind = PairwisePreference if "objective" in settings else PopAlign
    return kind(backbone, **{**defaults, **settings})


def batch(pairs=4):
    generator = torch.Generator().manual_seed(5)
    images = torch.randint(0, 256, (2, pairs, 3, 32, 32), generator=generator, dtype=torch.uint8)
    texts = ["a doctor", "a nurse"] * (pairs // 2) or ["a doctor"]
    return PreferenceBatch([f"{n}.0" for n in range(pairs)], images[0], images[1], texts)


def data(folder, batch_size=4):
    return PopulationPreferences(str(folder), batch_size=batch_size, size=32)


@pytest.mark.parametrize("settings", [{}, {"objective": "dpo"}, {"objective": "sft"}])
@pytest.mark.parametrize("lora", [True, False])
def test_everything_that_trains_moves_and_nothing_else(model_folder, preferences, tmp_path, settings, lora):
    module = method(model_folder, lora, **settings)
    before = {name: p.detach().clone() for name, p in module.named_parameters()}
    trainer(tmp_path, 3).fit(module, data(preferences))
    moved = {name for name, p in module.named_parameters() if not torch.equal(p, before[name])}
    assert moved == {name for name, p in module.named_parameters() if p.requires_grad}
    assert all(name.startswith("backbone.unet") for name in moved)


def test_winner_and_loser_share_noise_and_timestep(model_folder):
    module, pairs = method(model_folder), batch()
    twins = PreferenceBatch(pairs.keys, pairs.winners, pairs.winners.clone(), pairs.captions)
    with torch.no_grad():
        for parameter in module.parameters():
            if parameter.requires_grad:
                parameter.add_(0.05)
    module.eval()
    _, logs = module.loss(twins)
    assert logs["gain_winner"] == logs["gain_loser"] == logs["mu"] != 0


def test_one_pair_is_dpo_in_the_module_too(model_folder):
    results = []
    for settings in ({}, {"objective": "dpo"}):
        module = method(model_folder, beta=300.0, **settings)
        with torch.no_grad():
            for parameter in module.parameters():
                if parameter.requires_grad:
                    parameter.add_(0.02)
        value, _ = module.train().loss(batch(2)[:1])
        value.backward()
        results.append((value.detach(), [p.grad for p in module.parameters() if p.requires_grad]))
    (a, grads_a), (b, grads_b) = results
    torch.testing.assert_close(a, b, rtol=1e-5, atol=0)
    for x, y in zip(grads_a, grads_b, strict=True):
        torch.testing.assert_close(x, y, rtol=1e-3, atol=1e-7)


def test_micro_batches_keep_mu_exact(model_folder):
    results = []
    for size in (None, 3):
        module = method(model_folder, micro_batch_size=size).train()
        with torch.no_grad():
            for parameter in module.parameters():
                if parameter.requires_grad:
                    parameter.add_(0.02)
        value, logs = module.loss(batch())
        value.backward()
        results.append((value.detach(), logs["mu"], [p.grad for p in module.parameters() if p.requires_grad]))
    for x, y in zip(results[0][:2], results[1][:2], strict=True):
        # A gain is the difference of two errors of about 1: float32 rounds it at 1e-7.
        torch.testing.assert_close(x, y, rtol=1e-5, atol=3e-7)
    for x, y in zip(results[0][2], results[1][2], strict=True):
        torch.testing.assert_close(x, y, rtol=1e-3, atol=1e-7)


@pytest.mark.parametrize("lora", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_twenty_steps_are_ten_and_ten(model_folder, preferences, tmp_path, lora):
    whole = method(model_folder, lora)
    trainer(tmp_path, 20).fit(whole, data(preferences))
    first = method(model_folder, lora)
    run = trainer(tmp_path, 10)
    run.fit(first, data(preferences))
    run.save_checkpoint(tmp_path / "half.ckpt")
    second = method(model_folder, lora)
    trainer(tmp_path, 20).fit(second, data(preferences), ckpt_path=tmp_path / "half.ckpt", weights_only=True)
    expected, found = trained(whole), trained(second)
    assert all(torch.equal(expected[name], found[name]) for name in expected)
    saved = torch.load(tmp_path / "half.ckpt", weights_only=True)["state_dict"]
    assert set(saved) == set(expected), "the checkpoint holds what trains and nothing else"


def test_accumulating_is_one_large_batch(model_folder, preferences, tmp_path):
    """For SFT; PopAlign's mu is that of each micro-step, `micro_batch_size` is its exact way."""
    large, small = (method(model_folder, objective="sft", optimizer=plain_steps) for _ in range(2))
    trainer(tmp_path, 4).fit(large, data(preferences, batch_size=4))
    trainer(tmp_path, 4, accumulate_grad_batches=2).fit(small, data(preferences, batch_size=2))
    expected, found = trained(large), trained(small)
    for name in expected:
        torch.testing.assert_close(found[name], expected[name], rtol=1e-4, atol=1e-6, msg=name)


_RANKS = """
import sys, torch
sys.path[:0] = [{tests!r}]
from tests.methods.common import trained, trainer
from tests.methods.test_popalign import data, method, plain_steps
torch.set_num_threads(1)
torch.use_deterministic_algorithms(True)
module = method({model!r}, optimizer=plain_steps)
run = trainer({out!r}, 4, devices=2, strategy="ddp")
run.fit(module, data({preferences!r}, batch_size=2))
if run.is_global_zero:
    torch.save(trained(module), {out!r} + "/two.pt")
"""


def test_two_ranks_are_one_rank_with_the_same_global_batch(model_folder, preferences, tmp_path):
    module = method(model_folder, optimizer=plain_steps)
    trainer(tmp_path, 4).fit(module, data(preferences, batch_size=4))
    text = _RANKS.format(tests=os.getcwd(), model=model_folder, preferences=str(preferences), out=str(tmp_path))
    two_ranks(tmp_path / "ranks.py", text)
    two, one = torch.load(tmp_path / "two.pt", weights_only=True), trained(module)
    for name in one:
        torch.testing.assert_close(two[name], one[name], rtol=1e-4, atol=1e-6, msg=name)


def test_a_checkpoint_of_another_base_model_is_refused(model_folder, preferences, tmp_path):
    run = trainer(tmp_path, 1)
    run.fit(method(model_folder), data(preferences))
    run.save_checkpoint(tmp_path / "a.ckpt")
    other = method(str(save_random_stable_diffusion(tmp_path / "other", seed=1)))
    with pytest.raises(ValueError, match="another base model"):
        trainer(tmp_path, 2).fit(other, data(preferences), ckpt_path=tmp_path / "a.ckpt", weights_only=True)
    with pytest.raises(ValueError, match="does not fit what trains here"):
        full = method(model_folder, lora=False)
        trainer(tmp_path, 2).fit(full, data(preferences), ckpt_path=tmp_path / "a.ckpt", weights_only=True)


def test_a_loss_that_is_no_number_stops_with_step_and_batch(model_folder, preferences, tmp_path):
    module = method(model_folder)
    with torch.no_grad():
        next(p for p in module.parameters() if p.requires_grad).fill_(float("nan"))
    with pytest.raises(NonFiniteLossError, match="at step 0") as error:
        trainer(tmp_path, 2).fit(module, data(preferences))
    (path,) = tmp_path.glob("bad-batch-0.safetensors")
    assert str(path) in str(error.value)
    with safe_open(path, "pt") as file:
        assert set(file.keys()) == {"winners", "losers"} and "captions" in file.metadata()


def test_settings_out_of_range_are_refused(model_folder):
    for name, value in {
        "beta": 0.0,
        "alpha": 1.5,
        "caption_dropout": 1.0,
        "micro_batch_size": 0,
        "prior_weight": -1.0,
    }.items():
        with pytest.raises(ValueError, match=name):
            method(model_folder, **{name: value})


def test_the_module_can_be_copied(model_folder):
    module = method(model_folder)
    assert set(copy.deepcopy(module).state_dict()) == set(module.state_dict()) == set(trained(module))


def test_the_prior_is_the_winners_error_under_their_own_prompts(model_folder):
    """Against a loop over single images that knows nothing of the module's loss."""
    pairs = replace(batch(), winner_prompts=["a female doctor", "a male nurse"] * 2)
    plain, _ = method(model_folder).eval().loss(pairs)
    module = method(model_folder, prior_weight=3.0).eval()
    value, logs = module.loss(pairs)
    errors = []
    for k, (key, prompt) in enumerate(zip(pairs.keys, pairs.winner_prompts, strict=True)):
        latents = module.latents(pairs.winners[k : k + 1], [key])
        x = module.noised(latents, [f"{key}.prior"], [prompt])
        noise, t = x.noise, x.timesteps
        noisy = module.backbone.add_noise(latents, noise, t)
        predicted = module.backbone.predict(noisy, t, module.backbone.encode_prompts([prompt]))
        errors.append((predicted - module.backbone.target(latents, noise, t)).square().mean())
    expected = torch.stack(errors).mean()
    assert logs["error_prior"] == pytest.approx(expected.item(), rel=1e-5)
    assert value.item() == pytest.approx(plain.item() + 3 * expected.item(), rel=1e-5)
    with pytest.raises(ValueError, match="prior_weight: the data does not say"):
        module.loss(batch())


def test_the_objective_leaves_low_noise_out_and_the_prior_does_not(model_folder, monkeypatch):
    pairs = replace(batch(), winner_prompts=["a female doctor", "a male nurse"] * 2)
    module = method(model_folder, prior_weight=1.0, min_timestep=600).train()
    objective, prior, noised = [], [], module.noised

    def spy(latents, keys, captions, minimum=0):
        found = noised(latents, keys, captions, minimum)
        (prior if keys[0].endswith(".prior") else objective).extend(found.timesteps.tolist())
        return found

    monkeypatch.setattr(module, "noised", spy)
    for number in range(20):
        module.loss(replace(pairs, keys=[f"{key}.{number}" for key in pairs.keys]))
    assert 600 <= min(objective) < 650 and 950 < max(objective) <= 999
    assert min(prior) < 100 and max(prior) > 900


def logged(trainer):
    return {key: float(value) for key, value in trainer.callback_metrics.items()}


@pytest.mark.parametrize(
    "settings",
    [
        {"prior_weight": 1.0},
        {"objective": "dpo"},
        *(pytest.param({"objective": o}, marks=pytest.mark.slow) for o in ("ipo", "simpo")),
    ],
)
def test_the_reference_beforehand_is_the_copy_to_the_last_digit(model_folder, preferences, tmp_path, settings):
    results = []
    for reference in ("copy", "beforehand"):
        module = method(model_folder, False, reference=reference, **settings)
        run = trainer(tmp_path / "runs" / reference, 4, limit_val_batches=1, val_check_interval=2)
        run.fit(module, data(preferences))
        assert bool(module.backbone.trainable.copies) == (reference == "copy")
        results.append((trained(module), logged(run)))
    (a, said), (b, said_too) = results
    assert said == said_too
    assert all(torch.equal(a[name], b[name]) for name in a)


def test_a_sweep_over_beta_pays_the_reference_once(model_folder, preferences, tmp_path, monkeypatch):
    def counted(**settings):
        module, calls = method(model_folder, False, reference="beforehand", **settings), []
        ask = module.backbone.predict_reference
        monkeypatch.setattr(module.backbone, "predict_reference", lambda *given: calls.append(1) or ask(*given))
        trainer(tmp_path / "experiment" / str(settings), 4).fit(module, data(preferences))
        return trained(module), len(calls)

    first, asked = counted(beta=20.0)
    again, none = counted(beta=20.0)
    assert (asked, none) == (4, 0)
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert counted(beta=10.0)[1] == 0, "another beta, the same reference"
    assert counted(caption_dropout=0.5)[1] == 4, "other captions are dropped: other errors"
    assert counted(seed=1)[1] == 4, "other noise"


def test_gone_on_with_the_reference_beforehand(model_folder, preferences, tmp_path):
    whole = method(model_folder, False, reference="beforehand")
    trainer(tmp_path / "whole" / "run", 6).fit(whole, data(preferences))
    run = trainer(tmp_path / "half" / "run", 3)
    run.fit(method(model_folder, False, reference="beforehand"), data(preferences))
    run.save_checkpoint(tmp_path / "half.ckpt")
    rest = method(model_folder, False, reference="beforehand")
    trainer(tmp_path / "other" / "run", 6).fit(
        rest, data(preferences), ckpt_path=tmp_path / "half.ckpt", weights_only=True
    )
    assert all(torch.equal(trained(whole)[name], value) for name, value in trained(rest).items())


def test_where_the_reference_cannot_be_made_beforehand(model_folder, preferences, tmp_path):
    module = method(model_folder, False, reference="beforehand", objective="dpo")
    with pytest.raises(UserError, match=r"model\.reference: .*max_steps"):
        trainer(tmp_path / "run", -1, max_epochs=1).fit(module, data(preferences))
    trainer(tmp_path / "run", 1).fit(module, data(preferences))
    with pytest.raises(RuntimeError, match="freed"):
        module.eval().held_out(batch(), reference=True)
    with pytest.raises(RuntimeError, match="freed"), module.backbone.sampling(reference=True):
        pass
    kept = next((tmp_path / ".reference").iterdir())
    kept.write_bytes(kept.read_bytes()[:100])
    with pytest.raises(OSError, match=f"{kept.name} is damaged"):
        trainer(tmp_path / "run", 1).fit(method(model_folder, False, reference="beforehand"), data(preferences))
