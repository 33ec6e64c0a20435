import json

import pytest
import torch

from data_modules.human_regions import HumanRegions
from data_modules.region_folder import RegionFolder
from data_modules.synthetic_faces.renderer import render
from data_modules.synthetic_faces.world import draw_scenes
from fairanon.cli import main
from fairanon.evaluators import PointRendParser, TinyDetector
from fairanon.imaging import read_image, write_image
from fairanon.prepare import FaceMasks, RegionMasks


@pytest.fixture
def images(tmp_path):
    folder = tmp_path / "holiday"
    (folder / "beach").mkdir(parents=True)
    scenes = draw_scenes(3, range(4), "balanced")
    drawn = render(scenes.replace(hands=torch.tensor([True, True, False, False])), masks=True)
    for n, image in enumerate(drawn.image):
        write_image(image, folder / ("beach" if n % 2 else ".") / f"{n}.png")
    (folder / "0.txt").write_text("a friend\n")
    (folder / "broken.jpg").write_bytes(b"no image")
    return folder, drawn


def test_masks_of_a_plain_folder_train(images, tmp_path, capsys):
    folder, drawn = images
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    out = tmp_path / "out"
    prepare = RegionMasks(str(out), str(folder), TinyDetector(), grow=1)
    prepare.run()
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before, "originals stay"
    counts = json.loads((out / "counts.json").read_text())
    assert counts.pop("detector").startswith("tiny") and counts.pop("asked")
    assert counts == {"grow": 1, "images": 5, "unreadable": 1, "face": 4, "hand": 2, "passed over": {}}
    records = {record.image.stem: record for record in RegionFolder(str(out)).records()}
    assert records["0"].caption == "a friend" and records["1"].caption == "a photo of a person"
    for n in range(4):
        face, hand = (mask.read(str(n), 64, 64)[0] > 0 for mask in records[str(n)].masks)
        truth = drawn.masks[n, :5].bool().any(0)
        assert (face & truth).sum() > 0.8 * truth.sum(), "the box covers the face"
        assert hand.any() == (n < 2)
    data = HumanRegions([RegionFolder(str(out))], size=64, minimum=64, val_count=1)
    data.setup("fit")
    assert next(iter(data.train_dataloader())).masks.any()


def test_a_second_run_looks_at_new_images_only(images, tmp_path, monkeypatch):
    folder, drawn = images
    prepare = RegionMasks(str(tmp_path / "out"), str(folder), TinyDetector())
    prepare.run()
    first = (tmp_path / "out" / "metadata.jsonl").read_text()
    write_image(drawn.image[0], folder / "new.png")
    seen = []
    detect = prepare.detector.detect
    monkeypatch.setattr(prepare.detector, "detect", lambda pixels: seen.append(len(pixels)) or detect(pixels))
    prepare.run()
    second = (tmp_path / "out" / "metadata.jsonl").read_text()
    assert seen == [1] and set(second.splitlines()) > set(first.splitlines())
    assert torch.equal(read_image(folder / "new.png", "new"), drawn.image[0])
    prepare.recipe = {**prepare.recipe, "grow": 3}
    prepare.run()
    assert len(seen) == 6, "masks of another recipe are made again"


@pytest.mark.slow
def test_parts_on_several_devices_make_what_one_process_makes(images, tmp_path, monkeypatch, capsys):
    folder, _ = images
    recipe = tmp_path / "masks.yaml"
    recipe.write_text(
        "prepare:\n  class_path: fairanon.prepare.RegionMasks\n  init_args:\n    folder: one\n    images: nowhere\n"
        "    detector: {class_path: fairanon.evaluators.TinyDetector}\n    grow: 1\n"
    )
    monkeypatch.chdir(tmp_path)
    words = ["prepare", str(recipe), str(folder)]
    assert main([*words, "--device", "cpu"]) == 0
    two = [*words, "--prepare.init_args.folder", "two"]
    assert main([*two, "--device", "cpu", "--part", "2/3"]) == 0
    assert "part 2/3 of two is made; nothing is put together before" in capsys.readouterr().out
    assert main([*words, "--prepare.init_args.folder", "three", "--finish"]) == 1
    assert "--finish: nothing was begun in three" in capsys.readouterr().err
    done = {path.name for path in (tmp_path / "two" / "masks" / "done").rglob("*.json")}
    assert done == {"2.png.png.json"}, "of five images the second and the fifth, which is broken"
    assert main([*two, "--device", "cpu,cpu", "--finish"]) == 0
    for name in ("metadata.jsonl", "counts.json"):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()
    assert main([*words, "--part", "4/3"]) == 2
    assert "--part must be K/N with K from 1 to N" in capsys.readouterr().err


def test_parts_of_segmented_faces_become_masks(images, tmp_path):
    folder, drawn = images
    out = tmp_path / "masks"
    FaceMasks(str(out), str(folder), PointRendParser(), "face").run()
    records = RegionFolder(str(out), ("mask_face",)).records()
    assert len(records) == 4
    for record in records:
        truth = drawn.masks[int(record.image.stem), :5].bool().any(0)
        (found,) = (mask.read("", 64, 64)[0] > 0 for mask in record.masks)
        assert (found & truth).sum() > 0.9 * (found | truth).sum()
    with pytest.raises(ValueError, match="the regions are face, eyes"):
        FaceMasks(str(out), str(folder), PointRendParser(), "beard")


def test_bad_settings_say_what_is_wrong(images, tmp_path):
    folder, _ = images
    detector = TinyDetector()
    with pytest.raises(ValueError, match="lies inside prepare.images".replace(".", r"\.")):
        RegionMasks(str(folder / "out"), str(folder), detector).run()
    with pytest.raises(FileNotFoundError, match="is missing"):
        RegionMasks(str(tmp_path / "out"), str(tmp_path / "empty"), detector).run()
    detector.kinds = ("face",)
    with pytest.raises(ValueError, match="does not find hand"):
        RegionMasks(str(tmp_path / "out"), str(folder), detector)
