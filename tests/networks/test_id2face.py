import pytest
import torch
from torch.nn import functional as F

from fairanon.losses.identity import identity_vae
from fairanon.networks.id2face_networks import (
    CrossAttention,
    IdentityNetworks,
    IdentityVAE,
    LandmarkTokens,
    LatentRecomposer,
    NegatedIdentity,
    OrthogonalIdentityMapping,
    fourier,
)


def random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_the_identity_autoencoder_learns_a_prior_that_can_be_drawn_from():
    torch.manual_seed(0)
    model = IdentityVAE(16, 6, 64)
    basis = random(6, 16, seed=1)
    people = F.normalize(random(2000, 6, seed=2) @ basis, dim=1)  # a space of six dimensions
    optimizer = torch.optim.Adam(model.parameters(), 3e-3)
    for step in range(400):
        batch = people[torch.randint(2000, (128,), generator=torch.Generator().manual_seed(step))]
        rebuilt, mean, log_variance = model(batch, random(128, 6, seed=step))
        reconstruction, divergence = identity_vae(batch, rebuilt, mean, log_variance)
        loss = reconstruction + 1e-3 * divergence
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    with torch.no_grad():
        rebuilt, mean, _ = model(people)
        assert float((rebuilt * people).sum(1).mean()) > 0.95 and 0.3 < float(mean.std()) < 3
        new = model.decode(OrthogonalIdentityMapping(rescale=True)(random(2000, 6, seed=9), mean))
        torch.testing.assert_close(new.norm(dim=1), torch.ones(2000))
        inside = torch.linalg.lstsq(basis.T, new.T).solution
        assert (basis.T @ inside - new.T).norm(dim=0).mean() < 0.4, "somebody who could be there"
        assert float((new * people).sum(1).mean()) < 0.2


def test_attention_is_that_of_torch():
    torch.manual_seed(0)
    ours = CrossAttention(16, 4)
    theirs = torch.nn.MultiheadAttention(16, 4, batch_first=True)
    with torch.no_grad():
        theirs.in_proj_weight.copy_(torch.cat([ours.query.weight, ours.context.weight]))
        theirs.in_proj_bias.copy_(torch.cat([ours.query.bias, ours.context.bias]))
        theirs.out_proj.weight.copy_(ours.out.weight)
        theirs.out_proj.bias.copy_(ours.out.bias)
    tokens, context = random(2, 5, 16), random(2, 7, 16, seed=1)
    seen = ours.norm_context(context)
    expected = tokens + theirs(ours.norm_query(tokens), seen, seen)[0]
    expected = expected + ours.hidden(ours.norm_hidden(expected))
    torch.testing.assert_close(ours(tokens, context), expected)


def test_landmarks_are_told_apart_and_placed():
    points = torch.tensor([[[0.0, 0.5], [0.25, 1.0]]])
    features = fourier(points, 1)
    torch.testing.assert_close(
        features[0], torch.tensor([[0.0, 1.0, 1.0, 0.0], [0.5**0.5, 0.5**0.5, 0.0, -1.0]]), atol=1e-6, rtol=0
    )
    tokens = LandmarkTokens(8, 2, 3)
    same = tokens(torch.full((1, 2, 2), 0.3))[0]
    assert not torch.allclose(same[0], same[1]), "which landmark it is"
    assert not torch.allclose(tokens(points), tokens(points + 0.01))


@pytest.mark.parametrize("aligned", [True, False])
def test_each_kind_of_tokens_sees_the_other_only_if_aligned(aligned):
    torch.manual_seed(0)
    model = LatentRecomposer([3, 5], 16, identity=8, tokens=2, heads=4, side=4, points=6, aligned=aligned)
    features = [random(2, 3, 8, 8), random(2, 5, 2, 2, seed=1)]
    landmarks, control = torch.rand(2, 6, 2), F.normalize(random(2, 8, seed=2), dim=1).requires_grad_()
    features[0].requires_grad_()
    rest, identity = model(features, landmarks, control)
    assert rest.shape == (2, 4 * 4 + 2 * 2, 16) and identity.shape == (2, 2, 16)
    to_control = torch.autograd.grad(rest.square().sum(), control, retain_graph=True, allow_unused=True)[0]
    to_features = torch.autograd.grad(identity.square().sum(), features[0], allow_unused=True)[0]
    for gradient in (to_control, to_features):
        assert (gradient is not None and gradient.abs().sum() > 0) == aligned
    with torch.no_grad():
        moved, _ = model(features, landmarks + 0.1, control)
    assert not torch.allclose(moved, rest), "landmarks place what is drawn"


@pytest.mark.parametrize("rescale", [False, True])
def test_new_identities_have_nothing_of_the_source(rescale):
    r, v = random(10_000, 64), 3 * random(10_000, 64, seed=1) + 1
    v[:100] = r[:100] * 1.001 + 1e-3 * v[:100]  # nearly parallel: the hard case
    u = OrthogonalIdentityMapping(rescale)(r, v)
    assert u.dtype == torch.float32 and F.cosine_similarity(u.double(), v.double(), dim=1).abs().max() < 1e-5
    norms = u.norm(dim=1) / r.norm(dim=1)
    assert ((norms - 1).abs().max() < 1e-5) if rescale else (norms.max() < 1 + 1e-6 and norms.mean() < 0.995)


def test_negating_again_gives_the_source_whatever_was_drawn():
    r, v = random(50, 64), 3 * random(50, 64, seed=1) + 1
    u = NegatedIdentity()(r, v)
    assert torch.equal(NegatedIdentity()(r.flip(0), u), v)
    assert torch.equal(u, NegatedIdentity()(r.flip(0), v)), "it is a function of the source"


def likelihoods(networks, control):
    return {name: logits.softmax(1) for name, logits in networks.appearance(control).items()}


def test_a_new_identity_looks_like_somebody_and_can_look_like_the_source():
    torch.manual_seed(0)
    networks = IdentityNetworks(8, [3], 16, latent=6, hidden=16, tokens=2, heads=4, appearance={"tone": 3, "gender": 2})
    source, draws = random(50, 6), random(50, 40, 6, seed=1)
    mapping = OrthogonalIdentityMapping(rescale=True)
    each = torch.stack([networks.id_vae.decode(mapping(draws[:, k], source)) for k in range(40)], 1)
    changed = F.cosine_similarity(draws, source[:, None], dim=2).abs()

    def first(fits, order):
        """Of those that fit the one that comes first in an order."""
        return each[torch.arange(50), torch.where(fits, order, torch.inf).argmin(1)]

    everybody = torch.ones(50, 40, dtype=torch.bool)
    torch.testing.assert_close(networks.choose(source, draws, mapping), first(everybody, changed))
    sure = torch.stack([found.amax(1) for found in likelihoods(networks, each.flatten(0, 1)).values()], 1)
    networks.appearance.floor.copy_(sure.quantile(0.3, 0))
    plausible = (sure >= networks.appearance.floor).all(1).view(50, 40)
    assert not plausible[:, 0].all() and plausible.any(1).all()
    torch.testing.assert_close(networks.choose(source, draws, mapping), first(plausible, changed))
    nobody = networks.choose(source[:1], draws[:1, :1], mapping)
    torch.testing.assert_close(nobody, each[:1, 0])  # in want of anybody better

    wanted = {name: found.argmax(1) for name, found in likelihoods(networks, networks.id_vae.decode(source)).items()}
    alike = torch.stack([
        found.argmax(1).view(50, 40) == wanted[name][:, None]
        for name, found in likelihoods(networks, each.flatten(0, 1)).items()
    ]).all(0) & plausible  # fmt: skip
    some = alike.any(1)
    assert some.float().mean() > 0.5
    torch.testing.assert_close(networks.choose(source, draws, mapping, alike=True)[some], first(alike, changed)[some])
    plain = IdentityNetworks(8, [3], 16, latent=6, heads=4)
    torch.testing.assert_close(plain.choose(source, draws, None), plain.id_vae.decode(draws[:, 0]))
    with pytest.raises(ValueError, match="without attributes"):
        plain.choose(source, draws, mapping, alike=True)


def test_people_can_be_drawn_from_where_people_are():
    torch.manual_seed(0)
    networks = IdentityNetworks(8, [3], 16, latent=2, heads=4, mixture=3)
    centres, shares = torch.tensor([[3.0, 0.0], [-3.0, 1.0], [0.0, -4.0]]), torch.tensor([0.5, 0.3, 0.2])
    which = torch.multinomial(shares, 4000, replacement=True)
    people = centres[which] + random(4000, 2) @ torch.tensor([[0.5, 0.2], [0.0, 0.1]])
    networks.mixture.fit(people)
    assert networks.numbers == 3
    drawn = networks.mixture(random(20_000, 3, seed=1))
    near = torch.cdist(drawn, centres).argmin(1)
    for k in range(3):
        torch.testing.assert_close((near == k).float().mean(), shares[k], atol=0.03, rtol=0)
        torch.testing.assert_close(drawn[near == k].mean(0), centres[k], atol=0.06, rtol=0)
        torch.testing.assert_close(drawn[near == k].T.cov(), people[which == k].T.cov(), atol=0.04, rtol=0)
    source, draws = random(9, 2), random(9, 5, 3, seed=2)
    latents = networks.mixture(draws.flatten(0, 1)).view(9, 5, 2)
    torch.testing.assert_close(networks.choose(source, draws, None), networks.id_vae.decode(latents[:, 0]))
    assert not any(p.requires_grad for p in networks.mixture.parameters())
