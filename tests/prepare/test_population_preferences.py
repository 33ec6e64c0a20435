import csv
import json
from collections import Counter

import pyarrow.parquet as pq
import pytest
import torch

from fairanon.imaging import read_image
from fairanon.prepare import PopulationSets

CLASSES = {"gender": ("female", "male"), "tone": ("pale", "dark")}


class FakeBackbone:
    """Paints what the prompt asks for: red 255 for female, green 255 for dark; neutral prompts are male and pale.

    Every third image wears glasses (blue 100), whatever the prompt.
    """

    sampled = 0
    fail_after = None

    def fingerprint(self):
        return "fake 1"

    def origin(self):
        return [self.fingerprint()]

    def sample(self, prompts, keys, sampling, size):
        images = torch.zeros(len(prompts), 3, 8, 8, dtype=torch.uint8)
        for n, (text, key) in enumerate(zip(prompts, keys, strict=True)):
            images[n, 0] = 255 * ("female" in text.split() or ("rare" in text and key[-1] == 0))
            images[n, 1] = 255 * ("dark" in text.split())
            images[n, 2] = 9 if "astronaut" in text else 100 * (key[-1] % 3 == 0)
            FakeBackbone.sampled += 1
        if self.fail_after is not None and FakeBackbone.sampled > self.fail_after:
            raise KeyboardInterrupt
        return images


class FakeJudge:
    name = "fake-judge-1"

    def __init__(self):
        self.classes = {**CLASSES, "glasses": ("no glasses", "glasses")}

    def classify(self, pixels):
        bits = {"gender": 1 - pixels[:, 0, 0, 0].float() / 255, "tone": pixels[:, 1, 0, 0].float() / 255}
        bits["glasses"] = (pixels[:, 2, 0, 0] == 100).float()
        result = {name: torch.stack([1 - bit, bit], 1) for name, bit in bits.items()}
        hidden = pixels[:, 2, 0, 0] == 9  # a helmet: no face
        for value in result.values():
            value[hidden] = float("nan")
        return result


@pytest.fixture
def prompts(tmp_path):
    path = tmp_path / "prompts.csv"
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["prompt", "specific"])
        writer.writerow(["a doctor", "a {gender} doctor with {tone} skin"])
        writer.writerow(["a rare nurse", "a {gender} rare nurse with {tone} skin"])
        writer.writerow(["an astronaut", "a {gender} astronaut with {tone} skin"])
    return path


def recipe(tmp_path, prompts, **settings):
    FakeBackbone.sampled, FakeBackbone.fail_after = 0, None
    attributes = {name: {value: value for value in values} for name, values in CLASSES.items()}
    defaults = {"neutral_images": 6, "specific_images": 3, "pairs": 40, "batch_size": 5, "val_share": 0.1}
    return PopulationSets(
        str(tmp_path / "out"), FakeBackbone(), FakeJudge(), str(prompts), attributes, **{**defaults, **settings}
    )


def rows_of(tmp_path):
    return pq.read_table(tmp_path / "out" / "pairs.parquet").to_pylist()


def test_winners_are_fair_and_failures_are_dropped_and_counted(tmp_path, prompts):
    recipe(tmp_path, prompts).run()
    rows = rows_of(tmp_path)
    assert {row["caption"] for row in rows} == {"a doctor", "a rare nurse"}
    doctor = Counter(row["group_0"] for row in rows if row["caption"] == "a doctor")
    assert set(doctor.values()) == {10} and len(doctor) == 4
    assert all(row["prompt_1"] == row["caption"] for row in rows)
    assert all(word in row["prompt_0"].split() for row in rows for word in row["group_0"].split())
    assert Counter(row["split"] for row in rows) == {"train": 72, "val": 8}
    counts = json.loads((tmp_path / "out" / "recipe.json").read_text())["counts"]
    assert counts["dropped: no face"] == 6 + 4 * 3
    assert counts["dropped: judge disagrees"] == 2, "the two male 'rare' images that came out female"
    assert counts["neutral images kept"] == 12 and counts["prompts dropped: one side empty"] == 1
    assert all((tmp_path / "out" / row[name]).exists() for row in rows for name in ("jpg_0", "jpg_1"))


def test_nothing_is_sampled_twice_and_a_kill_loses_one_batch_at_most(tmp_path, prompts):
    interrupted = recipe(tmp_path, prompts)
    FakeBackbone.fail_after = 20
    with pytest.raises(KeyboardInterrupt):
        interrupted.run()
    done = FakeBackbone.sampled
    assert not (tmp_path / "out" / "pairs.parquet").exists()
    recipe(tmp_path, prompts).run()
    total = 3 * (6 + 4 * 3)
    assert FakeBackbone.sampled == total - (done - 5)
    first = rows_of(tmp_path)
    with (tmp_path / "out" / "judged.jsonl").open("a") as file:
        file.write('{"file": "cut sho')
    recipe(tmp_path, prompts).run()
    assert FakeBackbone.sampled == 0 and rows_of(tmp_path) == first
    recipe(tmp_path, prompts, neutral_images=7).run()
    assert FakeBackbone.sampled == 3, "only what is new"


@pytest.mark.parametrize("source", ["augmented", "filtered"])
def test_held_out_pairs_show_no_image_of_the_training_pairs(tmp_path, prompts, source):
    recipe(tmp_path, prompts, source=source, neutral_images=12).run()
    shown = {split: {row[name] for row in rows_of(tmp_path) if row["split"] == split for name in ("jpg_0", "jpg_1")}
             for split in ("train", "val")}  # fmt: skip
    assert shown["val"] and not shown["val"] & shown["train"]


def test_target_shares(tmp_path, prompts):
    recipe(tmp_path, prompts, target={"gender": {"female": 0.8, "male": 0.2}}).run()
    doctor = Counter(row["group_0"].split()[0] for row in rows_of(tmp_path) if row["caption"] == "a doctor")
    assert doctor == {"female": 32, "male": 8}


def test_filtered_selects_winners_among_the_neutral_samples(tmp_path, prompts):
    recipe(tmp_path, prompts, source="filtered").run()
    nurse = Counter(row["group_0"] for row in rows_of(tmp_path) if row["caption"] == "a rare nurse")
    assert nurse == {"female pale": 18, "male pale": 22}, "the one female image in six fills its half in training"
    assert all(row["jpg_0"] != row["jpg_1"] for row in rows_of(tmp_path)), "nobody beats themselves"
    assert FakeBackbone.sampled == 3 * 6


def test_sides_agree_in_what_should_stay(tmp_path, prompts):
    def tilt(**settings):
        """Winners minus losers that wear glasses."""
        recipe(tmp_path, prompts, **settings).run()
        sides = {"jpg_0": 0, "jpg_1": 0}
        for row in rows_of(tmp_path):
            for side in sides:
                pixels = read_image(tmp_path / "out" / row[side], row[side])
                sides[side] += row["caption"] == "a doctor" and bool((pixels[2] == 100).all())
        assert 0 < sides["jpg_1"] < 40
        return sides["jpg_0"] - sides["jpg_1"]

    uneven = {"neutral_images": 5, "specific_images": 4, "val_share": 0.0}  # two of five and two of four wear glasses
    assert tilt(**uneven) > 0
    assert tilt(**uneven, unchanged=("glasses",)) == 0
    with pytest.raises(ValueError, match=r"prepare\.unchanged: 'tone' must be another attribute .*\(glasses\)"):
        recipe(tmp_path, prompts, unchanged=("tone",))


def test_the_official_prompt_file_is_read(tmp_path):
    (tmp_path / "training_prompts.csv").write_text("Prompt\nLinguist - Analyzing a text\n")
    made = recipe(tmp_path, tmp_path / "training_prompts.csv", specific="a {gender} {tone} {prompt}")
    assert made.prompts == [("Linguist - Analyzing a text", "a {gender} {tone} Linguist - Analyzing a text")]


def test_wrong_settings_say_what_is_accepted(tmp_path, prompts):
    with pytest.raises(ValueError, match="does not judge 'age', only gender, tone, glasses"):
        PopulationSets(str(tmp_path), FakeBackbone(), FakeJudge(), str(prompts), {"age": {"old": "old"}})
    with pytest.raises(ValueError, match="'purple' is not one of pale, dark"):
        PopulationSets(str(tmp_path), FakeBackbone(), FakeJudge(), str(prompts), {"tone": {"purple": "x"}})
    with pytest.raises(ValueError, match="must sum to 1"):
        recipe(tmp_path, prompts, target={"gender": {"female": 0.8, "male": 0.3}})
    with pytest.raises(FileNotFoundError, match=r"prepare\.prompts"):
        recipe(tmp_path, tmp_path / "none.csv")
