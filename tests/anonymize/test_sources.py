"""What can be given: files, folders, zips, tables."""

import json
import zipfile

import pytest
import torch
from PIL import Image

from fairanon.anonymize.folder import check_out
from fairanon.anonymize.sources import collect
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
    with pytest.raises(ValueError, match=r"would both become a\.jpg"):
        collect([folder / "a.jpg", folder / "deep" / "a.jpg"])
    with pytest.raises(ValueError, match="deep is no photograph"):
        collect([folder / "a.jpg", folder / "deep"])


def test_a_zip_is_read_in_place(folder, tmp_path):
    path = tmp_path / "all.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.write(folder / "a.jpg", "x/a.jpg")
        archive.write(folder / "a.jpg", "__MACOSX/x/._a.jpg")
        archive.writestr("readme.md", "hello")
    source = collect([path])
    assert [item.name for item in source.items] == ["x/a.jpg"] and "2 other files" in source.passed_over
    assert source.items[0].read() == (folder / "a.jpg").read_bytes() and source.items[0].pixels() == 600


@pytest.mark.parametrize("name", ["../evil.jpg", "/etc/evil.jpg", "a/../../evil.jpg", "..\\evil.jpg", "C:\\evil.jpg"])
def test_a_zip_that_leads_outside_is_refused(tmp_path, name):
    path = tmp_path / "evil.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("good.jpg", b"")
        archive.writestr(zipfile.ZipInfo(name), b"")
    with pytest.raises(ValueError, match="leads outside; it is not opened"):
        collect([path])


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
    assert first.name == "a.jpg" and torch.equal(first.boxes, torch.tensor([[1.0, 2, 11, 12], [3, 4, 13, 14]]))
    assert second.name == "deep/b.png" and second.boxes is None, "they are looked for"
    lines = tmp_path / "boxes.jsonl"
    rows = [
        {"file": "in/a.jpg", "boxes": [[1, 2, 3, 4]]},
        {"file": "in/deep/b.png", "boxes": []},
        {"file": "in/deep/er/c d.webp"},
    ]
    lines.write_text("\n".join(map(json.dumps, rows)))
    first, second, third = collect([lines]).items
    assert first.boxes.tolist() == [[1, 2, 3, 4]] and second.boxes.shape == (0, 4) and third.boxes is None


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("file,x0,y0,x1,y1\nin/a.jpg,1,2,three,4\n", "line 2: a box is x0, y0, x1, y1 in pixels"),
        ("file,x0,y0,x1,y1\nin/a.jpg,5,2,3,4\n", "line 2: a box is x0 < x1"),
        ("file,x0,y0,x1,y1\nin/none.jpg,1,2,3,4\n", "names .*none.jpg, which is missing"),
        ("name\nin/a.jpg\n", "has no column file"),
    ],
)
def test_a_wrong_table_names_its_line(folder, tmp_path, text, said):
    (tmp_path / "boxes.csv").write_text(text)
    with pytest.raises((ValueError, FileNotFoundError), match=said):
        collect([tmp_path / "boxes.csv"])


def test_names_that_the_result_needs_are_refused(folder):
    (folder / "review").mkdir()
    Image.new("RGB", (4, 4)).save(folder / "review" / "a.jpg")
    with pytest.raises(ValueError, match="has a folder 'review'"):
        collect([folder])


def test_nothing_to_do_is_said(tmp_path):
    with pytest.raises(FileNotFoundError, match="is missing"):
        collect([tmp_path / "none"])
    (tmp_path / "film.mp4").write_text("hello")
    with pytest.raises(FileNotFoundError, match=r"holds no photograph. passed over: 1 .mp4 file"):
        collect([tmp_path])


def test_the_result_lies_apart_and_overwrites_nothing(folder, tmp_path):
    for out in (folder, folder / "out", tmp_path):
        with pytest.raises(ValueError, match="lie in one another"):
            check_out([folder], out)
    other = tmp_path / "other"
    other.mkdir()
    check_out([folder], other)
    (other / "a.jpg").write_text("somebody's")
    with pytest.raises(ValueError, match=r"holds other files \(a.jpg\)"):
        check_out([folder], other)
    with pytest.raises(ValueError, match="is a file"):
        check_out([folder], other / "a.jpg")
