import pytest
import torch

from fairanon.losses.denoising import per_sample_mse
from fairanon.losses.preference_losses import dpo_loss, gain_sums, popalign_loss, population_mean


def test_popalign_with_one_pair_is_diffusion_dpo_in_value_and_gradient():
    generator = torch.Generator().manual_seed(0)
    for beta in (0.5, 50.0, 5000.0):
        gain = (1e-2 * torch.randn(2, generator=generator, dtype=torch.float64)).requires_grad_()
        label = torch.tensor([1.0, -1.0], dtype=torch.float64)
        mu = population_mean(gain_sums(gain, label), alpha=0.5).double()
        ours = popalign_loss(gain, label, gain.detach().mean(), beta)
        assert mu == pytest.approx(float(gain.detach().mean()), rel=1e-6)
        theirs = dpo_loss(gain[:1], gain[1:], beta)
        assert ours.item() == pytest.approx(theirs.item(), rel=1e-12)
        (a,) = torch.autograd.grad(ours, gain)
        (b,) = torch.autograd.grad(theirs, gain)
        torch.testing.assert_close(a, b, rtol=1e-12, atol=0)


def test_popalign_against_the_formula_written_out():
    gain = torch.tensor([0.3, -0.1, 0.2, 0.05])
    label = torch.tensor([1.0, 1.0, -1.0, -1.0])
    mu = 0.25 * (0.3 - 0.1) / 2 + 0.75 * (0.2 + 0.05) / 2
    assert population_mean(gain_sums(gain, label), 0.25).item() == pytest.approx(mu, rel=1e-6)
    expected = [torch.log1p(torch.exp(-y * 3.0 * (g - mu))) for g, y in zip(gain, label, strict=True)]
    loss = popalign_loss(gain, label, torch.tensor(mu), 3.0)
    assert loss.item() == pytest.approx(torch.stack(expected).mean().item(), rel=1e-6)


def test_mu_carries_no_gradient():
    mu = torch.tensor(0.1, requires_grad=True)
    gain = torch.tensor([0.3, 0.2], requires_grad=True)
    popalign_loss(gain, torch.tensor([1.0, -1.0]), mu, 2.0).backward()
    assert mu.grad is None
    assert gain.grad is not None


def test_sums_of_two_halves_add_up_to_the_whole():
    gain, label = torch.randn(8, generator=torch.Generator().manual_seed(1)), torch.tensor([1.0, -1.0] * 4)
    torch.testing.assert_close(gain_sums(gain[:4], label[:4]) + gain_sums(gain[4:], label[4:]), gain_sums(gain, label))


@pytest.mark.parametrize(("label", "side"), [(1.0, "loser"), (-1.0, "winner")])
def test_an_empty_side_is_refused(label, side):
    with pytest.raises(ValueError, match=f"no {side}"):
        population_mean(gain_sums(torch.zeros(2), torch.full((2,), label)), 0.5)


def test_per_sample_mse_keeps_samples_apart():
    prediction, target = torch.zeros(2, 3, 4, 4), torch.zeros(2, 3, 4, 4)
    prediction[1] = 2.0
    assert per_sample_mse(prediction, target).tolist() == [0.0, 4.0]
