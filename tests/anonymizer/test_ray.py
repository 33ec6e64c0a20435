"""`--engine ray` on two nodes of this machine, one of which is killed; skipped where Ray is not installed."""

import os
import re
import threading
import time
from pathlib import Path

import pytest

from fairanon.anonymizer import block
from fairanon.cli import main
from tests.anonymizer.scenes import write_scenes
from tests.anonymizer.test_folder import TINY, lines, pictures
from tests.conftest import REPOSITORY

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
WORDS = (*TINY, "--detector-threshold", ".2", "--workers", "1")


@pytest.fixture
def cluster(monkeypatch):
    """Two nodes of one core."""
    ray = pytest.importorskip("ray")
    from ray.cluster_utils import Cluster

    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    monkeypatch.setenv("RAY_worker_niceness", "0")
    monkeypatch.setenv("PYTHONPATH", str(REPOSITORY))
    found = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    found.second = found.add_node(num_cpus=1)
    yield found
    ray.shutdown()
    found.shutdown()


def test_a_node_that_dies_costs_nothing_and_nothing_of_a_face_lies_with_ray(cluster, tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(block, "_FILES", 10)
    given, out = tmp_path / "in", tmp_path / "out"
    write_scenes(given, [k % 4 for k in range(200)])
    early = []

    def kill_the_second_node():
        while (
            sum(not (path.parent / "counted.json").exists() for path in (out / ".unfinished").rglob("journal.jsonl"))
            < 2
        ):
            time.sleep(0.01)  # until both are in the middle of a block
        early.append((out / "published").exists())
        cluster.remove_node(cluster.second, allow_graceful=False)

    watch = threading.Thread(target=kill_the_second_node, daemon=True)
    watch.start()
    assert main(["anonymize", str(given), str(out), *WORDS, "--engine", f"ray:{cluster.address}"]) == 3
    watch.join(timeout=60)
    assert early == [False], "nothing is published before the whole is decided"
    assert "a process died; another one goes on with its files" in caplog.text
    assert main(["anonymize", str(given), str(tmp_path / "one"), *WORDS]) == 3
    assert lines(out) == lines(tmp_path / "one") and pictures(out) == pictures(tmp_path / "one")
    import ray

    session = Path(ray._private.worker._global_node.get_session_dir_path())
    kept = [
        path for path in session.rglob("*") if path.is_file() and not path.is_symlink() and os.access(path, os.R_OK)
    ]
    said = b"".join(path.read_bytes() for path in kept if path.stat().st_size < 50_000_000)
    assert kept and not re.search(rb"scene \d+\.png|\x89PNG|embedding", said), "no name, no picture, no embedding"


def test_an_address_where_nobody_answers_is_one_sentence(tmp_path, capsys):
    pytest.importorskip("ray")
    write_scenes(tmp_path / "in", [1])
    assert main(["anonymize", str(tmp_path / "in"), str(tmp_path / "out"), *WORDS, "--engine", "ray:127.0.0.1:1"]) == 1
    said = capsys.readouterr().err
    assert "--engine: no Ray cluster answers at 127.0.0.1:1 " in said and "Traceback" not in said
