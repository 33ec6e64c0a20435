"""FFE and DIFF against hand-computed examples, and what their printed forms really do."""

import math

import pytest
import torch

from fairanon.losses.dreambooth import (
    check_theta,
    cosines,
    critical_mask,
    focused_feature_enhancement,
    official_difference,
    optimised_theta,
    preserve,
    separate,
)


def maps(*rows):
    """Samples of one channel and one row each."""
    return torch.tensor(rows, dtype=torch.float32).view(len(rows), 1, 1, -1)


def test_ffe_by_hand():
    prediction, target = maps([4, -2, 1, 0], [0.4, 0.1, 0, 0]), torch.zeros(2, 1, 1, 4)
    # Sample 0: errors above 0.4 * 4 = 1.6 are 4 and 2; sample 1: above 0.16 is 0.4.
    expected = torch.tensor([(16 + 4) / 4, 0.16 / 4])
    torch.testing.assert_close(focused_feature_enhancement(prediction, target, 0.4), expected)
    # One threshold for the whole batch: the easy sample has no critical region.
    whole = focused_feature_enhancement(prediction, target, 0.4, over_batch=True)
    torch.testing.assert_close(whole, torch.tensor([5.0, 0.0]))
    each = focused_feature_enhancement(prediction, target, torch.tensor([0.6, 0.1]))
    torch.testing.assert_close(each, torch.tensor([16 / 4, (0.16 + 0.01) / 4]))


def test_ffe_moves_the_critical_elements_only():
    prediction = maps([4, -2, 1, 0]).requires_grad_()
    focused_feature_enhancement(prediction, torch.zeros(1, 1, 1, 4), 0.4).sum().backward()
    torch.testing.assert_close(prediction.grad.flatten(), torch.tensor([2.0, -1.0, 0.0, 0.0]))  # 2 e / N


def test_a_threshold_of_one_is_refused_with_its_reason():
    assert not critical_mask(maps([4, 2]), 1.0).any(), "the supplement's value selects nothing"
    for theta in (1.0, 1.5, -0.1):
        with pytest.raises(ValueError, match="exceeds the maximum"):
            check_theta(theta)
    assert check_theta(0.5) == 0.5


def inside(error, weight, mode):
    theta = optimised_theta(error, weight, mode)
    assert ((theta >= 0) & (theta < 1)).all()
    return critical_mask(error, theta).flatten(1).sum(1).tolist()


def test_the_printed_optimum_is_always_the_single_largest_error():
    error = torch.rand(50, 2, 6, 6, generator=torch.Generator().manual_seed(0))
    for weight in (0.0, 1e-3, 1.0, 100.0):
        assert inside(error, weight, "paper") == [1] * 50


def test_the_optimised_threshold_trades_error_for_coverage():
    error = maps([4, 3, 1, 0.5])
    # Mean of squares minus nothing: k = 1; with entropy 16 + 0, 12.5 + 0.69 w, 26/3 + 1.10 w, 6.56 + 1.39 w.
    assert [inside(error, weight, "masked_mean")[0] for weight in (0.0, 5.0, 6.0, 8.0, 20.0)] == [1, 1, 2, 2, 4]
    sizes = [inside(torch.rand(1, 3, 8, 8, generator=torch.Generator().manual_seed(3)), w, "masked_mean")[0]
             for w in (0.0, 0.02, 0.05, 0.1, 0.2, 1.0)]  # fmt: skip
    assert sizes == sorted(sizes) and sizes[0] == 1 and sizes[-1] == 3 * 64 and len(set(sizes)) > 3


def test_the_optimised_threshold_against_exhaustive_search():
    generator = torch.Generator().manual_seed(1)
    for _ in range(20):
        error, weight = torch.rand(1, 1, 4, 5, generator=generator), float(torch.rand((), generator=generator)) * 0.3
        values = {}
        for candidate in error.flatten().tolist():
            chosen = error[error >= candidate].double()
            values[len(chosen)] = float(-chosen.square().mean() - weight * math.log(len(chosen)))
        assert inside(error, weight, "masked_mean") == [min(values, key=values.get)]


def test_equal_errors_stay_together():
    assert inside(maps([2, 2, 2, 1]), 0.0, "masked_mean") == [3] and inside(maps([1, 1, 1, 1]), 0.0, "paper") == [4]
    assert not critical_mask(maps([0, 0]), optimised_theta(maps([0, 0]), 0.1)).any()
    with pytest.raises(ValueError, match="weight must not be negative"):
        optimised_theta(maps([1, 2]), -1.0)


def test_separate_is_a_hinge_on_angles():
    right = torch.eye(3)
    assert separate(right, 80.0) == 0
    narrow = torch.tensor([[1.0, 0.0], [math.cos(math.radians(30)), math.sin(math.radians(30))]])
    expected = math.cos(math.radians(30)) - math.cos(math.radians(50))
    assert separate(narrow * torch.tensor([[3.0], [0.1]]), 50.0).item() == pytest.approx(expected), (
        "length is no matter"
    )
    with pytest.raises(ValueError, match="two classes"):
        separate(right[:1], 50.0)


def test_separate_opens_angles_up_to_the_bound_and_the_printed_form_closes_them():
    start = torch.randn(4, 16, generator=torch.Generator().manual_seed(0)) + 2.0
    angles = {}
    for name, loss in {
        "separate": lambda z: separate(z, 60.0),
        "printed": lambda z: (1 - cosines(z)).mean(),
    }.items():
        z = start.clone().requires_grad_()
        optimizer = torch.optim.SGD([z], lr=5.0)
        for _ in range(500):
            optimizer.zero_grad()
            loss(z).backward()
            optimizer.step()
        angles[name] = torch.rad2deg(cosines(z.detach()).clamp(-1, 1).acos())
    before = torch.rad2deg(cosines(start).acos())
    assert before.min() < 50 and angles["separate"].min() > 59 and angles["separate"].max() < 75
    assert angles["printed"].max() < 5, "1 - cos, minimised, pulls classes together"


def test_preserve_and_official():
    z, start = torch.tensor([[2.0, 0.0], [0.0, 1.0]]), torch.tensor([[1.0, 0.0], [1.0, 1.0]])
    assert preserve(z, start).item() == pytest.approx((0 + 1 - 1 / math.sqrt(2)) / 2)
    latents, others = torch.randn(2, 2, 4, 3, 3, generator=torch.Generator().manual_seed(0))
    expected = [1 - float(latents[b, :, y, x] @ others[b, :, y, x] / latents[b, :, y, x].norm() / others[b, :, y, x].norm())
                for b in range(2) for y in range(3) for x in range(3)]  # fmt: skip
    assert official_difference(latents, others).item() == pytest.approx(sum(expected) / 18, rel=1e-5)
