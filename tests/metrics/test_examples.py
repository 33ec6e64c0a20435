"""Each formula's example, and each metric against its functional twin, on one rank and on two."""

import doctest
import importlib
import pkgutil

import pytest
import torch
import torch.multiprocessing as mp
from lightning.pytorch import LightningModule, Trainer
from torch import distributed as dist
from torch.nn import functional as F
from torch.utils.data import DataLoader
from torchmetrics import MetricCollection

from fairanon import metrics
from fairanon.metrics import functional
from fairanon.metrics.functional.detection import detection_confidence
from fairanon.metrics.functional.discrepancy import fairness_discrepancy
from fairanon.metrics.functional.protection import anonymization_accuracy
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
    assert metric.estimates() == expected
    numbers = metric.compute()
    for key, one in expected.items():
        ends = (None, None, None) if one is None else (one.value, one.low, one.high)
        for at, value in zip((key, f"{key}/low", f"{key}/high"), ends, strict=True):
            wanted = torch.tensor(torch.nan if value is None else value)
            torch.testing.assert_close(numbers[at], wanted, equal_nan=True)
    metric.reset()
    with pytest.raises(ValueError, match="no image was added"):
        metric.compute()


def test_they_log_plot_and_collect():
    """As whoever knows torchmetrics expects it."""
    found = {name: (metric, rows) for name, (metric, _, rows) in cases().items()}
    collection = MetricCollection(
        {name: found[name][0] for name in ("GroupAccuracy", "FairnessDiscrepancy")}, compute_groups=False
    )
    collection.update(*found["GroupAccuracy"][1])
    numbers = collection.compute()
    assert all(isinstance(value, torch.Tensor) and not value.dim() for value in numbers.values())
    assert "overall" in {key.rpartition("GroupAccuracy_")[2] for key in numbers}
    metric, rows = found["AnonymizationAccuracy"]
    assert metric(*rows).keys() == metric.compute().keys()
    figure, _ = metric.plot()
    assert figure.get_axes()

    class Judging(LightningModule):
        def training_step(self, batch, index):
            metric.update(*rows)
            self.log_dict({f"anonymization/{key}": value for key, value in metric.compute().items()})

        def configure_optimizers(self):
            return None

    trainer = Trainer(max_steps=1, accelerator="cpu", logger=False, enable_checkpointing=False, barebones=False,
                      enable_progress_bar=False, enable_model_summary=False)  # fmt: skip
    trainer.fit(Judging(), DataLoader([0]))
    assert trainer.logged_metrics["anonymization/accuracy"] == metric.compute()["accuracy"]


def _second(rank, store, found):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
    results = {}
    for name, (metric, _, rows) in cases().items():
        half = slice(0, 20) if rank == 0 else slice(20, 40)
        metric.update(*(part[half] for part in rows))
        results[name] = metric.estimates()
        if rank == 0:  # the other one does not even ask
            metric.reset()
            results[f"{name}, all of them here"] = metric.measured(*rows)
    found[rank] = results
    dist.destroy_process_group()


def test_two_ranks_are_one(tmp_path):
    with mp.Manager() as manager:
        found = manager.dict()
        mp.spawn(_second, (str(tmp_path / "store"), found), nprocs=2)
        expected = {name: function(*rows) for name, (_, function, rows) in cases().items()}
        assert found[1] == expected
        assert found[0] == expected | {f"{name}, all of them here": numbers for name, numbers in expected.items()}
