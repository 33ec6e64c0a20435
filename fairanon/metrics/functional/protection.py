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

    Examples:
        >>> import torch
        >>> found = anonymization_accuracy(torch.tensor([0.9, 0.4, torch.nan, 0.7]), 0.5)
        >>> found["accuracy"].value, found["accuracy"].missing, round(found["mean"].value, 3)
        (0.5, 1, 0.667)
    """
    return protection(distances > thresholds, distances)


def protection(hidden: Tensor, distances: Tensor, whose: Tensor | None = None) -> dict[str, Estimate]:
    """Share of images that are hidden, and their distances to their sources.

    Args:
        hidden: bool (N,), whatever says so.
        distances: float (N,), NaN where nobody could judge.
        whose: int64 (N,), a number for each person, where several images are of one; None is somebody else in each.

    Returns:
        ``accuracy`` and, if there is any distance, ``mean``, each with its interval, ``min`` and ``max``.

    Raises:
        ValueError: There is no image.

    Examples:
        >>> import torch
        >>> found = protection(torch.tensor([True, True]), torch.tensor([0.5, torch.nan]))
        >>> found["accuracy"].value, found["min"].n, found["min"].missing
        (1.0, 1, 1)
    """
    if not len(distances):
        raise ValueError("no image was added.")
    judged = distances[~distances.isnan()]
    missing = len(distances) - len(judged)
    if whose is None:
        result = {"accuracy": Estimate.share(int(hidden.sum()), len(hidden), missing)}
    else:
        result = {"accuracy": Estimate.share_of(hidden, whose, missing)}
    if len(judged):
        result["mean"] = Estimate.mean(distances, whose)
        for name, value in (("min", float(judged.min())), ("max", float(judged.max()))):
            result[name] = Estimate.exact(value, len(judged), missing)
    return result
