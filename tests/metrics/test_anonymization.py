import pytest
import torch
from torch.nn import functional as F

from fairanon.metrics import AnonymizationAccuracy, GroupAccuracy
from fairanon.metrics.functional.verification import cosine_distance, threshold_at


def test_a_face_that_is_not_found_is_never_called_anonymized():
    metric = AnonymizationAccuracy(threshold=0.5)
    metric.update(torch.tensor([0.9, 0.4, float("nan"), 0.7]))
    metric.update(torch.tensor([0.5]))  # at the threshold: still the same person
    result = metric.estimates()
    assert result["accuracy"].value == pytest.approx(2 / 5) and result["accuracy"].missing == 1
    assert result["mean"].value == pytest.approx(0.625) and result["mean"].n == 4
    assert (result["min"].value, result["max"].value) == (pytest.approx(0.4), pytest.approx(0.9))
    with pytest.raises(ValueError, match="no image"):
        AnonymizationAccuracy().estimates()


def test_group_accuracy_by_hand():
    nan = float("nan")
    metric = GroupAccuracy(("a", "b", "c"))
    metric.update(torch.tensor([[0.9, 0.1, 0.0], [0.2, 0.7, 0.1], [nan, nan, nan]]), torch.tensor([0, 0, 1]))
    metric.update(torch.tensor([[0.0, 1.0, 0.0]]), torch.tensor([1]))
    result = metric.estimates()
    assert {name: value.value for name, value in result.items()} == {"a": 0.5, "b": 0.5, "overall": 0.5}
    assert result["b"].missing == 1 and result["b"].low < 0.5 < result["b"].high, "c was never asked for"


def test_the_threshold_lets_the_asked_share_of_strangers_match():
    people = F.normalize(torch.randn(400, 16, generator=torch.Generator().manual_seed(0)), dim=1)
    people[7] = float("nan")
    threshold, pairs = threshold_at(people, 1e-3)
    found = people[~people.isnan().any(1)]
    distances = torch.stack([cosine_distance(found, found.roll(k, 0)) for k in range(1, 200)]).flatten()
    assert pairs == 399 * 398 // 2
    assert (distances < threshold).float().mean() == pytest.approx(1e-3, rel=0.15)
    with pytest.raises(ValueError, match="too few"):
        threshold_at(people[:20], 1e-3)
