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

from fairanon import locks, places
from fairanon.anonymizer import block
from fairanon.anonymizer.folder import Job, check_out
from fairanon.anonymizer.manifest import Journal, Result
from fairanon.cli import main
from fairanon.config import runs
from fairanon.imaging import write_image
from fairanon.locks import StoreLock
from fairanon.places import place
from tests.anonymizer.scenes import scene, write_scenes
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
    assert len(seen) <= len(pictures(on_a_disk)) + 1, "what was done is not done again"


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
    said = capsys.readouterr().err
    assert (
        f"{address}/.unfinished is being worked on by another process on {socket.gethostname()} (process {os.getpid()}), heard"
        in said
    )
    assert "wait for it, two minutes if it was killed." in said
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
    said = {"who": "a", "host": "it", "space": locks._space(), "process": gone.pid, "time": time.time()}
    for raw in (json.dumps(said).encode(), b"{}", b"\0"):
        path.write_bytes(raw)
        lock = StoreLock(path)
        assert lock.acquire(), raw
        lock.release()
    for alive in ({**said, "process": os.getppid()}, {**said, "space": "another container of the same name"}):
        path.write_bytes(json.dumps(alive).encode())
        lock = StoreLock(path)
        assert not lock.acquire() and lock.holder().startswith(f"it (process {alive['process']}), heard of ")


def test_a_mark_that_a_killed_process_left_holds_nobody_up(s3):
    path = place(f"{s3}/locks/marked")
    for mark in (b"", json.dumps({"who": "b", "time": time.time() - 500, "host": "x"}).encode()):
        path.write_bytes(b'{"who": "dead1", "time": 1}')
        path.with_name("marked-dead1").write_bytes(mark)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(locks, "_BEAT", 0.1)
            lock = StoreLock(path)
            assert lock.acquire()
        lock.release()
        assert not path.with_name("marked-dead1").exists() and not path.exists()


def test_a_request_that_is_repeated_does_not_refuse_itself(s3, monkeypatch):
    import s3fs

    lock, real, calls = StoreLock(place(f"{s3}/locks/twice")), s3fs.S3FileSystem._call_s3, []

    async def twice(self, method, *words, **more):
        if method == "put_object":
            calls.append(method)
            await real(self, method, *words, **more)
        return await real(self, method, *words, **more)

    monkeypatch.setattr(s3fs.S3FileSystem, "_call_s3", twice)
    assert lock.acquire() and calls == ["put_object"]
    lock.release()


def test_who_lost_a_lock_stops(s3, originals, monkeypatch, capsys):
    """As after a pause of minutes: another process has taken over, and its manifest stays."""
    monkeypatch.setattr(locks, "_BEAT", 0.05)
    address, real = f"{s3}/lost", Job._decide

    def slept(self, engine):
        found = real(self, engine)
        mine = place(f"{address}/.unfinished/.lock")
        lock = runs._locks[place(f"{address}/.unfinished")]
        while not lock.lost:  # a renewal may come between
            mine.write_bytes(json.dumps({"who": "another", "time": time.time()}).encode())
            time.sleep(0.1)
        return found

    monkeypatch.setattr(Job, "_decide", slept)
    assert run(originals, address) == 1
    assert "was taken over by another process" in capsys.readouterr().err
    assert not [name for name in objects(address) if name.startswith("published") or name == "manifest.jsonl"]


def test_a_kill_between_copy_and_removal_leaves_no_picture_behind(s3, tmp_path, monkeypatch):
    """Publishing copied the pictures; then one original changes, and another file joins."""
    write_scenes(tmp_path / "in", [1, 2, 1])
    address, real = f"{s3}/copied", places.remove_file

    def killed(path):
        if "/.unfinished/files/" in str(path):
            raise KeyboardInterrupt
        real(path)

    monkeypatch.setattr("fairanon.anonymizer.folder._MOVERS", 1)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(places, "remove_file", killed)
        run(tmp_path / "in", address)
    (first,) = [name for name in objects(address) if name.startswith("published/")]
    (tmp_path / "in" / first.removeprefix("published/")).write_bytes((tmp_path / "in/0/scene 1.png").read_bytes())
    write_image(scene(9, 1), tmp_path / "in" / "new.png")
    assert run(tmp_path / "in", address) == 0
    assert run(tmp_path / "in", tmp_path / "out") == 0
    found = {name: raw for name, raw in objects(address).items() if name.endswith(".png")}
    assert set(found) == set(pictures(tmp_path / "out"))
    assert found.items() - {(first, found[first])} <= pictures(tmp_path / "out").items()


@pytest.mark.parametrize("call", ["get_object", "put_object", "copy_object"])
def test_a_store_that_fails_costs_no_file(s3, originals, on_a_disk, monkeypatch, capsys, call):
    """An outage ends the command with a sentence, and the same command goes on: nothing is called unreadable or failed."""
    import s3fs
    from botocore.exceptions import EndpointConnectionError

    address, real, calls = f"{s3}/outage {call}", s3fs.S3FileSystem._call_s3, []

    async def failing(self, method, *words, **more):
        if method == call:
            calls.append(words)
            if len(calls) > 11:
                raise EndpointConnectionError(endpoint_url="http://store")
        return await real(self, method, *words, **more)

    upload(originals, f"{s3}/outage")
    with monkeypatch.context() as patch:
        patch.setattr(s3fs.S3FileSystem, "_call_s3", failing)
        assert run(f"{s3}/outage", address) == 1
    err = capsys.readouterr().err
    assert "store failed (Could not connect to the endpoint" in err and "bug" not in err and "Traceback" not in err
    assert run(f"{s3}/outage", address) == 3
    assert told(objects(address)["manifest.jsonl"]) == told((on_a_disk / "manifest.jsonl").read_bytes())


def test_previews_go_and_their_mark_goes_last(s3, originals, monkeypatch, capsys):
    address, real = f"{s3}/previewed", places.remove_file
    assert run(originals, address, "--preview", "2") == 0

    def failing(path):
        if "/preview/" in str(path) and path.name != ".fairanon":
            raise PermissionError(13, "no rights", str(path))
        real(path)

    shown = [name for name in objects(address) if name.startswith("preview/")]
    assert len(shown) > 1
    with monkeypatch.context() as patch:
        patch.setattr(places, "remove_file", failing)
        assert run(originals, address) == 1
    assert "shows originals and cannot be removed" in capsys.readouterr().err
    assert run(originals, address) == 3 and not [name for name in objects(address) if name.startswith("preview/")]


def test_a_whole_bucket_and_a_folder_made_by_hand(s3, originals):
    import s3fs

    s3fs.S3FileSystem(use_listings_cache=False).mkdir("whole")
    upload(originals / "0", "s3://whole")
    assert run("s3://whole", f"{s3}/of a bucket") in (0, 3)
    assert len([name for name in objects(f"{s3}/of a bucket") if name.endswith(".png")]) == 10
    place(f"{s3}/byhand").fs.pipe_file("bucket/byhand/", b"")
    assert run("S3://whole/", f"{s3}/byhand/") in (0, 3)
    for outer, inner in (("s3://whole", "s3://whole/out"), ("s3://whole/in", "s3://whole")):
        with pytest.raises(ValueError, match="nor lie in it or round it"):
            check_out([place(outer)], place(inner))


def test_another_machine_holds_a_lock_until_it_falls_silent(s3, monkeypatch):
    monkeypatch.setattr(locks, "_BEAT", 0.1)
    monkeypatch.setattr(locks, "_DEAD", 0.4)
    path = place(f"{s3}/locks/elsewhere")
    monkeypatch.setattr(locks, "_space", lambda: "elsewhere")
    holder = StoreLock(path)
    assert holder.acquire()
    monkeypatch.setattr(locks, "_space", lambda: "here")
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
        (["in", "ftp://host/out"], "OUT: ftp://host/out is no address that is known; write s3://BUCKET/FOLDER"),
        (["in", "s3://bucket//out"], "OUT: s3://bucket//out has an empty part (//)"),
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
    assert (
        'OUT: s3://bucket/out cannot be reached (Could not connect to the endpoint URL: "http://127.0.0.1:9/' in err
        and err.count("\n") == 1
        and "Traceback" not in err
    )


def test_without_its_package_a_store_is_one_sentence(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "upath", None)
    assert main(["anonymize", str(tmp_path), "s3://bucket/out"]) == 2
    assert 'object stores need s3fs: pip install "fairanon[stores]"' in capsys.readouterr().err


def test_without_a_network_a_google_address_is_refused_at_once(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(places, "has_no_address", lambda url: url == "https://storage.googleapis.com")
    assert main(["anonymize", "gs://bucket/in", str(tmp_path / "out"), *TINY]) == 2
    assert (
        "IN: gs://bucket/in cannot be reached (https://storage.googleapis.com has no address here)"
        in capsys.readouterr().err
    )
