"""Was a face anonymized?"""

from __future__ import annotations

from torch import Tensor

from fairanon.metrics.functional.estimates import Estimate


def anonymization_accuracy(distances: Tensor, thresholds: Tensor | float) -> dict[str, Estimate]:
    """Share of images farther from their source than a verification threshold, and the distances themselves.

    An image in which no face was found (NaN) is never called anonymized: nobody can say that it is.

    Args:
        distances: Cosine distances to the sources, float (N,), NaN without a face.
        thresholds: Above which two images show different people; one, or one for each image, float (N,).

    Returns:
        ``accuracy`` with Wilson's interval, ``mean`` with its interval, ``min`` and ``max``.

    >>> import torch
    >>> found = anonymization_accuracy(torch.tensor([0.9, 0.4, torch.nan, 0.7]), 0.5)
    >>> found["accuracy"].value, found["accuracy"].missing, round(found["mean"].value, 3)
    (0.5, 1, 0.667)
    """
    n = len(distances)
    if not n:
        raise ValueError("no image was added.")
    found = distances[~distances.isnan()]
    missing = n - len(found)
    result = {"accuracy": Estimate.share(int((distances > thresholds).sum()), n, missing)}
    if len(found):
        result["mean"] = Estimate.mean(distances)
        for name, value in (("min", float(found.min())), ("max", float(found.max()))):
            result[name] = Estimate.exact(value, n, missing)
    return result
