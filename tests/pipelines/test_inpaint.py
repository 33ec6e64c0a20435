"""The inpainting loop against diffusers' own, and what is left of the image outside the mask."""

import pytest
import torch
from diffusers import StableDiffusionInpaintPipeline
from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution

from fairanon.backbones import Sampling, StableDiffusion, StableDiffusionXL
from fairanon.backbones.random_models import save_random_sdxl, save_random_stable_diffusion
from fairanon.imaging import to_model
from fairanon.pipelines import InpaintPipeline, inpaint
from fairanon.pipelines.inpaint import paste


@pytest.fixture(scope="module")
def stock(tmp_path_factory):
    folder = save_random_stable_diffusion(tmp_path_factory.mktemp("models") / "inpaint", inpainting=True)
    pipeline = StableDiffusion(str(folder)).build_pipeline()
    assert isinstance(pipeline, StableDiffusionInpaintPipeline)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def ours(stock):
    parts = {name: getattr(stock, name) for name in ("vae", "text_encoder", "tokenizer", "unet", "scheduler")}
    pipeline = InpaintPipeline(**parts)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def batch():
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (2, 3, 32, 32), generator=generator, dtype=torch.uint8)
    masks = torch.zeros(2, 1, 32, 32, dtype=torch.bool)
    masks[0, :, 8:24, 4:20] = True
    masks[1, :, :, 16:] = True
    return images, masks, torch.randn(2, 4, 16, 16, generator=generator)


@pytest.mark.parametrize("guidance_scale", [1.0, 5.0])
def test_it_draws_the_stock_pipelines_latents(stock, monkeypatch, guidance_scale):
    # The stock pipeline samples the autoencoder's posterior, we take its mean.
    monkeypatch.setattr(DiagonalGaussianDistribution, "sample", lambda self, generator=None: self.mode())
    images, masks, noise = batch()
    prompts = ["an old man", "a young woman"]
    expected = stock(
        prompt=prompts, image=to_model(images), mask_image=masks.float(), latents=noise, height=32, width=32,
        strength=1.0, num_inference_steps=4, guidance_scale=guidance_scale, negative_prompt=["", ""],
        output_type="latent",
    ).images  # fmt: skip
    found = ours(stock).latents(prompts, images, masks, noise, 4, guidance_scale)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def test_outside_the_mask_nothing_changes_and_inside_everything(stock):
    images, masks, noise = batch()
    pipeline = ours(stock)
    drawn = pipeline(["a man", "a woman"], images, masks, noise, 2, feather=0)
    outside = ~masks.expand_as(images)
    assert torch.equal(drawn[outside], images[outside])
    assert (drawn[~outside] != images[~outside]).float().mean() > 0.9
    again = pipeline(["a man", "a woman"], images, masks, noise, 2, feather=0)
    other = pipeline(["a man", "a woman"], images, masks, noise.flip(0), 2, feather=0)
    assert torch.equal(again, drawn) and not torch.equal(other, drawn), "the noise is the identity's seed"
    alone = pipeline(["a woman"], images[1:], masks[1:], noise[1:], 2, feather=0)
    assert (alone[0].int() - drawn[1].int()).abs().max() <= 1, "an image does not depend on its batch"


def test_the_seam_is_inside_the_mask_and_as_wide_as_asked():
    images, drawn = torch.zeros(1, 3, 16, 16, dtype=torch.uint8), torch.full((1, 3, 16, 16), 240, dtype=torch.uint8)
    masks = torch.zeros(1, 1, 16, 16, dtype=torch.bool)
    masks[..., 4:13, 4:13] = True
    row = paste(images, drawn, masks, feather=2)[0, 0, 8].tolist()
    assert row == [0] * 4 + [80, 160] + [240] * 5 + [160, 80] + [0] * 3
    assert paste(images, drawn, masks, feather=0)[0, 0, 8].tolist() == [0] * 4 + [240] * 9 + [0] * 3


def test_what_does_not_fit_is_refused(stock):
    images, masks, noise = batch()
    pipeline = ours(stock)
    with pytest.raises(ValueError, match="mask of image 1 is empty"):
        pipeline(["a", "b"], images, masks & torch.tensor([True, False]).view(2, 1, 1, 1), noise)
    with pytest.raises(ValueError, match="masks must be bool"):
        pipeline(["a", "b"], images, masks[..., :16], noise)
    with pytest.raises(ValueError, match="1 prompts"):
        pipeline(["a"], images, masks, noise)
    plain = StableDiffusion("tiny")
    with pytest.raises(ValueError, match="8 input channels, inpainting with this autoencoder needs 17"):
        InpaintPipeline(plain.vae, plain.text_encoder, plain.tokenizer, plain.unet, plain.sampler())


@pytest.mark.parametrize("kind", ["inpainting", "text_to_image", "sdxl"])
def test_every_kind_of_backbone_inpaints(tmp_path, kind):
    if kind == "sdxl":
        backbone = StableDiffusionXL(str(save_random_sdxl(tmp_path / "m", inpainting=True)))
    else:
        backbone = StableDiffusion(str(save_random_stable_diffusion(tmp_path / "m", inpainting=kind == "inpainting")))
    images, masks, _ = batch()

    def draw(seed, prompts=("a face", "a face")):
        keys = [(seed, n) for n in range(2)]
        return inpaint(backbone, prompts, keys, images, masks, Sampling(2, 2.0), feather=0)

    first = draw(0)
    outside = ~masks.expand(-1, 3, -1, -1)
    assert torch.equal(first[outside], images[outside]) and not torch.equal(first, images)
    assert torch.equal(draw(0), first) and not torch.equal(draw(1), first)
    assert not torch.equal(draw(0, ("a dark face", "a face"))[0], first[0])
