"""Kernel distance: unbiased, and its interval covers what it should."""

import torch

from fairanon.metrics.functional.distances import kernel_distance


def exact(shift, reference):
    """The distance of a population N(shift, 1) of 4 numbers to a fixed reference, from very many draws."""
    draws = torch.randn(40_000, 4, generator=torch.Generator().manual_seed(99), dtype=torch.float64) + shift
    halves = draws.chunk(2)
    kernel = lambda x, y: ((x @ y.T) / 4 + 1) ** 3
    r = reference.double()
    own = kernel(r, r)
    within = (own.sum() - own.diagonal().sum()) / (len(r) * (len(r) - 1))
    return float(kernel(halves[0][:8000], halves[1][:8000]).mean() + within - 2 * kernel(draws, r).mean())


def test_the_interval_covers_the_truth_about_as_often_as_it_says():
    generator = torch.Generator().manual_seed(0)
    reference = torch.randn(400, 4, generator=generator)
    truth, hits = exact(0.3, reference), 0
    for _ in range(200):
        found = kernel_distance(torch.randn(500, 4, generator=generator) + 0.3, reference)
        hits += found.low <= truth <= found.high
    assert 0.91 <= hits / 200 <= 0.99, hits
