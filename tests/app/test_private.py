"""Where the page keeps what it is shown: nobody else reads it, and it is gone afterwards."""

import json
import os
import signal
import stat
import tempfile
from contextlib import suppress
from pathlib import Path

import pytest
from filelock import FileLock

from fairanon.app import private
from fairanon.app.app_request import AppRequest
from fairanon.app.private import forget, private_folder
from fairanon.cli import main
from fairanon.config.experiments import UserError
from tests.browser import start
from tests.conftest import REPOSITORY


@pytest.fixture
def root(tmp_path, monkeypatch):
    monkeypatch.setattr(private, "_roots", lambda: [tmp_path])
    return tmp_path


def test_the_folder_is_ours_alone_and_gone_afterwards(root, monkeypatch):
    monkeypatch.delenv("GRADIO_TEMP_DIR", raising=False)
    before = tempfile.gettempdir(), os.environ.get("TMPDIR")
    with pytest.raises(KeyboardInterrupt), private_folder() as folder:
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700
        assert os.environ["GRADIO_TEMP_DIR"] == os.environ["TMPDIR"] == tempfile.gettempdir() == str(folder)
        Path(tempfile.mkdtemp(), "photograph.jpg").write_bytes(b"somebody")
        raise KeyboardInterrupt
    assert not list(root.iterdir()) and (tempfile.gettempdir(), os.environ.get("TMPDIR")) == before
    assert "GRADIO_TEMP_DIR" not in os.environ


def test_what_a_kill_left_is_removed_and_what_is_used_stays(root):
    (root / "fairanon-app-left" / "desk").mkdir(parents=True)
    (root / "fairanon-app-left" / "desk" / "photograph.jpg").write_bytes(b"somebody")
    (root / "fairanon-app-left" / ".lock").touch()
    (root / "fairanon-app-used").mkdir()
    (root / "somebody's").mkdir()
    (root / "fairanon-app-link").symlink_to(root / "somebody's")
    (root / "fairanon-app-begins").mkdir()  # its process takes the lock in a moment
    for name in ("left", "link", "used"):
        os.utime(root / f"fairanon-app-{name}", (1, 1))
    with FileLock(root / "fairanon-app-used" / ".lock"), private_folder() as folder:
        found = {path.name for path in root.iterdir()}
        assert found == {"fairanon-app-used", "fairanon-app-begins", "fairanon-app-link", "somebody's", folder.name}


def test_what_was_left_is_found_wherever_it_can_be(tmp_path, monkeypatch):
    for name in ("memory", "disk"):
        (tmp_path / name / "fairanon-app-left").mkdir(parents=True)
        os.utime(tmp_path / name / "fairanon-app-left", (1, 1))
    monkeypatch.setattr(private, "_roots", lambda: [tmp_path / "disk", tmp_path / "memory"])  # memory is full today
    with private_folder() as folder:
        assert folder.parent == tmp_path / "disk" and not list((tmp_path / "memory").iterdir())
        assert [path.name for path in (tmp_path / "disk").iterdir()] == [folder.name]


def test_forgetting_leaves_nothing(root):
    with private_folder() as folder:
        (folder / "desk" / "in").mkdir(parents=True)
        (folder / "desk" / "in" / "a.jpg").write_bytes(b"somebody")
        (folder / "upload.jpg").write_bytes(b"somebody")
        forget(folder)
        assert [path.name for path in folder.iterdir()] == [".lock"]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--share"], "somebody else's machine"),
        (["--host", "0.0.0.0"], "--host 0.0.0.0 lets others in: give --password-file"),
        (["--host", "192.168.1.5"], "lets others in"),
        (["--host", "example"], "--host must be an address"),
        (["--port", "70000"], "--port must be from 0 to 65535"),
        (["--host", "0.0.0.0", "--password-file", "none"], "--password-file: none cannot be read"),
        (["--password-file", "short"], "must have 12 letters or more"),
    ],
)
def test_what_would_let_others_in_is_refused(words, said, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("short").write_text("secret\n")
    assert main(["app", *words]) in (1, 2) and said in capsys.readouterr().err


def test_the_password_is_the_first_line(tmp_path):
    (tmp_path / "p").write_text("correct horse battery\nanything else\n")
    request = AppRequest(host="0.0.0.0", password_file=tmp_path / "p")
    assert request.password() == "correct horse battery" and AppRequest().password() is None
    with pytest.raises(UserError, match="share"):
        AppRequest(share=True)


def test_no_file_of_this_machine_is_taken_for_an_upload(root):
    """Whoever presses the button without a browser can name any file."""
    pytest.importorskip("gradio")
    from starlette.testclient import TestClient

    from fairanon.app.server import web_app

    theirs = REPOSITORY / "docs" / "results.png"
    file = {"path": str(theirs), "orig_name": "a.png", "meta": {"_type": "gradio.FileData"}}
    request = AppRequest(detector="tiny_detector", recognizer="tiny_embedder_b")
    with private_folder() as folder, TestClient(web_app(request, folder, None), base_url="http://127.0.0.1") as client:
        found = client.get("/config").json()["dependencies"]
        (begin,) = [one["id"] for one in found if len(one["inputs"]) == 9 and len(one["outputs"]) == 9]
        data = [[file], None, None, "mask", "auto", 0.5, "#7f7f7f", "all", None]
        asked = {"data": data, "fn_index": begin, "session_hash": "somebody"}
        assert client.post("/gradio_api/queue/join", json=asked).status_code == 200
        said = client.get("/gradio_api/queue/data?session_hash=somebody").text  # until it is done
        done = next(json.loads(line[6:]) for line in said.splitlines() if "process_completed" in line)
        assert done["success"] is False
        copies = [path for path in folder.rglob("*") if path.is_file() and path.read_bytes() == theirs.read_bytes()]
        assert not copies


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGTERM, 143), pytest.param(signal.SIGINT, 130, marks=pytest.mark.slow)]
)
def test_the_server_answers_here_alone_and_leaves_nothing(tmp_path, number, code):
    pytest.importorskip("gradio")
    import httpx

    process, address = start(tmp_path)
    try:
        answer = httpx.get(address, timeout=60)
        assert answer.status_code == 200 and answer.headers["cache-control"] == "no-store"
        assert "default-src 'self'" in answer.headers["content-security-policy"]
        assert httpx.get(address, headers={"host": "evil.example"}).status_code == 400
        for path in (REPOSITORY / "pyproject.toml", "/etc/passwd"):  # nothing of this machine
            assert httpx.get(f"{address}/gradio_api/file={path}").status_code in (403, 404)
        for origin in ("http://evil.example", "http://localhost:1"):  # another page in the same browser
            posted = httpx.post(
                f"{address}/gradio_api/upload", files={"files": ("a.png", b"x")}, headers={"origin": origin}
            )
            assert posted.status_code == 403
        assert httpx.get(f"{address}/gradio_api/info").json() == {"named_endpoints": {}, "unnamed_endpoints": {}}
        assert (
            httpx.post(f"{address}/gradio_api/upload", files={"files": ("a.png", b"somebody's face")}).status_code
            == 200
        )
        brought = [path for path in tmp_path.rglob("*") if path.is_file() and path.read_bytes() == b"somebody's face"]
        assert brought and all(path.relative_to(tmp_path).parts[0].startswith("fairanon-app-") for path in brought)
        stream = httpx.stream("GET", f"{address}/gradio_api/heartbeat/a%20tab", timeout=60)
        with stream as open_tab, suppress(httpx.HTTPError):  # as a browser has it; it is cut off
            assert open_tab.status_code == 200
            process.send_signal(number)
            assert process.wait(timeout=30) == code
    finally:
        process.send_signal(number)
    assert process.wait(timeout=60) == code
    assert not list(tmp_path.glob("fairanon-app-*"))
    assert "Traceback" not in process.stderr.read()


def test_with_a_password_nobody_else_gets_in(tmp_path):
    pytest.importorskip("gradio")
    (tmp_path / "p").write_text("correct horse battery\n")
    from fairanon.app.server import web_app

    request = AppRequest(password_file=tmp_path / "p", detector="tiny_detector", recognizer="tiny_embedder_b")
    web = web_app(request, tmp_path, request.password())
    from starlette.testclient import TestClient

    with TestClient(web, base_url="http://127.0.0.1") as client:
        assert client.get("/config").status_code == 401
        assert client.post("/login", data={"username": "fairanon", "password": "wrong"}).status_code == 400
        assert client.post("/gradio_api/upload", files={"files": ("a.png", b"x")}).status_code == 401
        assert (
            client.post("/login", data={"username": "fairanon", "password": "correct horse battery"}).status_code == 200
        )
        assert client.get("/config").status_code == 200


def test_a_port_that_is_taken_is_named(tmp_path, capsys):
    pytest.importorskip("gradio")
    import socket

    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        assert main(["app", "--no-browser", "--port", port]) in (1, 2)
    assert f"--port {port}: " in capsys.readouterr().err
