"""What a CUDA device could do differently; every body runs on the CPU as well. `benchmarks/on_gpu.sh` runs these first."""

import pytest
import torch

from fairanon.callbacks import Evaluate
from fairanon.cli import main
from fairanon.evaluators import TinyAttributes, TinyEmbedder
from fairanon.solvers import DynamicWeightAverage
from tests.conftest import REPOSITORY, write_preferences

CUDA = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]
SMALL = ["--evaluate", "null", "--trainer.max_steps", "3", "--checkpoint_every", "1", "--data.batch_size", "4",
         "--trainer.limit_val_batches", "0"]  # fmt: skip


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=CUDA)])
def device(request):
    return request.param


@pytest.fixture
def place(tmp_path, monkeypatch):
    (tmp_path / "experiments").symlink_to(REPOSITORY / "experiments")
    monkeypatch.chdir(tmp_path)
    write_preferences(tmp_path / "pairs")
    return tmp_path


def train(device, *words):
    where = {"cpu": "cpu", "cuda": "gpu"}[device]
    return main(["train", "popalign_tiny", "--data.folder", "pairs", *words, "--trainer.accelerator", where])


@pytest.mark.parametrize("overlay", ["fp16", "bf16"])
def test_half_precision_trains_with_a_scaled_loss_where_it_must(device, overlay, place, capsys):
    code = train(device, "--overlay", overlay, *SMALL)
    if (device, overlay) == ("cpu", "fp16"):
        assert code == 1 and "16-mixed needs a GPU" in capsys.readouterr().err
        return
    assert code == 0
    (run,) = (path.parent for path in place.glob("runs/popalign_tiny/*/run.json") if not path.parent.is_symlink())
    state = torch.load(run / "checkpoints" / "last.ckpt", map_location="cpu", weights_only=True)
    assert ("MixedPrecision" in state) is (overlay == "fp16")
    assert all(value.dtype == torch.float32 and value.isfinite().all() for value in state["state_dict"].values())


def test_a_solver_goes_on_where_the_model_is(device):
    solver = DynamicWeightAverage()
    losses, active = torch.tensor([1.0, 2.0, 3.0]), torch.ones(3, dtype=torch.bool)
    for step in range(30):
        solver.weights(losses, None, active, step)
    solver.to(torch.device(device))
    assert solver.weights(losses.to(device), None, active.to(device), 30).values.device.type == device


def test_judges_agree_with_the_cpu(device):
    images = torch.randint(0, 256, (4, 3, 64, 64), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    for judge, ask in ((TinyAttributes(faces=False), "classify"), (TinyEmbedder(), "embed")):
        here = getattr(judge, ask)(images)
        judge.to(device)
        assert judge.device.type == device
        there = getattr(judge, ask)(images)
        here, there = (found["tone"] if isinstance(found, dict) else found.nan_to_num() for found in (here, there))
        torch.testing.assert_close(here, there, atol=1e-3, rtol=1e-3)


def test_adam_in_eight_bits(device, place):
    pytest.importorskip("bitsandbytes")
    assert train(device, "--overlay", "adam8bit", *SMALL) == 0


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="its body runs on the CPU in test_rehearsal.py")
def test_a_rehearsal_measures_after_training_where_it_measured_before(place, capsys):
    assert main(["rehearse", "popalign_tiny"]) == 0
    assert "GiB, the most of any stage" in capsys.readouterr().out


def test_the_trained_model_is_measured_where_it_was_trained(device, place, monkeypatch):
    """Lightning puts a model back to the CPU before `on_fit_end`."""
    seen, finish = [], Evaluate.finish

    def watched(self, method, *arguments, **settings):
        seen.append((method.device.type, self.engine.measures[0].judge.device.type))
        found = finish(self, method, *arguments, **settings)
        seen.append((method.device.type, self.engine.measures[0].judge.device.type))
        return found

    monkeypatch.setattr(Evaluate, "finish", watched)
    words = ["--trainer.max_steps", "1", "--evaluate.images", "1", "--evaluate.specific_images", "0",
             "--evaluate.sampling_steps", "1", "--data.batch_size", "4", "--evaluate.measures.judge.init_args.faces", "false",
             "--evaluate.measures.reference.init_args.count", "150"]  # fmt: skip
    assert train(device, *words) == 0
    assert seen == [(device, device)] * 2
