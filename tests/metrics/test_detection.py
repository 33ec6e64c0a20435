import math

import pytest
import torch

from fairanon.metrics import DetectionConfidence

NAN = math.nan


def measured(scores, expected):
    metric = DetectionConfidence()
    metric.update(torch.tensor(scores), torch.tensor(expected))
    return metric.estimates()


def test_a_missed_hand_lowers_confidence_and_only_the_published_number_rises():
    both = measured([[0.9, 0.6], [0.9, 0.6]], [2, 2])
    missed = measured([[0.9, 0.6], [0.9, NAN]], [2, 2])
    assert both["confidence"].value == pytest.approx(0.75) and both["detection_rate"].value == 1
    assert missed["confidence"].value == pytest.approx((0.75 + 0.45) / 2)
    assert missed["detection_rate"].value == 0.75
    assert both["confidence/detected"].value == pytest.approx(0.75)
    assert missed["confidence/detected"].value == pytest.approx(0.8)


def test_what_is_not_expected_does_not_count():
    found = measured([[0.9, 0.8, 0.7], [0.5, NAN, NAN], [NAN, NAN, NAN]], [1, 0, 1])
    assert found["confidence"].value == pytest.approx(0.45)  # a second hand nobody asked for adds nothing
    assert (found["confidence"].n, found["confidence"].missing) == (2, 1)
    assert found["detection_rate"].value == 0.5
    low, high = found["detection_rate"].low, found["detection_rate"].high
    assert 0 < low < 0.5 < high < 1


def test_nothing_found_and_nothing_expected():
    nothing = measured([[NAN], [NAN]], [1, 1])
    assert nothing["confidence"].value == nothing["detection_rate"].value == 0
    assert math.isnan(nothing["confidence/detected"].value) and nothing["confidence/detected"].n == 0
    with pytest.raises(ValueError, match="of which anything is expected"):
        measured([[0.5]], [0])
    with pytest.raises(ValueError, match="2 detections are expected, but only 1"):
        measured([[0.5]], [2])


def test_batches_add_up():
    metric = DetectionConfidence()
    for row, count in (([0.9, NAN], 2), ([0.4, 0.3], 1)):
        metric.update(torch.tensor([row]), torch.tensor([count]))
    assert metric.estimates() == measured([[0.9, NAN], [0.4, 0.3]], [2, 1])
