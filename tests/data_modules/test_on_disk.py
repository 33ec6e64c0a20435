"""What reads files can be asked whether they are there before anything is prepared or trained."""

import importlib
import inspect
import pkgutil

import pytest

import data_modules
from data_modules.ffhq import Ffhq
from data_modules.identity_pairs import PeopleToAnonymize
from data_modules.masked_faces import FacesToAnonymize
from fairanon.protocols import OnDisk


def readers():
    for module in pkgutil.walk_packages(data_modules.__path__, "data_modules."):
        if module.name.endswith("__main__"):
            continue
        found = vars(importlib.import_module(module.name)).items()
        own = (kind for name, kind in found if inspect.isclass(kind) and not name.startswith("_"))
        for kind in (kind for kind in own if kind.__module__ == module.name):
            if {"folder", "path", "annotations"} & set(inspect.signature(kind).parameters):
                yield kind


SKIPPED = {"Annotations", "Mask", "SyntheticGroup", "Tars"}
"""What a source is made of, and drawn faces: their folder is where they are written."""


@pytest.mark.parametrize("kind", [k for k in readers() if k.__name__ not in SKIPPED], ids=lambda kind: kind.__name__)
def test_it_says_in_a_sentence_what_is_not_there(kind, tmp_path):
    nowhere = str(tmp_path / "nowhere")
    needed = {name: p for name, p in inspect.signature(kind).parameters.items() if p.default is p.empty}
    values = {
        "folder": nowhere,
        "path": nowhere,
        "annotations": [nowhere],
        "sources": [],
        "source": None,
        "face_ids": (),
        "hand_ids": (),
    }
    thing = kind(**{name: values[name] for name in needed})
    assert isinstance(thing, OnDisk)
    with pytest.raises((OSError, ValueError)) as raised:
        thing.look()
    assert "nowhere" in str(raised.value) and "missing" in str(raised.value)


@pytest.mark.parametrize("kind", [FacesToAnonymize, PeopleToAnonymize])
def test_prompts_of_a_source_say_what_the_source_lacks(kind, tmp_path):
    more = ({"asian": "an Asian"}, {"male": "{group}"}) if kind is FacesToAnonymize else ([],)
    with pytest.raises(FileNotFoundError, match=r"evaluate\.prompts\.source: Ffhq: .*nowhere is missing"):
        kind(Ffhq(str(tmp_path / "nowhere")), *more).look()
