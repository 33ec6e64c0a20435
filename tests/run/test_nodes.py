"""A training on two machines, as torchrun starts it: two processes, a folder that they share, gloo between them."""

import json
import os
import signal
import socket
import subprocess
import sys
import time

import pytest
import torch

from tests.conftest import REPOSITORY, write_preferences

WORDS = ["--trainer.max_steps", "6", "--trainer.val_check_interval", "1000000", "--checkpoint_every", "2", "--log", "none",
         "--trainer.log_every_n_steps", "1", "--evaluate", "null", "--data.folder", "pairs", "--trainer.accelerator", "cpu",
         "--model.optimizer", "torch.optim.SGD", "--model.optimizer.lr", "0.01",
         "--model.lr_scheduler", "torch.optim.lr_scheduler.ConstantLR", "--model.prior_weight", "0"]  # fmt: skip


@pytest.fixture
def place(tmp_path):
    (tmp_path / "experiments").symlink_to(REPOSITORY / "experiments")
    write_preferences(tmp_path / "pairs")
    return tmp_path


def start(place, *words, **environment):
    return subprocess.Popen(
        [sys.executable, "-m", "fairanon", "train", "popalign_tiny", *WORDS, *words], cwd=place, text=True,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1", **environment},
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip


def two_machines(place, *words):
    """As ``torchrun --nnodes 2 --nproc_per_node 1`` starts them."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    shared = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "1", "GROUP_WORLD_SIZE": "2", "LOCAL_RANK": "0", "MASTER_ADDR": "127.0.0.1",
              "MASTER_PORT": port, "TORCHELASTIC_RUN_ID": "a job"}  # fmt: skip
    return [
        start(
            place,
            "--overlay",
            "nodes",
            "--trainer.devices",
            "1",
            "--data.batch_size",
            "2",
            *words,
            **shared,
            RANK=rank,
            GROUP_RANK=rank,
        )
        for rank in "01"
    ]


def weights(folder):
    return torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]


def last(place):
    (record,) = place.glob("runs/popalign_tiny/2*/run.json")
    return record.parent


@pytest.mark.slow
def test_two_machines_train_one_run_and_another_goes_on_alone(place):
    both = two_machines(place)
    said = [one.communicate(timeout=400)[0] for one in both]
    assert [one.returncode for one in both] == [0, 0], "\n".join(text[-2500:] for text in said)
    folder = last(place)
    assert json.loads((folder / "run.json").read_text())["finished"] and (folder / "lora.safetensors").exists()
    assert len(list(place.glob("runs/popalign_tiny/2*"))) == 1, "one run, not one for each machine"
    found = weights(folder)
    alone = start(place, "--data.batch_size", "4")
    text = alone.communicate(timeout=400)[0]
    assert alone.returncode == 0, text[-2500:]
    other = next(path.parent for path in place.glob("runs/popalign_tiny/2*/run.json") if path.parent != folder)
    for name, value in weights(other).items():
        torch.testing.assert_close(found[name], value, rtol=1e-4, atol=1e-5, msg=name)


@pytest.mark.slow
def test_killed_on_two_machines_it_goes_on_with_one(place):
    both = two_machines(place, "--trainer.max_steps", "4000")
    deadline = time.monotonic() + 400
    while not list(place.glob("runs/popalign_tiny/2*/checkpoints/last.ckpt")) and time.monotonic() < deadline:
        time.sleep(0.2)
    for one in both:
        one.send_signal(signal.SIGKILL)
        one.communicate()
    folder = last(place)
    step = torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)["global_step"]
    alone = start(place, "--data.batch_size", "2", "--trainer.max_steps", "4000")
    deadline = time.monotonic() + 300
    while (
        torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)["global_step"] <= step
        and time.monotonic() < deadline
    ):
        time.sleep(1)
    alone.send_signal(signal.SIGTERM)
    said = alone.communicate(timeout=120)[0]
    assert f"going on with the unfinished run {folder.relative_to(place)}" in said, said[-2500:]
    assert torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)["global_step"] > step
