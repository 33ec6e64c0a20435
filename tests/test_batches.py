"""Prompts whose pictures stay in their files."""

import pytest
import torch

from fairanon.batches import PromptRow, StoredRow


def test_a_stored_row_reads_when_it_is_asked_and_says_what_it_has_without():
    read = []

    def pictures():
        read.append(1)
        return {"picture": torch.full((3, 4, 4), 7, dtype=torch.uint8), "mask": torch.ones(1, 4, 4, dtype=torch.bool)}

    row = StoredRow("a doctor", "people", {"gender": "female"}, pictures, ("picture", "mask"), "stamp", "person 3")
    assert row.holds("picture") and row.holds("mask") and not row.holds("control") and row.digest() == "stamp"
    assert row.control is None and row.reference is None and not read
    assert (row.prompt, row.set, row.asked, row.person) == ("a doctor", "people", {"gender": "female"}, "person 3")
    assert row.picture.unique().tolist() == [7] and row.mask.all() and len(read) == 1


def test_rows_are_told_apart_by_what_they_hold():
    pictures = [torch.full((3, 2, 2), value, dtype=torch.uint8) for value in (1, 2)]
    digests = {PromptRow("a", "people", {}, picture=picture).digest() for picture in pictures}
    assert len(digests) == 2 and PromptRow("a", "people", {}).digest() == ""
    assert PromptRow("a", "people", {}, control=pictures[0]).digest() != "", "condition pictures count too"
    with pytest.raises(AttributeError):
        PromptRow("a", "people", {}).prompt = "b"
