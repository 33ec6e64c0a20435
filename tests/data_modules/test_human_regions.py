"""Images of people in the data sets' layouts, with files as they come."""

import itertools
import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image, ImageDraw

from data_modules.body_hands import BodyHands
from data_modules.cosmicman import CosmicMan, caption
from data_modules.human_regions import HumanRegions, RegionImages
from data_modules.region_folder import CaptionedImages, RegionFolder
from fairanon.imaging import CorruptImageError
from tests.stores import s3, upload

__all__ = ["s3"]

FACE, HAND = (200, 30, 30), (30, 30, 200)


def write_people(folder, count=8, side=(120, 96), controls=False):
    """Images with a red face and a blue hand, and masks of exactly those."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = []
    for n in range(count):
        boxes = {"face": (20 + n, 10, 50 + n, 40), "hand": (80, 60, 100, 80 + n)}
        image = Image.new("RGB", side, (120, 200, 120))
        for kind, colour in (("face", FACE), ("hand", HAND)):
            ImageDraw.Draw(image).rectangle(boxes[kind], fill=colour)
            mask = Image.new("L", side)
            ImageDraw.Draw(mask).rectangle(boxes[kind], fill=255)
            mask.convert("RGB").save(folder / f"{kind}-{n}.png")
        image.save(folder / f"{n}.png")
        row = {"image": f"{n}.png", "text_english": f"person {n}", "mask_face": f"face-{n}.png",
               "mask_hand": f"hand-{n}.png"}  # fmt: skip
        if controls:
            image.save(folder / f"control-{n}.png")
            row["conditioning_image"] = f"control-{n}.png"
        rows.append(row)
    write_rows(folder, rows)
    return rows


def write_rows(folder, rows):
    (folder / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def module(folder, **settings):
    return HumanRegions([RegionFolder(str(folder))], **{"size": 64, "minimum": 64, "val_count": 2, **settings})


def near(image, colour):
    return (image.int() - torch.tensor(colour).view(3, 1, 1)).abs().amax(0) < 60


@pytest.mark.parametrize("mirrored", [True, False])
def test_masks_and_conditions_follow_their_image(tmp_path, mirrored):
    write_people(tmp_path, 16, controls=True)
    data = RegionImages(RegionFolder(str(tmp_path)).records(), 64, flip=True)
    plain = RegionImages(data.records, 64)
    for row in range(16):
        sample = data[row, 0]
        if torch.equal(sample.images, plain[row, 0].images) is mirrored:
            continue
        for region, colour in enumerate((FACE, HAND)):
            coloured, mask = near(sample.images[0], colour), sample.masks[0, region]
            assert mask.any() and (coloured != mask).float().mean() < 0.02
        assert torch.equal(sample.controls, sample.images)
        break
    else:
        pytest.fail("no image of 16 was drawn that way")


def test_batches_of_training_and_validation_are_disjoint_and_whole(tmp_path):
    write_people(tmp_path, 8)
    data = module(tmp_path, batch_size=2)
    data.setup("fit")
    held = {caption for batch in data.val_dataloader() for caption in batch.captions}
    loader = iter(data.train_dataloader())
    seen = {caption for _ in range(3) for caption in next(loader).captions}
    assert len(held) == 2 and len(seen) == 6 and not held & seen


def test_small_images_and_those_without_people_are_left_out_and_counted(tmp_path):
    rows = write_people(tmp_path, 8)
    Image.new("RGB", (120, 40)).save(tmp_path / "0.png")
    for kind in ("face", "hand"):
        Image.new("L", (120, 96)).save(tmp_path / f"{kind}-1.png")  # all black
    rows[2]["mask_face"] = rows[3]["mask_hand"] = rows[4]["mask_face"] = rows[4]["mask_hand"] = None
    write_rows(tmp_path, rows)
    data = module(tmp_path)
    data.setup("fit")
    assert data.left_out == {"smaller than 64 pixels": 1, "with an empty mask": 2}
    batches = [data.train_images[k, 0] for k in range(len(data.train_images))]
    batches += [data.val_images[k, 0] for k in range(len(data.val_images))]
    present = {batch.captions[0]: batch.masks.flatten(2).any(2)[0].tolist() for batch in batches}
    assert present.pop("person 2") == [False, True] and present.pop("person 3") == [True, False]
    assert set(present) == {"person 5", "person 6", "person 7"}


def test_missing_files_and_masks_of_another_size(tmp_path, caplog):
    rows = write_people(tmp_path, 8)
    (tmp_path / "3.png").unlink()
    data = module(tmp_path)
    data.setup("fit")
    assert data.left_out == {"unreadable": 1} and "3.png" in caplog.text
    Image.new("L", (60, 48), 255).save(tmp_path / "face-5.png")
    with pytest.raises(CorruptImageError, match="2 of 8 images or their masks"):
        module(tmp_path).setup("fit")
    assert "face-5.png is 60x48, its image" in caplog.text
    write_rows(tmp_path, [{"image": "0.png"}])
    with pytest.raises(ValueError, match="line 1 lacks text_english"):
        module(tmp_path).setup("fit")
    (tmp_path / "metadata.jsonl").write_text(json.dumps(rows[0]) + "\n{half\n")
    with pytest.raises(ValueError, match="line 2 is no JSON"):
        module(tmp_path).setup("fit")
    with pytest.raises(FileNotFoundError, match="fairanon prepare regions"):
        module(tmp_path / "nowhere").setup("fit")
    write_rows(tmp_path, rows[:2])
    with pytest.raises(ValueError, match="2 usable images of 2"):
        module(tmp_path).setup("fit")


_XML = """<annotation><size><width>120</width><height>96</height></size>
<object><name>body</name><bndbox><xmin>1</xmin><ymin>1</ymin><xmax>9</xmax><ymax>9</ymax></bndbox><body_id>0</body_id></object>
<object><name>hand</name><bndbox><xmin>10</xmin><ymin>10</ymin><xmax>40</xmax><ymax>40</ymax>
<x1>25</x1><y1>10</y1><x2>40</x2><y2>25</y2><x3>25</x3><y3>40</y3><x4>10</x4><y4>25</y4></bndbox><body_id>0</body_id></object>
</annotation>"""


def test_body_hands_polygons(tmp_path):
    for name in ("ImageSets/Main", "Annotations", "JPEGImages"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "ImageSets/Main/train.txt").write_text("a\n")
    (tmp_path / "Annotations/a.xml").write_text(_XML)
    Image.new("RGB", (120, 96)).save(tmp_path / "JPEGImages/a.jpg")
    (record,) = BodyHands(str(tmp_path)).records()
    face, hand = (mask.read("a", 120, 96)[0] for mask in record.masks)
    assert not face.any() and hand[25, 25] and not hand[11, 11], "a diamond, not its box"
    assert int((hand > 0).sum()) == pytest.approx(30 * 30 / 2, rel=0.1)
    (tmp_path / "Annotations/a.xml").write_text(_XML.replace("<x4>10</x4>", ""))
    with pytest.raises(ValueError, match="four corners"):
        BodyHands(str(tmp_path)).records()
    with pytest.raises(FileNotFoundError, match="ImageSets"):
        BodyHands(str(tmp_path / "no")).records()


def test_cosmicman_reads_labels_and_parsing_maps(s3, tmp_path):
    (tmp_path / "label").mkdir()
    parts = [{"country": "european", "age": "young", "gender": "woman"}, None, {"hair color": "blond"}]
    row = {"path": "img/1.jpg", "segm_path": "parsing/1.png", "aa_text": json.dumps(parts), "aa_ids": "[]",
           "person_type": "headshot", "height": 96.0, "width": 120.0}  # fmt: skip
    pq.write_table(pa.Table.from_pylist([row]), tmp_path / "label" / "laion1B-nolang_1.parquet")
    parsing = Image.new("L", (120, 96))
    ImageDraw.Draw(parsing).rectangle((10, 10, 19, 19), fill=13)
    ImageDraw.Draw(parsing).rectangle((50, 50, 54, 59), fill=15)
    (tmp_path / "parsing").mkdir()
    parsing.save(tmp_path / "parsing/1.png")
    (record,) = CosmicMan(str(tmp_path), face_ids=(13,), hand_ids=(14, 15)).records()
    (stored,) = CosmicMan(str(upload(tmp_path, f"{s3}/cosmic")), face_ids=(13,), hand_ids=(14, 15)).records()
    assert stored.caption == record.caption and torch.equal(
        stored.masks[0].read("1", 120, 96), record.masks[0].read("1", 120, 96)
    )
    assert record.caption == "a headshot, european young woman, blond" and record.image == tmp_path / "img/1.jpg"
    assert [int((mask.read("1", 120, 96) > 0).sum()) for mask in record.masks] == [100, 50]
    assert caption(None, [None]) == "a photo of a person"
    with pytest.raises(FileNotFoundError, match="label"):
        CosmicMan(str(tmp_path / "no"), (1,), (2,)).records()


def test_captioned_images_are_a_fixed_draw(tmp_path):
    write_people(tmp_path, 8)
    rows = [{"image": f"{n}.png", "text": f"prompt {n}", "conditioning_image": f"face-{n}.png"} for n in range(8)]
    (tmp_path / "all.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    source = CaptionedImages(str(tmp_path / "all.jsonl"), count=3, size=64)
    first = [row.prompt for row in source.rows()]
    assert len(set(first)) == 3 and first == [row.prompt for row in source.rows()]
    assert first != [row.prompt for row in CaptionedImages(str(tmp_path / "all.jsonl"), 3, 64, seed=5).rows()]
    assert torch.cat(list(source.images())).shape == (3, 3, 64, 64) and source.rows()[0].loaded().control.shape == (
        3,
        64,
        64,
    )
    with pytest.raises(FileNotFoundError, match=r"evaluate\.prompts"):
        CaptionedImages(str(tmp_path / "no.jsonl")).rows()


def test_people_in_an_object_store_are_those_of_a_disk(s3, tmp_path):
    write_people(tmp_path / "regions", controls=True)
    upload(tmp_path / "regions", f"{s3}/regions")
    there, here = (module(folder, num_workers=2, batch_size=2) for folder in (f"{s3}/regions", tmp_path / "regions"))
    for data in (there, here):
        data.setup("fit")
    for one, other in itertools.islice(zip(there.train_dataloader(), here.train_dataloader(), strict=False), 5):
        assert torch.equal(one.images, other.images) and torch.equal(one.masks, other.masks)
        assert torch.equal(one.controls, other.controls) and one.captions == other.captions
    with pytest.raises(FileNotFoundError, match="RegionFolder: s3://bucket/nothing is missing or incomplete"):
        RegionFolder(f"{s3}/nothing").look()
