"""``FAIRANON_STORE``: what one machine began, another one goes on with; each folder of a test is a machine's disk."""

import csv
import json
import os
import shutil
import subprocess
import sys
import time

import pytest

import fairanon
from fairanon.callbacks.run_record import RunRecord
from fairanon.cli import main
from fairanon.config.runs import BusyError
from fairanon.evaluation.engine import Engine
from fairanon.locks import StoreLock
from fairanon.mirror import Mirror, kept
from fairanon.places import PlaceError, StoreError, listing, place
from fairanon.prepare import RegionMasks
from tests.conftest import REPOSITORY
from tests.stores import objects, s3

__all__ = ["s3"]


@pytest.fixture
def machine(s3, tmp_path, monkeypatch, request):
    """Goes to a machine by its name."""
    monkeypatch.setenv("FAIRANON_STORE", f"{s3}/{request.node.name[:40]}")
    monkeypatch.setenv("WANDB_MODE", "disabled")

    def go(name):
        folder = tmp_path / name
        if not folder.exists():
            folder.mkdir()
            (folder / "experiments").symlink_to(REPOSITORY / "experiments")
        monkeypatch.chdir(folder)
        return folder

    return go


def fails(*_):
    raise StoreError(5, "its store failed")


def test_a_folder_and_its_copy_are_the_same_and_the_newer_file_counts(s3, tmp_path, monkeypatch):
    there, first, second = place(f"{s3}/mirror/x"), tmp_path / "first", tmp_path / "second"
    for name, text in (("a.txt", "a"), ("b/last.ckpt", "1"), ("b/half.partial", "?"), (".lock", "")):
        (first / name).parent.mkdir(parents=True, exist_ok=True)
        (first / name).write_text(text)
    Mirror(first, there).push()
    assert objects(f"{s3}/mirror/x") == {"a.txt": b"a", "b/last.ckpt": b"1"}, "nothing that passes"
    copy = Mirror(second, there)
    copy.fetch()
    assert (second / "a.txt").read_text() == "a" and not list(second.rglob("*.partial"))
    (second / "b" / "last.ckpt").write_text("2")  # as long as the old one
    copy.push()
    assert objects(f"{s3}/mirror/x")["b/last.ckpt"] == b"2"
    (first / "a.txt").write_text("not written back before a kill")
    Mirror(first, there).fetch()
    assert (first / "b" / "last.ckpt").read_text() == "2", "another machine came further"
    assert (first / "a.txt").read_text() == "not written back before a kill", "here it is newer"
    before = {path: path.stat().st_mtime_ns for path in second.rglob("*.*")}
    copy.fetch()
    copy.push()
    assert {path: path.stat().st_mtime_ns for path in second.rglob("*.*")} == before, "nothing travels twice"

    (first / "b" / "last.ckpt").write_text("not written back")
    Mirror(second, there).push()
    with monkeypatch.context() as patch, pytest.raises(StoreError):
        patch.setattr("fairanon.mirror.in_store", lambda _: there)
        patch.setattr(Mirror, "fetch", fails)
        with kept(first):
            pytest.fail("nothing is done")
    assert objects(f"{s3}/mirror/x")["b/last.ckpt"] == b"2", "a fetch that fails replaces nothing"
    with monkeypatch.context() as patch, pytest.raises(RuntimeError, match="the work"):
        patch.setattr("fairanon.mirror.in_store", lambda _: there)
        with kept(second), kept(second / "b"):  # what lies in it is kept already
            (second / "a.txt").write_text("reached")
            raise RuntimeError("the work")
    assert objects(f"{s3}/mirror/x")["a.txt"] == b"reached"
    (second / "a.txt").write_text("a")
    Mirror(second, there).push()

    def taken_over():
        raise BusyError("another machine goes on there")

    (second / "a.txt").write_text("late")
    with pytest.raises(BusyError):
        Mirror(second, there, taken_over).push()
    assert objects(f"{s3}/mirror/x")["a.txt"] == b"a"


def losses(run):
    with (run / "metrics.csv").open() as file:
        return [(row["step"], row["train/loss"]) for row in csv.DictReader(file)]


def test_a_run_that_was_stopped_goes_on_on_another_machine(machine, s3, monkeypatch, capsys):
    settings = ["--trainer.max_steps=400", "--checkpoint_every=20", "--log", "none"]
    whole = machine("whole")
    monkeypatch.delenv("FAIRANON_STORE")
    assert main(["train", "popalign_gaussian", *settings]) == 0
    monkeypatch.setenv("FAIRANON_STORE", f"{s3}/run")
    first = machine("first")
    process = subprocess.Popen(
        [sys.executable, "-m", "fairanon", "train", "popalign_gaussian", *settings],
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
    )
    while not any(name.endswith("run.json") for name in listing(place(f"{s3}/run"))):
        assert process.poll() is None, "it ended before it was kept"
        time.sleep(0.05)
    process.kill()
    process.wait()
    shutil.rmtree(first / "runs")  # the machine is gone
    second = machine("second")
    capsys.readouterr()
    for name in objects(f"{s3}/run"):  # it was killed: another machine would watch its lock for two minutes
        if name.endswith("/.lock"):
            (place(f"{s3}/run") / name).unlink()
    assert main(["train", "popalign_gaussian", *settings]) == 0
    assert "going on with the unfinished run" in capsys.readouterr().out
    (run,) = (second / "runs" / "popalign_gaussian").glob("2*")
    (uninterrupted,) = (whole / "runs" / "popalign_gaussian").glob("2*")
    assert losses(run) == losses(uninterrupted)
    there = objects(f"{s3}/run/runs/popalign_gaussian/{run.name}")
    assert json.loads(there["run.json"])["finished"] and there["metrics.csv"] == (run / "metrics.csv").read_bytes()
    machine("third")
    from fairanon.config.experiments import resolve
    from fairanon.config.runs import bring, find_run
    from fairanon.config.settings import FairAnonCLI

    text = FairAnonCLI(resolve("popalign_gaussian", settings=settings[:2]).words(), build=False).text
    found = find_run("popalign_gaussian", text, finished=True)
    assert not found.exists(), "asking fetches nothing"
    bring(found)
    assert found.name == run.name and (found / "metrics.csv").exists(), "a finished run is fetched, not trained again"
    assert (found.parent / "latest" / "run.json").exists()
    (found / "run.json").write_text((found / "run.json").read_text().replace('"finished": true', '"finished": false'))
    (found / "metrics.csv").write_text("of before")
    (found / ".kept.json").unlink()
    bring(found)  # another machine finished what this one began
    assert losses(found) == losses(run)


def test_a_run_is_worked_on_by_one_machine(machine, monkeypatch):
    machine("first")
    request = fairanon.TrainRequest("popalign_gaussian", settings={"trainer.max_steps": 5, "checkpoint_every": 1})

    def dies(*_):
        raise OSError("the machine is gone")

    with monkeypatch.context() as patch:
        patch.setattr(RunRecord, "on_fit_start", dies)
        with pytest.raises(fairanon.UserError, match="the machine is gone"):
            fairanon.train(request, progress=False)
    store = place(os.environ["FAIRANON_STORE"])
    (name,) = [name for name in listing(store) if name.endswith("run.json")]
    lock = StoreLock(store / name.removesuffix("run.json") / ".lock")
    assert lock.acquire()
    try:
        machine("second")
        with pytest.raises(fairanon.UserError, match="is being worked on by another process"):
            fairanon.train(request, progress=False)
    finally:
        lock.release()
    assert json.loads((fairanon.train(request, progress=False).folder / "run.json").read_text())["finished"]


def test_a_prepared_set_is_made_once(machine, tmp_path, monkeypatch):
    first = machine("first")
    from tests.prepare.test_region_masks import draw_scenes, render, write_image

    pictures = tmp_path / "pictures"
    for n, image in enumerate(render(draw_scenes(3, range(3), "balanced"), masks=True).image):
        write_image(image, pictures / f"{n}.png")
    recipe = tmp_path / "masks.yaml"
    recipe.write_text(
        "prepare:\n  class_path: fairanon.prepare.RegionMasks\n  init_args:\n    folder: prepared/masks\n    images: nowhere\n"
        "    detector: {class_path: fairanon.evaluators.TinyDetector}\n"
    )
    assert main(["prepare", str(recipe), str(pictures), "--device", "cpu"]) == 0
    second = machine("second")
    monkeypatch.setattr(RegionMasks, "make", lambda *_: pytest.fail("it is made already"))
    assert main(["prepare", str(recipe), str(pictures), "--device", "cpu"]) == 0
    for path in (first / "prepared" / "masks").rglob("*.png"):
        assert (second / path.relative_to(first)).read_bytes() == path.read_bytes()


def test_parts_of_an_audit_need_no_disk_that_all_see(machine, monkeypatch):
    words = ["audit", "tiny", "--images", "2", "--specific-images", "1", "--steps", "1", "--batch-size", "20"]
    for name, part in (("first", "1/2"), ("second", "2/2")):
        machine(name)
        assert main([*words, "--device", "cpu", "--part", part]) == 0
    third = machine("third")
    monkeypatch.setattr(Engine, "_judge_chunk", lambda *_: pytest.fail("nothing is left to draw"))
    assert main([*words, "--device", "cpu", "--finish"]) == 0
    result = (third / "runs" / "audits" / "tiny" / "audit.json").read_bytes()
    assert objects(f"{os.environ['FAIRANON_STORE']}/runs/audits/tiny")["audit.json"] == result
    monkeypatch.undo()


@pytest.mark.slow
def test_judged_images_that_are_damaged_here_come_from_the_store_again(machine, capsys):
    folder = machine("first")
    words = [
        "audit",
        "tiny",
        "--images",
        "2",
        "--specific-images",
        "1",
        "--steps",
        "1",
        "--batch-size",
        "40",
        "--device",
        "cpu",
    ]
    assert main(words) == 0
    (chunk, *_) = sorted((folder / "runs" / "audits").rglob("*.safetensors"))
    whole = chunk.read_bytes()
    chunk.write_bytes(whole[:100])
    assert main(words) == 1 and "is damaged" in capsys.readouterr().err
    chunk.unlink()
    assert main(words) == 0 and chunk.read_bytes() == whole


def test_what_is_no_store_and_what_would_not_be_kept_is_said(s3, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "experiments").symlink_to(REPOSITORY / "experiments")
    monkeypatch.setenv("FAIRANON_STORE", "ftp://somewhere/x")
    assert main(["train", "popalign_gaussian", "--trainer.max_steps=1", "--log", "none"]) == 1
    assert "FAIRANON_STORE: ftp://somewhere/x is no address that is known" in capsys.readouterr().err
    monkeypatch.setenv("FAIRANON_STORE", f"{s3}/x")
    with pytest.raises(PlaceError, match=r"lies outside of .* and would not be kept"), kept(tmp_path.parent):
        pytest.fail("nothing is done there")
