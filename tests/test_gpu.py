"""What only a CUDA device shows; `benchmarks/on_gpu.sh` runs these first."""

import pytest
import torch

from fairanon.callbacks import Evaluate
from fairanon.cli import main
from fairanon.evaluators import TinyAttributes, TinyEmbedder
from fairanon.solvers import DynamicWeightAverage
from tests.conftest import REPOSITORY, write_preferences

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]
SMALL = ["--evaluate", "null", "--trainer.max_steps", "3", "--checkpoint_every", "1", "--data.batch_size", "4",
         "--trainer.limit_val_batches", "0"]  # fmt: skip


@pytest.fixture
def place(tmp_path, monkeypatch):
    (tmp_path / "experiments").symlink_to(REPOSITORY / "experiments")
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("FAIRANON_RUN", raising=False)
    write_preferences(tmp_path / "pairs")
    return tmp_path


@pytest.mark.parametrize("overlay", ["fp16", "bf16"])
def test_half_precision_trains_with_a_scaled_loss_where_it_must(place, overlay):
    words = ["train", "popalign_tiny", "--overlay", overlay, "--data.folder", "pairs", *SMALL]
    assert main(words) == 0
    (run,) = (path.parent for path in place.glob("runs/popalign_tiny/*/run.json") if not path.parent.is_symlink())
    state = torch.load(run / "checkpoints" / "last.ckpt", map_location="cpu", weights_only=True)
    assert ("MixedPrecision" in state) is (overlay == "fp16")
    assert all(value.dtype == torch.float32 and value.isfinite().all() for value in state["state_dict"].values())


def test_a_solver_goes_on_where_the_model_is():
    solver = DynamicWeightAverage()
    losses, active = torch.tensor([1.0, 2.0, 3.0]), torch.ones(3, dtype=torch.bool)
    for step in range(30):
        solver.weights(losses, None, active, step)
    solver.to(torch.device("cuda"))
    assert solver.weights(losses.cuda(), None, active.cuda(), 30).values.is_cuda


def test_judges_work_on_the_gpu_and_agree_with_the_cpu():
    images = torch.randint(0, 256, (4, 3, 64, 64), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    for judge, ask in ((TinyAttributes(faces=False), "classify"), (TinyEmbedder(), "embed")):
        here = getattr(judge, ask)(images)
        judge.to("cuda")
        there = getattr(judge, ask)(images)
        here, there = (found["tone"] if isinstance(found, dict) else found.nan_to_num() for found in (here, there))
        torch.testing.assert_close(here, there, atol=1e-3, rtol=1e-3)


def test_adam_in_eight_bits(place):
    pytest.importorskip("bitsandbytes")
    assert main(["train", "popalign_tiny", "--overlay", "adam8bit", "--data.folder", "pairs", *SMALL]) == 0


def test_a_rehearsal_measures_after_training_where_it_measured_before(place, capsys):
    assert main(["rehearse", "popalign_tiny"]) == 0
    assert "GiB, the most of any stage" in capsys.readouterr().out


def test_the_trained_model_is_measured_on_the_gpu(place, monkeypatch):
    """Lightning puts a model back to the CPU before `on_fit_end`."""
    seen, finish = [], Evaluate.finish

    def watched(self, trainer, method, *arguments, **settings):
        seen.append((method.device.type, self.measure.judge.device.type))
        finish(self, trainer, method, *arguments, **settings)
        seen.append((method.device.type, self.measure.judge.device.type))

    monkeypatch.setattr(Evaluate, "finish", watched)
    words = ["train", "popalign_tiny", "--data.folder", "pairs", "--trainer.max_steps", "1", "--evaluate.images", "2",
             "--evaluate.specific_images", "1", "--evaluate.sampling_steps", "2", "--data.batch_size", "4",
             "--evaluate.measures.judge.init_args.faces", "false"]  # fmt: skip
    assert main(words) == 0
    assert seen == [("cuda", "cuda")] * 2
