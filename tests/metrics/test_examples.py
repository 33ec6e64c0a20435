"""Each formula's example, and each metric against its functional twin, on one rank and on two."""

import doctest
import importlib
import pkgutil

import pytest
import torch
import torch.multiprocessing as mp
from torch import distributed as dist
from torch.nn import functional as F

from fairanon import metrics
from fairanon.metrics import functional
from fairanon.metrics.functional.anonymization import anonymization_accuracy
from fairanon.metrics.functional.detection import detection_confidence
from fairanon.metrics.functional.discrepancy import fairness_discrepancy
from fairanon.metrics.functional.recall import group_accuracy
from fairanon.metrics.functional.retrieval import identity_retrieval

MODULES = [module.name for module in pkgutil.iter_modules(functional.__path__)]


@pytest.mark.parametrize("name", MODULES)
def test_examples_hold(name):
    module = importlib.import_module(f"fairanon.metrics.functional.{name}")
    done = doctest.testmod(module)
    assert done.attempted and not done.failed


def cases():
    """Every metric that is a class: itself, its twin, and rows for both."""
    generator = torch.Generator().manual_seed(0)
    rows = torch.rand(40, 3, generator=generator).softmax(1)
    rows[3] = torch.nan
    numbers = torch.randint(0, 3, (40,), generator=generator)
    distances = torch.rand(40, generator=generator)
    distances[5] = torch.nan
    faces = F.normalize(torch.randn(40, 8, generator=generator), dim=1)
    moved = F.normalize(faces + 0.4 * torch.randn(40, 8, generator=generator), dim=1)
    scores = torch.rand(40, 2, generator=generator).sort(1, descending=True).values
    scores[::3, 1] = torch.nan
    groups = ("a", "b", "c")
    return {
        "FairnessDiscrepancy": (metrics.FairnessDiscrepancy(3, repeats=50), lambda *x: fairness_discrepancy(*x, repeats=50), (rows, numbers)),
        "GroupAccuracy": (metrics.GroupAccuracy(groups), lambda *x: group_accuracy(*x, groups), (rows, numbers)),
        "AnonymizationAccuracy": (metrics.AnonymizationAccuracy(0.5), lambda x: anonymization_accuracy(x, 0.5), (distances,)),
        "IdentityRetrieval": (metrics.IdentityRetrieval(), identity_retrieval, (moved, faces, torch.arange(40))),
        "DetectionConfidence": (metrics.DetectionConfidence(), detection_confidence, (scores, torch.full((40,), 2))),
    }  # fmt: skip


@pytest.mark.parametrize("name", metrics.__all__)
def test_a_class_is_its_function_however_the_rows_come(name):
    metric, function, rows = cases()[name]
    assert isinstance(metric.higher_is_better, bool)
    expected = function(*rows)
    for first, last in ((0, 7), (7, 30), (30, 40)):
        metric.update(*(part[first:last] for part in rows))
    assert metric.compute() == expected


def _second(rank, store, found):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
    results = {}
    for name, (metric, _, rows) in cases().items():
        half = slice(0, 20) if rank == 0 else slice(20, 40)
        metric.update(*(part[half] for part in rows))
        results[name] = metric.compute()
    found[rank] = results
    dist.destroy_process_group()


def test_two_ranks_are_one(tmp_path):
    with mp.Manager() as manager:
        found = manager.dict()
        mp.spawn(_second, (str(tmp_path / "store"), found), nprocs=2)
        expected = {name: function(*rows) for name, (_, function, rows) in cases().items()}
        assert found[0] == found[1] == expected
