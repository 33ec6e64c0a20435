"""Which images training sees: checked once, replaced when they go bad, never all in memory."""

import logging
from functools import partial

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from data_modules import records as room
from data_modules.cosmicman import CosmicMan
from data_modules.human_regions import HumanRegions
from data_modules.records import Record, Rows, Turns, usable
from fairanon.imaging import CorruptImageError, read_image


def images(folder, count, size=32):
    for n in range(count):
        Image.new("RGB", (size, size), (n, 0, 0)).save(folder / f"{n}.png")
    return [Record(folder / f"{n}.png", f"image {n}") for n in range(count)]


def test_rows_of_several_data_sets(tmp_path):
    everything = images(tmp_path, 5)
    rows = Rows([everything[:2], [], everything[2:]])
    assert [row.caption for row in rows] == [f"image {n}" for n in range(5)]
    assert [row.caption for row in rows.of(torch.tensor([4, 0]))] == ["image 4", "image 0"]
    assert rows[1:3][1].caption == "image 2" and len(Rows([])) == 0


def test_what_was_checked_is_not_decoded_again_until_it_changes(tmp_path, monkeypatch):
    everything, looked = Rows([images(tmp_path, 6)]), []
    fault = room.fault
    monkeypatch.setattr(room, "fault", lambda record, minimum: looked.append(record.caption) or fault(record, minimum))
    Image.new("RGB", (8, 8)).save(tmp_path / "2.png")
    for _ in range(2):
        kept, left_out = usable(everything, 16)
        assert len(kept) == 5 and left_out == {"smaller than 16 pixels": 1}
    assert len(looked) == 6
    Image.new("RGB", (40, 40)).save(tmp_path / "2.png")
    assert len(usable(everything, 16)[0]) == 6 and looked[6:] == ["image 2"]


def test_a_file_that_goes_bad_gives_its_turn_to_another_and_always_the_same(tmp_path, caplog):
    everything = images(tmp_path, 8)
    (tmp_path / "3.png").write_bytes(b"half a pic")

    def read(record):
        return int(read_image(record.image, str(record.image))[0, 0, 0])

    with caplog.at_level(logging.WARNING):
        first = [Turns(everything, None, 0).read(3, f"3.{number}", read) for number in range(20)]
    assert 3 not in first and len(set(first)) > 3 and "3.png" in caplog.text
    assert first == [Turns(everything, None, 0).read(3, f"3.{number}", read) for number in range(20)]
    (tmp_path / "4.png").write_bytes(b"")
    turns = Turns(everything, None, 0)
    turns.read(3, "3.0", read)
    with pytest.raises(CorruptImageError, match="more than 1 %"):
        turns.read(4, "4.0", read)


def test_a_large_data_set_is_checked_image_by_image(tmp_path, monkeypatch):
    monkeypatch.setattr(room, "CHECKED_AT_ONCE", 4)
    monkeypatch.setattr("data_modules.human_regions.CHECKED_AT_ONCE", 4)
    everything = images(tmp_path, 8)
    Image.new("RGB", (8, 8)).save(tmp_path / "2.png")

    class Source:
        def records(self):
            return everything

    with monkeypatch.context() as patch:
        patch.setattr(room, "fault", lambda *_: pytest.fail("checked before its turn"))
        data = HumanRegions([Source()], size=16, minimum=16, val_count=1)
        data.setup("fit")
        assert len(data.train_images) == 7 and data.train_images.turns.reason is not None
    turns = Turns(everything, partial(room.fault, minimum=16), 0)
    assert turns.read(2, "2.0", lambda record: record.caption) != "image 2", "it is too small"
    assert turns.read(1, "1.0", lambda record: record.caption) == "image 1"


def test_millions_of_labels_lie_on_the_disk(tmp_path):
    (tmp_path / "label").mkdir()
    for part in range(2):
        rows = [{"path": f"{part}-{n}.jpg", "segm_path": f"{n}.png", "aa_text": "[]", "person_type": "headshot",
                 "other": n} for n in range(1000)]  # fmt: skip
        pq.write_table(pa.Table.from_pylist(rows), tmp_path / "label" / f"{part}.parquet")
    before = pa.total_allocated_bytes()
    found = CosmicMan(str(tmp_path), (1,), (2,)).records()
    assert len(found) == 2000 and found[1001].image == tmp_path / "1-1.jpg" and found[1001].caption == "a headshot"
    assert pa.total_allocated_bytes() - before < 10_000, "the table is mapped, not read"
