"""Where a head is and how it leans."""

import math

import torch

from fairanon.landmarks import GROUPS, HeadFrame, pixel_centres, raster


def faces(count=3):
    return torch.rand(count, 68, 2, generator=torch.Generator().manual_seed(0)) * 0.5 + 0.25


def test_the_frame_undoes_where_a_head_is_and_how_it_leans():
    landmarks = faces()
    angle = 0.4
    turn = torch.tensor([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
    moved = landmarks @ turn.T + torch.tensor([0.1, -0.2])
    one, other = HeadFrame.of(landmarks), HeadFrame.of(moved)
    torch.testing.assert_close(one.to_head(landmarks), other.to_head(moved))
    torch.testing.assert_close(other.to_image(other.to_head(moved)), moved)
    own = one.to_head(landmarks)
    torch.testing.assert_close(own[:, 0], -own[:, 16])  # origin midway between the ends of the jaw line
    torch.testing.assert_close(own[:, 16, 1], torch.zeros(3), atol=1e-6, rtol=0)
    assert (own[:, 16, 0] > 0).all()


def test_maps_are_bells_at_the_points():
    landmarks = faces(2)
    maps = raster(landmarks, 24, 32, 0.05)
    assert maps.shape == (2, len(GROUPS), 24, 32)
    centres = pixel_centres(24, 32)[0]
    torch.testing.assert_close(centres[33], torch.tensor([1.5 / 32, 1.5 / 24]))
    away = (landmarks[:, GROUPS[2], None] - centres).square().sum(-1)
    expected = (-away / (2 * 0.05**2)).exp().sum(1).view(2, 24, 32)
    torch.testing.assert_close(maps[:, 2], expected)
    assert sum(group.stop - group.start for group in GROUPS) == 68
