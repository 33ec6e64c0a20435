"""Fits what knows identities alone, before any image is drawn: the ID-VAE and the heads beside it. Seconds, on the CPU.

Fitted jointly with the diffusion model (the paper's reading) the ID-VAE hardly moves at the diffusion's step size.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fairanon.landmarks import HeadFrame
from fairanon.losses.identity import identity_vae
from fairanon.networks.id2face_networks import IdentityNetworks
from fairanon.progress import progress_bar

_BATCH = 512


@dataclass(frozen=True)
class Known:
    """What is known of N images of people and another image of each.

    Attributes:
        identities: float (N, D), of the other images.
        landmarks: float (N, 68, 2), of the images.
        descriptions: float (N, G), likewise.
        looks: For each attribute probabilities (N, K) of the other images, NaN where no face was found.
    """

    identities: Tensor
    landmarks: Tensor
    descriptions: Tensor
    looks: Mapping[str, Tensor]


def fit_identities(
    networks: IdentityNetworks, known: Known, vae: bool, divergence_weight: float, steps: int, quiet: bool = False
) -> None:
    """Fit ID-VAE, mixture, landmark head and appearance head; in place, on the CPU, the same on every rank.

    Args:
        networks: Whose parts.
        known: What to learn from.
        vae: Also the ID-VAE (and its mixture); otherwise only the heads.
        divergence_weight: lambda 3.
        steps: AdamW steps of 512, from 1e-3 down to nothing.
        quiet: No progress bar.
    """
    vaes = (networks.id_vae, networks.mixture) if vae else ()
    parts = [part for part in (networks.appearance, networks.landmarks, *vaes) if part]
    device = next(networks.parameters()).device
    generator = torch.Generator().manual_seed(0)
    for part in parts:
        part.cpu()
    parameters = [
        p for part in parts for name, p in part.named_parameters() if part is not networks.mixture and name != "floor"
    ]
    optimizer = torch.optim.AdamW(parameters, 1e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    with torch.enable_grad(), _training(parameters):
        for _ in progress_bar(range(steps), desc="fitting identities", disable=quiet):
            rows = torch.randint(len(known.identities), (_BATCH,), generator=generator)
            losses = list(_losses(networks, known, rows, vae, divergence_weight, generator))
            optimizer.zero_grad()
            torch.stack(losses).sum().backward()
            optimizer.step()
            schedule.step()
    with torch.no_grad():
        if networks.mixture is not None:
            networks.mixture.fit(networks.id_vae.encode(known.identities)[0])
        if networks.appearance is not None:
            networks.appearance.floor.copy_(networks.appearance.sureness(known.identities).quantile(0.05, 0))
    for part in parts:
        part.to(device)


def _losses(
    networks: IdentityNetworks, known: Known, rows: Tensor, vae: bool, weight: float, generator: torch.Generator
) -> Iterator[Tensor]:
    identities = known.identities[rows]
    if vae:
        noise = torch.randn(len(rows), networks.id_vae.latent, generator=generator)
        reconstruction, divergence = identity_vae(identities, *networks.id_vae(identities, noise))
        yield reconstruction + weight * divergence
    if networks.landmarks is not None:
        landmarks = known.landmarks[rows]
        wanted = HeadFrame.of(landmarks).to_head(landmarks)
        yield 100 * F.mse_loss(networks.landmarks(known.descriptions[rows], identities), wanted)
    if networks.appearance is not None:
        for name, logits in networks.appearance(identities).items():
            judged = known.looks[name][rows]
            seen = ~judged.isnan().any(1)
            lost = F.cross_entropy(logits, judged.nan_to_num().argmax(1), reduction="none")
            yield (lost * seen).sum() / len(rows)


@contextmanager
def _training(parameters: list[nn.Parameter]) -> Iterator[None]:
    """Inside, parameters train although they may be frozen outside."""
    before = [p.requires_grad for p in parameters]
    for p in parameters:
        p.requires_grad_(True)
    yield
    for p, trains in zip(parameters, before, strict=True):
        p.requires_grad_(trains).grad = None
