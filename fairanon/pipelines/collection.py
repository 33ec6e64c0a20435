"""One new identity for each person of a collection, the same in every image, named by a secret key."""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Sequence

import numpy as np
import torch
from sklearn.cluster import AgglomerativeClustering
from torch import Tensor


def keyed_draws(key: bytes, people: Sequence[str], shape: Sequence[int]) -> Tensor:
    """Draws from the prior that only who has the key can repeat: HMAC-SHA256(key, person) seeds each.

    Args:
        key: The collection's secret; another key gives the same people other identities.
        people: N names.
        shape: Of one person's draws.

    Returns:
        Standard normal float32 (N, *shape).
    """
    if len(key) < 16:
        raise ValueError(
            f"the key has {len(key)} bytes: anybody could try them all; give one of at least 16 random bytes."
        )
    rows = []
    for person in people:
        digest = hmac.new(key, person.encode(), hashlib.sha256).digest()
        generator = np.random.Generator(
            np.random.Philox(key=int.from_bytes(digest[:16], "little"))
        )  # torch's has 32 bits
        rows.append(torch.from_numpy(generator.standard_normal(tuple(shape), dtype=np.float32)))
    return torch.stack(rows)


def people_by_likeness(images: Sequence[str], distances: Tensor, threshold: float) -> list[str]:
    """Who is shown, guessed: images belong to one person if *all* pairs of them match (complete linkage).

    In doubt two images are two people: they get different identities, which gives nothing away.

    Args:
        images: N names; a person is called by the first of their images, so more of them later change nothing.
        distances: float (N, N), by a recognizer; NaN where no face was found: a person of its own.
        threshold: Distance of a match, calibrated as `fairanon.metrics.functional.verification.threshold_at` does.

    Returns:
        N names.
    """
    seen = ~distances.diagonal().isnan()
    names = list(images)
    rows = seen.nonzero().flatten().tolist()
    labels = [0] * len(rows)
    if len(rows) > 1:
        known = distances[seen][:, seen].double()
        clusters = AgglomerativeClustering(None, metric="precomputed", linkage="complete", distance_threshold=threshold)
        labels = clusters.fit_predict(((known + known.T) / 2).numpy()).tolist()
    called: dict[int, str] = {}
    for row, label in zip(rows, labels, strict=True):
        names[row] = called.setdefault(label, images[row])
    return names
