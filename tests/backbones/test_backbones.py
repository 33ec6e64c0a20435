import copy
import warnings

import pytest
import torch
from diffusers import StableDiffusionPipeline, StableDiffusionXLPipeline

from fairanon.backbones import Lora, Sampling, StableDiffusion, StableDiffusionXL
from fairanon.backbones.export import export_pipeline, export_weights
from fairanon.backbones.hub import MissingModelError, model_folder
from fairanon.imaging import to_pixels


def build(folders, kind, **settings):
    return (StableDiffusionXL if kind == "sdxl" else StableDiffusion)(str(folders[kind]), **settings)


def step(backbone, seed=0):
    """A batch of two: noisy latents, timesteps, conditioning."""
    generator = torch.Generator().manual_seed(seed)
    channels = backbone.unet.config.in_channels
    noisy = torch.randn(2, channels, 16, 16, generator=generator)
    return noisy, torch.tensor([10, 700]), backbone.encode_prompts(["a doctor", ""])


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction"])
def test_noise_target_and_x0_agree_with_diffusers_and_each_other(folders, kind):
    backbone = build(folders, kind)
    x0, noise = torch.randn(2, 2, 4, 16, 16, generator=torch.Generator().manual_seed(1))
    t = torch.tensor([3, 990])
    noisy, target = backbone.add_noise(x0, noise, t), backbone.target(x0, noise, t)
    torch.testing.assert_close(noisy, backbone.scheduler.add_noise(x0, noise, t))
    if kind == "v_prediction":
        torch.testing.assert_close(target, backbone.scheduler.get_velocity(x0, noise, t))
    torch.testing.assert_close(backbone.predict_x0(noisy, target, t), x0, rtol=1e-3, atol=1e-4)


def test_the_embedded_model_has_zero_terminal_snr():
    backbone = StableDiffusion("tiny")
    assert backbone.prediction_type == "v_prediction"
    x0, noise = torch.ones(1, 8, 16, 16), torch.full((1, 8, 16, 16), 2.0)
    last = torch.tensor([999])
    torch.testing.assert_close(backbone.add_noise(x0, noise, last), noise, atol=1e-5, rtol=0)
    torch.testing.assert_close(backbone.target(x0, noise, last), -x0, atol=1e-5, rtol=0)


@pytest.mark.parametrize("kind", ["epsilon", "inpainting", "sdxl"])
def test_predict_needs_every_condition_and_trains_only_the_adapter(folders, kind):
    backbone = build(folders, kind, lora=Lora(rank=2), gradient_checkpointing=True)
    before = {name: value.clone() for name, value in backbone.named_parameters()}
    backbone.train()
    assert not backbone.vae.training and not backbone.text_encoder.training and backbone.unet.training
    optimizer = torch.optim.SGD([p for p in backbone.parameters() if p.requires_grad], lr=1.0)
    for seed in range(2):  # the adapters' first factors have a gradient once the second ones have moved
        optimizer.zero_grad()
        backbone.predict(*step(backbone, seed)).square().mean().backward()
        optimizer.step()
    for name, value in backbone.named_parameters():
        if "lora" in name:
            assert value.grad.abs().sum() > 0, name
        else:
            assert value.grad is None and torch.equal(value, before[name]), name


@pytest.mark.parametrize("kind", ["epsilon", "sdxl"])
def test_reference_is_the_starting_point(folders, kind, tmp_path):
    for settings in ({"lora": Lora(rank=2)}, {"lora": None}):
        backbone = build(folders, kind, **settings)
        start = backbone.predict(*step(backbone))
        flags = {name: p.requires_grad for name, p in backbone.named_parameters()}
        with torch.no_grad():
            for parameter in backbone.parameters():
                if parameter.requires_grad:
                    parameter.add_(0.05)
        moved = backbone.predict(*step(backbone))
        assert not torch.allclose(moved, start, atol=1e-4)
        assert torch.equal(backbone.predict_reference(*step(backbone)), start)
        assert torch.equal(backbone.predict(*step(backbone)), moved)
        assert flags == {name: p.requires_grad for name, p in backbone.named_parameters()}
        assert set(backbone.state_dict()) <= set(flags) | {n for n, _ in backbone.named_buffers()}, "no hidden copy"


def test_training_from_a_trained_adapter_keeps_that_as_the_reference(folders, tmp_path, caplog):
    caplog.set_level("INFO")
    first = build(folders, "epsilon", lora=Lora(rank=2))
    with torch.no_grad():
        for parameter in first.parameters():
            if parameter.requires_grad:
                parameter.add_(0.05)
    trained = first.predict(*step(first))
    path = export_weights(first, tmp_path, "first")
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*is a no-op")  # one for each of 128 layers
        second = build(folders, "epsilon", lora=Lora(rank=8, start_from=str(path)))
    assert "its adapters have rank 2; model.backbone.lora.rank (8) is not used" in caplog.text
    torch.testing.assert_close(second.predict(*step(second)), trained, rtol=1e-4, atol=1e-5)
    with torch.no_grad():
        for parameter in second.parameters():
            if parameter.requires_grad:
                parameter.mul_(2.0)
    assert not torch.allclose(second.predict(*step(second)), trained, atol=1e-4)
    torch.testing.assert_close(second.predict_reference(*step(second)), trained, rtol=1e-4, atol=1e-5)
    raw = build(folders, "epsilon")
    assert not torch.allclose(raw.predict(*step(raw)), trained, atol=1e-4)


@pytest.mark.parametrize("alpha", [None, 8])
def test_exported_lora_gives_the_same_prediction_in_plain_diffusers(folders, tmp_path, alpha):
    backbone = build(folders, "epsilon", lora=Lora(rank=2, alpha=alpha))
    with torch.no_grad():
        for parameter in backbone.parameters():
            if parameter.requires_grad:
                parameter.add_(0.05)
    export_weights(backbone, tmp_path, "test")
    pipeline = StableDiffusionPipeline.from_pretrained(folders["epsilon"], safety_checker=None)
    pipeline.load_lora_weights(tmp_path, weight_name="lora.safetensors")
    noisy, t, condition = step(backbone)
    theirs = pipeline.unet(noisy, t, condition.context).sample
    torch.testing.assert_close(backbone.predict(noisy, t, condition), theirs, rtol=1e-4, atol=1e-5)


def test_sdxl_prompts_are_encoded_as_the_pipeline_does(folders):
    backbone = build(folders, "sdxl")
    pipeline = StableDiffusionXLPipeline.from_pretrained(folders["sdxl"])
    theirs, empty, pooled, empty_pooled = pipeline.encode_prompt("a doctor", device="cpu")
    ours = backbone.encode_prompts(["a doctor", ""])
    torch.testing.assert_close(ours.context, torch.cat([theirs, empty]))
    torch.testing.assert_close(ours.pooled, torch.cat([pooled, empty_pooled]))
    assert ours.time_ids.tolist() == [[32.0, 32.0, 0.0, 0.0, 32.0, 32.0]] * 2


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction", "sdxl"])
def test_samples_depend_on_prompt_and_key_only(folders, kind):
    backbone = build(folders, kind)
    sampling = Sampling(3, 2.0)
    keys = [(0, "x", n) for n in range(3)]
    together = backbone.sample(["a", "b", "a"], keys, sampling)
    assert together.shape == (3, 3, 32, 32) and together.dtype == torch.uint8
    alone = backbone.sample(["b"], keys[1:2], sampling)
    assert (alone[0].int() - together[1].int()).abs().max() <= 1
    assert not torch.equal(together[0], together[2])


def test_latents_round_trip_and_posterior(folders):
    backbone = build(folders, "epsilon")
    images = torch.rand(2, 3, 32, 32) * 2 - 1
    mean = backbone.encode_images(images)
    posterior = backbone.vae.encode(images).latent_dist
    torch.testing.assert_close(mean, posterior.mean.detach() * backbone.vae.config.scaling_factor)
    noise = torch.ones_like(mean)
    expected = (posterior.mean + posterior.std).detach() * backbone.vae.config.scaling_factor
    torch.testing.assert_close(backbone.encode_images(images, noise), expected)
    latents = mean.clone().requires_grad_()
    backbone.decode(latents).sum().backward()
    assert latents.grad.abs().sum() > 0


def test_frozen_parts_in_half_precision(folders):
    backbone = build(folders, "epsilon", dtype="bfloat16", lora=Lora(rank=2))
    kinds = {("lora" in name, p.dtype) for name, p in backbone.unet.named_parameters() if "norm" not in name}
    assert kinds == {(True, torch.float32), (False, torch.bfloat16)}
    noisy, t, condition = step(backbone)
    prediction = backbone.predict(noisy, t, condition)
    assert prediction.dtype == torch.float32 and prediction.isfinite().all()
    exact = build(folders, "epsilon").predict(noisy, t, condition)
    assert (prediction - exact).abs().max() < 0.1 * exact.abs().max()


def test_a_missing_model_says_what_to_do():
    with pytest.raises(MissingModelError) as error:
        model_folder("stabilityai/stable-diffusion-2-1-base")
    text = str(error.value)
    for part in ("stabilityai/stable-diffusion-2-1-base", "Manojb/stable-diffusion-2-1-base", "hf download",
                 "model.backbone.model", "local folder"):  # fmt: skip
        assert part in text
    assert "\n" not in text
    with pytest.raises(MissingModelError, match="neither a folder nor a hub id"):
        model_folder("./nowhere")


def test_deep_copies_of_the_reference_move_with_the_model(folders):
    backbone = copy.deepcopy(build(folders, "epsilon"))
    backbone.double()
    assert backbone.trainable.copies["unet"].dtype == torch.float64


@pytest.mark.parametrize("kind", ["epsilon", "sdxl"])
def test_adapters_at_a_weight_and_fused_are_the_same_images(folders, kind, tmp_path):
    backbone = build(folders, kind, lora=Lora(rank=2))
    with torch.no_grad():
        for parameter in backbone.parameters():
            if parameter.requires_grad:
                parameter.normal_(0, 0.3, generator=torch.Generator().manual_seed(0))
    flags = [p.requires_grad for p in backbone.parameters()]

    def sample(model, **settings):
        return model.sample(["a doctor"] * 2, [(0,), (1,)], Sampling(2, 2.0, **settings)).float()

    start, weak, full = sample(backbone, reference=True), sample(backbone, lora_weight=0.3), sample(backbone)
    assert (weak - start).abs().mean() < (full - start).abs().mean() and not torch.equal(weak, start)
    assert torch.equal(sample(backbone), full), "the weight is back at 1"
    assert [p.requires_grad for p in backbone.parameters()] == flags
    folder = export_pipeline(backbone, tmp_path / "fused", "trial", lora_weight=0.3)
    fused = build({kind: folder}, kind)
    torch.testing.assert_close(sample(fused), weak, rtol=0, atol=1)
    plain = build(folders, kind)
    assert [n for n, _ in fused.unet.named_modules()] == [n for n, _ in plain.unet.named_modules()], "nothing is added"
    with pytest.raises(ValueError, match="exists"):
        export_pipeline(backbone, folder, "again")
    with pytest.raises(ValueError, match="no low-rank adapters"):
        sample(plain, lora_weight=0.5)


@pytest.mark.parametrize("lora", [None, Lora(rank=2), Lora(rank=2, targets=())], ids=["whole", "lora", "text alone"])
def test_the_text_encoder_trains_and_its_start_stays(folders, lora, tmp_path):
    backbone = build(folders, "epsilon", lora=lora, train_text_encoder=True)
    prompts, keys = ["a doctor", "a nurse"], [(0,), (1,)]
    before = backbone.sample(prompts, keys, Sampling(2, 2.0))
    start, first = backbone.embed_prompts(prompts, reference=True), step(backbone)
    encoded = backbone.encode_prompts(prompts, reference=True)
    drawn = backbone.predict_reference(*first[:2], encoded)
    alone = lora is not None and not lora.targets
    assert alone != any(p.requires_grad for p in backbone.unet.parameters())
    trainable = [p for p in backbone.text_encoder.parameters() if p.requires_grad]
    old = [p.detach().clone() for p in trainable]
    optimizer = torch.optim.SGD([p for p in backbone.parameters() if p.requires_grad], lr=1.0)
    backbone.train()
    assert backbone.text_encoder.training and not backbone.vae.training
    for _ in range(2):  # adapters begin with one factor at zero
        optimizer.zero_grad()
        (backbone.predict(*step(backbone)).square().mean() + backbone.embed_prompts(prompts).square().mean()).backward()
        optimizer.step()
    assert trainable and sum(not torch.equal(a, b) for a, b in zip(old, trainable, strict=True)) > 0.9 * len(old)
    assert not torch.equal(backbone.embed_prompts(prompts), start)
    assert torch.equal(backbone.embed_prompts(prompts, reference=True), start), "the start is frozen"
    assert torch.equal(backbone.sample(prompts, keys, Sampling(2, 2.0, reference=True)), before)
    trained = backbone.sample(prompts, keys, Sampling(2, 2.0))
    assert not torch.equal(trained, before)
    assert backbone.text_encoder.training and backbone.unet.training == (not alone), "sampling leaves off as it began"
    assert torch.equal(backbone.predict_reference(*first[:2], backbone.encode_prompts(prompts, reference=True)), drawn)
    with pytest.raises(ValueError, match="leave the text encoder frozen"):
        backbone.predict_reference(*first)

    other = build(folders, "epsilon").build_pipeline()
    path = export_weights(backbone, tmp_path, "trial")
    if lora is None:
        other.unet = type(other.unet).from_pretrained(path)
        other.text_encoder = type(other.text_encoder).from_pretrained(tmp_path / "text_encoder")
    else:
        other.load_lora_weights(tmp_path, weight_name="lora.safetensors")
    noise = backbone.starting_noise(keys)
    other.set_progress_bar_config(disable=True)
    latents = other(prompts, latents=noise, num_inference_steps=2, guidance_scale=2.0, output_type="latent").images
    torch.testing.assert_close(to_pixels(backbone.decode(latents)).float(), trained.float(), rtol=0, atol=1)


def test_adapters_that_are_nowhere_are_refused(folders):
    with pytest.raises(ValueError, match=r"lora\.targets: nothing would train"):
        build(folders, "epsilon", lora=Lora(rank=2, targets=()))


def test_a_text_to_image_lora_fits_the_inpainting_model(folders, tmp_path):
    text_to_image = build(folders, "epsilon", lora=Lora(rank=2))
    with torch.no_grad():
        for parameter in text_to_image.parameters():
            if parameter.requires_grad:
                parameter.normal_(0, 0.3, generator=torch.Generator().manual_seed(0))
    path = export_weights(text_to_image, tmp_path, "trial")
    adapted = build(folders, "inpainting", lora=Lora(start_from=str(path)))
    fused = build(folders, "inpainting")
    names, flags = list(fused.state_dict()), [p.requires_grad for p in fused.parameters()]
    plain = fused.predict(*step(fused))
    fused.add(str(path), 1.0)
    assert list(fused.state_dict()) == names and [p.requires_grad for p in fused.parameters()] == flags
    torch.testing.assert_close(fused.predict(*step(fused)), adapted.predict(*step(adapted)), rtol=1e-4, atol=1e-5)
    assert not torch.equal(fused.predict(*step(fused)), plain)
    assert torch.equal(fused.predict_reference(*step(fused)), plain), "the reference has no part of it"
    with pytest.raises(ValueError, match="trains low-rank adapters itself"):
        adapted.add(str(path), 1.0)
