"""ID2Face's losses against their formulas."""

import math

import pytest
import torch
from torch.distributions import Normal, kl_divergence
from torch.nn import functional as F

from fairanon.losses.identity import (
    identity_similarity,
    identity_vae,
    latent_reconstruction,
    region_prediction,
)


def random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_late_timesteps_count_less():
    z, predicted, alpha_bar = torch.zeros(2, 1, 2, 2), torch.ones(2, 1, 2, 2), torch.tensor([1.0, 0.25])
    assert latent_reconstruction(z, 2 * predicted, alpha_bar) == (1 * 4 + 0.25 * 4) / 2
    e, control = torch.tensor([[1.0, 0.0], [1.0, 1.0]]), torch.tensor([[0.0, 2.0], [3.0, 0.0]])
    expected = (1 * (1 - 0) + 0.25 * (1 - math.sqrt(0.5))) / 2
    assert float(identity_similarity(e, control, alpha_bar).mean()) == pytest.approx(expected)


def test_the_control_vector_is_not_pulled_towards_the_image():
    e, control = random(3, 8).requires_grad_(), random(3, 8, seed=1).requires_grad_()
    identity_similarity(e, control, torch.ones(3)).sum().backward()
    assert e.grad.abs().sum() > 0 and control.grad is None


def test_every_scale_counts_alike_and_half_a_region_is_one_half():
    masks = torch.zeros(1, 1, 4, 4, dtype=torch.bool)
    masks[..., :2, :1] = True  # half of the first of four fields
    coarse, fine = torch.full((1, 1, 2, 2), 2.0), torch.zeros(1, 1, 4, 4)
    p = torch.sigmoid(torch.tensor(2.0))
    half = (-p.log() - (1 - p).log()) / 2
    expected = ((half - 3 * (1 - p).log()) / 4 + math.log(2)) / 2
    torch.testing.assert_close(region_prediction([coarse, fine], masks), expected)
    with pytest.raises(ValueError, match="no gate map"):
        region_prediction([], masks)


def test_the_divergence_is_that_of_normals():
    mean, log_variance = random(5, 3), random(5, 3, seed=1)
    e, rebuilt = random(5, 7, seed=2), random(5, 7, seed=3)
    reconstruction, divergence = identity_vae(e, rebuilt, mean, log_variance)
    normal = kl_divergence(Normal(mean, (log_variance / 2).exp()), Normal(0.0, 1.0)).sum(1).mean()
    torch.testing.assert_close(divergence, normal)
    torch.testing.assert_close(reconstruction, 7 * F.mse_loss(rebuilt, e))
    assert identity_vae(e, e, torch.zeros(5, 3), torch.zeros(5, 3)) == (0, 0)
