"""Who is found again: retrieval of originals by their anonymized images, in blocks, so that 30,000 x 30,000 fits."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from fairanon.metrics.functional.estimates import Estimate, Estimates

_BINS = 2**16
"""Of the histogram of similarities; of unit vectors a threshold is right to 3e-5, and never too lenient for the attacker."""


@dataclass(frozen=True)
class Retrieved:
    """What an attacker finds.

    Attributes:
        ranks: int64 (N,), the best place of a relevant image in the gallery, from 1.
        precision: float64 (N,), average precision over the relevant images.
        genuine: float32 (G,), similarity of each probe to each relevant image.
        probe: int64 (G,), whose that is.
        impostors: int64 (`_BINS`,), histogram of the similarities to other people's images, see `_spaced`.
        reach: The largest similarity that there can be: 1 of unit vectors.
        missing: bool (N,), nobody could judge the probe or what is relevant to it: counted as found at once.
        relevant: int64 (N,), images that would be a hit.
        others: int64 (N,), images that would not.
        gallery: Images in it.
    """

    ranks: Tensor
    precision: Tensor
    genuine: Tensor
    probe: Tensor
    impostors: Tensor
    reach: float
    missing: Tensor
    relevant: Tensor
    others: Tensor
    gallery: int


def identity_retrieval(
    probes: Tensor,
    gallery: Tensor,
    people: Tensor,
    protocol: Literal["source", "identity"] = "source",
    places: Sequence[int] = (1, 5),
    false_match_rates: Sequence[float] = (1e-3,),
    expected: float | None = None,
) -> Estimates:
    """Identity retrieval (ID2Face, table I): the gallery holds the originals, the probes are anonymized.

    A naive attacker enrols originals; one who knows the method (``parrot``) enrols images that it anonymized: hand
    their embeddings in as the gallery. One who excludes knows how *unlike* the original a new face is made, and looks for
    that: ``expected``. A face that is not found counts as a hit.

    Args:
        probes: See `retrieve`, as ``gallery`` and ``people``.
        gallery: Likewise.
        people: Likewise.
        protocol: ``source``: a hit is the probe's own original. ``identity``: a hit is another image of the same
            person, the original itself is left out.
        places: Which top-k are reported.
        false_match_rates: At which rates of mistaken matches the share of right ones is reported.
        expected: See `retrieve`.

    Returns:
        ``topK`` and ``chance/topK`` for each place, ``map``, ``tar/RATE`` (None where there are too few people for the
        rate), ``place`` (the mean place of the best match as a share of the gallery; less than ``chance/place`` is found more
        easily, more is excluded) and ``gallery``, its size. Intervals are those of people, who may be shown several times.

    Examples:
        >>> own = torch.eye(4)
        >>> found = identity_retrieval(own.roll(1, 0), own, torch.arange(4), places=(1,), false_match_rates=())
        >>> found["top1"].value, round(found["place"].value, 3)
        (0.0, 0.333)
    """
    retrieved = retrieve(
        probes, gallery, people, protocol == "source", expected=expected, impostors=bool(false_match_rates)
    )
    n, missing, people = len(retrieved.ranks), int(retrieved.missing.sum()), people.cpu()
    result: Estimates = {}
    for k in places:
        result[f"top{k}"] = Estimate.share_of(retrieved.ranks <= k, people, missing)
        result[f"chance/top{k}"] = Estimate.exact(
            float(_by_chance(retrieved, k)[~retrieved.missing].mean()), n, missing
        )
    result["map"] = Estimate.skewed(retrieved.precision, people, missing)
    last = max(1, retrieved.gallery - 1)
    result["place"] = Estimate.skewed((retrieved.ranks - 1) / last, people, missing)
    at_random = (retrieved.others / (retrieved.relevant + 1) / last)[
        ~retrieved.missing
    ].double()  # the best of several images
    result["chance/place"] = Estimate.exact(float(at_random.mean()), n, missing)
    for rate in false_match_rates:
        accepted = true_accept_rate(retrieved, rate)
        result[f"tar/{rate:g}"] = None if accepted is None else _accepted(retrieved, accepted[1], people)
    result["gallery"] = Estimate.exact(float(retrieved.gallery), n)
    return result


def _by_chance(retrieved: Retrieved, k: int) -> Tensor:
    """How probably at least one relevant image is among the first k at random: float64 (N,)."""
    whole = (retrieved.relevant + retrieved.others).double()
    none = torch.ones_like(whole)
    for taken in range(k):
        none *= ((retrieved.others - taken) / (whole - taken).clamp_min(1)).clamp(0, 1)
    return 1 - none


def _accepted(retrieved: Retrieved, threshold: float, people: Tensor) -> Estimate:
    """The share of genuine pairs above a similarity; who cannot be judged is accepted, with one pair each."""
    hits = torch.cat([retrieved.genuine >= threshold, torch.ones(int(retrieved.missing.sum()), dtype=torch.bool)])
    whose = torch.cat([people[retrieved.probe], people[retrieved.missing]])
    share = Estimate.share_of(hits, whose)
    return replace(share, n=len(retrieved.ranks), missing=int(retrieved.missing.sum()))


def retrieve(
    probes: Tensor,
    gallery: Tensor,
    people: Tensor,
    source: bool = True,
    block: int = 512,
    expected: float | None = None,
    impostors: bool = True,
) -> Retrieved:
    """Rank the gallery by similarity to each probe; of equal similarities the relevant image's counts first.

    Whoever cannot be judged counts as found: a draw, or a face that is not seen, is no proof of anonymity.

    Args:
        probes: float (N, D), unit embeddings of anonymized images; NaN where no face was found.
        gallery: float (N, D), of the images that they are compared with, row n of probe n's own source.
        people: int64 (N,), who is shown.
        source: Relevant is the probe's own source alone; otherwise every *other* image of the same person.
        block: Probes compared at once.
        expected: The similarity that an attacker expects a match to have: similarities are by how little they differ from
            it, 0 at best. None: the more similar the better.
        impostors: Count other people's similarities, too: `true_accept_rate` wants them.

    Returns:
        See `Retrieved`.
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
    lengths = [float(rows.nan_to_num().norm(dim=1).max()) if len(rows) else 1.0 for rows in (probes, known)]
    reach = max(1.0, lengths[0] * lengths[1])
    others, genuine, probe = torch.zeros(_BINS, dtype=torch.long, device=device), [], []
    counts = torch.zeros(2, count, dtype=torch.long, device=device)
    for first in range(0, count, block):
        rows = torch.arange(first, min(first + block, count), device=device)
        rows = rows[~missing[rows]]
        near = probes[rows] @ known.T
        if expected is not None:
            near = -(near - expected).abs()
        same = names == people[rows, None]
        own = place[rows]
        here = (own >= 0).nonzero().flatten()
        if source:
            relevant = torch.zeros_like(same)
            relevant[here, own[here]] = True
        else:
            relevant = same.clone()
            relevant[here, own[here]] = False
        if impostors:
            for kind, sign in ((near, 1), (near[same], -1)):
                others += sign * torch.histc(_spaced(kind.clamp(-reach, reach), reach), _BINS, -1, 1).long()
        wanted = relevant.sum(1)
        missing[rows[wanted == 0]] = True
        most = int(wanted.max()) if len(rows) else 0
        mine, valid = near.masked_fill(~relevant, -torch.inf).topk(most).values, _first(wanted, most)
        genuine.append(mine[valid])
        probe.append(rows.repeat_interleave(wanted))
        counts[0, rows], counts[1, rows] = wanted, len(columns) - (wanted if source else same.sum(1))
        if not source:
            near.masked_fill_(same, -torch.inf)
        # How many others are more similar than the first, the second, ... relevant image.
        before = torch.stack([(near > mine[:, k, None]).sum(1) for k in range(most)], 1) if most else wanted[:, None]
        seen = wanted > 0
        ranks[rows[seen]] = before[seen, 0] + 1
        order = torch.arange(1, most + 1, device=device)
        share = (order / (order + before[:, :most])).double().masked_fill(~valid, 0.0)
        precision[rows[seen]] = share[seen].sum(1) / wanted[seen]
    near_ones, whose = (torch.cat(genuine), torch.cat(probe)) if genuine else (torch.empty(0), counts[0, :0])
    return Retrieved(
        ranks.cpu(), precision.cpu(), near_ones.cpu(), whose.cpu(), others.cpu(), reach, missing.cpu(), counts[0].cpu(),
        counts[1].cpu(), len(columns),
    )  # fmt: skip


_FINEST = 1000.0


def _spaced(similarities: Tensor, reach: float) -> Tensor:
    """Similarities as places of the histogram, -1 to 1: of distances without an end the small ones lie as far apart as the large."""
    return similarities if reach <= 1 else (similarities * _FINEST).asinh() / math.asinh(reach * _FINEST)


def _unspaced(place: float, reach: float) -> float:
    return place if reach <= 1 else math.sinh(place * math.asinh(reach * _FINEST)) / _FINEST


def _first(counts: Tensor, width: int) -> Tensor:
    """Marks the first so many of each row: bool (N, width)."""
    return torch.arange(width, device=counts.device) < counts[:, None]


def true_accept_rate(retrieved: Retrieved, false_match_rate: float) -> tuple[float, float] | None:
    """Share of genuine pairs above the similarity that at most ``false_match_rate`` of the impostor pairs exceed.

    Who cannot be judged counts as accepted, with one pair each.

    Args:
        retrieved: What `retrieve` returned.
        false_match_rate: In (0, 1).

    Returns:
        The share, and the similarity; None where there are too few impostor pairs for this rate: fewer than ten would
        match by mistake.
    """
    total = int(retrieved.impostors.sum())
    allowed = int(total * false_match_rate)
    if allowed < 10:
        return None
    above = retrieved.impostors.flip(0).cumsum(0).flip(0)  # pairs in this bin or a higher one
    few = (above <= allowed).nonzero()
    lowest = int(few.min()) if len(few) else _BINS
    threshold = _unspaced(2 * lowest / _BINS - 1, retrieved.reach)
    missing = int(retrieved.missing.sum())
    accepted = int((retrieved.genuine >= threshold).sum()) + missing
    return accepted / max(1, len(retrieved.genuine) + missing), threshold
