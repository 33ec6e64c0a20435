"""The two paths beside the tokens: nothing at first, then heard by the U-Net, and only while it is led."""

import torch

from fairanon.backbones import StableDiffusion
from fairanon.networks.spatial import SpatialConditioning


def conditions(count=2):
    random = torch.Generator().manual_seed(0)
    degraded = torch.rand(count, 3, 64, 64, generator=random) * 2 - 1
    landmarks = torch.rand(count, 68, 2, generator=random)
    return degraded, torch.zeros(count, 1, 64, 64, dtype=torch.bool), landmarks, torch.randn(count, 5, generator=random)


def test_the_unet_is_plain_until_the_paths_have_learnt_something():
    torch.manual_seed(0)
    unet = StableDiffusion("tiny").unet.eval()
    noisy, t = torch.randn(2, unet.config.in_channels, 16, 16), torch.tensor([10, 900])
    text = torch.randn(2, 7, unet.config.cross_attention_dim)

    def predict():
        with torch.no_grad():
            return unet(noisy, t, encoder_hidden_states=text).sample

    plain = predict()
    first, time = unet.config.block_out_channels[0], unet.time_embedding.linear_1.out_features
    paths = SpatialConditioning(first, time, 64 // 16, 5)
    paths.install(unet)
    given = conditions()
    assert torch.equal(predict(), plain), "not led"
    with paths.steering(*given):
        torch.testing.assert_close(predict(), plain)  # led by zeros
    for k, layer in enumerate((paths.onto_first, paths.onto_time)):
        torch.nn.init.normal_(layer.weight, std=0.3)
        with paths.steering(*given):
            led = predict()
        for number, value in enumerate(given):
            other = list(given)
            other[number] = ~value if value.dtype == torch.bool else value.flip(0)
            with paths.steering(*other):
                heard = not torch.allclose(predict(), led)
            assert heard == (number in ((0, 1, 2), (2, 3))[k]), (k, number)
        torch.nn.init.zeros_(layer.weight)
    torch.nn.init.normal_(paths.onto_time.weight)
    assert torch.equal(predict(), plain), "not led any more"


def test_a_backward_pass_may_come_after_the_unet_is_no_longer_led():
    torch.manual_seed(0)
    paths = SpatialConditioning(8, 16, 4, 5)
    with paths.steering(*conditions()):
        value = paths._added(0, torch.zeros(2, 8, 16, 16)).sum() + paths._added(1, torch.zeros(2, 16)).sum()
    value.backward()
    assert all(layer.weight.grad.abs().sum() > 0 for layer in (paths.onto_first, paths.onto_time))
