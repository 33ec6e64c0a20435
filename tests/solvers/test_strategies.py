"""The rivals against closed forms and the equations of their papers."""

import math

import pytest
import torch

from fairanon import solvers
from fairanon.solvers import FAMO, MGDA, DynamicWeightAverage, NashMTL, RandomLossWeighting, UncertaintyWeighting

ALL = torch.tensor([True, True, True])
LOSSES = torch.tensor([0.5, 2.0, 1.0])


def gram(seed=0):
    gradients = torch.randn(3, 5, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return gradients @ gradients.T


def every_solver():
    return [
        getattr(solvers, name)() for name in solvers.__all__ if name[0].isupper() and name not in ("Solver", "Weights")
    ]


@pytest.mark.parametrize("solver", every_solver(), ids=lambda s: type(s).__name__)
def test_what_is_not_active_weighs_nothing_and_does_not_matter(solver):
    active = torch.tensor([True, False, True])
    for step in range(3):
        found = solver.weights(LOSSES, gram() if solver.needs_gram else None, active, step).values
        assert found[1] == 0 and (found[[0, 2]] > 0).all() and found.isfinite().all()
        if solver.needs_losses_after:
            solver.observe(LOSSES * 0.9)


@pytest.mark.parametrize(
    "solver", [DynamicWeightAverage(), UncertaintyWeighting(), FAMO()], ids=lambda s: type(s).__name__
)
def test_a_state_from_a_checkpoint_follows_the_losses_to_their_device(solver):
    """A checkpoint's state lies on the CPU; "meta" stands for a GPU, it refuses to mix devices just as one does."""
    for step in range(30):
        solver.weights(LOSSES, None, ALL, step)
        solver.observe(LOSSES)
    restored = type(solver)()
    restored.load_state_dict(solver.state_dict())
    there = torch.device("meta")
    with pytest.raises(RuntimeError, match="device"):
        restored.weights(LOSSES.to(there), None, ALL.to(there), 30)
    restored.load_state_dict(solver.state_dict())
    restored.to(there)
    assert restored.weights(LOSSES.to(there), None, ALL.to(there), 30).values.device == there
    restored.observe(LOSSES.to(there))
    assert {value.device for value in restored.state_dict().values()} == {there}


@pytest.mark.parametrize("solver", every_solver(), ids=lambda s: type(s).__name__)
def test_a_restored_state_continues_alike(solver):
    def run(chosen, steps):
        found = []
        for step in steps:
            losses = LOSSES / (1 + torch.tensor([0.5, 0.1, 0.2]) * step)
            found.append(chosen.weights(losses, gram(step) if chosen.needs_gram else None, ALL, step).values)
            if chosen.needs_losses_after:
                chosen.observe(losses * torch.tensor([0.9, 0.99, 0.95]))
        return found

    for name in solver.state:
        setattr(solver, name, None)
    whole = run(solver, range(120))
    first = type(solver)()
    run(first, range(60))
    second = type(solver)()
    second.load_state_dict({name: value.clone() for name, value in first.state_dict().items()})
    for a, b in zip(whole[60:], run(second, range(60, 120)), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0)


def test_linear_scalarization():
    assert solvers.LinearScalarization((1, 2, 3)).weights(LOSSES, None, ALL, 0).values.tolist() == [1, 2, 3]
    with pytest.raises(ValueError, match="2 weights for 3 objectives"):
        solvers.LinearScalarization((1, 2)).weights(LOSSES, None, ALL, 0)


def test_scale_invariant_is_the_gradient_of_the_logarithms():
    losses = LOSSES.double().requires_grad_()
    losses.log().sum().backward()
    torch.testing.assert_close(solvers.ScaleInvariant().weights(LOSSES, None, ALL, 0).values, losses.grad)


def test_random_weights_average_to_one_and_belong_to_the_step():
    solver = RandomLossWeighting(seed=3)
    draws = torch.stack([solver.weights(LOSSES, None, ALL, step).values for step in range(2000)])
    torch.testing.assert_close(draws.sum(1), torch.full((2000,), 3.0).double())
    torch.testing.assert_close(draws.mean(0), torch.ones(3).double(), atol=0.05, rtol=0)
    assert torch.equal(draws[7], RandomLossWeighting(seed=3).weights(LOSSES, None, ALL, 7).values)


def test_dynamic_weight_average_follows_equation_7():
    solver, means = DynamicWeightAverage(temperature=2.0, window=2), []
    history = [[4.0, 1.0, 1.0], [2.0, 1.0, 3.0], [1.0, 1.0, 1.0], [2.0, 0.5, 1.0], [9.0, 9.0, 9.0]]
    for step, losses in enumerate(history):
        found = solver.weights(torch.tensor(losses), None, ALL, step).values
        if step % 2:
            means.append((torch.tensor(history[step - 1]) + torch.tensor(losses)) / 2)
        if step < 4:
            assert found.tolist() == [1, 1, 1], "no two windows yet"
    expected = [3 * math.exp(r / 2) for r in (means[1] / means[0]).tolist()]
    torch.testing.assert_close(found, torch.tensor(expected).double() / (sum(expected) / 3), rtol=1e-6, atol=0)


def test_uncertainty_settles_at_the_logarithm_of_the_loss():
    solver = UncertaintyWeighting(lr=0.02)
    for step in range(2000):
        found = solver.weights(LOSSES, None, ALL, step).values
    torch.testing.assert_close(found, 1 / (2 * LOSSES.double()), rtol=1e-3, atol=0)


def test_nash_solves_its_equation():
    matrix = gram()
    weights = NashMTL().weights(LOSSES, matrix, ALL, 0).values
    torch.testing.assert_close(matrix / matrix.norm() @ weights, 1 / weights, rtol=1e-8, atol=0)
    # Proportional fairness does not see the scale of an objective.
    scale = torch.tensor([1.0, 10.0, 0.1]).double()
    other = NashMTL().weights(LOSSES, matrix * scale[:, None] * scale, ALL, 0).values * scale
    torch.testing.assert_close(other / other.sum(), weights / weights.sum(), rtol=1e-6, atol=0)


def test_mgda_two_gradients_and_optimality():
    two = torch.tensor([[4.0, 1.0], [1.0, 2.0]])
    found = MGDA().weights(LOSSES[:2], two, ALL[:2], 0).values / 2
    share = (2 - 1) / (4 + 2 - 2 * 1)  # equation 4 of Sener and Koltun
    torch.testing.assert_close(found, torch.tensor([share, 1 - share]).double())
    for seed in range(50):
        matrix = gram(seed)
        w = MGDA().weights(LOSSES, matrix, ALL, 0).values / 3
        pull = matrix @ w  # optimal on the simplex: no gradient has a smaller product with the result
        assert pull.min() >= (w @ pull) * (1 - 1e-9) - 1e-12
    parallel = torch.ones(2, 2)
    torch.testing.assert_close(
        MGDA().weights(LOSSES[:2], parallel, ALL[:2], 0).values.sum(), torch.tensor(2.0).double()
    )


def test_famo_follows_algorithm_1():
    solver = FAMO(lr=0.025, decay=0.01)
    first = solver.weights(LOSSES, None, ALL, 0).values
    expected = 1 / LOSSES.double()
    torch.testing.assert_close(first, expected / expected.sum())
    after = LOSSES * torch.tensor([0.5, 1.0, 0.9])
    logits = torch.zeros(3, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.Adam([logits], lr=0.025, weight_decay=0.01)
    for step in range(5):
        solver.observe(after)
        optimizer.zero_grad()
        (logits.softmax(0) * (LOSSES.double().log() - after.double().log())).sum().backward()
        optimizer.step()
        solver.weights(LOSSES, None, ALL, step + 1)
    torch.testing.assert_close(solver.logits, logits.detach(), rtol=1e-6, atol=1e-9)
    assert logits[1] > logits[2] > logits[0], "who fell least gains weight"
