"""Within what a false-match rate lies: a simulation of the coverage."""

import torch

from fairanon.metrics.functional.verification import false_match_interval


def people(count: int, generator: torch.Generator) -> torch.Tensor:
    """Embeddings of people of whom some are like many others, and some like nobody."""
    rows = torch.randn(count, 12, generator=generator)
    return rows * (0.6 + 0.8 * torch.rand(count, 1, generator=generator))


def test_the_interval_covers_the_rate_at_a_given_threshold():
    generator = torch.Generator().manual_seed(0)
    crowd = people(3000, generator)
    apart = torch.cdist(crowd, crowd)[tuple(torch.triu_indices(3000, 3000, 1))]
    threshold = float(apart.kthvalue(int(0.01 * len(apart))).values)
    covered = []
    for _ in range(100):
        rows = people(150, generator)
        low, high = false_match_interval(torch.cdist(rows, rows), threshold, resamples=100)
        covered.append(low <= 0.01 <= high)
    share = sum(covered) / len(covered)
    assert share >= 0.87, share


def test_a_person_who_is_drawn_twice_is_no_pair_with_themselves():
    apart = torch.full((40, 40), 5.0).fill_diagonal_(0.0)
    assert false_match_interval(apart, 1.0) == (0.0, 0.0)
