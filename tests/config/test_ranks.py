"""Who is the first of several processes, whoever started them."""

import os
import socket
import subprocess
import sys

import pytest

from fairanon.config import ranks
from fairanon.config.experiments import UserError
from fairanon.config.ranks import first_process, nodes, started_together
from fairanon.config.runs import _identity, find_run
from fairanon.files import write_json
from tests.conftest import REPOSITORY

NAMES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "NODE_RANK", "GROUP_WORLD_SIZE", "NNODES", "SLURM_PROCID", "SLURM_NTASKS",
         "SLURM_NNODES", "MASTER_ADDR", "MASTER_PORT")  # fmt: skip


@pytest.mark.parametrize(
    ("environment", "first", "together", "machines"),
    [
        ({}, True, False, 1),
        ({"LOCAL_RANK": "1", "NODE_RANK": "0", "WORLD_SIZE": "2"}, False, False, 1),  # a child of Lightning's
        ({"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "2", "GROUP_WORLD_SIZE": "2"}, True, True, 2),  # torchrun
        (
            {"RANK": "1", "LOCAL_RANK": "0", "WORLD_SIZE": "2", "GROUP_WORLD_SIZE": "2"},
            False,
            True,
            2,
        ),  # its second machine
        (
            {"RANK": "1", "LOCAL_RANK": "1", "WORLD_SIZE": "2", "GROUP_WORLD_SIZE": "1"},
            False,
            True,
            1,
        ),  # its second GPU
        ({"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1"}, True, False, 1),  # torchrun with one process
        ({"SLURM_PROCID": "3", "SLURM_NTASKS": "4", "SLURM_NNODES": "2"}, False, True, 2),
        ({"SLURM_PROCID": "0", "SLURM_NTASKS": "4", "SLURM_NNODES": "2"}, True, True, 2),
        ({"SLURM_PROCID": "0", "SLURM_NTASKS": "1", "SLURM_NNODES": "1"}, True, False, 1),
        ({"SLURM_PROCID": "0", "SLURM_NTASKS": "1", "LOCAL_RANK": "1", "WORLD_SIZE": "2"}, False, False, 1),
        ({"NODE_RANK": "1", "NNODES": "2"}, False, False, 2),
    ],
)
def test_who_is_first_and_who_started_it(environment, first, together, machines, monkeypatch):
    for name in NAMES:
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert (first_process(), started_together(), nodes()) == (first, together, machines)


_ASKS = """
import sys, time
from fairanon.config.ranks import ask, first_process, tell
from fairanon.config.experiments import UserError
if first_process():
    tell("a word", "Größe")
    time.sleep(float(sys.argv[1]))
else:
    print(ask("a word"), flush=True)
    try:
        ask("what is never said")
    except UserError as error:
        print(error, flush=True)
"""


@pytest.mark.slow
def test_others_hear_the_first_process_and_notice_its_end():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    shared = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "PYTHONPATH": str(REPOSITORY)}
    first, second = (
        subprocess.Popen([sys.executable, "-c", _ASKS, "8"], env={**os.environ, **shared, "RANK": rank},
                         stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
        for rank in "01"
    )  # fmt: skip
    said = second.communicate(timeout=120)[0].splitlines()
    assert first.wait(timeout=60) == 0 and said[0] == "Größe"
    assert "the first process cannot be reached" in said[1] and len(said) == 2


def test_nobody_waits_for_a_first_process_that_has_no_address(monkeypatch):
    for name in NAMES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    ranks._store.cache_clear()
    with pytest.raises(UserError, match="MASTER_ADDR or MASTER_PORT is not"):
        ranks.ask("anything")


def test_a_run_is_the_same_on_other_machines():
    text = "seed_everything: 0\ntrainer: {max_steps: 3, devices: 1, num_nodes: 1, strategy: auto}\n"
    other = "seed_everything: 0\ntrainer: {max_steps: 3, devices: 4, num_nodes: 2, strategy: ddp}\n"
    here = _identity("a", text, False)["config"]
    assert here == _identity("a", other, False)["config"] != _identity("a", text.replace("3", "4"), False)["config"]


def test_a_run_goes_on_elsewhere_and_a_finished_one_is_of_its_machines(tmp_path, monkeypatch):
    monkeypatch.setenv("FAIRANON_RUNS", str(tmp_path))
    one = "trainer: {max_steps: 3, devices: 1}\n"
    two = "trainer: {max_steps: 3, devices: 2}\n"
    folder = tmp_path / "a" / "1"
    folder.mkdir(parents=True)
    write_json(folder / "run.json", _identity("a", two, finished=False))
    assert find_run("a", one, finished=False) == find_run("a", two, finished=False) == folder
    write_json(folder / "run.json", _identity("a", two, finished=True))
    assert find_run("a", two, finished=True) == folder and find_run("a", one, finished=True) is None, (
        "another global batch"
    )
