"""The command itself, without a network: killed at any moment it goes on as if nothing had happened."""

import contextlib
import os
import random
import signal
import subprocess
import sys
import threading
import time
import zipfile
from pathlib import Path

import pytest
import torch
from PIL import Image

from fairanon import engines
from fairanon.anonymizer import block
from fairanon.cli import main
from fairanon.imaging import read_image
from tests.anonymizer.scenes import write_scenes
from tests.anonymizer.test_folder import TINY, files, lines, pictures
from tests.anonymizer.test_photos import metadata
from tests.conftest import REPOSITORY

OFFLINE = """
import socket

def refuse(*args, **kwargs):
    raise OSError("the test has no network")

socket.socket.connect = socket.socket.connect_ex = socket.getaddrinfo = socket.create_connection = refuse
"""
COUNTS = [k % 6 for k in range(200)]
pytestmark = pytest.mark.timeout(2400)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """200 scenes, some broken files, some that are none, a zip that leads outside; and Python without a network."""
    root = tmp_path_factory.mktemp("collection")
    write_scenes(root / "in", COUNTS)
    (root / "in" / "broken.png").write_bytes((root / "in" / "0" / "scene 1.png").read_bytes()[:900])
    (root / "in" / "empty.jpg").write_bytes(b"")
    Image.new("RGB", (8, 8)).save(
        root / "in" / "moves.gif", save_all=True, append_images=[Image.new("RGB", (8, 8), "red")]
    )
    (root / "in" / "notes.txt").write_text("hello")
    with zipfile.ZipFile(root / "in" / "evil.zip", "w") as archive:
        archive.writestr("../evil.png", b"")
    (root / "offline").mkdir()
    (root / "offline" / "sitecustomize.py").write_text(OFFLINE)
    return root


def start(place, out, *words, given="in"):
    command = [
        sys.executable,
        "-m",
        "fairanon",
        "anonymize",
        str(place / given),
        str(out),
        *TINY,
        "--detector-threshold",
        ".2",
        *words,
    ]
    path = os.pathsep.join([str(place / "offline"), str(REPOSITORY)])
    return subprocess.Popen(
        command, env={**os.environ, "PYTHONPATH": path}, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def finish(process):
    said, complaints = process.communicate(timeout=1500)
    return process.returncode, said, complaints


def noted(out):
    """How much the journals of all blocks say."""
    return sum(path.stat().st_size for path in (out / ".unfinished").rglob("journal.jsonl"))


def through(place, out, words, kills, longest):
    """Run to the end, killed so many times at random moments on the way; and once without being killed."""
    whole = finish(start(place, out.parent / "whole", *words))
    assert whole[0] == 3, whole[2][-2000:]
    moments, killed = random.Random(0), 0
    for _ in range(kills):
        before = noted(out)
        process = start(place, out, *words)
        while process.poll() is None and noted(out) == before:
            time.sleep(0.01)  # until it has come as far as it was, and a little further
        time.sleep(moments.uniform(0, longest))
        killed += process.poll() is None
        process.kill()
        process.communicate()
    code, said, complaints = finish(start(place, out, *words))
    assert code == 3, complaints[-2000:]
    return said, killed


@pytest.mark.slow
@pytest.mark.parametrize("method", ["mask", "pixelate", "blur"])
def test_killed_twenty_times_it_is_as_one_run(place, tmp_path, method):
    before = files(place / "in")
    said, killed = through(place, tmp_path / "out", ("--method", method), 20, longest=0.15)
    assert killed >= 15 and files(place / "in") == before
    out, whole = tmp_path / "out", tmp_path / "whole"
    assert lines(out) == lines(whole) and pictures(out) == pictures(whole)
    rows = [row for row in lines(out) if row["face"] is None]
    known = [row for row in lines(out) if row["face"] is not None and not row["found_late"]]
    assert len(rows) == 204 and len(known) == sum(COUNTS), "besides edges of masks that a detector takes for a face"
    finished = {row["file"] for row in rows if row["publishable"]}
    verdicts = {name: {row["verdict"] for row in lines(out) if row["file"] == name} for name in finished}
    good = {"anonymized", "covered", "obscured"}
    assert all(found <= good for found in verdicts.values())
    there = {name.removeprefix("published/") for name in pictures(out) if name.startswith("published/")}
    assert there == finished and f"{len(finished)} of 204 files may be published" in said
    assert all(metadata((out / name).read_bytes()) == [] for name in pictures(out))
    assert (
        sum(row["verdict"] == "unreadable" for row in rows) == 3
        and sum(row["verdict"] == "no face" for row in rows) == 34
    )
    assert not (out / ".unfinished").exists() and len(finished) >= 150


@pytest.mark.slow
@pytest.mark.parametrize(
    "words",
    [
        ("--method", "id2face", "--checkpoint", "runs/id2face_tiny/latest", "--landmarks", "tiny_landmarks"),
        (
            "--method",
            "ano-face-fair",
            "--checkpoint",
            str(REPOSITORY / "fairanon" / "assets" / "inpainting"),
            "--box-scale",
            "2",
        ),
    ],
    ids=["id2face", "ano-face-fair"],
)
def test_new_faces_pass_and_a_killed_run_draws_the_same(place, tmp_path, monkeypatch, words):
    monkeypatch.chdir(tmp_path)  # no run of one's own: the weights that come along
    words = (*words, "--cut-scale", "2.76", "--seed", "5", "--steps", "12")
    _, killed = through(place, tmp_path / "out", words, 4, longest=8.0)
    assert killed >= 3
    out, whole = tmp_path / "out", tmp_path / "whole"
    faces = [row for row in lines(whole) if row["face"] is not None and not row["found_late"]]
    assert len(faces) == sum(COUNTS)
    assert sum(row["verdict"] == "anonymized" and row["tries"] == 1 for row in faces) >= 0.98 * len(faces)
    assert [row["verdict"] for row in lines(out)] == [row["verdict"] for row in lines(whole)]
    one, other = pictures(out), pictures(whole)
    assert one.keys() == other.keys()
    for name in one:
        first, second = (read_image(folder / name, name).int() for folder in (out, whole))
        assert (first - second).abs().max() <= 1, name


@pytest.mark.slow
def test_a_zip_that_leads_outside_is_refused_by_the_command(place, tmp_path):
    code, _, complaints = finish(start(place, tmp_path / "out", given="in/evil.zip"))
    assert code == 1 and "its name leads outside" in complaints and not (tmp_path / "out").exists()


def on_two(place, out, monkeypatch, meanwhile=lambda children: None, over=None):
    """The command in this process, which has two others work on four blocks; what happens when the first file is done."""
    monkeypatch.setattr(block, "_FILES", 50)

    def wait_for_the_first():
        while not noted(out):
            time.sleep(0.01)
        here = os.getpid()
        found = [
            int(word)
            for task in Path(f"/proc/{here}/task").iterdir()
            for word in (task / "children").read_text().split()
        ]
        meanwhile([pid for pid in found if b"spawn_main" in Path(f"/proc/{pid}/cmdline").read_bytes()])

    watch = threading.Thread(target=wait_for_the_first, daemon=True)
    watch.start()
    code = main(["anonymize", str(place / "in"), str(out), *TINY, "--detector-threshold", ".2", "--device", "cpu,cpu"])
    if over is not None:
        over.set()
    watch.join(timeout=60)
    return code


@pytest.mark.slow
def test_two_processes_are_as_one_and_one_that_dies_is_replaced(place, tmp_path, monkeypatch, caplog):
    assert on_two(place, tmp_path / "two", monkeypatch) == 3
    assert on_two(place, tmp_path / "killed", monkeypatch, lambda children: os.kill(children[0], signal.SIGKILL)) == 3
    assert "a process died; another one goes on with its files" in caplog.text
    assert main(["anonymize", str(place / "in"), str(tmp_path / "one"), *TINY, "--detector-threshold", ".2"]) == 3
    for out in (tmp_path / "two", tmp_path / "killed"):
        assert lines(out) == lines(tmp_path / "one") and pictures(out) == pictures(tmp_path / "one")


@pytest.mark.slow
def test_a_block_that_ends_every_process_is_one_sentence(place, tmp_path, monkeypatch, capsys):
    over = threading.Event()

    def kill_all(children):
        while not over.wait(0.2):
            for pid in Path("/proc").glob("[0-9]*"):
                with contextlib.suppress(OSError):
                    if b"spawn_main" in (pid / "cmdline").read_bytes() and parent(pid) == os.getpid():
                        os.kill(int(pid.name), signal.SIGKILL)

    try:
        assert on_two(place, tmp_path / "out", monkeypatch, kill_all, over) == 1
    finally:
        over.set()
    said = capsys.readouterr().err
    assert "ended 3 processes" in said and "the same command goes on" in said and "Traceback" not in said


def parent(process):
    return int((process / "stat").read_text().rpartition(")")[2].split()[1])


@pytest.mark.slow
def test_what_is_wrong_in_another_process_is_told_as_in_this_one(place, tmp_path, monkeypatch, capsys):
    """Settings that somebody changes before the others have read them."""
    before = engines.Crew.__call__

    def changed(self, work, tell):
        settings = tmp_path / "out" / "settings.json"
        settings.write_text(settings.read_text().replace('"method": "mask"', '"method": "blur"'))
        return before(self, work, tell)

    monkeypatch.setattr(engines.Crew, "__call__", changed)
    words = ["anonymize", str(place / "in"), str(tmp_path / "out"), *TINY, "--device", "cpu,cpu"]
    assert main(words) == 1
    said = capsys.readouterr().err
    assert "was begun with --method blur" in said and "Traceback" not in said


@pytest.mark.slow
def test_with_a_key_a_person_is_the_same_stranger_everywhere(place, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    group = tmp_path / "in"
    write_scenes(group, [2] * 3)
    for k in range(3):  # the very same people once more, under another name
        (group / f"again {k}.png").write_bytes((group / "0" / f"scene {k}.png").read_bytes())
    (tmp_path / "key").write_bytes(random.Random(1).randbytes(32))
    (tmp_path / "other key").write_bytes(random.Random(2).randbytes(32))
    words = (
        "--method",
        "id2face",
        "--checkpoint",
        "runs/id2face_tiny/latest",
        "--landmarks",
        "tiny_landmarks",
        "--cut-scale",
        "2.76",
    )
    for name in ("key", "other key"):
        process = start(place, tmp_path / name.replace("key", "out"), *words, "--key-file", name, given=group)
        code, _, complaints = finish(process)
        assert code in (0, 3), complaints[-2000:]
    from fairanon.evaluators import TinyEmbedder

    judge = TinyEmbedder("embedder_b")

    def seen(out, name):
        path = next(p for p in (out / "published" / name, out / "review" / name) if p.exists())
        row = [line for line in lines(out) if line["file"] == name and line["face"] is not None]
        pixels = read_image(path, name)
        cuts = [judge.align(pixels, torch.tensor(one["box"])).crop(pixels, 64) for one in row]
        return judge.embed_aligned(torch.stack(cuts))

    same, apart = [], []
    for k in range(3):
        first = seen(tmp_path / "out", f"0/scene {k}.png")
        same.append((first * seen(tmp_path / "out", f"again {k}.png")).sum(1))
        apart.append((first * seen(tmp_path / "other out", f"0/scene {k}.png")).sum(1))
    assert torch.cat(same).mean() > torch.cat(apart).mean() + 0.3


@pytest.mark.slow
def test_a_killed_run_holds_no_lock(place, tmp_path):
    given = tmp_path / "in"
    write_scenes(given, [1, 2])
    process = start(place, tmp_path / "out", given=given)
    with pytest.raises(subprocess.TimeoutExpired):
        process.wait(timeout=1.0)
    process.kill()
    process.communicate()
    code, said, complaints = finish(start(place, tmp_path / "out", given=given))
    assert code == 0 and "2 of 2 files may be published" in said, complaints
    assert "Traceback" not in complaints
