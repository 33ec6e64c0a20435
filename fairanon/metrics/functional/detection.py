"""Face and hand confidence, with the detection rate that they are worth nothing without."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from fairanon.metrics.functional.estimates import Estimate


def detection_confidence(scores: Tensor, expected: Tensor) -> dict[str, Estimate]:
    """How sure a detector is of what images should show.

    Args:
        scores: float (N, M), scores of each image's detections, best first, NaN behind the last one.
        expected: int64 (N,), how many the image should show; images of which nothing is expected do not count.

    Returns:
        ``confidence``: the mean over images of the scores of the best ``expected`` detections, a missing one counting as
        0, so that a missed hand lowers it. ``confidence/detected``: the mean over detections alone, as FairHuman's
        evaluation reports it (supplement, section 4): a hand too bad to be found raises it. ``detection_rate``: the share
        of what was expected that was found. n is images (of ``confidence/detected`` detections), missing is images
        without a detection.

    Examples:
        >>> found = detection_confidence(torch.tensor([[0.9, 0.6], [0.9, torch.nan]]), torch.tensor([2, 2]))
        >>> {name: round(value.value, 3) for name, value in found.items()}
        {'confidence': 0.6, 'confidence/detected': 0.8, 'detection_rate': 0.75}
    """
    if len(expected) and int(expected.max()) > scores.shape[1]:
        raise ValueError(f"{int(expected.max())} detections are expected, but only {scores.shape[1]} were kept.")
    scores, expected = scores[expected > 0], expected[expected > 0]
    if not len(scores):
        raise ValueError("no image was added of which anything is expected.")
    best = scores.masked_fill(torch.arange(scores.shape[1]) >= expected[:, None], float("nan"))
    present = ~best.isnan()
    missing = int((~present.any(1)).sum())
    confidence = Estimate.mean(best.nan_to_num(0.0).sum(1) / expected)
    detected = Estimate.mean(best[present]) if present.any() else Estimate.exact(math.nan, 0)
    rate = Estimate.share(int(present.sum()), int(expected.sum()))
    return {
        "confidence": Estimate(confidence.value, confidence.low, confidence.high, confidence.n, missing),
        "confidence/detected": Estimate(detected.value, detected.low, detected.high, detected.n, missing),
        "detection_rate": Estimate(rate.value, rate.low, rate.high, len(scores)),
    }
