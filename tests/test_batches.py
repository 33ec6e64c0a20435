"""Prompts whose images stay in their files."""

import pytest
import torch

from fairanon.batches import PromptRow


def test_a_stored_row_reads_when_it_is_asked_and_says_what_it_has_without():
    read = []

    def images():
        read.append(1)
        return {"image": torch.full((3, 4, 4), 7, dtype=torch.uint8), "mask": torch.ones(1, 4, 4, dtype=torch.bool)}

    row = PromptRow("a doctor", "people", {"gender": "female"}, person="person 3",
                    read=images, stored=("image", "mask"), stamp="stamp")  # fmt: skip
    assert row.holds("image") and row.holds("mask") and not row.holds("control") and row.digest() == "stamp"
    assert row.image is None and not read
    row = row.loaded()
    assert (row.prompt, row.set, row.asked, row.person) == ("a doctor", "people", {"gender": "female"}, "person 3")
    assert row.image.unique().tolist() == [7] and row.mask.all() and row.control is None and len(read) == 1
    assert row.loaded() is row and row.holds("mask") and row.digest() == "stamp"


def test_rows_are_told_apart_by_what_they_hold():
    images = [torch.full((3, 2, 2), value, dtype=torch.uint8) for value in (1, 2)]
    digests = {PromptRow("a", "people", {}, image=image).digest() for image in images}
    assert len(digests) == 2 and PromptRow("a", "people", {}).digest() == ""
    assert PromptRow("a", "people", {}, control=images[0]).digest() != "", "condition images count too"
    with pytest.raises(AttributeError):
        PromptRow("a", "people", {}).prompt = "b"
