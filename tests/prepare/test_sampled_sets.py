import csv
import json

import pyarrow.parquet as pq
import pytest
import torch

from data_modules.pick_a_pic import PickAPic
from data_modules.region_folder import RegionFolder
from fairanon.backbones import StableDiffusion
from fairanon.backbones.random_models import save_random_stable_diffusion
from fairanon.evaluators import AskedAttributes
from fairanon.imaging import read_image
from fairanon.prepare import ClassImages, PreferencePairs

PICK_A_PIC = {
    "are_different", "best_image_uid", "caption", "created_at", "has_label", "image_0_uid", "image_0_url",
    "image_1_uid", "image_1_url", "jpg_0", "jpg_1", "label_0", "label_1", "model_0", "model_1", "ranking_id", "user_id",
    "num_example_per_prompt",
}  # fmt: skip


class Judge:
    """Sees the mean of the red channel: "dark" below 128, sure by how far."""

    name, classes = "red-1", {"tone": ("dark", "light")}

    def classify(self, pixels):
        light = pixels[:, 0].float().mean((1, 2)) / 255
        shares = torch.stack([1 - light, light], 1)
        shares[pixels.float().mean((1, 2, 3)) > 254] = float("nan")
        return {"tone": shares}


def prompts(folder):
    path = folder / "prompts.csv"
    with path.open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["prompt", "set", "tone"])
        rows.writerows([["a light face", "specific", "light"], ["a dark face", "specific", "dark"],
                        ["a face, light", "heldout", "light"], ["a face, dark", "heldout", "dark"]])  # fmt: skip
    return str(path)


@pytest.mark.parametrize("inpainting", [True, False])
def test_class_images_are_sampled_once(tmp_path, inpainting, monkeypatch):
    model = str(save_random_stable_diffusion(tmp_path / "sd", inpainting=inpainting))
    made = ClassImages(str(tmp_path / "prior"), StableDiffusion(model), ["a man", "a woman"], 5, 2, batch_size=2)
    sampled = []
    monkeypatch.setattr(made, "_sample", lambda n, real=made._sample: (sampled.append(list(n)), real(n))[1])
    made.run()
    records = RegionFolder(str(tmp_path / "prior"), ()).records()
    assert sampled == [[0, 1], [2, 3], [4]] and [r.caption for r in records] == ["a man", "a woman"] * 2 + ["a man"]
    before = {r.image: read_image(r.image, "").int() for r in records}
    records[3].image.unlink()
    made.run()
    assert sampled[3:] == [[3]]
    for path, pixels in before.items():  # alone or in a batch: but for rounding
        assert (read_image(path, "").int() - pixels).abs().max() <= 1
    other = ClassImages(str(tmp_path / "prior"), StableDiffusion(model), ["a man"], 1, 2, seed=1)
    other.run()
    assert RegionFolder(str(tmp_path / "prior"), ()).records()[0].image not in before
    with pytest.raises(ValueError, match="at least 1"):
        ClassImages(str(tmp_path), StableDiffusion(model), [], 5)


def test_shares_are_pieces_of_the_whole(tmp_path, monkeypatch):
    model = str(save_random_stable_diffusion(tmp_path / "sd"))

    def images(folder):
        return ClassImages(str(tmp_path / folder), StableDiffusion(model), ["a man", "a woman"], 5, 2, batch_size=2)

    def pairs(folder):
        return PreferencePairs(
            str(tmp_path / folder), StableDiffusion(model), AskedAttributes(Judge(), prompts(tmp_path)), prompts(tmp_path), 2, 1, 1,
            sampling_steps=1, batch_size=4,
        )  # fmt: skip

    for made, pattern in ((images, "images/*"), (pairs, "samples/*")):
        name = made.__name__
        whole, parts = made(f"{name}-whole"), made(f"{name}-parts")
        whole.run()
        for share in (2, 0, 1):
            parts.run(share=(share, 3))
        pieces = {path.name: path.stat().st_mtime_ns for path in (tmp_path / f"{name}-parts").glob(pattern)}
        assert pieces.keys() == {path.name for path in (tmp_path / f"{name}-whole").glob(pattern)}
        assert not (tmp_path / f"{name}-parts" / parts.result).exists(), "nothing is put together yet"
        parts.run()
        assert {path.name: path.stat().st_mtime_ns for path in (tmp_path / f"{name}-parts").glob(pattern)} == pieces
        result = [(tmp_path / f"{name}-{which}" / parts.result).read_bytes() for which in ("whole", "parts")]
        assert result[0] == result[1]


def test_scores_are_what_is_right_times_how_sure(tmp_path):
    scorer = AskedAttributes(Judge(), prompts(tmp_path))
    images = torch.zeros(3, 3, 8, 8, dtype=torch.uint8)
    images[0, 0], images[2] = 204, 255
    scores = scorer.score(images, ["a light face", "a light face", "a dark face"])
    assert scores.tolist() == pytest.approx([0.8, 0.0, 0.0]), "no face, no score"


def test_pairs_have_the_schema_and_the_better_sample_wins(tmp_path):
    backbone = StableDiffusion(str(save_random_stable_diffusion(tmp_path / "sd")))
    table = prompts(tmp_path)
    scorer = AskedAttributes(Judge(), table)
    made = PreferencePairs(
        str(tmp_path / "pairs"), backbone, scorer, table, samples=4, best=2, worst=2, tie=1e-4, sampling_steps=2
    )
    made.run()
    rows = pq.read_table(tmp_path / "pairs" / "train-00000.parquet").to_pylist()
    assert len(rows) == 2 * 4 and set(rows[0]) == PICK_A_PIC
    assert json.loads((tmp_path / "pairs" / "recipe.json").read_text())["validation"]["pairs"] == 8
    data = PickAPic(str(tmp_path / "pairs"), batch_size=4, size=32)
    seen = 0
    for batch in (next(iter(data.train_dataloader())), next(iter(data.val_dataloader()))):
        won, lost = (scorer.score(images, batch.captions) for images in (batch.winners, batch.losers))
        assert (won - lost > -0.01).all(), "but for what JPEG changes"
        seen += int((won > lost).sum())
    assert seen > 4 and any(row["label_0"] == 0 for row in rows) and any(row["label_0"] == 1 for row in rows)
    ties = PreferencePairs(str(tmp_path / "ties"), backbone, scorer, table, 4, 2, 2, tie=2.0, sampling_steps=2)
    ties.run()
    assert {row["label_0"] for row in pq.read_table(tmp_path / "ties" / "train-00000.parquet").to_pylist()} == {0.5}
    with pytest.raises(ValueError, match="at most samples"):
        PreferencePairs(str(tmp_path), backbone, scorer, table, samples=4, best=3, worst=2)
