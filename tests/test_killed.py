"""kill -9 at any moment: the same command goes on and ends as if nothing had happened."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from tests.conftest import REPOSITORY
from tests.test_cli import quick

pytestmark = pytest.mark.slow
MOMENTS = 20


def start(folder, words):
    environment = {**os.environ, "WANDB_MODE": "disabled", "PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"}
    (folder / "experiments").exists() or (folder / "experiments").symlink_to(REPOSITORY / "experiments")
    return subprocess.Popen(
        [sys.executable, "-m", "fairanon", *words], cwd=folder, env=environment, start_new_session=True,
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip


def uninterrupted(folder, words):
    folder.mkdir()
    began = time.monotonic()
    assert start(folder, words).wait(600) == 0
    return time.monotonic() - began


def killed(folder, words, seconds):
    """The same at `MOMENTS` random moments, then to its end; how often it was not done yet."""
    folder.mkdir()
    moments, hits = random.Random(0), 0
    for _ in range(MOMENTS):
        process = start(folder, words)
        try:
            process.wait(moments.uniform(0.2, 1.0) * seconds)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            hits += 1
    assert start(folder, words).wait(600) == 0
    return hits


def contents(folder, names):
    return {str(path.relative_to(folder)): path.read_bytes() for name in names for path in sorted(folder.glob(name))}


def numbers(run):
    found = json.loads((run / "metrics.json").read_text())
    return {key: value for key, value in found.items() if key not in ("seconds", "versions")}


def test_a_training(preferences, tmp_path):
    words = quick(preferences, 12)
    seconds = uninterrupted(tmp_path / "whole", words)
    assert killed(tmp_path / "cut", words, seconds) > MOMENTS // 4
    (whole,) = (tmp_path / "whole").glob("runs/popalign_tiny/2*")
    runs = [path.parent for path in (tmp_path / "cut").glob("runs/popalign_tiny/2*/metrics.json")]
    assert runs
    for run in runs:
        if not json.loads((run / "run.json").read_text())["finished"]:
            continue
        assert numbers(run) == numbers(whole)
        trained, wanted = (
            load_file(folder / "lora.safetensors") for folder in (run, whole)
        )  # the header's order varies
        assert trained.keys() == wanted.keys() and all(torch.equal(trained[name], wanted[name]) for name in wanted)
        assert contents(run, ["grids/*.png"]) == contents(whole, ["grids/*.png"]) != {}
    assert not list((tmp_path / "cut").rglob("lora.safetensors.*.partial")), "each attempt cleans up or starts anew"


def test_a_preparation(tmp_path):
    images = tmp_path / "images"
    images.mkdir()
    for n in range(600):
        Image.effect_noise((96, 96), n % 90 + 10).convert("RGB").save(images / f"{n:03}.png")
    words = ["prepare", "regions", str(images), "--prepare.init_args.detector", "fairanon.evaluators.TinyDetector",
             "--prepare.init_args.folder", "out"]  # fmt: skip
    seconds = uninterrupted(tmp_path / "whole", words)
    assert killed(tmp_path / "cut", words, seconds) >= 1
    whole, cut = (
        contents(tmp_path / name / "out", ["metadata.jsonl", "counts.json", "masks/*/*.png"])
        for name in ("whole", "cut")
    )
    assert whole == cut and len(whole) > 2
    assert not list(Path(tmp_path / "cut").rglob("*.partial"))
