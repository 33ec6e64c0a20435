"""The engine: what it samples, what it keeps, what it calls stale."""

import dataclasses
import json

import pytest
import torch
from safetensors.torch import load_file

from data_modules.synthetic_faces.renderer import render
from data_modules.synthetic_faces.world import draw_scenes
from fairanon.batches import PromptRow
from fairanon.cli import main
from fairanon.evaluation import Engine, ImageFolder, Population, Ranks, Ratings
from fairanon.evaluators import TinyAttributes
from fairanon.imaging import write_image
from fairanon.metrics.functional.estimates import Estimate


class Brightness:
    name = "brightness-1"

    def score(self, pixels, prompts):
        return pixels.float().mean((1, 2, 3))


class Painter:
    """Paints the row's and the image's number, and counts its batches."""

    device = torch.device("cpu")

    def __init__(self):
        self.drawn = []

    def origin(self):
        return ["painter"]

    def sample(self, rows, keys):
        self.drawn.append(len(rows))
        return torch.stack(
            [
                torch.full((3, 16, 16), 10 * len(r.prompt) + k[-1], dtype=torch.uint8)
                for r, k in zip(rows, keys, strict=True)
            ]
        )


ROWS = [PromptRow("a" * n, "people", {}) for n in (1, 2, 3)]


def engine(rows=ROWS, **settings):
    return Engine(list(rows), [Ratings([Brightness()])], images=2, batch_size=4, **settings)


def test_ranks_share_the_chunks_and_nothing_is_judged_twice(tmp_path):
    painters, waited = [Painter(), Painter()], []
    for rank in (1, 0):  # the first one reads what both wrote
        one = engine(ranks=Ranks(rank, 2, waited.append))
        if rank:
            with pytest.raises(FileNotFoundError):  # here nobody waits
                one.judge(painters[rank], tmp_path, one.sets(), "before")
        else:
            samples = one.judge(painters[rank], tmp_path, one.sets(), "before")
    assert painters[0].drawn == [4] and painters[1].drawn == [2]
    assert [words.split()[-1] for words in waited] == ["there", "done"] * 2
    assert samples.judged[0].values.by["brightness-1"].tolist() == [10, 11, 20, 21, 30, 31] and samples.count == 6
    assert one.numbers(samples)[0]["score/brightness-1"] == Estimate.mean(
        torch.tensor([10.0, 11, 20, 21, 30, 31]), torch.arange(6) // 2
    )
    again = Painter()
    one.judge(again, tmp_path, one.sets(), "before")
    assert not again.drawn, "they are there"


@pytest.mark.parametrize(("height", "width"), [(16, 16), (16, 24), (200, 200), (160, 200)])
def test_many_images_of_a_prompt_are_joined_whatever_their_size(tmp_path, height, width):
    """Only the first of a prompt are kept for the grids: later chunks have none."""

    class Large(Painter):
        def sample(self, rows, keys):
            return super().sample(rows, keys)[:, :, :1, :1].expand(-1, -1, height, width).contiguous()

    one = Engine(ROWS[:2], [Ratings([Brightness()])], images=20, batch_size=4)
    samples = one.judge(Large(), tmp_path, ("people",), "before")
    side = 16 if (height, width) == (16, 16) else 128
    assert samples.count == 40 and samples.thumbnails.shape == (16, 3, side, side)
    assert samples.thumbnail_prompt.tolist() == [0] * 8 + [1] * 8


def test_a_row_that_moves_or_changes_its_set_is_judged_again(tmp_path):
    engine().judge(Painter(), tmp_path, ("people",), "before")
    for rows in ([PromptRow("", "generic", {}), *ROWS], [dataclasses.replace(ROWS[0], set="neutral"), *ROWS[1:]]):
        moved, painter = engine(rows), Painter()
        samples = moved.judge(painter, tmp_path, ("people", "neutral"), "before")
        assert painter.drawn == [4, 2]
        assert samples.judged[0].prompt.tolist() == [
            n for n, row in enumerate(rows) if row.set != "generic" for _ in "12"
        ]


def test_images_of_a_folder_are_measured_like_a_models(tmp_path):
    for name, image in zip(("a/0.png", "b/0.png"), render(draw_scenes(3, range(2), "balanced")).image, strict=True):
        (tmp_path / "in" / name).parent.mkdir(parents=True)
        write_image(image, tmp_path / "in" / name)
    source = ImageFolder(tmp_path / "in")
    rows = [dataclasses.replace(row, set="neutral") for row in source.rows()]
    assert [(row.prompt, row.images) for row in rows] == [("a", 1), ("b", 1)]
    one = Engine(rows, [Population(TinyAttributes(), ("gender",))])
    samples = one.judge(source, tmp_path / "judged", one.sets(), "reading")
    assert torch.equal(samples.thumbnails, source.sample(rows, [(0,), (0,)])) and len(samples.judged[0]) == 2
    (chunk,) = (tmp_path / "judged").rglob("*.safetensors")
    assert set(load_file(chunk)) >= {"0/prompt", "0/values/probabilities/gender", "0/values/features", "thumbnails"}


def test_ideal_shares_are_checked_before_anything_is_drawn():
    for target in ({"gender": {"female": 0.9, "male": 0.9}}, {"gender": {"female": 1.0}}, {"mood": {"good": 1.0}}):
        with pytest.raises(ValueError, match="must be a share of each of"):
            Population(TinyAttributes(), ("gender",), target=target)


def test_a_base_model_is_measured_without_data_or_training_and_measured_again(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "prompts.csv").write_text(
        "prompt,set,gender\na photo of a doctor,neutral,\na photo of a nurse,neutral,\n"
    )
    (tmp_path / "own.yaml").write_text("""
model:
  class_path: fairanon.methods.BaseModel
  init_args:
    backbone: {class_path: fairanon.backbones.StableDiffusion, init_args: {frozen: true}}
evaluate:
  class_path: fairanon.callbacks.Evaluate
  init_args:
    prompts: prompts.csv
    measures:
      - class_path: fairanon.evaluation.Population
        init_args: {judge: fairanon.evaluators.TinyAttributes, attributes: [gender]}
    images: 2
    sampling_steps: 2
""")
    assert main(["fit", "-c", "own.yaml"]) == 0
    folder = tmp_path / "runs" / "own" / "latest"
    result = json.loads((folder / "metrics.json").read_text())
    assert result["before"] == result["after"] and result["images"] == 4
    assert result["higher_is_better"]["discrepancy/gender/per_prompt"] is False
    assert (folder / "versions.json").exists() and not (folder / "checkpoints").exists()
    assert main(["measure", str(folder), "--evaluate.images", "3"]) == 0
    assert json.loads((folder / "measure-images-3" / "metrics.json").read_text())["images"] == 6
    assert main(["train", "popalign_tiny", "--data", "null"]) == 1
    assert "data: there is none to train on" in capsys.readouterr().err
