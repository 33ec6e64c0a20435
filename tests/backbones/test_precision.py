"""One place decides in which precision what is computed: every backbone x precision x (what trains) x (what for)."""

import copy
import json
import shutil

import pytest
import torch
from diffusers import DiffusionPipeline

from fairanon.backbones import Control, Lora, Sampling, StableDiffusion, StableDiffusionXL
from fairanon.backbones.export import export_pipeline, export_weights
from fairanon.methods import PopAlign
from fairanon.pipelines.inpaint import inpaint

KINDS = ("epsilon", "v_prediction", "inpainting", "sdxl")
DTYPES = ("float32", "bfloat16", "float16")
TRAINS = {
    "all": {},
    "adapters": {"lora": Lora(rank=2)},
    "controlnet": {"control": Control("controlnet")},
    "t2i_adapter": {"control": Control("t2i_adapter")},
    "text encoder": {"train_text_encoder": True},
    "text adapters": {"train_text_encoder": True, "lora": Lora(rank=2)},
    "nothing": {"frozen": True},
}


def build(folders, kind, **settings):
    return (StableDiffusionXL if kind == "sdxl" else StableDiffusion)(str(folders[kind]), **settings)


CASES = [  # a velocity is another target for the same computation: most of its cases can wait
    pytest.param(kind, dtype, trains, marks=pytest.mark.slow if kind == "v_prediction" and trains != "all" else ())
    for kind in KINDS for dtype in DTYPES for trains in TRAINS
    if not (kind == "sdxl" and "text" in trains) and not (kind == "inpainting" and "control" in TRAINS[trains])
]  # fmt: skip


@pytest.mark.parametrize(("kind", "dtype", "trains"), CASES)
def test_everything_is_computed_in_the_precision_asked_for(folders, kind, dtype, trains):
    backbone = build(folders, kind, dtype=dtype, gradient_checkpointing=True, **copy.deepcopy(TRAINS[trains]))
    torch.manual_seed(0)
    latents = backbone.encode_images(torch.rand(2, 3, 32, 32) * 2 - 1, torch.randn(2, 4, 16, 16))
    extra = torch.randn(2, 5, 16, 16) if kind == "inpainting" else latents[:, :0]
    noisy, timesteps = torch.cat([latents, extra], 1), torch.tensor([10, 700])
    condition = backbone.encode_prompts(["a doctor", ""])
    if "control" in TRAINS[trains]:
        condition = type(condition)(condition.context, condition.pooled, condition.time_ids, torch.rand(2, 3, 32, 32))

    if trains != "nothing":  # training
        backbone.train()
        prediction = backbone.predict(noisy, timesteps, condition)
        drawn = backbone.predict_x0(latents, prediction, timesteps)
        (prediction.square().mean() + backbone.decode(drawn).square().mean()).backward()
        moving = {name: p for name, p in backbone.named_parameters() if p.requires_grad}
        assert {p.dtype for p in moving.values()} == {torch.float32}
        assert any(p.grad is not None and p.grad.abs().sum() > 0 for p in moving.values())
        assert all(p.grad is None or p.grad.isfinite().all() for p in moving.values())
        assert prediction.dtype == drawn.dtype == latents.dtype == torch.float32
        if not backbone.trains_text_encoder:  # the reference
            assert backbone.predict_reference(noisy, timesteps, condition).isfinite().all()
    held = {module.weight.dtype for module in backbone.vae.modules() if isinstance(module, torch.nn.Conv2d)}
    assert held == {getattr(torch, dtype)}, "what is frozen takes no more memory than asked"

    keys = [(1, "a"), (1, "b")]  # before, after, and what prepares data
    for start in (True, False):
        sampling = Sampling(2, 3.0, reference=start)
        if kind == "inpainting":
            images, masks = torch.zeros(2, 3, 32, 32, dtype=torch.uint8), torch.ones(2, 1, 32, 32, dtype=torch.bool)
            found = inpaint(backbone, ["a", "b"], keys, images, masks, sampling)
        else:
            controls = torch.zeros(2, 3, 32, 32, dtype=torch.uint8) if "control" in TRAINS[trains] else None
            found = backbone.sample(["a", "b"], keys, sampling, controls=controls)
        assert found.shape == (2, 3, 32, 32) and found.dtype == torch.uint8 and found.float().std() > 0


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", ["epsilon", "sdxl", "inpainting"])
def test_the_reference_is_the_starting_model_bit_for_bit_and_nothing_is_rounded_that_trains(folders, kind, dtype):
    backbone = build(folders, kind, dtype=dtype)
    exact = build(folders, kind).unet.state_dict()
    for name, value in backbone.unet.state_dict().items():
        assert torch.equal(value, exact[name]), f"{name} was rounded on its way to training"
    torch.manual_seed(0)
    channels = backbone.unet.config.in_channels
    noisy, timesteps = torch.randn(2, channels, 16, 16), torch.tensor([10, 700])
    condition = backbone.encode_prompts(["a", ""])
    with torch.no_grad():
        ours = backbone.predict(noisy, timesteps, condition)
    assert torch.equal(ours, backbone.predict_reference(noisy, timesteps, condition))
    source, mask = torch.randint(0, 256, (1, 3, 32, 32), dtype=torch.uint8), torch.ones(1, 1, 32, 32, dtype=torch.bool)

    def drawn(reference):
        sampling = Sampling(3, 2.0, reference=reference)
        if kind == "inpainting":
            return inpaint(backbone, ["a"], [(1, "a")], source, mask, sampling)
        return backbone.sample(["a"], [(1, "a")], sampling)

    images = [drawn(start) for start in (True, False)]
    assert torch.equal(*images), "before and after are drawn alike as long as nothing has been trained"


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_is_near_full_precision(folders, dtype):
    torch.manual_seed(0)
    noisy, timesteps = torch.randn(2, 4, 16, 16), torch.tensor([10, 700])
    full, half = (build(folders, "epsilon", dtype=name, frozen=True) for name in ("float32", dtype))
    found = [b.predict(noisy, timesteps, b.encode_prompts(["a doctor", ""])) for b in (full, half)]
    error = (found[0] - found[1]).abs().max() / found[0].abs().max()
    assert 0 < error < (0.05 if dtype == "bfloat16" else 0.01)


@pytest.mark.parametrize("kind", ["epsilon", "sdxl"])
def test_an_exported_pipeline_of_a_half_precision_model_runs_in_plain_diffusers(folders, kind, tmp_path):
    backbone = build(folders, kind, dtype="bfloat16", lora=Lora(rank=2))
    folder = export_pipeline(backbone, tmp_path / "out", "name")
    pipeline = DiffusionPipeline.from_pretrained(folder, dtype=torch.bfloat16)
    pipeline.set_progress_bar_config(disable=True)
    assert pipeline("a", num_inference_steps=2, height=32, width=32, output_type="pt").images.isfinite().all()


def test_a_frozen_backbone_holds_no_second_network(folders):
    backbone = build(folders, "epsilon", frozen=True, dtype="bfloat16")
    assert not [name for name, p in backbone.named_parameters() if p.requires_grad] and backbone.trainable.copies == {}
    assert backbone.sizes()["reference"] == backbone.sizes()["trains"] == 0
    whole = build(folders, "epsilon", dtype="bfloat16")
    assert whole.sizes()["reference"] < whole.sizes()["trains"]
    with pytest.raises(ValueError, match=r"frozen: nothing would train"):
        PopAlign(backbone)


def test_the_origin_of_images_tells_models_apart(folders, tmp_path):
    adapters = build(folders, "epsilon", lora=Lora(rank=2))
    path = export_weights(adapters, tmp_path, "first")
    found = [
        build(folders, "epsilon", **settings).origin()
        for settings in ({}, {"frozen": True}, {"lora": Lora(rank=2)}, {"dtype": "bfloat16"},
                         {"lora": Lora(rank=2, start_from=str(path))})
    ]  # fmt: skip
    assert found[0] == found[1] == found[2], "what trains later does not change where it starts"
    assert len({str(one) for one in found}) == 3
    other = tmp_path / "other"
    shutil.copytree(folders["epsilon"], other)
    config = json.loads((other / "scheduler" / "scheduler_config.json").read_text())
    (other / "scheduler" / "scheduler_config.json").write_text(json.dumps({**config, "beta_end": 0.02}))
    assert StableDiffusion(str(other)).origin() != found[0]


def test_contradictions_are_refused(folders):
    for settings in ({"lora": Lora(), "frozen": True}, {"control": Control("controlnet"), "lora": Lora()},
                     {"frozen": True, "train_text_encoder": True}):  # fmt: skip
        with pytest.raises(ValueError, match=r"model\.backbone"):
            build(folders, "epsilon", **settings)
