"""How K objectives become one update: FairGrad (minimum potential delay) and its rivals, for K up to 8."""

from fairanon.solvers.base import Solver, Weights
from fairanon.solvers.fairgrad import FairGrad, fairgrad
from fairanon.solvers.strategies import (
    FAMO,
    MGDA,
    DynamicWeightAverage,
    LinearScalarization,
    NashMTL,
    RandomLossWeighting,
    ScaleInvariant,
    UncertaintyWeighting,
)

__all__ = [
    "FAMO",
    "MGDA",
    "DynamicWeightAverage",
    "FairGrad",
    "LinearScalarization",
    "NashMTL",
    "RandomLossWeighting",
    "ScaleInvariant",
    "Solver",
    "UncertaintyWeighting",
    "Weights",
    "fairgrad",
]
