"""What a visitor brings, lets stay, hides and takes away."""

import zipfile

import pytest
import torch
from PIL import Image

from fairanon.app import desk as desks
from fairanon.app.app_request import AppRequest
from fairanon.app.desk import Wishes, add_box, answer_of, clicked, hide, let_stay, new_desk, packed, stays
from fairanon.app.messages import failed
from fairanon.app.private import forget
from fairanon.imaging import read_image, write_image
from tests.anonymizer.scenes import scene

TINY = AppRequest(detector="tiny_detector", recognizer="tiny_embedder_b")
MASK = Wishes("mask", "auto", 0.5, "#000000", "all", None)


@pytest.fixture
def brought(tmp_path):
    write_image(scene(0, 3), tmp_path / "up" / "a.png")
    write_image(scene(1, 2), tmp_path / "other" / "a.png")
    (tmp_path / "up" / "broken.png").write_bytes(b"no")
    with zipfile.ZipFile(tmp_path / "up" / "z.zip", "w") as archive:
        archive.write(tmp_path / "other" / "a.png", "album/b.png")
    return tmp_path


def test_everything_that_was_brought_is_counted_and_no_name_is_taken_twice(brought, tmp_path):
    up = brought / "up"
    desk = new_desk(
        tmp_path, [str(up / "a.png"), str(up / "broken.png"), str(up / "z.zip")], str(brought / "other" / "a.png")
    )
    assert {path.relative_to(desk.photographs).as_posix() for path in desk.photographs.rglob("*.png")} == {
        "a.png", "a 2.png", "album/b.png", "broken.png",
    }  # fmt: skip
    hide(desk, MASK, TINY)
    told = answer_of(desk)
    assert "1 FILE TO BE LOOKED AT" in told and "3 of 4 photographs may be published; 7 of 7 faces hidden." in told
    assert "broken.png" in told and {name for _, name in desk.names()} == {"a.png", "a 2.png", "album/b.png"}
    with zipfile.ZipFile(packed(desk)) as archive:
        names = set(archive.namelist())
        assert {
            "report.html",
            "faces.csv",
            "manifest.jsonl",
            "review.csv",
            "published/a.png",
            "published/album/b.png",
        } <= names
        assert not any("broken" in name for name in names)
        raw = archive.read("published/a.png")
    (tmp_path / "x.png").write_bytes(raw)
    assert not torch.equal(read_image(tmp_path / "x.png", "x.png"), scene(0, 3)), "no original"


def test_clicks_and_boxes_decide(brought, tmp_path):
    desk = new_desk(tmp_path, [str(brought / "up" / "a.png")], None)
    hide(desk, MASK, TINY)
    faces = desk.faces("a.png")
    x0, y0, x1, y1 = faces[1]["box"]
    wide = desks.before_of(desk, "a.png").width / 192  # small pictures are enlarged
    assert wide == 3
    clicked(desk, "a.png", wide * (x0 + x1) / 2, wide * (y0 + y1) / 2)
    assert stays(desk, "a.png") == [2]
    clicked(desk, "a.png", wide * (x0 + x1) / 2, wide * (y0 + y1) / 2)
    assert stays(desk, "a.png") == []
    let_stay(desk, "a.png", [2, 3])
    clicked(desk, "a.png", wide * 1, wide * 2)
    assert desk.corner == ("a.png", 1, 2)
    clicked(desk, "a.png", wide * 21, wide * 32)
    assert desk.corner is None and desk.drawn["a.png"] == [(1, 2, 21, 32)]
    assert "not carried out yet" in desks.said_of(desk, "a.png")
    hide(desk, MASK, TINY)
    assert "not carried out yet" not in desks.said_of(desk, "a.png")
    verdicts = [face["verdict"] for face in desk.faces("a.png")]
    assert verdicts.count("kept as asked") == 2 and "2 faces stay visible in the published files" in answer_of(desk)
    assert any(face["box"] == [1, 2, 21, 32] for face in desk.faces("a.png"))
    before, after = scene(0, 3), desks.after_of(desk, "a.png")
    assert after.getpixel((round(10 * wide), round(15 * wide))) == (0, 0, 0), "in the colour that was asked for"
    x0, y0, x1, y1 = (round(value) for value in faces[1]["box"])
    after = after.resize((192, 128), Image.Resampling.NEAREST)
    shown = torch.tensor(list(after.crop((x0 + 3, y0 + 3, x1 - 3, y1 - 3)).get_flattened_data())).reshape(
        y1 - y0 - 6, x1 - x0 - 6, 3
    )
    there = before[:, y0 + 3 : y1 - 3, x0 + 3 : x1 - 3]
    assert float((shown.permute(2, 0, 1) == there).all(0).float().mean()) > 0.7, "but where a neighbour's mask lies"
    first = stays(desk, "a.png")[0]
    let_stay(desk, "a.png", [n for n in stays(desk, "a.png") if n != first])
    hide(desk, MASK, TINY)
    assert [face["verdict"] for face in desk.faces("a.png")].count("kept as asked") == 1, (
        "one of them is hidden after all"
    )


def test_what_was_drawn_stays_drawn_until_it_is_removed(brought, tmp_path):
    desk = new_desk(tmp_path, [str(brought / "up" / "a.png")], None)
    hide(desk, MASK, TINY)
    add_box(desk, "a.png", (1, 2, 21, 32))
    hide(desk, MASK, TINY)
    number = next(n for n, face in enumerate(desk.faces("a.png"), 1) if face["box"] == [1, 2, 21, 32])
    other = next(n for n in range(1, 5) if n != number)
    let_stay(desk, "a.png", [other])
    hide(desk, MASK, TINY)
    faces = {tuple(face["box"]): face["verdict"] for face in desk.faces("a.png")}
    assert faces[1, 2, 21, 32] == "covered" and list(faces.values()).count("kept as asked") == 1
    number = next(n for n, face in enumerate(desk.faces("a.png"), 1) if face["box"] == [1, 2, 21, 32])
    let_stay(desk, "a.png", [number])
    assert stays(desk, "a.png") == [number]
    hide(desk, MASK, TINY)
    assert not any(face["box"] == [1, 2, 21, 32] for face in desk.faces("a.png")) and "READY" in answer_of(desk)
    assert len(list(desk.folder.glob("out-*"))) == 1, "one result is kept"


def test_a_corner_belongs_to_its_photograph(brought, tmp_path):
    write_image(scene(1, 2), brought / "up" / "b.png")
    desk = new_desk(tmp_path, [str(brought / "up" / "a.png"), str(brought / "up" / "b.png")], None)
    hide(desk, MASK, TINY)
    clicked(desk, "a.png", 3, 6)
    clicked(desk, "b.png", 63, 96)
    assert not desk.drawn and desk.corner == ("b.png", 21, 32)
    for box in ((5, 5, 5, 60), (300, 5, 400, 60), (float("nan"), 1, 50, 50)):
        with pytest.raises(ValueError, match="A box must have 8 pixels or more on each side, within the 192 x 128"):
            add_box(desk, "a.png", box)
    with pytest.raises(ValueError, match="four numbers"):
        desks.box_of("1, 2, 3")


def test_what_is_no_photograph_is_said(brought, tmp_path):
    with zipfile.ZipFile(brought / "odd.zip", "w") as archive:
        archive.write(brought / "up" / "a.png", "a.png")
        archive.write(brought / "up" / "a.png", "../a.png")
        archive.writestr("film.mp4", b"")
    desk = new_desk(tmp_path, [str(brought / "odd.zip")], None)
    hide(desk, MASK, TINY)
    told = answer_of(desk)
    assert "film.mp4 was left out: .mp4 file" in told and "../a.png was left out: its name leads outside" in told


def test_nothing_is_left_of_what_could_not_be_taken(brought, tmp_path, monkeypatch):
    (brought / "broken.zip").write_bytes(b"PK no")
    with pytest.raises(Exception, match="is no zip"):
        new_desk(tmp_path, [str(brought / "up" / "a.png"), str(brought / "broken.zip")], None)
    monkeypatch.setattr(desks, "_BYTES", 100)
    with pytest.raises(ValueError, match="more than a gigabyte"):
        new_desk(tmp_path, [str(brought / "up" / "a.png")], None)
    assert not list(tmp_path.glob("desk-*"))


def test_what_is_forgotten_while_it_is_hidden_does_not_come_back(brought, tmp_path, monkeypatch):
    place = tmp_path / "private"
    place.mkdir()
    desk = new_desk(place, [str(brought / "up" / "a.png")], None)
    real = desks.anonymize

    def slow(request):
        found = real(request)
        forget(place)
        (desk.folder / "in").mkdir(parents=True)  # a thread writes once more
        (desk.folder / "in" / "a.png").write_bytes(b"somebody")
        return found

    monkeypatch.setattr(desks, "anonymize", slow)
    with pytest.raises(ValueError, match="Everything was forgotten meanwhile"):
        hide(desk, MASK, TINY)
    assert not list(place.iterdir())


def test_people_are_named_by_photographs(brought, tmp_path):
    write_image(scene(5, 1, columns=1, rows=1), tmp_path / "one" / "her.png")
    pair = torch.cat([scene(5, 1, columns=1, rows=1), scene(6, 1, columns=1, rows=1)], 2)
    write_image(pair, tmp_path / "pair.png")
    desk = new_desk(tmp_path, [str(tmp_path / "pair.png")], None)
    hide(desk, Wishes("pixelate", "auto", 0.5, "", "keep", [str(tmp_path / "one" / "her.png")]), TINY)
    verdicts = {round(face["box"][0] / 64): face["verdict"] for face in desk.faces("pair.png")}
    assert verdicts[0] == "kept as asked" and "kept as asked" not in [v for k, v in verdicts.items() if k]
    with pytest.raises(ValueError, match="Say whom you mean"):
        hide(desk, Wishes("mask", "auto", 0.5, "#7f7f7f", "only", None), TINY)


def test_nothing_and_too_much_are_sentences(tmp_path, monkeypatch):
    with pytest.raises(ValueError, match="nothing to hide yet"):
        new_desk(tmp_path, None, None)
    monkeypatch.setattr(desks, "_MOST", 2)
    for number in range(3):
        Image.new("RGB", (8, 8)).save(tmp_path / f"{number}.png")
    with pytest.raises(ValueError, match="These are 3 photographs"):
        new_desk(tmp_path, [str(tmp_path / f"{number}.png") for number in range(3)], None)
    assert not list(tmp_path.glob("desk-*"))


def test_a_colour_picker_says_its_colours_in_two_ways():
    assert desks._digits("#7f7f7f") == "7f7f7f" and desks._digits("rgba(255, 0.4, 127.6, 1)") == "ff0080"


def test_a_mistake_is_a_sentence_and_a_bug_is_called_one(caplog):
    assert "NOT DONE" in failed(ValueError("a sentence")) and "bug" not in failed(ValueError("a sentence"))
    assert "This is a bug of fairanon's (ZeroDivisionError: no)" in failed(ZeroDivisionError("no")) and caplog.records
