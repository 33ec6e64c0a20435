"""Data in tars, on a disk and in a store: the same batches as of plain files."""

import io
import itertools
import json
import tarfile

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image, ImageDraw

from data_modules.cosmicman import CosmicMan
from data_modules.human_regions import HumanRegions
from data_modules.population_preferences import PopulationPreferences
from data_modules.region_folder import RegionFolder
from data_modules.tars import RegionTars, Tars
from fairanon.files import TextError
from fairanon.imaging import read_image
from tests.data_modules.test_human_regions import module, write_people
from tests.stores import s3, upload

__all__ = ["s3"]


def put(tar, name, raw):
    about = tarfile.TarInfo(name)
    about.size = len(raw)
    tar.addfile(about, io.BytesIO(raw))


def write_tars(folder, samples, each=3, mode="w", ending=".tar"):
    """As WebDataset writes them: a few samples a tar, the files of one beside each other."""
    folder.mkdir(parents=True, exist_ok=True)
    for number, first in enumerate(range(0, len(samples), each)):
        with tarfile.open(folder / f"{number:06}{ending}", mode) as tar:
            for key, files in samples[first : first + each]:
                for name, raw in files.items():
                    put(tar, f"{key}.{name}", raw)
    return folder


@pytest.fixture
def people(tmp_path):
    """FairHuman's folder, and the same in tars."""
    rows = write_people(tmp_path / "regions", controls=True)
    names = {"image": "png", "mask_face": "mask_face.png", "mask_hand": "mask_hand.png", "conditioning_image": "conditioning_image.png"}  # fmt: skip
    samples = []
    for n, row in enumerate(rows):
        files = {names[field]: (tmp_path / "regions" / row[field]).read_bytes() for field in names}
        text = {"txt": row["text_english"].encode()} if n % 2 else {"json": json.dumps({"caption": row["text_english"]}).encode()}  # fmt: skip
        samples.append((f"part.1/{n:04}", files | text))
    return tmp_path / "regions", write_tars(tmp_path / "tars", samples)


def batches(source):
    data = HumanRegions([source], size=64, minimum=64, val_count=2, batch_size=2, num_workers=2)
    data.setup("fit")
    return itertools.islice(data.train_dataloader(), 5)


def test_people_in_tars_are_those_of_files(s3, people):
    files, tars = people
    stored = upload(tars, f"{s3}/tars")
    for place in (tars, stored):
        for one, other in zip(batches(RegionTars(str(place))), batches(RegionFolder(str(files))), strict=True):
            assert torch.equal(one.images, other.images) and torch.equal(one.masks, other.masks)
            assert torch.equal(one.controls, other.controls) and one.captions == other.captions
    (record, *_) = RegionTars(str(tars), masks=()).records()
    assert not record.masks and str(record.image).endswith("000000.tar/part.1/0000.png")
    assert module(files) is not None


def test_a_sample_without_a_mask_has_none_and_one_without_a_caption_is_said(people, tmp_path):
    image = (people[0] / "0.png").read_bytes()
    write_tars(tmp_path / "some", [("a", {"jpg": image, "txt": b"somebody"}), ("b", {"txt": b"no image"})])
    (record,) = RegionTars(str(tmp_path / "some")).records()
    assert record.caption == "somebody" and not any(mask.read("a", 120, 96).any() for mask in record.masks)
    write_tars(tmp_path / "mute", [("a", {"jpg": image})])
    with pytest.raises(TextError, match=r"RegionTars: .*mute: a has no caption: add a\.txt, or caption to a\.json"):
        _ = RegionTars(str(tmp_path / "mute")).records()[0]
    write_tars(tmp_path / "list", [("a", {"jpg": image, "json": b"[1]"})])
    with pytest.raises(TextError, match=r"a\.json is no JSON object"):
        _ = RegionTars(str(tmp_path / "list")).records()[0]
    write_tars(tmp_path / "none", [("b", {"txt": b"no image"})])
    with pytest.raises(FileNotFoundError, match="Its tars hold no image with a caption"):
        RegionTars(str(tmp_path / "none")).look()
    with pytest.raises(FileNotFoundError, match="nowhere is missing; give a folder with tars that are not compressed"):
        RegionTars(str(tmp_path / "nowhere")).look()


def test_what_is_no_tar_to_read_at_any_place_or_names_a_file_twice_is_refused(people, tmp_path):
    image = (people[0] / "0.png").read_bytes()
    write_tars(tmp_path / "zipped", [("a", {"jpg": image})], mode="w:gz")
    with pytest.raises(TextError, match=r"key: .*000000\.tar cannot be read .*it must be a tar that is not compressed"):
        Tars(tmp_path / "zipped", "key")
    write_tars(tmp_path / "twice", [("a", {"jpg": image}), ("a", {"jpg": image})], each=1)
    with pytest.raises(TextError, match=r"the tars of .*twice have two files called a\.jpg"):
        Tars(tmp_path / "twice", "key")


@pytest.mark.parametrize("cut", ["a header", "the end"])
def test_a_tar_that_was_cut_off_is_refused(people, tmp_path, cut):
    image = (people[0] / "0.png").read_bytes()
    write_tars(tmp_path / "t", [(name, {"png": image, "txt": b"x"}) for name in "abc"])
    path = tmp_path / "t" / "000000.tar"
    with tarfile.open(path) as tar:
        last = tar.getmembers()[-1].offset
    path.write_bytes(path.read_bytes()[: last + (300 if cut == "a header" else 0)])
    with pytest.raises(TextError, match=r"000000\.tar does not end as a tar ends|000000\.tar cannot be read"):
        Tars(tmp_path / "t", "key")


def test_links_and_files_with_holes_are_refused_and_names_are_tidied(people, tmp_path):
    image = (people[0] / "0.png").read_bytes()
    for kind, said in (
        (tarfile.SYMTYPE, "is a link"),
        (tarfile.LNKTYPE, "is a link"),
        (tarfile.FIFOTYPE, "or no file"),
    ):
        folder = tmp_path / f"kind{kind.decode()}"
        write_tars(folder, [("a", {"png": image})])
        with tarfile.open(folder / "000000.tar", "a") as tar:
            about = tarfile.TarInfo("b.png")
            about.type, about.linkname = kind, "a.png"
            tar.addfile(about)
        with pytest.raises(TextError, match=said):
            Tars(folder, "key")
    for name in ("../a.png", "/a.png", "a\nb.png"):
        write_tars(tmp_path / "odd", [])
        (tmp_path / "odd").mkdir(exist_ok=True)
        with tarfile.open(tmp_path / "odd" / "0.tar", "w") as tar:
            put(tar, name, image)
        with pytest.raises(TextError, match="has no name that can be read below a folder"):
            Tars(tmp_path / "odd", "key")
    (tmp_path / "well").mkdir()
    (tmp_path / "well" / "folder.tar").mkdir()
    (tmp_path / "well" / "._0.tar").write_bytes(b"of macOS")
    with tarfile.open(tmp_path / "well" / "0.tar", "w") as tar:
        for name, raw in (
            ("././x//A.JPG", image),
            ("x/A.TXT", b"somebody"),
            ("x/._A.txt", b"\xff"),
            ("x/A.mask_face.PNG", image),
        ):
            put(tar, name, raw)
        put(tar, "x/\u00e9\u4e2d.png", image)
        put(tar, "x/\u00e9\u4e2d.json", json.dumps({"text_english": "another"}).encode())
    first, second = RegionTars(str(tmp_path / "well"), masks=("mask_face",)).records()
    assert first.caption == "somebody" and first.masks[0].path is not None and second.caption == "another"
    assert torch.equal(read_image(second.image, "it"), read_image(first.image, "it"))
    write_tars(tmp_path / "both", [("a", {"png": image}), ("a", {"jpg": image, "txt": b"x"})], each=1)
    with pytest.raises(TextError, match=r"one sample has a\.jpg and a\.png; leave one of them"):
        RegionTars(str(tmp_path / "both")).look()
    write_tars(tmp_path / "latin", [("a", {"png": image, "txt": b"\xe9"})])
    with pytest.raises(TextError, match=r"'a\.txt' is not UTF-8; save it as UTF-8"):
        Tars(tmp_path / "latin", "key")


def test_a_tar_that_is_written_again_is_looked_into_again(people, tmp_path):
    image = (people[0] / "0.png").read_bytes()
    write_tars(tmp_path / "t", [("a", {"png": image})])
    assert Tars(tmp_path / "t", "key").row("a.png") == 0
    write_tars(tmp_path / "t", [("longer name", {"txt": b"x" * 600, "png": image})])
    tars = Tars(tmp_path / "t", "key")
    assert tars.row("a.png") is None and not (tars / "a.png").exists()
    assert torch.equal(read_image(tars / "longer name.png", "it"), read_image(people[0] / "0.png", "it"))


def test_cosmicman_reads_images_from_tars(s3, tmp_path):
    (tmp_path / "labels" / "label").mkdir(parents=True)
    rows = [
        {"path": f"img/{n}.png", "segm_path": f"parsing/{n}.png", "aa_text": "[]", "person_type": "headshot"}
        for n in range(4)
    ]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "labels" / "label" / "one.parquet")
    samples = []
    for n in range(4):
        for folder, mode, colour in (("img", "RGB", (n, 2, 3)), ("parsing", "L", 13)):
            picture, raw = Image.new(mode, (64, 64)), io.BytesIO()
            ImageDraw.Draw(picture).rectangle((0, 0, 9, 4 + n), fill=colour)
            picture.save(raw, "PNG")
            samples.append((f"{folder}/{n}", {"png": raw.getvalue()}))
    tars = write_tars(tmp_path / "tars", samples)
    for place in (tars, upload(tars, f"{s3}/cosmic-tars")):
        records = CosmicMan(str(tmp_path / "labels"), (13,), (14,), images=str(place)).records()
        for n in range(4):
            assert int((records[n].masks[0].read(str(n), 64, 64) > 0).sum()) == 10 * (5 + n)
            assert read_image(records[n].image, "it")[:, 0, 0].tolist() == [n, 2, 3]


def test_pairs_in_tars_are_those_of_a_table(s3, tmp_path):
    rows, samples = [], []
    generator = torch.Generator().manual_seed(0)
    (tmp_path / "plain" / "images").mkdir(parents=True)
    for n in range(9):
        files = {}
        for side in ("jpg_0", "jpg_1"):
            pixels = torch.randint(256, (40, 48, 3), generator=generator, dtype=torch.uint8).numpy()
            raw = io.BytesIO()
            Image.fromarray(pixels).save(raw, "PNG")
            files[f"{side}.png"] = raw.getvalue()
            (tmp_path / "plain" / "images" / f"{n}-{side}.png").write_bytes(raw.getvalue())
        about = {"caption": f"pair {n}", "label_0": (1.0, 0.0, 0.5)[n % 3], "split": "val" if n > 5 else "train"}
        samples.append((f"{n:03}", files | {"json": json.dumps(about).encode()}))
        rows.append(about | {side: f"images/{n}-{side}.png" for side in ("jpg_0", "jpg_1")})
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "plain" / "pairs.parquet")
    tars = write_tars(tmp_path / "tars", samples)
    plain = PopulationPreferences(str(tmp_path / "plain"), size=32, flip=True, num_workers=2)
    plain.setup("fit")
    for place in (tars, upload(tars, f"{s3}/pair-tars")):
        data = PopulationPreferences(str(place), size=32, flip=True, num_workers=2)
        data.look()
        data.setup("fit")
        pairs = zip(data.train_dataloader(), plain.train_dataloader(), strict=False)
        for one, other in itertools.islice(pairs, 4):
            assert torch.equal(one.winners, other.winners) and torch.equal(one.losers, other.losers)
            assert one.captions == other.captions and one.keys == other.keys
        assert len(data.val_pairs) == len(plain.val_pairs) == 2
    write_tars(tmp_path / "odd", [("a", samples[0][1] | {"json": b'{"caption": "x", "label_0": 3}'})])
    with pytest.raises(TextError, match=r"data\.folder: .*odd: a\.json: label_0 is 3; a label is 0, 1"):
        PopulationPreferences(str(tmp_path / "odd")).look()
