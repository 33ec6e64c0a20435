"""SimPO, MaPO, IPO and ORPO against their formulas written out in Python's own arithmetic."""

import math

import pytest
import torch

from fairanon.losses.preference_losses import ipo_loss, mapo_loss, orpo_loss, saturated, simpo_logits, simpo_loss

WINNER, LOSER = [0.10, 0.25, 0.40], [0.12, 0.20, 0.60]


def tensors():
    return torch.tensor(WINNER, dtype=torch.float64), torch.tensor(LOSER, dtype=torch.float64)


def mean(values):
    return sum(values) / len(values)


def log_sigmoid(x):
    return -math.log1p(math.exp(-x))


def test_formulas():
    won, lost = tensors()
    logits = [10 * (b - a - 0.05) for a, b in zip(WINNER, LOSER, strict=True)]
    found = simpo_logits(won, lost, beta=10.0, margin=0.05)
    assert found.tolist() == pytest.approx(logits)
    assert simpo_loss(found).item() == pytest.approx(mean([-log_sigmoid(x) for x in logits]))
    assert simpo_loss(found, "hinge").item() == pytest.approx(mean([max(0, 1 - x) for x in logits]))
    gains = [b - a for a, b in zip(WINNER, LOSER, strict=True)]
    assert ipo_loss(-won, -lost, 4.0).item() == pytest.approx(mean([(g - 1 / 8) ** 2 for g in gains]))

    def f(m):
        return 0.5 * m / (math.exp(0.5 * m) - 1)

    ratios = [1000 * (f(a) - f(b)) for a, b in zip(WINNER, LOSER, strict=True)]
    expected = mean(WINNER) - 0.1 * mean([log_sigmoid(x) if x > -700 else x for x in ratios])
    assert mapo_loss(won, lost).item() == pytest.approx(expected)

    def log_odds(m):
        return math.log(math.exp(-m) / (1 - math.exp(-m)))

    expected = mean(WINNER) - 0.3 * mean(
        [log_sigmoid(log_odds(a) - log_odds(b)) for a, b in zip(WINNER, LOSER, strict=True)]
    )
    assert orpo_loss(won, lost, 0.3).item() == pytest.approx(expected)


@pytest.mark.parametrize(
    "loss",
    [
        lambda w, l: simpo_loss(simpo_logits(w, l, 10.0, 0.05)),
        lambda w, l: simpo_loss(simpo_logits(w, l, 10.0, 0.05), "hinge"),
        lambda w, l: ipo_loss(-w, -l, 4.0),
        mapo_loss,
        lambda w, l: orpo_loss(w, l, 0.3),
    ],
    ids=["simpo", "hinge", "ipo", "mapo", "orpo"],
)
def test_a_step_lowers_winners_against_losers_and_small_errors_stay_finite(loss):
    won, lost = (value.clone().requires_grad_() for value in tensors())
    loss(won, lost).backward()
    assert won.grad.sum() > 0 > lost.grad.sum()
    tiny = [torch.full((2,), 1e-7, requires_grad=True) for _ in range(2)]
    loss(*tiny).backward()
    assert all(value.grad.isfinite().all() for value in tiny)


def test_the_published_setting_is_a_linear_objective():
    won, lost = tensors()
    logits = simpo_logits(won, lost, beta=200.0, margin=0.5)
    assert saturated(logits) == 1
    won.requires_grad_()
    simpo_loss(simpo_logits(won, lost, 200.0, 0.5)).backward()
    torch.testing.assert_close(won.grad, torch.full_like(won, 200.0 / 3), rtol=1e-6, atol=0)
    assert saturated(simpo_logits(*tensors(), beta=10.0, margin=0.05)) == 0
