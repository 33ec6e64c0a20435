"""An evaluation in stretches: in parts, in other processes, after kills, the numbers are those of one process."""

import json
import os
import shutil
import threading
import time
from contextlib import ExitStack

import pytest
import torch
from safetensors.torch import load_file

from fairanon import engines
from fairanon.anonymizer import stretches
from fairanon.anonymizer.looking import Looked
from fairanon.cli import main
from fairanon.imaging import read_image, write_image
from tests.anonymizer.scenes import write_scenes
from tests.anonymizer.test_folder import TINY as FINDS
from tests.conftest import REPOSITORY

TINY = ("--detector", "tiny_detector", "--recognizer", "tiny_embedder_a,tiny_embedder_b", "--geometry", "tiny_geometry_b", "--size", "64", "--cut-scale", "2.76")  # fmt: skip


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Scenes with nobody to three people, one of them unreadable, and what became of them."""
    root = tmp_path_factory.mktemp("pairs")
    write_scenes(root / "in", [k % 4 for k in range(22)])
    main(["anonymize", str(root / "in"), str(root / "out"), *FINDS, "--no-face", "copy"])
    broken = sorted((root / "out" / "published").rglob("*.png"))[5]
    broken.write_bytes(broken.read_bytes()[:60])
    return root


@pytest.fixture(autouse=True)
def short(monkeypatch):
    monkeypatch.setattr(stretches, "STRETCH", 4)


def evaluate(folders, out, *words):
    return main(["evaluate", str(folders / "in"), str(folders / "out"), "--out", str(out), *TINY, *words])


def numbers(out):
    """Everything that is written but the time of day."""
    metrics = json.loads((out / "metrics.json").read_text())
    for name in ("date", "seconds"):
        del metrics[name]
    assert not (out / stretches.LOOKED).exists(), "what tells who is who is gone"
    return metrics, (out / "faces.csv").read_text(), (out / "table.csv").read_text()


@pytest.fixture(scope="module")
def at_once(folders, tmp_path_factory):
    out = tmp_path_factory.mktemp("once")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(stretches, "STRETCH", 4)
        assert evaluate(folders, out) == 3
    return numbers(out)


def test_parts_give_what_one_process_gives(folders, at_once, tmp_path, capsys):
    assert evaluate(folders, tmp_path, "--finish") == 1
    assert f"--finish: nothing was begun in {tmp_path}" in capsys.readouterr().err
    for part in ("2/3", "1/3", "2/3"):  # one comes twice, one is lost
        assert evaluate(folders, tmp_path, "--part", part) == 0
    said = capsys.readouterr().out
    assert "part 1/3: 8 pairs looked at; nothing is counted before" in said and said.count("part 2/3: 4 pairs") == 2
    assert not (tmp_path / "metrics.json").exists()
    assert oct((tmp_path / stretches.LOOKED).stat().st_mode)[-3:] == "700"
    assert evaluate(folders, tmp_path, "--finish") == 3
    assert numbers(tmp_path) == at_once
    assert "cannot be read" in at_once[0]["left_out"][0]


def test_a_part_that_is_done_is_not_looked_at_again_unless_a_file_or_an_option_changes(folders, tmp_path, monkeypatch):
    looked = []
    look = stretches.Looker.look
    monkeypatch.setattr(
        stretches.Looker, "look", lambda self, pairs, *rest: looked.append(len(pairs)) or look(self, pairs, *rest)
    )
    assert evaluate(folders, tmp_path, "--part", "1/2") == 0
    assert looked == [4, 4]
    assert evaluate(folders, tmp_path, "--part", "1/2") == 0
    assert looked == [4, 4], "nothing is left to do"
    first = folders / "in" / "0" / "scene 1.png"
    os.utime(first, (1, 1))
    assert evaluate(folders, tmp_path, "--part", "1/2") == 0
    assert looked == [4, 4, 4], "a file that was written again"
    assert evaluate(folders, tmp_path, "--part", "1/2", "--side", "640") == 0
    assert looked == [4] * 5


def test_a_part_that_comes_late_is_refused_and_what_is_left_is_said(folders, tmp_path, capsys, caplog, monkeypatch):
    assert evaluate(folders, tmp_path / "done") == 3
    assert evaluate(folders, tmp_path / "done", "--part", "1/2") == 1
    assert f"--part: {tmp_path / 'done'} is finished already" in capsys.readouterr().err
    assert not (tmp_path / "done" / stretches.LOOKED).exists()
    out = tmp_path / "out"
    assert evaluate(folders, out, "--part", "1/1") == 0
    with monkeypatch.context() as patch:
        patch.setattr(stretches, "_inception", lambda _: True)
        with pytest.raises(Exception, match="Inception's weights are on some machines only"):
            stretches.looking(None, False, "cpu", ExitStack())
    with monkeypatch.context() as patch:
        patch.setattr("fairanon.anonymizer.evidence.SHARED", 2.0)  # then no pair shares enough
        assert evaluate(folders, out, "--finish") == 1
    said = capsys.readouterr().err
    assert "share nothing outside of the faces" in said
    assert f"{out / stretches.LOOKED} is left: it tells who is who" in caplog.text
    assert {oct(path.stat().st_mode)[-3:] for path in (out / stretches.LOOKED).iterdir()} == {"600"}
    assert evaluate(folders, out, "--finish") == 3 and not (out / stretches.LOOKED).exists()


def test_pairs_that_are_left_out_leave_the_others_numbers_as_they_are(folders, tmp_path):
    """In the midst of a stretch, and at its border."""
    wrong = tmp_path / "wrong"
    shutil.copytree(folders / "out" / "published", wrong)
    names = sorted(path.relative_to(wrong) for path in wrong.rglob("*.png") if path.stat().st_size > 100)
    others = [read_image(wrong / name, "it") for name in names]
    for k in (2, 4):  # one in the midst of the first stretch, the first of the second
        write_image(255 - others[(k + 7) % len(others)], wrong / names[k])
    words = ("evaluate", str(folders / "in"), str(wrong), *TINY, "--keep-embeddings")
    assert main([*words, "--out", str(tmp_path / "all")]) == 3
    left = json.loads((tmp_path / "all" / "metrics.json").read_text())["left_out"]
    assert [str(names[k]) in " ".join(left) for k in (2, 4)] == [True, True]
    for k in (2, 4):
        (wrong / names[k]).unlink()
    assert main([*words, "--out", str(tmp_path / "few")]) == 3
    assert (tmp_path / "all" / "faces.csv").read_text() == (tmp_path / "few" / "faces.csv").read_text()
    for name in ("originals", "anonymized"):
        one, other = (load_file(tmp_path / out / f"{name}.safetensors") for out in ("all", "few"))
        assert all(torch.equal(one[key], other[key]) for key in one)
    after = [json.loads((tmp_path / out / "metrics.json").read_text())["after"] for out in ("all", "few")]
    assert after[0]["psnr"] == pytest.approx(after[1]["psnr"])


def test_what_is_written_is_read_again_to_the_last_bit(folders, tmp_path):
    request = stretches.EvaluateRequest(
        folders / "in", folders / "out", recognizer="tiny_embedder_b", detector="tiny_detector"
    )
    from fairanon.anonymizer.pairs import pair_up

    pairs = pair_up(folders / "in", folders / "out" / "published").pairs[:6]
    with ExitStack() as stack:
        looked = stretches.looker_of(request, "cpu", stack).look(pairs, {}, lambda _, __: None)
    looked.write(tmp_path / "it.safetensors")
    again = Looked.read(tmp_path / "it.safetensors")
    again.write(tmp_path / "again.safetensors")
    assert (tmp_path / "it.safetensors").read_bytes() == (tmp_path / "again.safetensors").read_bytes()
    assert again.owners == looked.owners and again.unreadable == looked.unreadable and looked.unreadable
    assert [face.distances for face in again.faces] == [face.distances for face in looked.faces]
    (tmp_path / "it.safetensors").write_bytes(b"torn")
    with pytest.raises(OSError, match=r"it\.safetensors is damaged"):
        Looked.read(tmp_path / "it.safetensors")


def test_stored_embeddings_are_compared_at_once(tmp_path, capsys):
    for name in ("a", "b"):
        (tmp_path / f"{name}.safetensors").write_bytes(b"")
    words = ["evaluate", str(tmp_path / "a.safetensors"), str(tmp_path / "b.safetensors"), "--part", "1/2"]
    assert main([*words, "--out", str(tmp_path / "out")]) == 1
    assert "stored embeddings are compared at once" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_process_that_dies_costs_nothing(folders, at_once, tmp_path, monkeypatch, caplog):
    begun, given = engines.Processes.give, []

    def give(self, worker, task):
        ticket = begun(self, worker, task)
        given.append(self._pools[worker])
        if len(given) == 3:
            next(iter(given[0]._processes.values())).kill()
        return ticket

    monkeypatch.setattr(engines.Processes, "give", give)
    assert evaluate(folders, tmp_path, "--device", "cpu,cpu") == 3
    assert "a process died; another one goes on with its files" in caplog.text
    assert numbers(tmp_path) == at_once


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_ray_gives_what_one_process_gives(folders, at_once, tmp_path, monkeypatch, caplog):
    ray = pytest.importorskip("ray")
    from ray.cluster_utils import Cluster

    for name, value in (("RAY_USAGE_STATS_ENABLED", "0"), ("RAY_worker_niceness", "0"), ("PYTHONPATH", str(REPOSITORY))):  # fmt: skip
        monkeypatch.setenv(name, value)
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    second = cluster.add_node(num_cpus=1)

    def kill_the_second_node():
        while not list((tmp_path / stretches.LOOKED).glob("*.safetensors")):
            time.sleep(0.01)
        cluster.remove_node(second, allow_graceful=False)

    watch = threading.Thread(target=kill_the_second_node, daemon=True)
    watch.start()
    try:
        assert evaluate(folders, tmp_path, "--engine", f"ray:{cluster.address}", "--workers", "1") == 3
    finally:
        ray.shutdown()
        cluster.shutdown()
    watch.join(timeout=60)
    assert numbers(tmp_path) == at_once
