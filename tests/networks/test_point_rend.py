import torch
from torch.nn import functional as F

from fairanon.networks.point_rend import PointRend, sample_points, uncertainty


def test_points_are_read_where_they_are():
    maps = torch.arange(64.0).view(1, 1, 8, 8)
    points = torch.tensor([[[0.5 / 8, 0.5 / 8], [7.5 / 8, 0.5 / 8], [2.5 / 8, 3.5 / 8], [3.0 / 8, 3.5 / 8]]])
    assert sample_points(maps, points)[0, 0].tolist() == [0, 7, 26, 26.5], "x first, centres at half pixels"
    assert uncertainty(torch.tensor([[[1.0, 5.0], [1.0, 2.0], [0.0, 0.0]]])).tolist() == [[0.0, -3.0]]


def network():
    torch.manual_seed(0)
    return PointRend(4, width=16, points=32).eval()


def test_the_head_decides_exactly_the_least_sure_points():
    model, images = network(), torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        fine, fused = model.features(images)
        coarse = model.coarse(fused)
        assert coarse.shape[-1] == 16 and fine.shape[-1] == 32
        everywhere = model(images, budget=10**6)
        axis = (torch.arange(32) + 0.5) / 32
        grid = torch.stack(torch.meshgrid(axis, axis, indexing="xy"), -1).view(1, -1, 2).expand(2, -1, -1)
        torch.testing.assert_close(everywhere.flatten(2), model.point_logits(fine, fused, coarse, grid))
        few = model(images, budget=5)
        full = F.interpolate(coarse, scale_factor=2.0, mode="bilinear")
        chosen = uncertainty(full).flatten(1).topk(5, dim=1).indices
        changed = (few != full).any(1).flatten(1)
        assert torch.equal(changed.nonzero()[:, 1].view(2, 5), chosen.sort(1).values)


def test_training_points_prefer_the_unsure_and_learning_works():
    model = network()
    sure = torch.zeros(1, 4, 8, 8)
    sure[:, 0] = 9.0
    sure[:, 1, :, :2] = 9.0  # a draw on the left
    points = model.training_points(sure, 32, 32)
    assert ((points * 32 - 0.5) % 1 == 0).all(), "centres of pixels"
    assert points.shape == (1, 32, 2) and (points[..., 0] < 0.3).float().mean() > 0.5, "0.3 if they were anywhere"
    images = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(2))
    labels = (images[:, 0] > 0).long()
    optimizer = torch.optim.Adam(model.train().parameters(), lr=3e-3)
    values = []
    for _ in range(60):
        loss = torch.stack(list(model.losses(images, labels).values())).sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        values.append(loss.item())
    assert values[-1] < 0.6 * values[0]
    assert all(p.grad is not None for p in model.parameters())
