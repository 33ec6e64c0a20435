import logging
import os
import subprocess
import sys

import pytest
import torch
from torch.nn import functional as F

from data_modules.masked_faces import MaskedFaces
from data_modules.region_folder import RegionFolder
from data_modules.synthetic_faces import SyntheticGroup
from fairanon.backbones import Lora, StableDiffusion
from fairanon.backbones.random_models import save_random_stable_diffusion
from fairanon.batches import InpaintBatch
from fairanon.losses.dreambooth import focused_feature_enhancement
from fairanon.methods import AnoFaceFair
from fairanon.prepare import ClassImages
from tests.methods.common import trained, trainer

CLASSES = ["pale skin", "dark skin", "tan skin"]


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory):
    return str(save_random_stable_diffusion(tmp_path_factory.mktemp("models") / "sd", inpainting=True))


def method(model_folder, text=True, lora=True, **settings):
    torch.manual_seed(0)
    backbone = StableDiffusion(model_folder, lora=Lora(rank=2) if lora else None, train_text_encoder=text)
    return AnoFaceFair(backbone, **{"classes": CLASSES, "minimum_angle": 80.0, **settings})


def batch(roles=("instance", "prior", "difference", "instance")):
    generator = torch.Generator().manual_seed(3)
    count = len(roles)
    images = torch.randint(0, 256, (count, 3, 32, 32), generator=generator).to(torch.uint8)
    masks = torch.zeros(count, 1, 32, 32, dtype=torch.bool)
    masks[:, :, 8:24, 10:] = True
    return InpaintBatch([f"{n}.0" for n in range(count)], images, ["a face"] * count, masks, list(roles))


def by_hand(module, rows):
    """Errors, predictions and targets of each sample, from the pieces."""
    backbone = module.backbone
    x = module.latents(rows.images, rows.keys)
    noised = module.noised(x, rows.keys, rows.captions)
    noise, t = noised.noise, noised.timesteps
    hidden = backbone.encode_images((rows.images.float() / 127.5 - 1) * ~rows.masks)
    small = rows.masks[:, :, ::2, ::2].float()
    noisy = torch.cat([backbone.add_noise(x, noise, t), small, hidden], 1)
    prediction = backbone.predict(noisy, t, backbone.encode_prompts(rows.captions))
    return prediction, backbone.target(x, noise, t)


@pytest.mark.parametrize("diff", ["separate", "preserve", "official"])
def test_the_objective_is_the_sum_of_its_parts(model_folder, diff):
    module = method(model_folder, diff=diff, ffe_weight=0.3, theta=0.4, prior_weight=0.7, diff_weight=2.0).eval()
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            if "lora_B" in name:  # adapters begin as nothing, and preserve at 0
                parameter.normal_(0, 0.1, generator=torch.Generator().manual_seed(1))
    rows = batch()
    prediction, target = by_hand(module, rows)
    errors = (prediction - target).square().mean((1, 2, 3))
    mine = [0, 3]
    ffe = focused_feature_enhancement(prediction[mine], target[mine], 0.4).mean()
    unit, start = (
        F.normalize(module.backbone.embed_prompts(CLASSES, reference=reference), dim=1) for reference in (False, True)
    )
    if diff == "separate":
        minimum = torch.tensor(80.0).deg2rad().cos()
        over = [(unit[i] @ unit[j] - minimum).clamp_min(0) for i, j in ((0, 1), (0, 2), (1, 2))]
        difference = torch.stack(over).mean()
    elif diff == "preserve":
        difference = (1 - (unit * start).sum(1)).mean() + errors[2]
    else:
        x = module.latents(rows.images, rows.keys)
        difference = 1 - F.cosine_similarity(x[:1], x[2:3], dim=1).mean()
    value, logs = module.loss(rows)
    torch.testing.assert_close(logs["difference"], difference.detach())
    expected = errors[mine].mean() + 0.3 * ffe + 0.7 * errors[1] + 2.0 * difference
    torch.testing.assert_close(value, expected)
    torch.testing.assert_close(logs["error_prior"], errors[1].detach())
    assert diff != "separate" or 0 < logs["smallest_angle"] < 80


def test_the_official_difference_changes_no_gradient(model_folder):
    gradients = []
    for diff in ("official", None):
        module = method(model_folder, diff=diff, ffe_weight=0.0, prior_weight=0.0).eval()
        module.loss(batch())[0].backward()
        gradients.append({name: p.grad for name, p in module.named_parameters() if p.grad is not None})
    assert gradients[0].keys() == gradients[1].keys() and gradients[0]
    for name, value in gradients[0].items():
        assert torch.equal(value, gradients[1][name]), name


def test_features_are_the_decoders_of_the_clean_latents(model_folder):
    module, rows = (
        method(model_folder, ffe_space="features", ffe_weight=1.0, prior_weight=0.0, diff=None).eval(),
        batch(),
    )
    prediction, _ = by_hand(module, rows)
    x = module.latents(rows.images, rows.keys)
    noised = module.noised(x, rows.keys, rows.captions)
    noise, t = noised.noise, noised.timesteps
    backbone, seen = module.backbone, []
    drawn = backbone.predict_x0(backbone.add_noise(x, noise, t), prediction, t)
    hook = backbone.vae.decoder.mid_block.register_forward_hook(lambda *given: seen.append(given[2]))
    for latents in (drawn[[0, 3]], x[[0, 3]]):
        backbone.decode(latents)
    hook.remove()
    expected = focused_feature_enhancement(*seen, module.theta).mean()
    torch.testing.assert_close(module.loss(rows)[1]["ffe"], expected.detach())


def test_without_the_other_losses_it_is_the_instances_error(model_folder):
    plain, logs = method(model_folder, ffe_weight=0.0, prior_weight=0.0, diff=None).eval().loss(batch(["instance"] * 2))
    assert set(logs) == {"error_instance"} and plain.detach() == logs["error_instance"]


@pytest.mark.parametrize("lora", [True, False], ids=["lora", "whole"])
@pytest.mark.parametrize("diff", ["separate", "preserve", "official"])
def test_each_difference_loss_moves_what_it_should(model_folder, diff, lora):
    module = method(model_folder, lora=lora, diff=diff)
    if lora:  # one factor of each adapter is 0 at the start: nothing flows to the other
        with torch.no_grad():
            for name, parameter in module.named_parameters():
                if "lora_B" in name:
                    parameter.normal_(0, 0.1, generator=torch.Generator().manual_seed(1))
    x = torch.randn(4, 4, 16, 16, generator=torch.Generator().manual_seed(2))
    rows = {"instance": torch.tensor([0, 1]), "difference": torch.tensor([2, 3])}
    value = module._difference(x, torch.zeros(4), rows)
    text = [p for p in module.backbone.text_encoder.parameters() if p.requires_grad]
    if diff == "official":
        assert not value.requires_grad, "as documented: a constant"
        return
    found = torch.autograd.grad(value, text, allow_unused=True)
    strength = max(float(g.abs().max()) for g in found if g is not None)
    assert (strength > 1e-4) == (diff == "separate" or lora), "preserve is at its minimum where a whole encoder starts"


def test_separate_opens_the_angles_towards_the_least(model_folder):
    module = method(model_folder, lora=False, minimum_angle=75.0)
    optimizer = torch.optim.Adam([p for p in module.backbone.text_encoder.parameters() if p.requires_grad], lr=1e-2)
    angles = []
    for _ in range(30):
        unit = F.normalize(module.backbone.embed_prompts(CLASSES).detach(), dim=1)
        angles.append(float(torch.rad2deg((unit @ unit.T)[~torch.eye(3, dtype=torch.bool)].max().clamp(-1, 1).acos())))
        loss = module._difference(torch.empty(0), torch.empty(0), {})
        if not loss:
            break
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert angles[0] < 60 and angles[-1] > 70


def test_features_and_chosen_thresholds(model_folder):
    rows = batch(["instance"] * 4)
    values = {}
    for name, settings in {
        "prediction": {}, "features": {"ffe_space": "features"}, "paper": {"theta_mode": "paper"},
        "masked_mean": {"theta_mode": "masked_mean", "theta_weight": 1.2}, "batch": {"ffe_over_batch": True},
    }.items():  # fmt: skip
        module = method(model_folder, ffe_weight=1.0, prior_weight=0.0, diff=None, **settings).eval()
        value, logs = module.loss(rows)
        value.backward()
        assert any(p.grad is not None and p.grad.abs().sum() > 0 for p in module.parameters())
        values[name] = float(logs["ffe"])
    assert len(set(values.values())) == 5 and values["paper"] == min(values[k] for k in values if k != "features")


@pytest.mark.parametrize("settings, words", [
    ({"theta": 1.0}, "theta must be in"), ({"text": False}, "of which nothing trains"),
    ({"text": False, "diff": "preserve"}, "of which nothing trains"), ({"classes": ["one"]}, "a prompt for each class"),
    ({"prior_weight": -1.0}, "must not be negative"),
])  # fmt: skip
def test_settings_that_make_no_sense_are_refused(model_folder, settings, words):
    with pytest.raises(ValueError, match=words):
        method(model_folder, **settings)


def test_a_text_to_image_model_and_missing_roles_are_refused(model_folder, sets, tmp_path):
    with pytest.raises(ValueError, match="an inpainting model is needed"):
        module = method(str(save_random_stable_diffusion(tmp_path / "sd")))
        trainer(tmp_path, 1).fit(module, data(sets))
    with pytest.raises(ValueError, match="no prior images"):
        method(model_folder).loss(batch(["instance"]))
    with pytest.raises(ValueError, match=r"mask of 1\.0 is empty"):
        rows = batch()
        rows.masks[1] = False
        InpaintBatch(rows.keys, rows.images, rows.captions, rows.masks, rows.roles)


@pytest.mark.parametrize("minimum, words", [(5.0, "the loss is inactive"), (80.0, "angles between the classes")])
def test_the_angles_are_told_at_the_start(model_folder, caplog, minimum, words):
    with caplog.at_level(logging.INFO):
        method(model_folder, minimum_angle=minimum).on_fit_start()
    assert words in caplog.text


@pytest.fixture(scope="module")
def sets(model_folder, tmp_path_factory):
    folder = tmp_path_factory.mktemp("sets")
    for name, prompt in (("prior", "a face"), ("difference", "a dark face")):
        ClassImages(str(folder / name), StableDiffusion(model_folder), [prompt], 5, sampling_steps=2).run()
    return folder


def data(sets, batch_size=2):
    prior, difference = (RegionFolder(str(sets / name), ()) for name in ("prior", "difference"))
    return MaskedFaces(
        SyntheticGroup(str(sets / "olive"), {"olive": 1.0}, count=6), prior, difference, batch_size, size=32
    )


@pytest.mark.parametrize("lora", [True, False], ids=["lora", "whole"])
def test_everything_that_trains_moves_and_nothing_else(model_folder, sets, tmp_path, lora):
    module = method(model_folder, lora=lora, optimizer=lambda p: torch.optim.AdamW(p, lr=1e-2))
    before = {name: p.detach().clone() for name, p in module.named_parameters()}
    trainer(tmp_path, 3).fit(module, data(sets))
    moved = {name for name, p in module.named_parameters() if not torch.equal(p, before[name])}
    assert moved == set(trained(module)) and any("text_encoder" in name for name in moved)


def test_a_run_that_goes_on_equals_an_uninterrupted_one(model_folder, sets, tmp_path):
    whole, first, second = (method(model_folder, optimizer=lambda p: torch.optim.AdamW(p, lr=1e-2)) for _ in range(3))
    trainer(tmp_path / "a", 4).fit(whole, data(sets))
    part = trainer(tmp_path / "b", 2)
    part.fit(first, data(sets))
    part.save_checkpoint(tmp_path / "half.ckpt")
    trainer(tmp_path / "c", 4).fit(second, data(sets), ckpt_path=tmp_path / "half.ckpt", weights_only=True)
    for name, value in trained(whole).items():
        assert torch.equal(value, trained(second)[name]), name


_RANKS = """
import sys, torch
from tests.methods.test_ano_face_fair import data, method
from tests.methods.common import trained, trainer
from pathlib import Path
from safetensors.torch import save_file
if __name__ == "__main__":
    module = method(sys.argv[1], optimizer=lambda p: torch.optim.SGD(p, lr=1e-2))
    run = trainer(sys.argv[3], 3, devices=2, strategy="ddp_find_unused_parameters_true")
    run.fit(module, data(Path(sys.argv[2]), 1))
    if run.is_global_zero:
        save_file(trained(module), sys.argv[3] + "/weights.safetensors")
"""


@pytest.mark.slow
def test_two_ranks_are_one_with_the_same_global_batch(model_folder, sets, tmp_path):
    from safetensors.torch import load_file

    (tmp_path / "ranks.py").write_text(_RANKS)
    single = method(model_folder, optimizer=lambda p: torch.optim.SGD(p, lr=1e-2))
    trainer(tmp_path, 3).fit(single, data(sets, 2))
    command = [sys.executable, str(tmp_path / "ranks.py"), model_folder, str(sets), str(tmp_path)]
    subprocess.run(command, check=True, env={**os.environ, "PYTHONPATH": "."}, capture_output=True)
    both = load_file(tmp_path / "weights.safetensors")
    for name, value in trained(single).items():
        torch.testing.assert_close(both[name], value, rtol=1e-5, atol=1e-6, msg=name)
