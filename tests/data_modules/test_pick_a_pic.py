"""Streaming of pairs in Pick-a-Pic's schema."""

import io
import itertools

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from data_modules.pick_a_pic import Batches, PairStream, PickAPic, PickAPicPrompts, parquet_files
from fairanon.imaging import CorruptImageError
from tests.stores import s3, upload

__all__ = ["s3"]


def jpeg(value):
    data = io.BytesIO()
    Image.new("RGB", (20, 16), (value % 256, value // 256, 7)).save(data, format="PNG")
    return data.getvalue()


def write(folder, rows=60, files=3, group=4, split="train", labels=None, broken=(), drop=None):
    """Row n holds images whose red channel is n and 200 - n, and the caption "prompt n"."""
    folder.mkdir(parents=True, exist_ok=True)
    for k in range(files):
        numbers = range(k * rows // files, (k + 1) * rows // files)
        table = pa.table(
            {
                "caption": [f"prompt {n}" for n in numbers],
                "jpg_0": [b"broken" if n in broken else jpeg(n) for n in numbers],
                "jpg_1": [jpeg(200 - n) for n in numbers],
                "label_0": [1.0 if labels is None else labels[n] for n in numbers],
                "label_1": [0.0] * len(numbers),
                "user_id": [n % 5 for n in numbers],
            }
        )
        table = table.drop_columns([drop]) if drop else table
        pq.write_table(table, folder / f"{split}-{k:05d}-of-{files:05d}.parquet", row_group_size=group)
    return folder


def test_rows_without_a_label_are_left_out_and_counted(tmp_path):
    labels = [None, float("nan")] + [1.0] * 58
    write(tmp_path, labels=labels)
    pairs = stream(tmp_path, passes=1)
    assert sorted(numbers(pairs)) == list(range(2, 60)) and pairs.unlabelled == 2


def stream(folder, **settings):
    return PairStream(parquet_files(str(folder), "train"), 16, **settings)


def numbers(samples):
    return [int(caption.split()[1]) for *_, caption in samples]


def test_a_pass_has_every_row_once_in_another_order_each_time(tmp_path):
    write(tmp_path)
    first = numbers(stream(tmp_path, passes=1, buffer=8))
    assert sorted(first) == list(range(60)) and first != list(range(60))
    both = numbers(stream(tmp_path, passes=2, buffer=8))
    assert both[:60] == first and sorted(both[60:]) == list(range(60)) and both[60:] != first
    assert numbers(stream(tmp_path, passes=1, buffer=8, seed=1)) != first
    near = [abs(a - b) for a, b in itertools.pairwise(first)]
    assert sum(near) / len(near) > 8, "neighbours come from different row groups"


def test_ranks_and_workers_share_a_pass_without_repeats(tmp_path, monkeypatch):
    write(tmp_path)
    seen = []
    for rank in range(2):
        monkeypatch.setattr("data_modules.pick_a_pic.world", lambda rank=rank: (rank, 2))
        seen += [
            int(caption.split()[1])
            for batch in Batches(stream(tmp_path, passes=1), 3, 2, drop_last=False)
            for caption in batch.captions
        ]
    assert sorted(seen) == list(range(60))


def test_batches_do_not_depend_on_who_reads_which_stream(tmp_path, monkeypatch):
    """Streams given, the global batches of one process are those of two ranks, of workers, and of both; gone on with, too."""
    write(tmp_path, rows=240, broken={17})

    def globally(ranks, workers, begin, count):
        found = [[] for _ in range(count)]
        for rank in range(ranks):
            monkeypatch.setattr("data_modules.pick_a_pic.world", lambda rank=rank: (rank, ranks))
            size = 8 // ranks
            data = stream(tmp_path, buffer=4, flip=True, streams=8, skip=begin * size)
            for batch, one in zip(found, Batches(data, size, workers, drop_last=True), strict=False):
                batch += [(key, image.sum().item()) for key, image in zip(one.keys, one.winners, strict=True)]
        return [sorted(batch) for batch in found]

    whole = globally(1, 0, 0, 40)  # more than one pass
    assert len({key for batch in whole[:28] for key, _ in batch}) == 28 * 8, "nobody is there twice in a pass"
    for ranks, workers in ((1, 2), (2, 0), (2, 2), (4, 2), (8, 0)):
        assert globally(ranks, workers, 0, 40) == whole
        assert globally(ranks, workers, 7, 30) == whole[7:37], (
            "what one number of ranks began, another one goes on with"
        )


def test_streams_that_do_not_go_round_are_refused(tmp_path, monkeypatch):
    write(tmp_path)
    monkeypatch.setattr("data_modules.pick_a_pic.world", lambda: (0, 3))
    with pytest.raises(
        ValueError, match=r"data\.streams: 4 streams cannot be divided among 3 loaders .*take fewer --data\.num_workers"
    ):
        next(iter(stream(tmp_path, streams=4)))
    with pytest.raises(ValueError, match=r"data\.streams: 64 streams "):
        PickAPic(str(tmp_path), split="train", val_split="train", streams=64).look()
    with pytest.raises(ValueError, match=r"data\.streams must be at least 1, got 0"):
        PickAPic(str(tmp_path), streams=0)


def test_the_winner_is_the_one_that_people_chose(tmp_path):
    labels = [(0.0, 1.0, 0.5)[n % 3] for n in range(60)]
    write(tmp_path, labels=labels)
    dropped, kept = stream(tmp_path, passes=1), stream(tmp_path, passes=1, ties="keep")
    for key, winner, loser, caption in kept:
        n = int(caption.split()[1])
        first, second = int(winner[0, 0, 0]), int(loser[0, 0, 0])
        assert (first, second) == ((200 - n, n) if labels[n] == 0 else (n, 200 - n)), key
    assert sorted(numbers(dropped)) == [n for n in range(60) if n % 3 != 2] and dropped.ties_dropped == 20


@pytest.mark.parametrize("workers", [0, 2])
def test_a_run_that_goes_on_sees_what_an_uninterrupted_one_does(tmp_path, workers):
    write(tmp_path, rows=240, broken={17})

    def batches(skip, count):
        loader = iter(Batches(stream(tmp_path, buffer=8, skip=4 * skip, flip=True), 4, workers, drop_last=True))
        return [next(loader) for _ in range(count)]

    whole = batches(0, 70)  # more than one pass
    for skip in (1, 7, 60):
        for found, expected in zip(batches(skip, 5), whole[skip : skip + 5], strict=True):
            assert found.keys == expected.keys and torch.equal(found.winners, expected.winners)


@pytest.mark.parametrize("group", [4, 40])
def test_what_a_run_has_had_is_passed_over_without_reading_its_images(tmp_path, monkeypatch, group):
    write(tmp_path, rows=240, group=group)
    whole = [key for key, *_ in itertools.islice(stream(tmp_path, buffer=8), 260)]
    read, iterate = [], pq.ParquetFile.iter_batches

    def counted(self, size, row_groups, columns):
        for page in iterate(self, size, row_groups=row_groups, columns=columns):
            read.append(len(page) if "jpg_0" in columns else 0)
            yield page

    monkeypatch.setattr(pq.ParquetFile, "iter_batches", counted)
    for had in (1, 37, 200, 239, 245):
        read.clear()
        found = [key for key, *_ in itertools.islice(stream(tmp_path, buffer=8, skip=had), 3)]
        assert found == whole[had : had + 3]
        assert sum(read) <= (8 if group == 4 else 3) * group + 40, (
            f"{had} are passed over, {sum(read)} rows are read with their images"
        )


def test_broken_pairs_are_replaced_and_counted(tmp_path, caplog):
    write(tmp_path, rows=240, broken={5})
    data = stream(tmp_path, passes=1)
    found = numbers(data)
    assert len(found) >= 239 and 5 not in found and data.broken == {"0-5"} and "jpg_0" in caplog.text
    write(tmp_path, rows=240, broken=set(range(0, 240, 10)))
    with pytest.raises(CorruptImageError, match="more than 1 %"):
        list(stream(tmp_path, passes=1))


def test_bad_tables_say_what_is_wrong(tmp_path):
    write(tmp_path / "a", labels=[2.0] * 60)
    with pytest.raises(ValueError, match=r"column label_0 is 2\.0; a label is 0, 1 or"):
        next(iter(stream(tmp_path / "a")))
    write(tmp_path / "b", drop="jpg_1")
    with pytest.raises(ValueError, match=r"no column jpg_1; it has caption, jpg_0, label_0, label_1, user_id"):
        stream(tmp_path / "b")
    with pytest.raises(FileNotFoundError, match=r"train-\*\.parquet"):
        parquet_files(str(tmp_path), "train")
    with pytest.raises(FileNotFoundError, match="hf download --repo-type dataset nobody/pick-a-pic"):
        parquet_files("nobody/pick-a-pic", "train")


def test_a_hub_id_is_read_from_the_cache(tmp_path, monkeypatch):
    write(tmp_path / "snapshot" / "data")
    asked = []

    def cached(name, repo_type, local_files_only):
        asked.append((name, repo_type, local_files_only))
        return str(tmp_path / "snapshot")

    monkeypatch.setattr("data_modules.pick_a_pic.snapshot_download", cached)
    assert len(parquet_files("somebody/pick-a-pic-v2", "train")) == 3
    assert asked == [("somebody/pick-a-pic-v2", "dataset", True)]


def test_the_data_module(tmp_path):
    write(tmp_path / "data")
    write(tmp_path / "data", rows=6, files=1, split="validation")
    data = PickAPic(str(tmp_path), batch_size=4, size=16, num_workers=2)
    batch = next(iter(data.train_dataloader()))
    assert batch.winners.shape == (4, 3, 16, 16) and batch.winner_prompts is None
    assert sorted(caption for batch in data.val_dataloader() for caption in batch.captions) == [
        f"prompt {n}" for n in range(6)
    ]
    with pytest.raises(ValueError, match=r"data\.batch_size"):
        PickAPic(str(tmp_path), batch_size=0)


def test_prompts_of_held_out_pairs_are_there_once(tmp_path):
    write(tmp_path, rows=20, split="validation")
    write(tmp_path, rows=30, files=2, split="validation")  # the same prompts once more, under other file names
    rows = PickAPicPrompts(str(tmp_path)).rows()
    captions = [row.prompt for row in rows]
    assert sorted(captions) == sorted(f"prompt {n}" for n in range(30)) and {row.set for row in rows} == {"people"}
    few = PickAPicPrompts(str(tmp_path), count=3, seed=1).rows()
    assert len(few) == 3 and {row.prompt for row in few} < set(captions)


def test_too_many_loaders_and_nothing_to_learn_are_refused(tmp_path, monkeypatch):
    write(tmp_path / "few", rows=8, files=1)
    found = stream(tmp_path / "few", passes=1)
    monkeypatch.setattr(found, "_rank", (0, 3))
    with pytest.raises(ValueError, match="3 streams need as many row groups, and the files have 2"):
        next(iter(found))
    write(tmp_path / "ties", rows=8, labels=[0.5] * 8)
    with pytest.raises(ValueError, match="no pair that somebody won"):
        next(iter(stream(tmp_path / "ties")))


def test_every_rank_reads_the_same_held_out_pairs(tmp_path, monkeypatch):
    write(tmp_path, rows=40)
    write(tmp_path, rows=40, split="validation")
    seen = []
    for rank in range(2):
        monkeypatch.setattr("data_modules.pick_a_pic.world", lambda rank=rank: (rank, 2))
        data = PickAPic(str(tmp_path), batch_size=4, size=16, val_pairs=10, seed=rank)
        seen.append([key for batch in data.val_dataloader() for key in batch.keys])
    assert seen[0] == seen[1] and len(seen[0]) == 10


def test_pairs_in_an_object_store(s3, tmp_path):
    write(tmp_path / "data", rows=24)
    write(tmp_path / "data", rows=6, files=1, split="validation")
    upload(tmp_path, f"{s3}/pairs")
    found, here = (
        PickAPic(folder, batch_size=4, size=16, num_workers=2, streams=2) for folder in (f"{s3}/pairs", str(tmp_path))
    )
    found.look()
    for there, local in zip(itertools.islice(found.train_dataloader(), 8), here.train_dataloader(), strict=False):
        assert there.keys == local.keys and torch.equal(there.winners, local.winners)
    assert [b.keys for b in found.val_dataloader()] == [b.keys for b in here.val_dataloader()]
    assert PickAPicPrompts(f"{s3}/pairs").rows() == PickAPicPrompts(str(tmp_path)).rows()
    for folder, said in (
        (f"{s3}/nothing", r"data\.folder: s3://bucket/nothing is missing or incomplete"),
        ("s3://nobody/x", r"data\.folder: s3://nobody/x cannot be reached \(there is no bucket nobody\)"),
        ("abc://nobody/x", r"data\.folder: abc://nobody/x is no address that is known"),
    ):
        with pytest.raises((FileNotFoundError, ValueError), match=said):
            parquet_files(folder, "train")
