"""AI Hub, FFHQ, CelebA-HQ and FairFace in their true layouts."""

import json
import zipfile

import numpy as np
import pytest
from PIL import Image

from data_modules.ai_hub import LABELS, SOURCES, AiHub
from data_modules.celeba_hq import CelebAHq, parts_of
from data_modules.fairface import FairFace
from data_modules.ffhq import Ffhq
from data_modules.records import Rows, usable


def image(path, size=(16, 16), colour=(9, 9, 9), mode="RGB"):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, size, colour).save(path)
    return path


def archive(path, files):
    path.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w") as file:
        for name, content in files.items():
            file.writestr(name, content)


@pytest.fixture
def ai_hub(tmp_path):
    data = image(tmp_path / "one.png").read_bytes()
    root = tmp_path / "hub"
    archive(root / "Training" / SOURCES / "TS_1.zip", {"a/0001.png": data, "a/0002.png": data})
    image(root / "Training" / SOURCES / "more" / "0003.png")
    labels = {
        f"a/000{n}.json": json.dumps({"meta": [{"gender": g}]}) for n, g in ((1, "man"), (2, "woman"), (3, "man"))
    }
    archive(root / "Training" / LABELS / "TL_1.zip", labels)
    return root


def test_ai_hub_archives_and_labels(ai_hub):
    records = AiHub(str(ai_hub), "a photo of an asian {gender}").records()
    assert [r.image.name for r in records] == ["0001.png", "0002.png", "0003.png"]
    assert [r.caption.split()[-1] for r in records] == ["man", "woman", "man"]
    assert [r.caption for r in AiHub(str(ai_hub)).records()] == ["a photo of asian"] * 3
    with pytest.raises(ValueError, match=r"no 'age'; it has gender"):
        AiHub(str(ai_hub), "{age}").records()
    (ai_hub / "Training" / SOURCES / "more" / "0009.png").write_bytes(b"")
    with pytest.raises(ValueError, match=r"0009\.png has no label"):
        AiHub(str(ai_hub), "{gender}").records()


def test_labels_of_the_same_name_are_told_apart_by_their_folders(tmp_path):
    for person, age in (("P001", "20"), ("P002", "40")):
        image(tmp_path / "Training" / SOURCES / person / "1.jpg")
        label = tmp_path / "Training" / LABELS / person / "1.json"
        label.parent.mkdir(parents=True)
        label.write_text(json.dumps({"age": age}))
    captions = {r.image.parent.name: r.caption for r in AiHub(str(tmp_path), "aged {age}").records()}
    assert captions == {"P001": "aged 20", "P002": "aged 40"}
    (tmp_path / "Training" / LABELS / "P001").rename(tmp_path / "Training" / LABELS / "P003")
    (tmp_path / "Training" / LABELS / "P002").rename(tmp_path / "Training" / LABELS / "P004")
    with pytest.raises(ValueError, match="may belong to"):
        AiHub(str(tmp_path), "aged {age}").records()


def test_ai_hub_flat_folder_and_nothing_at_all(tmp_path):
    image(tmp_path / "flat" / "b.jpg")
    image(tmp_path / "flat" / "a.png")
    assert [r.image.name for r in AiHub(str(tmp_path / "flat")).records()] == ["a.png", "b.jpg"]
    with pytest.raises(FileNotFoundError, match=f"(?s){SOURCES}.*aihub"):
        AiHub(str(tmp_path / "none")).records()


@pytest.mark.parametrize("name", ["../outside.png", "/tmp/outside.png", "a/../../outside.png"])
def test_an_archive_that_leaves_its_folder_is_refused(tmp_path, name):
    root = tmp_path / "Training" / SOURCES
    archive(root / "TS_1.zip", {"good.png": b"x", name: b"x"})
    with pytest.raises(ValueError, match="lies outside the archive"):
        AiHub(str(tmp_path)).records()
    assert [p.name for p in root.iterdir()] == ["TS_1.zip"] and not (tmp_path / "outside.png").exists()


def test_a_damaged_archive_leaves_nothing_behind(tmp_path):
    root = tmp_path / "Training" / SOURCES
    root.mkdir(parents=True)
    (root / "TS_1.zip").write_bytes(b"PK nothing")
    with pytest.raises(ValueError, match="is damaged"):
        AiHub(str(tmp_path)).records()
    assert [p.name for p in root.iterdir()] == ["TS_1.zip"]


@pytest.mark.parametrize("layout", ["{0:02d}000/{1:05d}.png", "{1:05d}.png"])
def test_ffhq_in_the_order_of_its_numbers(tmp_path, layout):
    for number in (10002, 3, 60000, 200):
        image(tmp_path / layout.format(number // 1000, number))
    assert [int(r.image.stem) for r in Ffhq(str(tmp_path)).records()] == [3, 200, 10002, 60000]
    assert [int(r.image.stem) for r in Ffhq(str(tmp_path), 4, 60000).records()] == [200, 10002]
    with pytest.raises(FileNotFoundError, match="NN000"):
        Ffhq(str(tmp_path), first=70000).records()


def test_celeba_hq_regions(tmp_path):
    for number in (0, 2001):
        image(tmp_path / "CelebA-HQ-img" / f"{number}.jpg", (32, 32))
    anno = tmp_path / "CelebAMask-HQ-mask-anno"
    image(anno / "0" / "00000_nose.png", (16, 16), 255, "L")
    image(anno / "0" / "00000_hair.png", (16, 16), 0, "L")
    records = CelebAHq(str(tmp_path), "nose+hair").records()
    assert len(records) == 2 and len(records[0].masks) == 2
    assert records[0].masks[0].read("", 32, 32).all(), "half as large as its image"
    kept, left_out = usable(Rows([records]), 1)
    assert len(kept) == 1 and left_out == {"with an empty mask": 1}
    assert all(not record.masks for record in CelebAHq(str(tmp_path), None).records())
    added, taken = parts_of("face-lips")
    assert set(added) == {"skin", "l_eye", "r_eye", "eye_g", "l_brow", "r_brow", "nose"}
    assert set(taken) == {"mouth", "u_lip", "l_lip"}
    image(anno / "1" / "02001_skin.png", (16, 16), 255, "L")
    Image.fromarray(np.pad(np.full((4, 16), 255, np.uint8), ((12, 0), (0, 0)))).save(anno / "1" / "02001_u_lip.png")
    (last,) = CelebAHq(str(tmp_path), "face-lips", first=1, last=2002).records()
    mask = last.masks[0].read("", 32, 32)[0]
    assert mask[:24].all() and not mask[24:].any(), "the lips are taken out of the solid skin"
    with pytest.raises(ValueError, match="the regions are eyes"):
        CelebAHq(str(tmp_path), "beard")
    with pytest.raises(FileNotFoundError, match="CelebA-HQ-img"):
        CelebAHq(str(tmp_path / "none")).records()


def test_fairface_captions_and_groups(tmp_path):
    (tmp_path / "fairface_label_train.csv").write_text(
        "file,age,gender,race,service_test\ntrain/1.jpg,20-29,Male,East Asian,True\n"
        "train/2.jpg,3-9,Female,Latino_Hispanic,False\n"
    )
    records = FairFace(str(tmp_path)).records()
    assert [r.caption for r in records] == ["a photo of a east asian male", "a photo of a latino hispanic female"]
    assert len(FairFace(str(tmp_path), races=("East Asian",)).records()) == 1
    with pytest.raises(ValueError, match="'Asian' is not one of East Asian"):
        FairFace(str(tmp_path), races=("Asian",))
    (tmp_path / "fairface_label_val.csv").write_text("file,age\n")
    (tmp_path / "fairface_label_val.csv").write_text("file,age\nval/1.jpg,3-9\n")
    with pytest.raises(ValueError, match=r"no column gender, race; it has file, age"):
        FairFace(str(tmp_path), "val").records()
    with pytest.raises(FileNotFoundError, match="fairface_label_test"):
        FairFace(str(tmp_path), "test").records()
