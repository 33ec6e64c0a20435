"""What can be given: files, folders, zips, tables."""

import json
import os
import zipfile

import pytest
import torch
from PIL import Image

from fairanon.anonymizer.folder import check_out
from fairanon.anonymizer.sources import collect
from fairanon.imaging import CorruptImageError


@pytest.fixture
def folder(tmp_path):
    for name in ("a.jpg", "deep/b.png", "deep/er/c d.webp"):
        path = tmp_path / "in" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (30, 20), "red").save(path)
    (tmp_path / "in" / "notes.txt").write_text("hello")
    (tmp_path / "in" / "film.mp4").write_text("hello")
    return tmp_path / "in"


def test_a_folder_keeps_its_structure_and_says_what_it_passed_over(folder):
    source = collect([folder])
    assert [item.name for item in source.items] == ["a.jpg", "deep/b.png", "deep/er/c d.webp"]
    assert "1 .mp4 file (film.mp4)" in source.passed_over
    assert source.items[0].pixels() == 600 and source.items[0].read() == (folder / "a.jpg").read_bytes()


def test_files_by_themselves(folder):
    source = collect([folder / "a.jpg", folder / "deep" / "b.png"])
    assert [item.name for item in source.items] == ["a.jpg", "b.png"]
    (folder / "deep" / "a.jpg").write_bytes((folder / "a.jpg").read_bytes())
    source = collect([folder / "a.jpg", folder / "deep" / "a.jpg"])
    assert len(source.items) == 1 and source.left == [("a.jpg", "another file of this name is handled")]
    with pytest.raises(ValueError, match="deep is no photograph"):
        collect([folder / "a.jpg", folder / "deep"])


def test_a_zip_is_read_in_place(folder, tmp_path):
    path = tmp_path / "all.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.write(folder / "a.jpg", "x/a.jpg")
        archive.write(folder / "a.jpg", "__MACOSX/x/._a.jpg")
        archive.writestr("readme.md", "hello")
    source = collect([path])
    assert [item.name for item in source.items] == ["x/a.jpg"] and source.left == [("readme.md", ".md file")]
    assert source.items[0].read() == (folder / "a.jpg").read_bytes() and source.items[0].pixels() == 600


ODD = {
    "../evil.jpg": "leads outside", "/etc/evil.jpg": "leads outside", "a/../../evil.jpg": "leads outside",
    "..\\evil.jpg": "leads outside", "C:\\evil.jpg": "leads outside", "good.jpg/b.jpg": "good.jpg is a file",
    "good.jpg": "another file of this name", "n" * 300 + ".jpg": "longer than 255 bytes", ".": "empty, a dot",
    "a//b.jpg": "empty, a dot", "./x.jpg": "empty, a dot",
}  # fmt: skip


@pytest.mark.filterwarnings("ignore:Duplicate name")
@pytest.mark.parametrize("name", ODD)
def test_a_name_that_no_result_can_have_costs_one_file_of_a_zip(tmp_path, name):
    path = tmp_path / "odd.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("good.jpg", b"")
        archive.writestr(zipfile.ZipInfo(name), b"")
    source = collect([path])
    assert [item.name for item in source.items] == ["good.jpg"]
    ((_, why),) = source.left
    assert ODD[name] in why


def test_a_zip_is_indexed_once(tmp_path, monkeypatch):
    path, opened = tmp_path / "many.zip", []
    with zipfile.ZipFile(path, "w") as archive:
        for k in range(20):
            archive.writestr(f"{k}.jpg", b"x")
    real = zipfile.ZipFile.__init__
    monkeypatch.setattr(zipfile.ZipFile, "__init__", lambda self, *args: opened.append(1) or real(self, *args))
    assert all(item.read() == b"x" and item.pixels() == 0 for item in collect([path]).items) and len(opened) == 1


def test_pipes_and_devices_are_passed_over(folder):
    os.mkfifo(folder / "pipe.jpg")
    (folder / "zero.jpg").symlink_to("/dev/zero")
    (folder / "nowhere.jpg").symlink_to(folder / "gone.jpg")
    left = dict(collect([folder]).left)
    assert left["pipe.jpg"] == left["zero.jpg"] == "pipe, socket or device"
    assert left["nowhere.jpg"] == "link that leads nowhere" and left["film.mp4"] == ".mp4 file"
    alone = collect([folder / "pipe.jpg"])
    assert not alone.items and alone.left == [("pipe.jpg", "pipe, socket or device")]


def test_a_broken_zip_and_a_locked_entry(tmp_path):
    (tmp_path / "no.zip").write_bytes(b"no zip")
    with pytest.raises(CorruptImageError, match="is no zip"):
        collect([tmp_path / "no.zip"])
    path = tmp_path / "damaged.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a.jpg", b"x" * 100)
    path.write_bytes(path.read_bytes().replace(b"xxxx", b"yxxx", 1))
    item = collect([path]).items[0]
    assert item.pixels() == 0
    with pytest.raises(CorruptImageError, match="cannot be read"):
        item.read()


def test_tables_bring_boxes_of_ones_own(folder, tmp_path):
    table = tmp_path / "boxes.csv"
    table.write_text("file,x0,y0,x1,y1\nin/a.jpg,1,2,11,12\nin/a.jpg,3,4,13,14\nin/deep/b.png,,,,\n")
    first, second = collect([table]).items
    assert first.name == "in/a.jpg" and torch.equal(first.boxes, torch.tensor([[1.0, 2, 11, 12], [3, 4, 13, 14]]))
    assert second.name == "in/deep/b.png" and second.boxes.shape == (0, 4)
    lines = tmp_path / "boxes.jsonl"
    rows = [
        {"file": "in/a.jpg", "boxes": [[1, 2, 3, 4]]},
        {"file": "in/deep/b.png", "boxes": []},
        {"file": "in/deep/er/c d.webp"},
    ]
    lines.write_text("\n".join(map(json.dumps, rows)))
    first, second, third = collect([lines]).items
    assert first.boxes.tolist() == [[1, 2, 3, 4]] and second.boxes.shape == third.boxes.shape == (0, 4)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("file,x0,y0,x1,y1\nin/a.jpg,1,2,three,4\n", "line 2: a box is x0, y0, x1, y1 in pixels"),
        ("file,x0,y0,x1,y1\nin/a.jpg,5,2,3,4\n", "line 2: a box is x0 < x1"),
        ("file,x0,y0,x1,y1\nin/a.jpg,-inf,-inf,inf,inf\n", "line 2: a box is x0 < x1"),
        ("file,x0,y0,x1,y1\nin/a.jpg,nan,1,5,5\n", "line 2: a box is x0 < x1"),
        ("file,x0,y0,x1,y1\nin/a.jpg,.3,.2,.5,.45\n", "line 2: the box .* looks like shares of the picture"),
        ("file,x0,y0,x1,y1\nin/none.jpg,1,2,3,4\n", "none.jpg: boxes.csv names it, and it is missing"),
        ("name\nin/a.jpg\n", "has no column file"),
        (
            "file,xmin,ymin,xmax,ymax\nin/a.jpg,1,2,3,4\n",
            "the columns of boxes are file, x0, y0, x1, y1; it has file, xmin",
        ),
    ],
)
def test_a_wrong_table_names_its_line(folder, tmp_path, text, said):
    (tmp_path / "boxes.csv").write_text(text)
    with pytest.raises((ValueError, FileNotFoundError), match=said):
        collect([tmp_path / "boxes.csv"])


def test_nothing_to_do_is_said(tmp_path):
    with pytest.raises(FileNotFoundError, match="is missing"):
        collect([tmp_path / "none"])
    (tmp_path / "film.mp4").write_text("hello")
    with pytest.raises(FileNotFoundError, match=r"holds no photograph. film.mp4: .mp4 file"):
        collect([tmp_path])


def test_the_result_lies_apart_and_overwrites_nothing(folder, tmp_path):
    for out, said in (
        (folder, "is IN; name another folder"),
        *((one, "nor lie in it or round it") for one in (folder / "out", tmp_path)),
    ):
        with pytest.raises(ValueError, match=said):
            check_out([folder], out)
    other = tmp_path / "other"
    other.mkdir()
    (other / ".DS_Store").write_text("")
    check_out([folder], other)
    (other / "settings.json").write_text("{}")
    (other / "review").symlink_to(folder)
    with pytest.raises(ValueError, match=r"review is a link"):
        check_out([folder], other)
    (other / "review").unlink()
    (other / "settings.json").unlink()
    (other / "a.jpg").write_text("somebody's")
    with pytest.raises(ValueError, match=r"holds other files \(a.jpg\)"):
        check_out([folder], other)
    with pytest.raises(ValueError, match="is a file"):
        check_out([folder], other / "a.jpg")


@pytest.mark.parametrize("kind", ["csv", "jsonl"])
def test_a_name_that_no_file_can_have_costs_its_line_of_a_table(folder, tmp_path, kind):
    name = f"{'x' * 300}.jpg"
    text = f"file\nin/a.jpg\nin/{name}\n" if kind == "csv" else f'{{"file": "in/a.jpg"}}\n{{"file": "in/{name}"}}\n'
    (tmp_path / f"t.{kind}").write_text(text)
    source = collect([tmp_path / f"t.{kind}"])
    assert [item.name for item in source.items] == ["in/a.jpg"]
    ((left, why),) = source.left
    assert left == f"in/{name}" and "longer than 255 bytes" in why


def test_a_number_of_a_box_that_no_computer_holds_names_its_line(folder, tmp_path):
    (tmp_path / "t.jsonl").write_text(f'{{"file": "in/a.jpg", "boxes": [[0, 0, 1{"0" * 400}, 5]]}}\n')
    with pytest.raises(ValueError, match="line 1: a box is x0, y0, x1, y1 in pixels"):
        collect([tmp_path / "t.jsonl"])


def test_a_file_that_would_fill_the_memory_is_not_read(tmp_path, monkeypatch):
    monkeypatch.setattr("fairanon.anonymizer.sources._LARGEST", 10)
    (tmp_path / "a.jpg").write_bytes(b"x" * 11)
    (item,) = collect([tmp_path / "a.jpg"]).items
    with pytest.raises(CorruptImageError, match=r"a\.jpg is larger than 10 bytes"):
        item.read()
