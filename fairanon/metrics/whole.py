"""Metrics of rows that every rank holds."""

from __future__ import annotations

from typing import TypeVar

from torchmetrics import Metric

M = TypeVar("M", bound=Metric)


def whole(metric: M) -> M:
    """Keep a metric from adding up ranks: each holds all rows, which would be counted once for each of them.

    Args:
        metric: Changed in place.

    Returns:
        ``metric``.
    """
    metric.distributed_available_fn = lambda: False
    return metric
