"""Who is found again: retrieval of originals by their anonymized pictures, in blocks, so that 30,000 x 30,000 fits."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

_BINS = 2**16
"""Of the histogram of similarities, in [-1, 1]; a threshold is right to 3e-5 and never too lenient for the attacker."""


@dataclass(frozen=True)
class Found:
    """What an attacker finds.

    Attributes:
        ranks: int64 (N,), the best place of a relevant picture in the gallery, from 1.
        precision: float64 (N,), average precision over the relevant pictures.
        genuine: float32 (G,), similarity of each probe to each relevant picture.
        impostors: int64 (`_BINS`,), histogram of the similarities to other people's pictures.
        missing: bool (N,), nobody could judge the probe or what is relevant to it: counted as found at once.
        gallery: Pictures in it.
    """

    ranks: Tensor
    precision: Tensor
    genuine: Tensor
    impostors: Tensor
    missing: Tensor
    gallery: int


def retrieve(
    probes: Tensor,
    gallery: Tensor,
    people: Tensor,
    source: bool = True,
    block: int = 512,
    expected: float | None = None,
) -> Found:
    """Rank the gallery by similarity to each probe; of equal similarities the relevant picture's counts first.

    Whoever cannot be judged counts as found: a draw, or a face that is not seen, is no proof of anonymity.

    Args:
        probes: float (N, D), unit embeddings of anonymized pictures; NaN where no face was found.
        gallery: float (N, D), of the pictures that they are compared with, row n of probe n's own source.
        people: int64 (N,), who is shown.
        source: Relevant is the probe's own source alone; otherwise every *other* picture of the same person.
        block: Probes compared at once.
        expected: The similarity that an attacker expects a match to have: similarities are by how little they differ from
            it, 0 at best. None: the more similar the better.

    Returns:
        See `Found`.
    """
    present = ~gallery.isnan().any(1)
    columns = present.nonzero().flatten()
    device = probes.device
    place = torch.full((len(gallery),), -1, device=device).scatter(
        0, columns, torch.arange(len(columns), device=device)
    )
    known, names = gallery[columns], people[columns]
    count = len(probes)
    ranks = torch.ones(count, dtype=torch.long, device=device)
    precision = torch.ones(count, dtype=torch.float64, device=device)
    missing = probes.isnan().any(1)
    impostors, genuine = torch.zeros(_BINS, dtype=torch.long, device=device), []
    for first in range(0, count, block):
        rows = torch.arange(first, min(first + block, count), device=device)
        rows = rows[~missing[rows]]
        near = probes[rows] @ known.T
        if expected is not None:
            near = -(near - expected).abs().clamp_max(1)
        same = names == people[rows, None]
        own = place[rows]
        here = (own >= 0).nonzero().flatten()
        if source:
            relevant = torch.zeros_like(same)
            relevant[here, own[here]] = True
        else:
            relevant = same.clone()
            relevant[here, own[here]] = False
        impostors += (torch.histc(near, _BINS, -1, 1) - torch.histc(near[same], _BINS, -1, 1)).long()
        wanted = relevant.sum(1)
        missing[rows[wanted == 0]] = True
        for row, number in zip(range(len(rows)), wanted.tolist(), strict=True):
            if not number:
                continue
            mine = near[row, relevant[row]].sort(descending=True).values
            genuine.append(mine)
            others = near[row, ~relevant[row] & (~same[row] | source)]
            before = torch.stack([(others > value).sum() for value in mine])
            order = torch.arange(1, number + 1, device=device)
            ranks[rows[row]] = before[0] + 1
            precision[rows[row]] = (order / (order + before)).double().mean()
    return Found(ranks, precision, torch.cat(genuine) if genuine else torch.empty(0), impostors, missing, len(columns))


def true_accept_rate(found: Found, false_match_rate: float) -> tuple[float, float] | None:
    """Share of genuine pairs above the similarity that at most ``false_match_rate`` of the impostor pairs exceed.

    Who cannot be judged counts as accepted, with one pair each.

    Args:
        found: What `retrieve` returned.
        false_match_rate: In (0, 1).

    Returns:
        The share, and the similarity; None where there are too few impostor pairs for this rate: fewer than ten would
        match by mistake.
    """
    total = int(found.impostors.sum())
    allowed = int(total * false_match_rate)
    if allowed < 10:
        return None
    above = found.impostors.flip(0).cumsum(0).flip(0)  # pairs in this bin or a higher one
    few = (above <= allowed).nonzero()
    lowest = int(few.min()) if len(few) else _BINS
    threshold = 2 * lowest / _BINS - 1
    missing = int(found.missing.sum())
    accepted = int((found.genuine >= threshold).sum()) + missing
    return accepted / max(1, len(found.genuine) + missing), threshold
