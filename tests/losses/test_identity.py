"""ID2Face's losses against their formulas."""

import math

import pytest
import torch
from torch.distributions import Normal, kl_divergence
from torch.nn import functional as F

from fairanon.losses.identity import (
    identity_similarity,
    identity_vae,
    landmark_emphasis,
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


def test_the_control_vector_is_not_pulled_towards_the_picture():
    e, control = random(3, 8).requires_grad_(), random(3, 8, seed=1).requires_grad_()
    identity_similarity(e, control, torch.ones(3)).sum().backward()
    assert e.grad.abs().sum() > 0 and control.grad is None


def test_every_scale_counts_alike_and_half_a_region_is_one():
    masks = torch.zeros(1, 1, 4, 4, dtype=torch.bool)
    masks[..., :2, :1] = True  # half of the first of four fields
    coarse, fine = torch.full((1, 1, 2, 2), 2.0), torch.zeros(1, 1, 4, 4)
    p = torch.sigmoid(torch.tensor(2.0))
    expected = ((-p.log() - 3 * (1 - p).log()) / 4 + math.log(2)) / 2
    torch.testing.assert_close(region_prediction([coarse, fine], masks), expected)
    torch.testing.assert_close(region_prediction([coarse], masks, share=0.6), -(1 - p).log())
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


def test_places_near_the_features_count_more_and_the_mean_is_one():
    landmarks = torch.full((2, 68, 2), 0.1)
    landmarks[:, 17:] = torch.tensor([0.75, 0.25])
    weights = landmark_emphasis(landmarks, 8, 8, 9.0, spread=0.05)
    assert weights.shape == (2, 1, 8, 8)
    torch.testing.assert_close(weights.mean((1, 2, 3)), torch.ones(2))
    assert weights[0, 0].argmax() in (1 * 8 + 5, 1 * 8 + 6, 2 * 8 + 5, 2 * 8 + 6)
    far, near = weights[0, 0, 7, 0], weights[0, 0, 2, 6]
    away = math.hypot(0.5 / 8, 0.5 / 8)
    assert near / far == pytest.approx(1 + 9 * math.exp(-((away / 0.05) ** 2) / 2), rel=1e-4)
    assert weights[0, 0, 0, 0] == far, "the jaw does not count"
    assert torch.equal(landmark_emphasis(landmarks, 4, 4, 0.0), torch.ones(2, 1, 4, 4))
