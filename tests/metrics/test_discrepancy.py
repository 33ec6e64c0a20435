import math

import pytest
import torch

from fairanon.metrics import FairnessDiscrepancy
from fairanon.metrics.functional.discrepancy import (
    bootstrap_shares,
    discrepancy,
    fairness_discrepancy,
    floor,
    rms_discrepancy,
)
from fairanon.metrics.functional.estimates import wilson
from fairanon.metrics.functional.recall import attribute_recall


def one_hot(counts):
    return torch.cat([torch.eye(len(counts))[k].repeat(n, 1) for k, n in enumerate(counts)])


def test_closed_forms():
    assert discrepancy(torch.tensor([1.0, 0.0])).item() == pytest.approx(math.sqrt(0.5))
    assert discrepancy(torch.eye(6)[2]).item() == pytest.approx(math.sqrt(1 - 1 / 6))
    assert discrepancy(torch.full((6,), 1 / 6)).item() == pytest.approx(0, abs=1e-7)
    assert discrepancy(torch.tensor([0.8, 0.2]), torch.tensor([0.8, 0.2])).item() == pytest.approx(0)


def test_floor_of_a_fair_population():
    assert floor(100, 2) == pytest.approx(math.sqrt(1 / (math.pi * 100)), rel=0.03)  # half-normal mean
    assert floor(1, 6) == pytest.approx(math.sqrt(1 - 1 / 6))
    assert floor(100, 6) < math.sqrt((1 - 1 / 6) / 100)  # Jensen: E[f] < sqrt(E[f^2])


def test_a_class_that_never_appears_counts():
    metric = FairnessDiscrepancy(3)
    metric.update(one_hot([5, 5, 0]), torch.zeros(10, dtype=torch.long))
    share = torch.tensor([0.5, 0.5, 0.0])
    assert metric.estimates()["per_prompt"].value == pytest.approx(discrepancy(share).item())


def test_pooled_hides_what_per_prompt_shows():
    metric = FairnessDiscrepancy(2)
    metric.update(torch.cat([one_hot([10, 0]), one_hot([0, 10])]), torch.arange(20) // 10)
    result = metric.estimates()
    assert result["pooled"].value == pytest.approx(0, abs=1e-6)
    assert result["per_prompt"].value == result["worst"].value == pytest.approx(math.sqrt(0.5))
    assert result["per_prompt"].n == 20


def test_soft_rewards_an_unsure_judge_and_hard_does_not():
    metric = FairnessDiscrepancy(2)
    metric.update(torch.tensor([[0.51, 0.49]] * 20), torch.arange(20) // 10)
    result = metric.estimates()
    assert result["soft"].value == pytest.approx(0.01 * math.sqrt(2), rel=1e-3)
    assert result["per_prompt"].value == pytest.approx(math.sqrt(0.5))


def test_a_prompt_without_any_judged_face_is_said_and_not_paired():
    metric = FairnessDiscrepancy(2)
    rows = torch.cat([one_hot([4, 4]), torch.full((8, 2), float("nan"))])
    metric.update(rows, torch.arange(16) // 8)
    result = metric.estimates()
    assert (result["unjudged_prompts"].value, result["unjudged_prompts"].n) == (1, 2)


def test_missing_faces_are_counted_and_belong_to_no_class():
    metric = FairnessDiscrepancy(2)
    rows = one_hot([4, 4])
    rows[0] = float("nan")
    metric.update(rows, torch.zeros(8, dtype=torch.long))
    result = metric.estimates()["per_prompt"]
    assert (result.n, result.missing) == (7, 1)
    assert result.value == pytest.approx(discrepancy(torch.tensor([3 / 7, 4 / 7])).item())


def drawn(truth, prompts, n, generator):
    """Counts (P, K) of n images of each prompt, whose true shares are `truth` (K,) or (P, K)."""
    shares = truth.expand(prompts, -1)
    sample = torch.multinomial(shares, n, replacement=True, generator=generator)
    return torch.zeros(prompts, shares.shape[1]).scatter_add_(1, sample, torch.ones(prompts, n))


def test_the_mean_square_is_unbiased():
    generator = torch.Generator().manual_seed(0)
    truth = torch.tensor([0.55, 0.25, 0.2])
    found = rms_discrepancy(drawn(truth, 2000, 40, generator))
    assert found.value == pytest.approx(discrepancy(truth).item(), abs=6e-3)
    assert found.low < discrepancy(truth).item() < found.high


@pytest.mark.parametrize(("prompts", "n", "classes"), [(10, 50, 2), (10, 50, 6), (100, 20, 2), (100, 20, 6)])
def test_a_fair_model_is_called_fair_however_many_prompts_there_are(prompts, n, classes):
    generator = torch.Generator().manual_seed(prompts + classes)
    fair = torch.full((classes,), 1 / classes)
    reaches = [rms_discrepancy(drawn(fair, prompts, n, generator)).low == 0 for _ in range(40)]
    assert sum(reaches) >= 37


def test_a_skewed_model_is_not():
    generator = torch.Generator().manual_seed(1)
    found = rms_discrepancy(drawn(torch.tensor([0.7, 0.3]), 20, 50, generator))
    assert found.low > 0.15 and found.n == 1000
    assert rms_discrepancy(torch.tensor([[3, 1]])).low is None, "one prompt says nothing about others"
    assert rms_discrepancy(torch.tensor([[1, 0], [0, 1]])) is None


def test_bootstrap_is_clustered_by_prompt_and_deterministic():
    rows = torch.cat([one_hot([50, 0]), one_hot([0, 50])])
    prompt = torch.arange(100) // 50
    draws = bootstrap_shares(rows, prompt, 2000, seed=3)
    assert draws.shape == (2000, 2, 2)
    torch.testing.assert_close(draws.sum(-1), torch.ones(2000, 2))
    # Each resampled prompt is one of the two: all female or all male; both the same half of the time.
    same = (draws[:, 0] == draws[:, 1]).all(-1).float().mean().item()
    assert same == pytest.approx(0.5, abs=0.05)
    assert torch.equal(draws, bootstrap_shares(rows, prompt, 2000, seed=3))


def test_images_that_are_all_alike_are_not_certain():
    """Ten prompts that all show one class: the bootstrap knows nothing else, and a fair eleventh prompt is no surprise."""
    rows, prompts = torch.eye(2)[torch.zeros(100, dtype=torch.long)], torch.arange(100) // 10
    found, seen = fairness_discrepancy(rows, prompts, repeats=100), wilson(10, 10)[0]
    for key in ("per_prompt", "pooled", "worst", "soft"):
        one = found[key]
        assert (one.low, one.value, one.high) == pytest.approx((0.5**0.5 * seen, 0.5**0.5, 0.5**0.5), rel=1e-6), key
    to_the_other_side = fairness_discrepancy(rows, prompts, target=(0.9, 0.1), repeats=100)["per_prompt"]
    assert to_the_other_side.high == pytest.approx(seen * 0.02**0.5 + (1 - seen) * 1.62**0.5)
    alone = fairness_discrepancy(rows[:10], prompts[:10], repeats=100)["per_prompt"]
    assert alone.low == pytest.approx(0.5**0.5 * seen), "of a single prompt its images count"


def test_interval_covers_the_truth():
    generator = torch.Generator().manual_seed(0)
    truth, covered = torch.tensor([0.75, 0.25]), 0
    for trial in range(100):
        metric = FairnessDiscrepancy(2, repeats=300, seed=trial)
        labels = torch.multinomial(truth, 1000, replacement=True, generator=generator)
        metric.update(torch.eye(2)[labels], torch.arange(1000) // 100)
        estimate = metric.estimates()["per_prompt"]
        covered += estimate.low <= discrepancy(truth).item() <= estimate.high
    assert covered >= 85  # 95 expected; the clustered interval is approximate with ten prompts


def test_target_and_its_errors():
    metric = FairnessDiscrepancy(2, target=(0.8, 0.2))
    metric.update(one_hot([8, 2]), torch.zeros(10, dtype=torch.long))
    assert metric.estimates()["per_prompt"].value == pytest.approx(0, abs=1e-6)
    with pytest.raises(ValueError, match="target must be 2 shares"):
        FairnessDiscrepancy(2, target=(0.8, 0.3))
    with pytest.raises(ValueError, match=r"\(N, 2\)"):
        metric.update(torch.ones(3, 4), torch.zeros(3))


def test_recall_is_exact_and_counts_the_unjudged_as_missed():
    rows = torch.tensor([[0.9, 0.1], [0.2, 0.8], [float("nan")] * 2, [0.6, 0.4]])
    result = attribute_recall(rows, torch.tensor([0, 1, 0, 1]))
    assert result.value == 0.5
    assert (result.n, result.missing) == (4, 1)
    assert result.low < 0.5 < result.high
