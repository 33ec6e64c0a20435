"""ID2Face's networks: identity autoencoder, the stream without identity, bidirectional alignment (section III.C).

Shapes: B samples, D width of the recognizer's embedding, d of the identity latent, W of the tokens, T identity tokens,
N tokens without identity, P landmarks.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from sklearn.mixture import GaussianMixture
from torch import Tensor, nn
from torch.nn import functional as F

from fairanon.config.experiments import UserError
from fairanon.networks.spatial import SpatialConditioning


class IdentityVAE(nn.Module):
    """Identities as normal latents: any draw from the prior is decoded to somebody (equation 3).

    Args:
        width: D.
        latent: d.
        hidden: Width of the hidden layers.
    """

    def __init__(self, width: int = 512, latent: int = 256, hidden: int = 1024) -> None:
        super().__init__()
        self.latent = latent
        self.encoder = nn.Sequential(
            nn.Linear(width, hidden), nn.SiLU(), nn.Linear(hidden, hidden), nn.SiLU(), nn.Linear(hidden, 2 * latent)
        )
        self.decoder = nn.Sequential(
            nn.Linear(latent, hidden), nn.SiLU(), nn.Linear(hidden, hidden), nn.SiLU(), nn.Linear(hidden, width)
        )

    def encode(self, embeddings: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and log-variance of the posterior, float (B, d) each, of unit embeddings (B, D)."""
        mean, log_variance = self.encoder(widened(embeddings)).chunk(2, dim=1)
        return mean, log_variance.clamp(-20, 10)

    def decode(self, latents: Tensor) -> Tensor:
        """Control vectors: unit, float (B, D), of latents (B, d)."""
        return F.normalize(self.decoder(latents), dim=1)

    def forward(self, embeddings: Tensor, noise: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """Rebuild embeddings.

        Args:
            embeddings: float (B, D), unit.
            noise: Standard normal (B, d), reparameterised; None takes the mean.

        Returns:
            Control vectors (B, D), mean and log-variance (B, d).
        """
        mean, log_variance = self.encode(embeddings)
        latents = mean if noise is None else mean + (log_variance / 2).exp() * noise
        return self.decode(latents), mean, log_variance


def widened(unit: Tensor) -> Tensor:
    """Unit vectors float (B, D) with numbers of unit variance, as a layer's input should have: theirs are small."""
    return unit * unit.shape[1] ** 0.5


class IdentityMixture(nn.Module):
    """Where people are among the ID-VAE's latents: a mixture of normals, to draw somebody from.

    The paper draws from the standard normal. That is where people's latents are on the whole, but they lie in clusters
    (of those who look alike), and between them draws are decoded to somebody who looks like nobody.

    Args:
        components: K.
        latent: d.
    """

    def __init__(self, components: int, latent: int) -> None:
        super().__init__()
        self.shares = nn.Parameter(torch.full((components,), 1 / components), requires_grad=False)
        self.means = nn.Parameter(torch.zeros(components, latent), requires_grad=False)
        lower = torch.eye(latent)[tuple(torch.tril_indices(latent, latent))]
        self.factors = nn.Parameter(lower.repeat(components, 1), requires_grad=False)
        """Cholesky's of the covariances, their lower triangles row by row."""

    def forward(self, draws: Tensor) -> Tensor:
        """Latents float (N, d) of standard normal draws (N, d + 1); the last number of each says which component."""
        share = torch.special.ndtr(draws[:, -1])
        which = torch.searchsorted(self.shares.cumsum(0), share).clamp_max(len(self.shares) - 1)
        latent = self.means.shape[1]
        factors = draws.new_zeros(len(draws), latent, latent)
        factors[:, *torch.tril_indices(latent, latent)] = self.factors[which]
        return self.means[which] + (factors @ draws[:, :-1, None])[..., 0]

    @torch.no_grad()
    def fit(self, latents: Tensor) -> None:
        """Fit it to people's latents, float (N, d).

        Raises:
            ValueError: They are fewer than the components.
        """
        if len(latents) < len(self.shares):
            raise ValueError(
                f"mixture: {len(latents)} people are too few for {len(self.shares)}; raise model.fit.pairs."
            )
        mixture = GaussianMixture(len(self.shares), reg_covar=1e-3, random_state=0).fit(latents.double().numpy())
        lower = np.linalg.cholesky(mixture.covariances_)[:, *np.tril_indices(latents.shape[1])]
        for parameter, value in ((self.shares, mixture.weights_), (self.means, mixture.means_), (self.factors, lower)):
            parameter.copy_(torch.from_numpy(value))


class CrossAttention(nn.Module):
    """One set of tokens asks another: attention and a perceptron, each normalised before and added.

    Args:
        width: W.
        heads: Attention heads.
        expansion: Width of the perceptron's hidden layer, as a multiple of W.
    """

    def __init__(self, width: int, heads: int = 8, expansion: int = 4) -> None:
        super().__init__()
        self.heads = heads
        self.norm_query, self.norm_context, self.norm_hidden = (nn.LayerNorm(width) for _ in range(3))
        self.query, self.out = nn.Linear(width, width), nn.Linear(width, width)
        self.context = nn.Linear(width, 2 * width)
        self.hidden = nn.Sequential(nn.Linear(width, expansion * width), nn.GELU(), nn.Linear(expansion * width, width))

    def forward(self, tokens: Tensor, context: Tensor) -> Tensor:
        """Tokens float (B, N, W) that have seen the context (B, M, W)."""
        batch, count, width = tokens.shape

        def split(x: Tensor) -> Tensor:
            return x.view(batch, -1, self.heads, width // self.heads).transpose(1, 2)

        key, value = self.context(self.norm_context(context)).chunk(2, dim=-1)
        attended = F.scaled_dot_product_attention(split(self.query(self.norm_query(tokens))), split(key), split(value))
        tokens = tokens + self.out(attended.transpose(1, 2).reshape(batch, count, width))
        return tokens + self.hidden(self.norm_hidden(tokens))


def fourier(points: Tensor, bands: int) -> Tensor:
    """Sines and cosines of coordinates at ``bands`` octaves: float (..., K) in [0, 1] to (..., 2 * bands * K)."""
    octaves = 2.0 ** torch.arange(bands, device=points.device, dtype=points.dtype) * math.pi
    angles = points[..., None] * octaves
    return torch.cat([angles.sin(), angles.cos()], -1).flatten(-2)


class LandmarkTokens(nn.Module):
    """Where the face's landmarks are, one token each: Fourier features and which landmark it is.

    Each place is told twice, in the image and in the face (from the points' centre, in units of their spread): what a
    mouth does is small beside where a head is.

    Args:
        width: W.
        points: P.
        bands: Octaves of the Fourier features.
    """

    def __init__(self, width: int, points: int = 68, bands: int = 8) -> None:
        super().__init__()
        self.bands = bands
        self.which = nn.Parameter(torch.randn(points, width) * 0.02)
        self.project = nn.Sequential(nn.Linear(8 * bands, width), nn.GELU(), nn.Linear(width, width))

    def forward(self, landmarks: Tensor) -> Tensor:
        """Tokens float (B, P, W) of landmarks float32 (B, P, 2), x and y as shares of the image's sides."""
        inner = landmarks - landmarks.mean(1, keepdim=True)
        inner = inner / inner.square().sum(2).mean(1).sqrt().clamp_min(1e-6)[:, None, None]
        both = torch.cat([fourier(landmarks, self.bands), fourier(inner / 4 + 0.5, self.bands)], -1)
        return self.project(both) + self.which


class NonIdentityStream(nn.Module):
    """What an image shows besides who it shows: features of the degraded image, placed by landmarks (equation 2).

    Args:
        channels: Channels of the feature maps, the finest first.
        width: W.
        heads: Attention heads.
        side: Feature maps are pooled to at most this side.
        points: P.
        bands: Octaves of positions and landmarks.
    """

    def __init__(
        self,
        channels: Sequence[int],
        width: int,
        heads: int = 8,
        side: int = 16,
        points: int = 68,
        bands: int = 8,
    ) -> None:
        super().__init__()
        self.side, self.bands = side, bands
        self.project = nn.ModuleList(
            nn.Sequential(nn.LayerNorm(c), nn.Linear(c, width), nn.GELU(), nn.Linear(width, width)) for c in channels
        )
        self.position = nn.Linear(4 * bands, width)
        self.landmarks = LandmarkTokens(width, points, bands)
        self.attention = CrossAttention(width, heads)

    def forward(self, features: Sequence[Tensor], landmarks: Tensor) -> Tensor:
        """Tokens without identity.

        Args:
            features: For each scale float (B, C, h, w), of the degraded image.
            landmarks: float (B, P, 2), of the image itself, as shares of its sides.

        Returns:
            float (B, N, W), N the positions of all scales.
        """
        tokens = []
        for maps, project in zip(features, self.project, strict=True):
            height, width = (min(self.side, n) for n in maps.shape[-2:])
            pooled = F.adaptive_avg_pool2d(maps, (height, width)).flatten(2).transpose(1, 2)
            y, x = ((torch.arange(n, device=maps.device) + 0.5) / n for n in (height, width))
            grid = torch.stack(torch.meshgrid(x, y, indexing="xy"), -1).view(
                -1, 2
            )  # float32: the finest octave needs it
            tokens.append(project(pooled) + self.position(fourier(grid, self.bands)))
        return self.attention(torch.cat(tokens, 1), self.landmarks(landmarks))


class LatentRecomposer(nn.Module):
    """Both kinds of tokens, each having seen the other and itself (equations 2 to 4 and 7).

    Equation 7's self-attentions of the tokens are computed once for all scales: every scale sees the same tokens.

    Args:
        channels: See `NonIdentityStream`.
        width: W, the U-Net's cross-attention width.
        identity: D.
        tokens: T.
        heads: Attention heads.
        side: See `NonIdentityStream`.
        points: P.
        bands: See `NonIdentityStream`.
        aligned: Bidirectional alignment; without it the tokens are handed on as they are (figure 3b).
    """

    def __init__(
        self,
        channels: Sequence[int],
        width: int,
        identity: int = 512,
        tokens: int = 4,
        heads: int = 8,
        side: int = 16,
        points: int = 68,
        bands: int = 8,
        aligned: bool = True,
    ) -> None:
        super().__init__()
        self.tokens, self.aligned = tokens, aligned
        self.stream = NonIdentityStream(channels, width, heads, side, points, bands)
        self.identity = nn.Sequential(
            nn.Linear(identity, width), nn.GELU(), nn.Linear(width, tokens * width), nn.Unflatten(1, (tokens, width))
        )
        self.norm = nn.LayerNorm(width)
        if aligned:
            self.to_rest, self.to_identity = CrossAttention(width, heads), CrossAttention(width, heads)
        self.rest_norm, self.identity_norm = nn.LayerNorm(width), nn.LayerNorm(width)
        self.rest_self, self.identity_self = (nn.MultiheadAttention(width, heads, batch_first=True) for _ in range(2))

    def forward(self, features: Sequence[Tensor], landmarks: Tensor, control: Tensor) -> tuple[Tensor, Tensor]:
        """Tokens for the U-Net.

        Args:
            features: See `NonIdentityStream`.
            landmarks: Likewise.
            control: float (B, D), who is to be drawn.

        Returns:
            Tokens without identity (B, N, W) and identity tokens (B, T, W).
        """
        rest, identity = self.stream(features, landmarks), self.norm(self.identity(widened(control)))
        if self.aligned:
            rest, identity = self.to_rest(rest, identity), self.to_identity(identity, rest)
        x, y = self.rest_norm(rest), self.identity_norm(identity)
        rest = rest + self.rest_self(x, x, x, need_weights=False)[0]
        return rest, identity + self.identity_self(y, y, y, need_weights=False)[0]


class AppearanceHead(nn.Module):
    """What somebody with an identity looks like, as a judge would say: lets a new identity be chosen among draws.

    Attributes:
        floor: float (A,), for each attribute how sure of it the head is at least of 95 in 100 real people; a draw that it
            is less sure of looks like nobody: half young and half old, say.

    Args:
        identity: D.
        classes: How many classes each of the A attributes has.
    """

    def __init__(self, identity: int, classes: Mapping[str, int]) -> None:
        super().__init__()
        self.classes = dict(classes)
        self.layers = nn.Sequential(
            nn.Linear(identity, identity), nn.SiLU(), nn.Linear(identity, sum(self.classes.values()))
        )
        self.floor = nn.Parameter(torch.zeros(len(self.classes)), requires_grad=False)

    def forward(self, control: Tensor) -> dict[str, Tensor]:
        """Logits of each attribute, float (B, K), of control vectors (B, D)."""
        logits = self.layers(widened(control))
        return dict(zip(self.classes, logits.split(list(self.classes.values()), 1), strict=True))

    def sureness(self, control: Tensor) -> Tensor:
        """Probability of each attribute's likeliest class: float (B, A)."""
        return torch.stack([logits.softmax(1).amax(1) for logits in self(control).values()], 1)


class NewLandmarks(nn.Module):
    """Where somebody's 68 landmarks are while their face does what is described, in the head's frame.

    The source's own landmarks give away the shape of its face (experiments/README.md has the numbers); these are of whoever is
    drawn.

    Args:
        description: G, see `fairanon.evaluators.FaceDescription`.
        identity: D.
        hidden: Width of the hidden layers.
    """

    def __init__(self, description: int, identity: int, hidden: int = 256) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(description + identity, hidden), nn.SiLU(), nn.Linear(hidden, hidden), nn.SiLU(),
            nn.Linear(hidden, 2 * 68),
        )  # fmt: skip

    def forward(self, description: Tensor, control: Tensor) -> Tensor:
        """Points float (B, 68, 2) in sides of the image, of descriptions (B, G) and control vectors (B, D)."""
        return self.layers(torch.cat([description, widened(control)], 1)).view(-1, 68, 2) / 10


class IdentityNetworks(nn.Module):
    """What ID2Face trains beside the U-Net and its gated branches.

    Attributes:
        id_vae: Identities as normal latents.
        mixture: None draws from the standard normal.
        recomposer: From features, landmarks and an identity to the U-Net's tokens.
        appearance: None without attributes.
        landmarks: None without a description.
        spatial: None without paths beside the tokens.
        config: The arguments, to build it again.

    Args:
        identity: D.
        channels: See `NonIdentityStream`.
        width: W.
        latent: d.
        hidden: Width of the ID-VAE's hidden layers.
        tokens: T.
        heads: Attention heads of the recomposer.
        side: See `NonIdentityStream`.
        bands: Likewise.
        aligned: See `LatentRecomposer`.
        appearance: See `AppearanceHead`; attributes that a new identity can share with the old one.
        description: G, see `NewLandmarks`; 0 is none.
        spatial: Channels, width of the time embedding and factor, see `SpatialConditioning`; None leaves it out.
        mixture: Components, see `IdentityMixture`; 0 is none.
    """

    def __init__(
        self,
        identity: int,
        channels: Sequence[int],
        width: int,
        latent: int = 256,
        hidden: int = 1024,
        tokens: int = 4,
        heads: int = 8,
        side: int = 16,
        bands: int = 8,
        aligned: bool = True,
        appearance: Mapping[str, int] | None = None,
        description: int = 0,
        spatial: Sequence[int] | None = None,
        mixture: int = 0,
    ) -> None:
        super().__init__()
        self.config: dict[str, Any] = {
            "identity": identity, "channels": list(channels), "width": width, "latent": latent, "hidden": hidden,
            "tokens": tokens, "heads": heads, "side": side, "bands": bands, "aligned": aligned,
            "appearance": dict(appearance or {}), "description": description,
            "spatial": None if spatial is None else list(spatial), "mixture": mixture,
        }  # fmt: skip
        self.id_vae = IdentityVAE(identity, latent, hidden)
        self.mixture = IdentityMixture(mixture, latent) if mixture else None
        self.recomposer = LatentRecomposer(channels, width, identity, tokens, heads, side, bands=bands, aligned=aligned)
        self.appearance = AppearanceHead(identity, appearance) if appearance else None
        self.landmarks = NewLandmarks(description, identity) if description else None
        self.spatial = None
        if spatial is not None:
            first, time, factor = spatial
            self.spatial = SpatialConditioning(first, time, factor, description)

    @property
    def numbers(self) -> int:
        """Standard normal numbers that a draw takes."""
        return self.id_vae.latent + (self.mixture is not None)

    def choose(self, source: Tensor, draws: Tensor, mapping: IdentityMapping | None, alike: bool = False) -> Tensor:
        """New identities, one for each source.

        Args:
            source: float (B, d), who must not be drawn.
            draws: Standard normal float (B, K, `numbers`). Of those that look like somebody (see `AppearanceHead.floor`) it
                is the one that the mapping changes least, without a mapping the first; if none does, the one that comes
                nearest to that.
            mapping: Applied to the draws; None leaves them as they are.
            alike: It must look like the source as well.

        Returns:
            Control vectors: unit, float (B, D).
        """
        if alike and self.appearance is None:
            raise ValueError("appearance: the model was trained without attributes that could be kept.")
        count = draws.shape[1]
        latents = draws.flatten(0, 1)
        if self.mixture is not None:
            latents = self.mixture(latents)
        changed = latents.new_zeros(len(latents))
        if mapping is not None:
            everybody = source.repeat_interleave(count, 0)
            changed = F.cosine_similarity(latents, everybody, dim=1).abs()
            latents = mapping(latents, everybody)
        control = self.id_vae.decode(latents)
        lack = torch.zeros_like(changed)
        if self.appearance is not None:
            lack = (self.appearance.floor - self.appearance.sureness(control)).clamp_min(0).sum(1)
            wanted = self.appearance(self.id_vae.decode(source)) if alike else {}
            predicted = self.appearance(control)
            for name in wanted:
                logits = predicted[name]
                labels = wanted[name].argmax(1).repeat_interleave(count)
                likely = logits.softmax(1).gather(1, labels[:, None])[:, 0]
                lack += torch.where(logits.argmax(1) == labels, 0.0, 1 - likely)
        best = torch.where(lack > 0, 1 + lack, changed).view(-1, count).argmin(1)  # the first of several
        return control.view(len(source), count, -1)[torch.arange(len(source)), best]


@dataclass(frozen=True)
class OrthogonalIdentityMapping:
    """The part of a drawn latent that has nothing of the source's identity in it (equations 9 and 10).

    Args:
        rescale: Give the result the norm of the draw; projecting takes a little of it away, and the decoder has seen
            vectors of the prior's norm.
    """

    rescale: bool = False

    def __call__(self, sample: Tensor, source: Tensor) -> Tensor:
        """Map draws.

        Args:
            sample: float (B, d), r, drawn from the prior.
            source: float (B, d), v, the source's latent.

        Returns:
            float (B, d), u.
        """
        wide, direction = sample.double(), F.normalize(source.double(), dim=1)
        result = wide - (wide * direction).sum(1, keepdim=True) * direction
        if self.rescale:
            result = result * (wide.norm(dim=1, keepdim=True) / result.norm(dim=1, keepdim=True).clamp_min(1e-12))
        return result.to(sample.dtype)


@dataclass(frozen=True)
class NegatedIdentity:
    """The source's own latent with the opposite sign, as NullFace takes it.

    It is a function of the source: whoever negates again finds the person. It is there to be measured beside the other one,
    and for nothing else.
    """

    def __call__(self, sample: Tensor, source: Tensor) -> Tensor:
        """Map draws, which do not count; arguments as of `OrthogonalIdentityMapping`."""
        return (-source).to(sample.dtype)


IdentityMapping = OrthogonalIdentityMapping | NegatedIdentity


def refuse_negated(mapping: IdentityMapping | None) -> None:
    """For everybody who would train, export or hide somebody with a mapping.

    Raises:
        UserError: It is neither `OrthogonalIdentityMapping` nor none.
    """
    if not isinstance(mapping, OrthogonalIdentityMapping | None):
        raise UserError(
            "model.mapping: negated is not trained, exported or used, since whoever negates again finds the person; take "
            "OrthogonalIdentityMapping, or measure a run with it: fairanon measure RUN --model.mapping negated."
        )
