"""Region losses against hand-computed examples."""

import pytest
import torch

from fairanon.losses.regions import dilate, latent_masks, region_sums, squared_errors


def test_area_normalises_by_area_and_by_samples_that_have_the_region():
    error = torch.arange(2 * 2 * 2 * 2, dtype=torch.float32).view(2, 2, 2, 2)
    masks = torch.zeros(2, 2, 2, 2, dtype=torch.bool)
    masks[0, 0, 0, :] = True  # region 0 of sample 0: elements 0, 1 of channel 0 and 4, 5 of channel 1
    masks[1, 0, 1, 1] = True  # of sample 1: elements 11 and 15; nobody has region 1
    sums, counts = region_sums(error, masks)
    assert counts.tolist() == [2, 2, 0]
    assert sums.tolist() == [pytest.approx(3.5 + 11.5), pytest.approx((0 + 1 + 4 + 5) / 4 + (11 + 15) / 2), 0]
    # As published: mean((5 * mask * (prediction - target)) ** 2) over everything.
    sums, counts = region_sums(error, masks, "official")
    published = (25 * masks[:, :1] * error).mean()
    assert counts.tolist() == [2, 2, 2]
    torch.testing.assert_close(sums[1] / counts[1], published)
    torch.testing.assert_close(region_sums(error, masks, "official_controlnet")[0][1] / 2, published / 25)


def test_sums_add_up_over_parts():
    generator = torch.Generator().manual_seed(0)
    error, masks = torch.rand(6, 4, 5, 5, generator=generator), torch.rand(6, 2, 5, 5, generator=generator) > 0.9
    whole = region_sums(error, masks)
    parts = [region_sums(error[k : k + 2], masks[k : k + 2]) for k in (0, 2, 4)]
    for i in (0, 1):
        torch.testing.assert_close(whole[i], torch.stack([part[i] for part in parts]).sum(0))


def test_error_forms():
    prediction, target, x0_prediction, x0 = torch.randn(4, 2, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    abar = torch.tensor([0.5, 0.0])

    def form(mode):
        return squared_errors(mode, prediction, target, x0_prediction, x0, abar)

    torch.testing.assert_close(form("area"), (prediction - target) ** 2)
    torch.testing.assert_close(form("official_controlnet"), (prediction - target) ** 2 + (x0_prediction - x0) ** 2)
    torch.testing.assert_close(form("official_adapter")[0], (x0_prediction - x0)[0] ** 2)
    assert (form("official_adapter")[1] == 0).all()


def test_masks_grow_and_survive_shrinking():
    mask = torch.zeros(1, 1, 64, 64, dtype=torch.bool)
    mask[0, 0, 20, 20] = True
    grown = dilate(mask, 2)
    assert grown.sum() == 25 and grown[0, 0, 18:23, 18:23].all()
    assert latent_masks(mask, 8, 8).nonzero().tolist() == [[0, 0, 2, 2]]
    assert torch.equal(dilate(mask, 0), mask)
