"""Text, tables, folders and writing: what people bring, as they bring it."""

import errno
import json
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from fairanon.anonymizer.manifest import Result
from fairanon.files import (
    DiskFullError,
    TextError,
    atomic_write,
    named_path,
    read_json,
    read_json_lines,
    read_lines,
    read_table,
    read_text,
    unique,
    walk,
    write_json,
)

BOM = b"\xef\xbb\xbf"


@pytest.mark.parametrize(
    ("raw", "lines"),
    [
        (b"one\ntwo\n", ["one", "two"]),
        (BOM + b"one\ntwo", ["one", "two"]),
        (b"one\r\ntwo\r\n", ["one", "two"]),
        (b"one\n\n  \ntwo\n", ["one", "two"]),
        ("caf\u00e9 \U0001f642\n".encode(), ["caf\u00e9 \U0001f642"]),
        ("one\u2028still one\u0085and on\n".encode(), ["one\u2028still one\u0085and on"]),
        (b"", []),
    ],
    ids=["plain", "bom", "windows-newlines", "blank-lines", "emoji", "unicode-separators", "empty"],
)
def test_text_is_read_line_by_line(tmp_path, raw, lines):
    path = tmp_path / "list.txt"
    path.write_bytes(raw)
    assert [line for _, line in read_lines(path, "data.list")] == lines


@pytest.mark.parametrize(
    ("raw", "said"),
    [
        (b"one\nit\x92s\n", r"data.list: .*list.txt, line 2 is not UTF-8; save the file as UTF-8"),
        ("one".encode("utf-16"), r"list.txt, line 1 is not UTF-8"),
        ("\ud55c\uad6d".encode("cp949"), r"list.txt, line 1 is not UTF-8"),
    ],
    ids=["windows-1252", "utf-16", "korean"],
)
def test_other_encodings_are_one_sentence(tmp_path, raw, said):
    path = tmp_path / "list.txt"
    path.write_bytes(raw)
    with pytest.raises(TextError, match=said):
        read_text(path, "data.list")


def test_a_known_national_encoding_is_read_and_what_is_no_file_is_said(tmp_path):
    path = tmp_path / "label.json"
    path.write_bytes('{"who": "\ud55c\uad6d"}'.encode("cp949"))
    assert read_json(path, "data", ("cp949",)) == {"who": "\ud55c\uad6d"}
    with pytest.raises(FileNotFoundError, match=r"data: .*nowhere.txt is missing"):
        read_text(tmp_path / "nowhere.txt", "data")
    with pytest.raises(TextError, match=r"cannot be read \(Is a directory\)"):
        read_text(tmp_path, "data")


TABLE = 'prompt,set,tone\na doctor,neutral,\n"a tall, dark nurse",specific,dark\n'


@pytest.mark.parametrize(
    "raw",
    [
        TABLE.encode(),
        BOM + TABLE.encode(),
        TABLE.replace("\n", "\r\n").encode(),
        TABLE.replace(",", ";").replace("tall; dark", "tall, dark").encode(),
        TABLE.replace(",", "\t").replace("tall\t dark", "tall, dark").encode(),
        (TABLE + ",,\n\n").encode(),
        TABLE.replace("prompt,set", "Prompt,SET").encode(),
        TABLE.replace("prompt,set,tone", " prompt , set , tone ").encode(),
    ],
    ids=["plain", "bom", "windows-newlines", "semicolons", "tabs", "blank-lines", "capitals", "spaces"],
)
def test_tables_as_spreadsheets_write_them(tmp_path, raw):
    path = tmp_path / "t.csv"
    path.write_bytes(raw)
    rows = read_table(path, "evaluate.prompts", ("prompt", "set"))
    assert [number for number, _ in rows] == [2, 3]
    assert [row for _, row in rows] == [
        {"prompt": "a doctor", "set": "neutral", "tone": ""},
        {"prompt": "a tall, dark nurse", "set": "specific", "tone": "dark"},
    ]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("prompt\n", "no column set; it has prompt"),
        ("prompt,set\n", "has no rows"),
        ("", "has no rows"),
        (
            "prompt,set\na tall, dark nurse,neutral\n",
            "line 2 has 3 cells and its first line 2; put cells that hold commas in quotes",
        ),
        ("prompt,set\nalone\n", "line 2 has 1 cells"),
        ('prompt,set\n"open,neutral\n', "is no CSV"),
    ],
    ids=["column", "no-rows", "empty", "unquoted-comma", "short-row", "open-quote"],
)
def test_bad_tables_name_their_line(tmp_path, text, said):
    path = tmp_path / "t.csv"
    path.write_text(text)
    with pytest.raises(TextError, match=f"evaluate.prompts: .*t.csv.*{said}"):
        read_table(path, "evaluate.prompts", ("prompt", "set"))


def test_json_lines(tmp_path):
    path = tmp_path / "metadata.jsonl"
    path.write_bytes(BOM + '{"image": "a", "text": "one\u2028two"}\r\n\n{"image": "b", "text": "c"}'.encode())
    assert [(n, row["image"]) for n, row in read_json_lines(path, "data", ("image",))] == [(1, "a"), (3, "b")]
    for line, said in (("{", "line 1 is no JSON"), ("[1]", "line 1 is no JSON object"), ("{}", "line 1 lacks image")):
        path.write_text(line)
        with pytest.raises(TextError, match=said):
            list(read_json_lines(path, "data", ("image",)))


@pytest.mark.parametrize("name", [None, "", 3, "img\\a.png"])
def test_names_that_name_no_file_here(name):
    with pytest.raises(TextError, match=r"line 2: image names"):
        named_path(name, "list.txt, line 2: image")


# --- folders ---------------------------------------------------------------------------------------------


def tree(root: Path, *names: str) -> None:
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"")


def _links(root: Path) -> None:
    tree(root, "in/own/a.jpg", "disk/summer/0.jpg", "disk/summer/1.jpg")
    (root / "in/summer").symlink_to("../disk/summer")
    (root / "in/own/loop").symlink_to("..")


def _broken(root: Path) -> None:
    tree(root, "in/a.jpg")
    (root / "in/dangling.jpg").symlink_to("nowhere.jpg")
    (root / "in/self.jpg").symlink_to("self.jpg")


def _named_like_a_file(root: Path) -> None:
    tree(root, "in/a.jpg", "in/export.jpg/b.txt")


FOLDERS = {
    "plain": (lambda root: tree(root, "in/b.png", "in/a.jpg", "in/deep/c.WEBP"), ["a.jpg", "b.png", "deep/c.WEBP"], {}),
    "dot-files": (lambda root: tree(root, "in/a.jpg", "in/._a.jpg", "in/.DS_Store"), ["a.jpg"], {"hidden": 2}),
    "archive-leftovers": (lambda root: tree(root, "in/a.jpg", "in/__MACOSX/a.jpg"), ["a.jpg"], {"hidden": 1}),
    "companions": (lambda root: tree(root, "in/a.jpg", "in/a.txt", "in/list.csv"), ["a.jpg"], {}),
    "other-formats": (
        lambda root: tree(root, "in/a.jpg", "in/b.heic", "in/c.HEIC", "in/README"),
        ["a.jpg"],
        {".heic file": 2, "file without an ending": 1},
    ),
    "links": (_links, ["own/a.jpg", "summer/0.jpg", "summer/1.jpg"], {"link to a folder that is searched already": 1}),
    "broken-links": (_broken, ["a.jpg"], {"link that leads nowhere": 2}),
    "folder-named-like-a-file": (_named_like_a_file, ["a.jpg"], {"folder named like a .jpg file": 1}),
    "odd-names": (
        lambda root: tree(root, "in/a b.jpg", "in/\u00fcml\u00e4ut \U0001f642.png", "in/x.tar.jpg"),
        ["a b.jpg", "x.tar.jpg", "\u00fcml\u00e4ut \U0001f642.png"],
        {},
    ),
    "empty": (lambda root: (root / "in").mkdir(), [], {}),
}  # fmt: skip


@pytest.mark.parametrize("name", FOLDERS)
def test_folders(tmp_path, name):
    make, files, passed_over = FOLDERS[name]
    make(tmp_path)
    found = walk(tmp_path / "in")
    assert [str(path.relative_to(tmp_path / "in")) for path in found.files] == files
    assert dict(found.passed_over) == passed_over
    assert all(reason in found.report() for reason in passed_over) and bool(found.report()) == bool(passed_over)


def test_what_the_system_refuses_is_counted(tmp_path, monkeypatch):
    tree(tmp_path, "a.jpg", "mine/b.jpg", "theirs/c.jpg")
    real = os.scandir

    def scandir(path):
        if Path(path).name == "theirs":
            raise PermissionError(errno.EACCES, "Permission denied")
        return real(path)

    monkeypatch.setattr("fairanon.files.os.scandir", scandir)
    monkeypatch.setattr("fairanon.files.os.access", lambda path, _: Path(path).name != "b.jpg")
    found = walk(tmp_path)
    assert [path.name for path in found.files] == ["a.jpg"]
    assert dict(found.passed_over) == {
        "folder that cannot be opened: Permission denied": 1,
        "without permission to read": 1,
    }


def test_no_folder_at_all_and_two_files_of_one_number(tmp_path):
    tree(tmp_path, "a.jpg")
    with pytest.raises(FileNotFoundError, match="nowhere is missing"):
        walk(tmp_path / "nowhere")
    with pytest.raises(NotADirectoryError, match="is a file, not a folder"):
        walk(tmp_path / "a.jpg")
    numbered = [(1, Path("0001.png")), (2, Path("0002.png")), (1, Path("thumbs/1.png"))]
    with pytest.raises(TextError, match=r"data.instance: number 1 is 0001.png and thumbs/1.png"):
        unique(numbered, "data.instance")


# --- writing ---------------------------------------------------------------------------------------------


def test_nothing_is_half_written(tmp_path):
    path = tmp_path / "deep" / "result.json"
    write_json(path, {"old": 1})
    with pytest.raises(RuntimeError), atomic_write(path) as partial:
        partial.write_text("half")
        raise RuntimeError
    assert json.loads(path.read_text()) == {"old": 1} and len(list(path.parent.iterdir())) == 1
    folder = tmp_path / "folder"
    for text in ("one", "two"):
        with atomic_write(folder) as partial:
            partial.mkdir()
            (partial / text).touch()
    assert [file.name for file in folder.iterdir()] == ["two"], "a folder takes the place of the one before"


@pytest.mark.parametrize(
    "error", [OSError(errno.ENOSPC, "No space left on device"), RuntimeError("I/O error: No space left on device")]
)
def test_a_full_disk_is_a_sentence_and_leaves_nothing(tmp_path, error):
    path = tmp_path / "result"
    with (
        pytest.raises(DiskFullError, match=r"the disk is full: .*result could not be written; make room"),
        atomic_write(path) as partial,
    ):
        partial.write_text("half")
        raise error
    assert not list(tmp_path.iterdir())


def test_two_that_write_the_same_file_do_not_tear_it(tmp_path):
    path, whole = tmp_path / "picture", os.urandom(2_000_000)

    def write(_):
        with atomic_write(path) as partial:
            partial.write_bytes(whole)
        Result(tmp_path).put(whole, tmp_path / "other")
        return path.read_bytes() == whole and (tmp_path / "other").read_bytes() == whole

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(write, range(60)))
    assert {file.name for file in tmp_path.iterdir()} == {"picture", "other"}
