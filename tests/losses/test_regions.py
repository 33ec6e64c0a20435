"""Region losses against hand-computed examples."""

import pytest
import torch

from fairanon.imaging import dilate, latent_masks
from fairanon.losses.region_errors import region_errors, region_presence, squared_errors


def test_area_normalises_by_area_and_by_samples_that_have_the_region():
    error = torch.arange(2 * 2 * 2 * 2, dtype=torch.float32).view(2, 2, 2, 2)
    masks = torch.zeros(2, 2, 2, 2, dtype=torch.bool)
    masks[0, 0, 0, :] = True  # region 0 of sample 0: elements 0, 1 of channel 0 and 4, 5 of channel 1
    masks[1, 0, 1, 1] = True  # of sample 1: elements 11 and 15; nobody has region 1
    values = region_errors(error, masks)
    assert region_presence(masks).tolist() == [[True, True, False], [True, True, False]]
    assert values.sum(0).tolist() == [
        pytest.approx(3.5 + 11.5),
        pytest.approx((0 + 1 + 4 + 5) / 4 + (11 + 15) / 2),
        0,
    ]
    # As published: mean((5 * mask * (prediction - target)) ** 2) over everything.
    published = (25 * masks[:, :1] * error).mean()
    assert region_presence(masks, "official").all()
    torch.testing.assert_close(region_errors(error, masks, "official")[:, 1].mean(), published)
    torch.testing.assert_close(region_errors(error, masks, "official_controlnet")[:, 1].mean(), published / 25)


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
