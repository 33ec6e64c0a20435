"""A full disk at every single write: a sentence, nothing half written, and the same command goes on when there is room."""

import errno
import json

import pytest
from PIL import Image

from fairanon import files
from fairanon.cli import main
from tests.conftest import REPOSITORY
from tests.test_cli import quick


@pytest.fixture
def checkout(tmp_path, monkeypatch):
    (tmp_path / "experiments").symlink_to(REPOSITORY / "experiments")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("WANDB_MODE", "disabled")
    return tmp_path


class Disk:
    """Full at the n-th time that something is flushed to it."""

    def __init__(self, monkeypatch):
        self.left, self.real = -1, files.os.fsync
        monkeypatch.setattr("fairanon.files.os.fsync", self.fsync)

    def fsync(self, file):
        self.left -= 1
        if self.left == 0:
            raise OSError(errno.ENOSPC, "No space left on device")
        self.real(file)


def until_there_is_room(words, disk, folder, capsys):
    """The command with the disk full at its first write, then at its second ...; how many writes there were."""
    for writes in range(1, 100):
        disk.left = writes
        code = main(words)
        said = capsys.readouterr().err.strip().splitlines()
        if code == 0:
            return writes
        assert code == 1 and "the disk is full: " in said[-1] and "could not be written" in said[-1], said
        assert not any("Traceback" in line for line in said)
        assert not list(folder.rglob("*.partial"))
    raise AssertionError("it never ended")


def test_a_preparation(checkout, monkeypatch, capsys):
    (checkout / "in").mkdir()
    for n in range(3):
        Image.effect_noise((64, 64), 30 + n).convert("RGB").save(checkout / "in" / f"{n}.png")
    words = ["prepare", "regions", "in", "--prepare.init_args.detector", "fairanon.evaluators.TinyDetector"]
    assert main([*words, "--prepare.init_args.folder", "whole"]) == 0
    writes = until_there_is_room([*words, "--prepare.init_args.folder", "cut"], Disk(monkeypatch), checkout, capsys)
    assert writes > 3
    for name in ("metadata.jsonl", "counts.json"):
        assert (checkout / "cut" / name).read_bytes() == (checkout / "whole" / name).read_bytes()


@pytest.mark.slow
def test_a_training_and_its_export(checkout, preferences, monkeypatch, capsys):
    words = quick(preferences, 4)
    assert main([*words, "--fresh"]) == 0
    (whole,) = checkout.glob("runs/popalign_tiny/2*")
    disk = Disk(monkeypatch)
    assert until_there_is_room(words, disk, checkout, capsys) > 8
    finished = [
        path for path in checkout.glob("runs/popalign_tiny/2*/run.json") if json.loads(path.read_text())["finished"]
    ]
    results = [json.loads((path.parent / "metrics.json").read_text()) for path in finished]
    assert len(results) >= 2 and all(result["after"] == results[0]["after"] for result in results)
    disk.left = 1
    assert main(["export", str(whole), "pipeline"]) == 1 and not (checkout / "pipeline").exists()
    assert "the disk is full" in capsys.readouterr().err
    assert main(["export", str(whole), "pipeline"]) == 0
