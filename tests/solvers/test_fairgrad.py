"""FairGrad against its equation, closed forms, scipy, and gradients that leave no solution."""

import numpy as np
import pytest
import torch
from scipy.optimize import least_squares

from fairanon.solvers import FairGrad, fairgrad


def random_grams(count, size, seed):
    """Symmetric positive definite matrices of condition up to 1e8 and scale 1e-12 to 1e6."""
    generator = torch.Generator().manual_seed(seed)

    def uniform(*shape):
        return torch.rand(*shape, generator=generator, dtype=torch.float64)

    basis = torch.linalg.qr(uniform(count, size, size) - 0.5)[0]
    place = uniform(count, size)
    if size > 1:
        place = (place - place.amin(1, True)) / (place.amax(1, True) - place.amin(1, True))
    spectrum = 10 ** (-7.999 * uniform(count, 1) * place)
    gram = basis @ torch.diag_embed(spectrum) @ basis.mT * 10 ** (18 * uniform(count, 1, 1) - 12)
    return (gram + gram.mT) / 2


def residual(gram, weights, alpha):
    demand = weights ** (-1 / alpha)
    return ((gram @ weights[..., None])[..., 0] - demand).norm(dim=-1) / demand.norm(dim=-1)


@pytest.mark.parametrize("alpha", [0.25, 0.5, 1.0, 2.0, 5.0, 20.0])
@pytest.mark.parametrize("size", [1, 2, 3, 5, 8])
def test_the_equation_holds_for_random_gram_matrices(size, alpha):
    gram = random_grams(10_000 if alpha == 2 else 1_000, size, seed=size)
    solution = fairgrad(gram, alpha)
    assert not solution.regularised.any()
    assert (solution.values > 0).all()
    assert residual(gram, solution.values, alpha).max() <= 1e-6


@pytest.mark.parametrize("alpha", [0.5, 1.0, 2.0, 3.0])
def test_closed_forms(alpha):
    single = torch.tensor([[4e-9]], dtype=torch.float64)
    torch.testing.assert_close(fairgrad(single, alpha).values, single[0] ** (-alpha / (alpha + 1)), rtol=1e-12, atol=0)
    squares = torch.tensor([2e-3, 3.0, 5e4], dtype=torch.float64)
    torch.testing.assert_close(
        fairgrad(squares.diag(), alpha).values, squares ** (-alpha / (alpha + 1)), rtol=1e-10, atol=0
    )


@pytest.mark.parametrize("scale", [1e-12, 1e-3, 1e6])
def test_scaling_law(scale):
    gram = random_grams(100, 3, seed=9)
    for alpha in (0.5, 2.0):
        scaled, plain = fairgrad(gram * scale, alpha).values, fairgrad(gram, alpha).values
        torch.testing.assert_close(scaled, plain * scale ** (-alpha / (alpha + 1)), rtol=1e-6, atol=0)


def test_agrees_with_scipy_where_that_converges():
    compared = 0
    for gram in random_grams(200, 3, seed=4):
        gram = gram / gram.trace()  # scipy stops early on tiny gradients
        matrix = gram.numpy()
        found = least_squares(
            lambda w, a=matrix: a @ w - w**-0.5,
            np.full(3, 1 / 3),
            bounds=(0, np.inf),
            xtol=1e-15,
            ftol=1e-15,
            gtol=1e-15,
        )
        if found.success and np.abs(found.fun).max() < 1e-9 * (found.x**-0.5).max():
            compared += 1
            np.testing.assert_allclose(fairgrad(gram).values.numpy(), found.x, rtol=1e-4)
    assert compared > 50


def gram_of(*gradients):
    rows = torch.tensor(gradients, dtype=torch.float64)
    return rows @ rows.T


def test_gradients_without_a_well_determined_solution_get_a_ridge():
    for pair in (((1.0, 2.0), (-1.0, -2.0)), ((1.0, 2.0), (1.0, 2.0))):
        gram = gram_of(*pair)
        solution = fairgrad(gram)
        assert bool(solution.regularised) and solution.values.isfinite().all()
        ridge = gram + 1e-6 * gram.trace() / 2 * torch.eye(2, dtype=torch.float64)
        assert residual(ridge, solution.values, 2.0) < 1e-6
        torch.testing.assert_close(solution.values[0], solution.values[1])
    # Duplicates: 2 |g|^2 w = w^(-1/2) up to the ridge.
    duplicate = fairgrad(gram_of((1.0, 2.0), (1.0, 2.0))).values
    torch.testing.assert_close(duplicate, torch.full((2,), 10.0 ** (-2 / 3)).double(), rtol=1e-5, atol=0)


def test_inactive_and_zero_gradients_leave_the_problem():
    gram = random_grams(1, 3, seed=2)[0]
    without = fairgrad(gram[:2, :2]).values
    solution = FairGrad().weights(torch.ones(3), gram, torch.tensor([True, True, False]), 0)
    torch.testing.assert_close(solution.values[:2], without, rtol=1e-9, atol=0)
    assert solution.values[2] == 0
    gram[2] = gram[:, 2] = 0
    torch.testing.assert_close(fairgrad(gram).values[:2], without, rtol=1e-9, atol=0)
    nothing = fairgrad(torch.zeros(3, 3), active=torch.zeros(3, dtype=torch.bool))
    assert (nothing.values == 0).all() and not nothing.regularised


def test_wrong_arguments():
    with pytest.raises(ValueError, match=r"at most 8 rows, got \(9, 9\)"):
        fairgrad(torch.eye(9))
    with pytest.raises(ValueError, match=r"solver\.alpha must be positive, got 0"):
        FairGrad(alpha=0)
