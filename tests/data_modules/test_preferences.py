import logging

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from data_modules.base import StepSampler
from data_modules.population_preferences import PopulationPreferences, read_preferences
from fairanon.imaging import (
    CorruptImageError,
    grid,
    joint_crop,
    joint_flip,
    read_image,
    to_model,
    to_pixels,
    write_image,
)


def test_step_sampler_splits_the_same_global_batches_over_ranks():
    one = StepSampler(10, 4, seed=3)
    ranks = [StepSampler(10, 2, seed=3, rank=r, world=2) for r in (0, 1)]
    for step in (0, 3, 7):
        assert one.batch(step) == ranks[0].batch(step) + ranks[1].batch(step)
    late = iter(StepSampler(10, 4, seed=3, first=5))
    assert next(late) == one.batch(5)
    rows = [pair for step in range(5) for pair in one.batch(step)]
    assert sorted(row for row, number in rows if number == 0) == list(range(10)), "a pass sees every row once"
    assert StepSampler(10, 4, seed=4).batch(0) != one.batch(0)
    huge = [StepSampler(10**9, 2, seed=3, rank=r, world=2).batch(7) for r in (0, 1)]
    assert huge[0] + huge[1] == StepSampler(10**9, 4, seed=3).batch(7) and len(set(huge[0] + huge[1])) == 4


def loader(source, **settings):
    module = PopulationPreferences(str(source), batch_size=4, size=32, **settings)
    module.setup("fit")
    return module


def test_batches_are_pairs_with_keys(preferences):
    module = loader(preferences)
    batch = next(iter(module.train_dataloader()))
    assert batch.winners.shape == batch.losers.shape == (4, 3, 32, 32) and batch.winners.dtype == torch.uint8
    assert len(set(batch.keys)) == 4 and batch.captions[0].startswith("a photo of a")
    assert [text.replace("female ", "") for text in batch.winner_prompts] == batch.captions
    assert sum(len(part) for part in module.val_dataloader()) == 4


def test_official_csv_and_bytes_columns(preferences, tmp_path):
    lines = [
        "jpg_0,jpg_1,caption,label",
        "images/0-0.png,images/1-0.png,a doctor,0",
        "images/0-1.png,images/1-1.png,a nurse,1",
    ]
    (preferences / "official.csv").write_text("\n".join(lines))
    table, root = read_preferences(preferences / "official.csv")
    assert table["label_0"].to_pylist() == [1.0, 0.0] and root == preferences
    module = loader(preferences / "official.csv")
    assert next(iter(module.train_dataloader())).winner_prompts is None, "the official table does not know them"
    first = module.train_pairs[0, 0]
    assert torch.equal(first[1], joint_crop([read_image(preferences / "images/0-0.png", "x")], 32)[0])
    second = module.train_pairs[1, 0]
    assert torch.equal(second[1], joint_crop([read_image(preferences / "images/1-1.png", "x")], 32)[0]), "label 1"
    folder = tmp_path / "bytes"
    folder.mkdir()
    row = {"jpg_0": (preferences / "images/0-0.png").read_bytes(), "jpg_1": (preferences / "images/1-0.png").read_bytes(),
           "caption": "a doctor", "label_0": 1.0, "split": "train"}  # fmt: skip
    pq.write_table(pa.Table.from_pylist([row, {**row, "label_0": 0.5}]), folder / "pairs.parquet")
    module = loader(folder)
    assert len(module.train_pairs) == 1, "ties are dropped"
    assert torch.equal(module.train_pairs[0, 0][1], first[1])
    (preferences / "bad.csv").write_text("a,b\n1,2")
    with pytest.raises(ValueError, match="has no column jpg_0, jpg_1, caption, label"):
        loader(preferences / "bad.csv")


def test_the_official_table_names_images_from_the_working_directory(preferences, tmp_path, monkeypatch):
    monkeypatch.chdir(preferences.parent)
    table = tmp_path / "elsewhere" / "pairs.csv"
    table.parent.mkdir()
    name = preferences.name
    table.write_text(f"jpg_0,jpg_1,caption,label\n{name}/images/0-0.png,{name}/images/1-0.png,a doctor,0\n")
    first = loader(table).train_pairs[0, 0]
    assert torch.equal(first[1], joint_crop([read_image(preferences / "images/0-0.png", "x")], 32)[0])


def test_a_corrupt_image_is_skipped_counted_and_named_and_many_end_the_run(preferences, caplog):
    (preferences / "images/0-3.png").write_bytes(b"not an image")
    module = loader(preferences)
    with caplog.at_level(logging.WARNING):
        key, winner, *_ = module.train_pairs[3, 0]
    others = [module.train_pairs[row, 0][1] for row in range(len(module.train_pairs)) if row != 3]
    assert key == "3.0" and any(torch.equal(winner, other) for other in others), "another's images in its turn"
    assert "0-3.png" in caplog.text and "1 skipped so far" in caplog.text
    for n in (5, 6):
        (preferences / f"images/0-{n}.png").write_bytes(b"")
    with pytest.raises(CorruptImageError, match="more than 1 %"):
        for n in (5, 6):
            module.train_pairs[n, 0]


def test_missing_folder_names_the_command(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"fairanon prepare nothing"):
        loader(tmp_path / "nothing")


def test_pair_mates_are_mirrored_together(preferences):
    plain, mirrored = loader(preferences), loader(preferences, flip=True)
    seen = set()
    for row in range(12):
        a, b = plain.train_pairs[row, 0], mirrored.train_pairs[row, 0]
        flips = [not torch.equal(x, y) for x, y in zip(a[1:3], b[1:3], strict=True)]
        assert flips[0] == flips[1]
        if flips[0]:
            assert torch.equal(a[1].flip(-1), b[1])
        seen.add(flips[0])
    assert seen == {True, False}


def test_imaging_round_trips(tmp_path):
    pixels = torch.randint(0, 256, (3, 20, 30), dtype=torch.uint8)
    write_image(pixels, tmp_path / "a.png")
    assert torch.equal(read_image(tmp_path / "a.png", "a"), pixels)
    assert [path.name for path in tmp_path.iterdir()] == ["a.png"]
    assert torch.equal(to_pixels(to_model(pixels)), pixels)
    assert joint_crop([pixels], 10)[0].shape == (3, 10, 10)
    assert torch.equal(joint_flip([pixels], False)[0], pixels)
    assert grid(torch.stack([pixels] * 5), 2).shape == (3, 3 * 22 - 2, 2 * 32 - 2)
    with pytest.raises(ValueError, match="uint8"):
        to_model(pixels.float())
