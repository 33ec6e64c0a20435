"""aDFT's parts against independent references: assignment, and the chain through a sampler."""

import itertools

import pytest
import torch
from diffusers import DDIMScheduler
from torch import nn

from fairanon.losses.assignment import assigned_classes
from fairanon.losses.chain import ddim_steps, evened, final_weights


def test_classes_are_dealt_at_the_least_cost():
    """Against all permutations of four images, for one draw of classes."""
    generator = torch.Generator().manual_seed(1)
    probabilities = torch.rand(4, 3, generator=generator).softmax(1)
    shares = torch.tensor([0.5, 0.3, 0.2])
    for seed in range(10):
        asked = assigned_classes(probabilities, shares, torch.Generator().manual_seed(seed), draws=1)
        drawn = torch.multinomial(shares.double(), 4, replacement=True, generator=torch.Generator().manual_seed(seed))
        costs = {
            order: sum(float((probabilities[k].double() - torch.eye(3)[drawn[n]]).norm()) for k, n in enumerate(order))
            for order in itertools.permutations(range(4))
        }
        best = min(costs, key=costs.get)
        found = sum(float((probabilities[k].double() - asked[k]).norm()) for k in range(4))
        assert found == pytest.approx(costs[best]) and asked.sum(0).tolist() == torch.eye(3)[drawn].sum(0).tolist()


def test_the_wanted_shares_are_asked_for_and_who_is_nearest_changes():
    female = torch.tensor([0.01] * 10 + [0.2, 0.3, 0.05, 0.05, 0.9, 0.95])
    probabilities = torch.stack([female, 1 - female], 1)
    asked = assigned_classes(probabilities, torch.tensor([0.5, 0.5]), torch.Generator().manual_seed(0), draws=2000)
    assert asked.sum(1).allclose(torch.ones(16)) and asked[:, 0].mean() == pytest.approx(0.5, abs=0.01)
    assert asked[[14, 15, 11, 10], 0].min() > 0.95, "the two women stay, and the two that look most like one"
    assert asked[:10, 0].mean() < 0.3


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("steps", [1, 2, 5])
def test_the_chain_is_what_a_sampler_does_and_what_autograd_finds(prediction, steps):
    scheduler = DDIMScheduler(prediction_type=prediction, clip_sample=False, set_alpha_to_one=True)
    count = scheduler.config.num_train_timesteps
    scheduler.set_timesteps(steps)
    times = scheduler.timesteps
    a, b = ddim_steps(scheduler.alphas_cumprod[times], prediction)
    torch.manual_seed(0)
    network = nn.Linear(4, 4).double()
    start = torch.randn(3, 4, dtype=torch.float64)
    ours = theirs = start
    seen = []
    for k, time in enumerate(times):
        seen.append(ours.detach())
        ours = a[k] * ours + b[k] * network(ours.detach())  # a prediction does not reach those before it
        theirs = scheduler.step(network(theirs), time, theirs).prev_sample
    assert torch.allclose(ours, theirs, atol=1e-6) and times[0] < count

    def loss(x):
        return (x**3).sum()

    (expected,) = torch.autograd.grad(loss(ours), network.weight)
    final = ours.detach().requires_grad_()
    (slope,) = torch.autograd.grad(loss(final), final)
    through = sum(weight * (slope * network(x)).sum() for weight, x in zip(final_weights(a, b), seen, strict=True))
    (found,) = torch.autograd.grad(through, network.weight)
    assert torch.allclose(found, expected, rtol=1e-9)


def test_evened_weights_keep_signs_and_the_product():
    weights = torch.tensor([-0.01, -1.0, -4.0], dtype=torch.float64)
    found = evened(weights)
    assert found.unique().numel() == 1 and (found < 0).all() and found.prod() == pytest.approx(float(weights.prod()))
