"""What knows identities alone learns from a table of people."""

import pytest
import torch
from torch.nn import functional as F

from fairanon.landmarks import HeadFrame
from fairanon.networks.id2face_networks import IdentityNetworks
from fairanon.networks.identity_fit import Known, fit_identities


def population(count=512):
    """Identities of six dimensions whose first decides about a look, and the second with a description about a face."""
    random = torch.Generator().manual_seed(0)
    hidden = torch.randn(count, 6, generator=random)
    identities = F.normalize(hidden @ torch.randn(6, 16, generator=random), dim=1)
    tall = (hidden[:, 0] > 0).long()
    looks = F.one_hot(tall, 2).float()
    looks[:7] = torch.nan  # nobody saw these
    description = torch.randn(count, 1, generator=random)
    face = torch.rand(68, 2, generator=random) * 0.2 - 0.1
    face[16] = -face[0]
    points = face * (1 + 0.1 * hidden[:, 1:2, None]) + torch.tensor([0.0, 0.03]) * description[:, :, None]
    frame = HeadFrame(
        0.5 + 0.1 * torch.randn(count, 2, generator=random), F.normalize(torch.randn(count, 2, generator=random), dim=1)
    )
    return Known(identities, frame.to_image(points), description, {"tall": looks}), points


def networks():
    torch.manual_seed(0)
    return IdentityNetworks(16, [3], 16, 6, 64, 2, 4, appearance={"tall": 2}, description=1, mixture=2)


@pytest.mark.slow
def test_all_parts_learn_what_there_is_to_learn():
    known, _ = population()
    model = networks().requires_grad_(False)
    rest = {n: p.clone() for n, p in model.named_parameters() if n.startswith("recomposer")}
    fit_identities(model, known, True, 0.003, 800, quiet=True)
    rebuilt, mean, _ = model.id_vae(known.identities)
    assert (rebuilt * known.identities).sum(1).mean() > 0.97 and 0.5 < float(mean.std()) < 2
    drawn = model.mixture(torch.randn(512, 7, generator=torch.Generator().manual_seed(1)))
    torch.testing.assert_close(drawn.std(0), mean.std(0), atol=0.15, rtol=0)
    wanted = HeadFrame.of(known.landmarks).to_head(known.landmarks)
    left = model.landmarks(known.descriptions, known.identities) - wanted
    assert left.norm(dim=-1).mean() < 0.3 * (wanted - wanted.mean(0)).norm(dim=-1).mean()
    seen = known.looks["tall"][7:]
    assert (model.appearance(known.identities[7:])["tall"].argmax(1) == seen.argmax(1)).float().mean() > 0.95
    sure = model.appearance.sureness(known.identities) >= model.appearance.floor
    assert 0.94 < sure.float().mean() < 0.96
    for name, value in model.named_parameters():
        assert not value.requires_grad and value.grad is None, name
        assert name not in rest or torch.equal(value, rest[name]), name


def test_a_joint_autoencoder_is_left_alone_and_the_same_people_make_the_same_parts():
    known, _ = population(64)
    first, second = networks(), networks()
    before = {name: value.clone() for name, value in first.id_vae.state_dict().items()}
    for model in (first, second):
        fit_identities(model, known, False, 0.003, 5, quiet=True)
    assert all(torch.equal(value, before[name]) for name, value in first.id_vae.state_dict().items())
    assert all(p.requires_grad for p in first.id_vae.parameters())
    for name, value in second.state_dict().items():
        assert torch.equal(value, first.state_dict()[name]), name
