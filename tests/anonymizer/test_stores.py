"""Collections in an object store: the same bytes as on a disk, goes on after a kill, nobody works there twice."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
import zipfile

import pytest

from fairanon import places
from fairanon.anonymizer import block
from fairanon.anonymizer.manifest import Journal, Result
from fairanon.cli import main
from fairanon.places import StoreLock, place
from tests.anonymizer.scenes import write_scenes
from tests.anonymizer.test_folder import TINY, files, pictures
from tests.conftest import REPOSITORY
from tests.stores import objects, s3, upload

__all__ = ["s3"]
WORDS = (*TINY, "--workers", "2")


def run(given, out, *words):
    return main(["anonymize", str(given), str(out), *WORDS, *words])


def told(raw):
    """A manifest's lines, without the times."""
    rows = [json.loads(line) for line in raw.decode().splitlines()]
    return [{key: value for key, value in row.items() if key != "seconds"} for row in rows]


@pytest.fixture(scope="module")
def originals(tmp_path_factory):
    folder = tmp_path_factory.mktemp("stored") / "in"
    write_scenes(folder, [k % 4 for k in range(22)])
    (folder / "broken.png").write_bytes((folder / "0" / "scene 1.png").read_bytes()[:700])
    (folder / "한 #1?.png").write_bytes((folder / "0" / "scene 2.png").read_bytes())
    (folder / ".hidden.png").write_bytes(b"")
    (folder / "notes.txt").write_text("hello")
    (folder / "clip.mp4").write_bytes(b"")
    return folder


@pytest.fixture(scope="module")
def on_a_disk(originals, tmp_path_factory):
    out = tmp_path_factory.mktemp("disk") / "out"
    assert run(originals, out) == 3
    return out


def test_a_store_holds_the_same_bytes_as_a_disk(s3, originals, on_a_disk, monkeypatch):
    upload(originals, f"{s3}/in")
    monkeypatch.setattr(block, "_FILES", 8)
    assert run(f"{s3}/in", f"{s3}/out") == 3
    found = objects(f"{s3}/out")
    assert {name: raw for name, raw in found.items() if name.endswith(".png")} == pictures(on_a_disk)
    assert told(found["manifest.jsonl"]) == told((on_a_disk / "manifest.jsonl").read_bytes())
    assert found["review.csv"] == (on_a_disk / "review.csv").read_bytes()
    assert found["faces.csv"] == (on_a_disk / "faces.csv").read_bytes() and b"<html" in found["report.html"]
    assert not [name for name in found if ".unfinished" in name or ".lock" in name], "nothing of the work is left"
    assert objects(f"{s3}/in") == files(originals), "no original has changed"
    before = objects(f"{s3}/out")
    assert run(f"{s3}/in", f"{s3}/out") == 3 and objects(f"{s3}/out") == before, "there is nothing left to do"


def test_either_side_may_be_a_disk(s3, originals, on_a_disk, tmp_path):
    assert run(originals, f"{s3}/from a disk") == 3
    found = {name: raw for name, raw in objects(f"{s3}/from a disk").items() if name.endswith(".png")}
    assert found == pictures(on_a_disk)
    upload(originals, f"{s3}/again")
    assert run(f"{s3}/again", tmp_path / "out") == 3
    assert pictures(tmp_path / "out") == pictures(on_a_disk)


def test_a_zip_and_a_table_in_a_store(s3, tmp_path, originals):
    folder = tmp_path / "in"
    folder.mkdir()
    with zipfile.ZipFile(folder / "in.zip", "w") as archive:
        archive.write(originals / "0" / "scene 1.png", "a/scene.png")
    (folder / "a.png").write_bytes((originals / "0" / "scene 1.png").read_bytes())
    (folder / "boxes.csv").write_text("file\na.png\n../b.png\ngone.png\n")
    upload(folder, f"{s3}/tables")
    assert run(f"{s3}/tables/in.zip", f"{s3}/zipped") == 0
    assert "published/a/scene.png" in objects(f"{s3}/zipped")
    assert run(f"{s3}/tables/boxes.csv", f"{s3}/tabled") == 3
    rows = {row["file"]: row for row in told(objects(f"{s3}/tabled")["manifest.jsonl"]) if row["face"] is None}
    assert rows["a.png"]["faces"] and rows["../b.png"]["verdict"] == rows["gone.png"]["verdict"] == "not handled"


def test_numbers_of_folders_in_a_store_are_those_of_a_disk(s3, originals, on_a_disk, tmp_path):
    upload(originals, f"{s3}/left")
    upload(on_a_disk, f"{s3}/right")
    for name, first, second in (
        ("disk", str(originals), str(on_a_disk)),
        ("store", f"{s3}/left", f"{s3}/right"),
    ):
        assert main(["evaluate", first, second, "--out", str(tmp_path / name), *TINY]) in (0, 3)
    disk, store = (json.loads((tmp_path / name / "metrics.json").read_text()) for name in ("disk", "store"))
    for key in disk.keys() - {"date", "seconds", "experiment"}:
        assert disk[key] == store[key], key


def test_what_a_kill_left_is_gone_on_with(s3, originals, on_a_disk, monkeypatch):
    """As in a killed process: the journal of a block has half of its files, and nobody ended the lock."""
    address, real, seen = f"{s3}/stopped", Result.put, []

    def put(self, raw, path):
        if len(seen) == 9:
            raise KeyboardInterrupt
        seen.append(path.name)
        real(self, raw, path)

    monkeypatch.setattr(block, "_FILES", 8)
    monkeypatch.setattr(Result, "put", put)
    with pytest.raises(KeyboardInterrupt):
        run(originals, address)
    assert not any(name.startswith("published/") for name in objects(address))
    monkeypatch.setattr(Result, "put", lambda self, raw, path: (seen.append(path.name), real(self, raw, path)))
    assert run(originals, address) == 3
    assert {name: raw for name, raw in objects(address).items() if name.endswith(".png")} == pictures(on_a_disk)
    assert len(seen) < 2 * len(pictures(on_a_disk)), "what was done is not done again"


KILL = """
import os, sys
from fairanon.anonymizer.manifest import Result
real, seen = Result.put, []
def put(self, raw, path):
    real(self, raw, path)
    seen.append(path)
    if len(seen) == 60:
        os.kill(os.getpid(), 9)
Result.put = put
from fairanon.cli import main
sys.exit(main(sys.argv[1:]))
"""


@pytest.mark.slow
def test_two_hundred_pictures_killed_and_gone_on_with(s3, tmp_path):
    write_scenes(tmp_path / "in", [k % 4 for k in range(200)])
    upload(tmp_path / "in", f"{s3}/many")
    words = ["anonymize", f"{s3}/many", f"{s3}/many-out", *WORDS]
    dead = subprocess.run(
        [sys.executable, "-c", KILL, *words], cwd=REPOSITORY, capture_output=True, text=True, check=False
    )
    assert dead.returncode == -signal.SIGKILL, dead.stderr
    assert any(name.endswith(".lock") for name in objects(f"{s3}/many-out")), "the dead process's lock is still there"
    assert main(words) == 3
    assert run(tmp_path / "in", tmp_path / "out") == 3
    found = objects(f"{s3}/many-out")
    assert {name: raw for name, raw in found.items() if name.endswith(".png")} == pictures(tmp_path / "out")
    assert told(found["manifest.jsonl"]) == told((tmp_path / "out" / "manifest.jsonl").read_bytes())


def test_a_second_driver_is_refused(s3, originals, capsys):
    address = f"{s3}/busy"
    lock = StoreLock(place(f"{address}/.unfinished/.lock"))
    assert lock.acquire()
    assert run(originals, address) == 1
    assert f"{address}/.unfinished is being worked on by another process; wait for it" in capsys.readouterr().err
    assert not any(name.startswith("published") for name in objects(address))
    lock.release()
    assert run(originals, address) == 3


def test_a_lock_belongs_to_one_until_it_is_released(s3):
    path = place(f"{s3}/locks/one")
    first, second = StoreLock(path), StoreLock(path)
    assert first.acquire() and first.is_locked and not second.acquire() and not second.is_locked
    first.release()
    assert not path.exists() and second.acquire()
    first.release()
    assert path.exists(), "who does not hold it does not end it"
    second.release()


def test_the_lock_of_a_dead_process_is_taken(s3):
    path = place(f"{s3}/locks/dead")
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    for said in ({"who": "a", "host": socket.gethostname(), "process": gone.pid, "time": time.time()}, {}, "nothing"):
        path.write_bytes(json.dumps(said).encode() if said != "nothing" else b"\0")
        lock = StoreLock(path)
        assert lock.acquire(), said
        lock.release()
    path.write_bytes(
        json.dumps({"who": "a", "host": socket.gethostname(), "process": os.getppid(), "time": time.time()}).encode()
    )
    assert not StoreLock(path).acquire(), "its process lives"


def test_another_machine_holds_a_lock_until_it_falls_silent(s3, monkeypatch):
    monkeypatch.setattr(places, "_BEAT", 0.1)
    monkeypatch.setattr(places, "_DEAD", 0.4)
    path = place(f"{s3}/locks/elsewhere")
    monkeypatch.setattr(socket, "gethostname", lambda: "elsewhere")
    holder = StoreLock(path)
    assert holder.acquire()
    monkeypatch.setattr(socket, "gethostname", lambda: "here")
    time.sleep(0.6)
    other = StoreLock(path)
    assert not other.acquire(), "it is renewed"
    holder._stop.set()  # as if it had died
    time.sleep(0.6)
    assert other.acquire()
    holder.release()
    assert path.exists(), "the dead one's end does not end the living one's"
    other.release()


def test_a_journal_in_a_store_keeps_what_was_added(s3, monkeypatch):
    from fairanon.anonymizer import manifest
    from fairanon.anonymizer.manifest import Outcome

    path = place(f"{s3}/journal.jsonl")
    with Journal(path) as log:
        log.add(Outcome("a", "anonymized", "finished"))
        log.add(Outcome("b", "anonymized", "finished"))
        assert set(Journal.read([path])) == {"a"}, "an object is written anew after a while"
    monkeypatch.setattr(manifest, "_EVERY", 0.0)
    with Journal(path) as log:
        log.add(Outcome("b", "failed", "nowhere"))
        assert {name: one.verdict for name, one in Journal.read([path]).items()} == {"a": "anonymized", "b": "failed"}


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["s3://no-such-bucket/in", "out"], "IN: s3://no-such-bucket/in cannot be reached (there is no bucket no-such-bucket)"),
        (["s3://bucket/nothing", "out"], "IN: s3://bucket/nothing is missing"),
        (["in", "s3://no-such-bucket/out"], "OUT: s3://no-such-bucket/out cannot be reached (there is no bucket"),
        (["in", "ftp://host/out"], "out: ftp://host/out: of addresses s3://BUCKET/FOLDER and gs://BUCKET/FOLDER are known"),
        (["in", "s3://"], "names no bucket; write s3://BUCKET/FOLDER"),
        (["in", "out", "--replace-with", "s3://bucket/a.png"], "--replace-with: s3://bucket/a.png lies in an object store"),
        (["s3://bucket/x", "s3://bucket/x/y"], "OUT: s3://bucket/x/y must not be s3://bucket/x, nor lie in it or round it"),
        (["in", "s3://bucket/out", "--keep-date"], "--keep-date: files in an object store have the time at which"),
    ],
)  # fmt: skip
def test_a_place_that_cannot_be_is_one_sentence(s3, tmp_path, monkeypatch, capsys, words, said):
    monkeypatch.chdir(tmp_path)
    write_scenes(tmp_path / "in", [1])
    place("s3://bucket/x/a.png").write_bytes(b"")
    assert main(["anonymize", *words, *TINY]) in (1, 2)
    err = capsys.readouterr().err
    assert said in err and err.count("\n") == 1 and "Traceback" not in err


def test_a_store_that_does_not_answer_is_one_sentence(s3, tmp_path, monkeypatch, capsys):
    import s3fs

    write_scenes(tmp_path / "in", [1])
    s3fs.S3FileSystem.clear_instance_cache()
    with monkeypatch.context() as patch:
        patch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
        patch.setenv("AWS_MAX_ATTEMPTS", "1")
        assert main(["anonymize", str(tmp_path / "in"), f"{s3}/out", *TINY]) == 1
    s3fs.S3FileSystem.clear_instance_cache()
    err = capsys.readouterr().err
    assert "OUT: s3://bucket/out cannot be reached (" in err and err.count("\n") == 1 and "Traceback" not in err


def test_without_its_package_a_store_is_one_sentence(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "upath", None)
    assert main(["anonymize", str(tmp_path), "s3://bucket/out"]) == 2
    assert 'object stores need s3fs: pip install "fairanon[stores]"' in capsys.readouterr().err
