"""What a training leaves and when, whoever steps the optimizer."""

import os
import subprocess
import sys
from datetime import timedelta

import pytest
import torch
from lightning.pytorch import Trainer
from lightning.pytorch.loggers import WandbLogger

from fairanon.callbacks.dashboard import Described
from fairanon.run.trainer import SaveLast, build_trainer
from fairanon.run.training import _attention
from tests.conftest import REPOSITORY
from tests.methods.test_fairhuman import data, method, run


@pytest.mark.parametrize("every", [1000, timedelta(hours=1), 1, timedelta(0)])
def test_the_last_state_is_kept_in_time_and_at_the_end(tmp_path, every):
    """FairHuman steps its optimizer itself."""
    path, seen = tmp_path / "checkpoints" / "last.ckpt", []
    saved = SaveLast(path, every)
    whole = saved.on_train_batch_end

    def watched(trainer, *arguments):
        whole(trainer, *arguments)
        seen.append(path.exists())

    saved.on_train_batch_end = watched
    run(tmp_path, 3, callbacks=[saved], enable_checkpointing=True).fit(method(), data())
    assert seen == [every in (1, timedelta(0))] * 3
    assert torch.load(path, map_location="cpu", weights_only=True)["global_step"] == 3, "the last step is not lost"


def test_another_number_of_samples_in_a_step_is_said_where_a_run_goes_on(tmp_path, caplog):
    path = tmp_path / "checkpoints" / "last.ckpt"

    def goes_on(steps, checkpoint, **settings):
        caplog.clear()
        trainer = run(tmp_path, steps, callbacks=[SaveLast(path, 1)], enable_checkpointing=True)
        trainer.fit(method(), data(**settings), ckpt_path=checkpoint, weights_only=True)
        return caplog.text

    assert "a step took" not in goes_on(1, None)
    assert "a step took" not in goes_on(2, path)
    assert "a step took 4 samples before, and takes 2 now (data.batch_size 2 x 1 processes" in goes_on(
        3, path, batch_size=2
    )


def test_a_run_that_goes_on_is_the_same_one_in_wandb(tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "disabled")
    folder = tmp_path / "runs" / "popalign_tiny" / "20261127-101112"
    folder.mkdir(parents=True)
    ids = set()
    for _ in range(2):
        trainer = build_trainer({"accelerator": "cpu", "max_steps": 1}, folder, None, None, 1, Described())
        (online,) = (logger for logger in trainer.loggers if isinstance(logger, WandbLogger))
        ids.add((online._wandb_init["id"], online._wandb_init["resume"]))
    ((name, resume),) = ids
    assert name and resume == "allow"


@pytest.mark.slow
def test_two_ranks_put_a_model_together_without_training_it(tmp_path):
    """As ``inpaint_*`` does: `max_steps` is 0, and saving is a collective call."""
    (tmp_path / "experiments").symlink_to(REPOSITORY / "experiments")
    words = ["train", "simpo_tiny", "--trainer.max_steps", "0", "--evaluate", "null", "--trainer.accelerator", "cpu",
             "--trainer.devices", "2", "--trainer.strategy", "ddp", "--data", "data_modules.pick_a_pic.PickAPic",
             "--data.folder", "pairs"]  # fmt: skip
    from tests.data_modules.test_pick_a_pic import write

    for split in ("train", "validation"):
        write(tmp_path / "pairs", rows=60, split=split)
    done = subprocess.run(
        [sys.executable, "-m", "fairanon", *words], cwd=tmp_path, capture_output=True, text=True, timeout=300, check=False,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    (state,) = (path for path in tmp_path.glob("runs/simpo_tiny/2*/checkpoints/last.ckpt"))
    assert torch.load(state, map_location="cpu", weights_only=True)["global_step"] == 0


@pytest.mark.parametrize(("precision", "plain"), [("bf16-mixed", True), ("32-true", False)])
def test_attention_takes_the_plain_kernel_on_a_cpu_in_bfloat16(precision, plain):
    trainer = Trainer(accelerator="cpu", precision=precision, logger=False, enable_checkpointing=False)
    before = torch.backends.cuda.flash_sdp_enabled()
    with _attention(trainer):
        assert torch.backends.cuda.flash_sdp_enabled() is (before and not plain)
        assert torch.backends.cuda.math_sdp_enabled()
    assert torch.backends.cuda.flash_sdp_enabled() is before
