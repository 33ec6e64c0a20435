"""What READMEs say is what the kept files say, and a table of another embedded world is called old."""

import importlib.util
import json
import re
import sys
import warnings

import pytest

from fairanon.assets.world_version import world_version
from fairanon.config.experiments import resolve
from fairanon.config.runs import code_version
from fairanon.metrics.functional.welch import welch
from fairanon.report.table import compare
from tests.conftest import REPOSITORY

RESULTS = REPOSITORY / "experiments/results"
README = (REPOSITORY / "experiments/README.md").read_text()
CELLS = sorted(path for path in RESULTS.glob("*/*.json") if path.parent.name != "measured")
MADE_WITH = {"rivals": (("second_judge",), ["--evaluate.images=20", "--evaluate.specific_images=2"])}
"""Overlays and settings of a folder's cells, where it has any."""
OLD = "made by an earlier version, which drew its noise differently"
"""What the README says beside a table that the present code does not reproduce."""


@pytest.mark.parametrize("path", CELLS, ids=lambda p: p.stem)
def test_a_kept_cell_is_of_the_experiment_and_the_world_as_they_stand(path, monkeypatch):
    monkeypatch.chdir(REPOSITORY)
    kept, (name, _, seed) = json.loads(path.read_text()), path.stem.rpartition("-")
    overlays, settings = MADE_WITH.get(path.parent.name, ((), []))
    assert kept["recipe"] == resolve(name, overlays, settings=[*settings, f"--seed={seed}"]).recipe()
    assert kept["world"] == world_version() and re.fullmatch(r"[0-9a-f]{16}", kept["metrics"]["versions"]["code"])


@pytest.mark.parametrize("path", sorted(RESULTS.glob("*.json")), ids=lambda p: p.stem)
def test_a_kept_table_is_the_one_in_the_readme_and_an_old_one_is_called_old(path):
    kept = json.loads(path.read_text())
    place = README.find(compare(kept["rows"]))
    assert place >= 0, "the table in experiments/README.md is another one"
    section = README[README.rindex("\n### ", 0, place) : place]
    assert kept["command"].removesuffix(" --cells experiments/results/popalign_tiny") in " ".join(section.split())
    assert (OLD in " ".join(section.split())) == (kept.get("world") != world_version())


def test_kept_numbers_of_other_code_are_named():
    """A warning, no failure: most changes change no number, and a table takes hours."""
    now, other = code_version(), set[str]()
    for path in RESULTS.rglob("*.json"):
        made = set(re.findall(r'"code": "([0-9a-f, ]+)"', path.read_text()))
        assert made, f"{path.name} does not say which code made it"
        if made != {now}:
            other.add(path.relative_to(RESULTS).as_posix())
    if other:
        warnings.warn(
            f"{len(other)} kept files are of other code than the present ({now}): {min(other)}, ...", stacklevel=1
        )


def test_what_is_said_of_age_is_what_its_file_says():
    kept = json.loads((RESULTS / "measured/popalign_tiny_age-21.json").read_text())
    assert kept["world"] == world_version() and kept["command"] in README
    metrics, key = kept["metrics"], "discrepancy/age/per_prompt"
    sentence = " ".join(README[README.index("- **Age**") :].split("###")[0].split())
    before, after, ratio, held = re.search(
        r"\): (\S+) to (\S+), ratio (\S+ \[.*?\]).*?\((\S+ \[.*?\])\)", sentence
    ).groups()
    assert says(before, metrics["before"][key]) and says(after.rstrip(","), metrics["after"][key])
    assert says(ratio, metrics["ratio"][key]) and says(held, metrics["ratio"]["discrepancy/age/heldout"])
    moved = [
        abs(metrics["after"][k]["value"] - metrics["before"][k]["value"]) for k in metrics["after"] if "share/" in k
    ]
    assert max(moved) <= 0.05


ABLATION = {
    "full": "short", "the source's landmarks": "short_source", "no orthogonal mapping": "no_oim",
    "no gated branches": "no_iglh", "the person's own silhouette as mask": "silhouette", "the parsed mask": "parsed",
    "tokens alone (paper's conditioning)": "tokens", "no masking": "no_masking", "no pairs": "no_pair",
    "no L_diff-recon": "no_recon", "no L_id-region": "no_region",
    "no bidirectional alignment (figure 3b)": "no_alignment",
}  # fmt: skip
COLUMNS = {
    "top-1": "retrieval/top1/source", "top-5": "retrieval/top5/source", "mAP": "retrieval/map/source",
    "similarity": "id_similarity", "landmarks": "preservation/landmarks", "pose": "preservation/pose",
    "expression": "preservation/expression", "gaze": "preservation/gaze", "occupation": "kept/occupation",
    "glasses": "kept/glasses", "error": "recomposed/error", "FID": "fid/source",
}  # fmt: skip


def table_after(text: str) -> list[list[str]]:
    """The cells of the first Markdown table behind a text in the README."""
    lines = README[README.index(text) :].splitlines()
    first = next(k for k, line in enumerate(lines) if line.startswith("|"))
    rows = [line.strip("|").split("|") for line in lines[first:] if line.startswith("|")]
    last = next((k for k, line in enumerate(lines[first:]) if not line.startswith("|")), len(rows))
    return [
        [cell.strip() for cell in row] for row in rows[:last] if not set(row[0].strip()) <= {"-"} or not row[0].strip()
    ]


def says(cell: str, estimate: dict, scale: float = 1.0) -> bool:
    """Whether a cell is an estimate's value, and its interval if it shows one, to the digits that it shows; 0 is nothing else."""
    said = re.findall(r"-?\d*\.?\d+", cell)
    wanted = [estimate["value"], estimate["low"], estimate["high"]][: len(said)]
    return len(said) in (1, 3) and all(
        abs(float(one) - value / scale) <= (0.501 * 10 ** -len(one.partition(".")[2]) if "." in one else 1e-9)
        for one, value in zip(said, wanted, strict=True)
    )


def test_the_ablation_of_id2face_is_that_of_its_cells():
    head, *rows = table_after("**Table III at an equal, smaller budget**")
    assert [row[0] for row in rows] == list(ABLATION) and head[1:] == list(COLUMNS)
    for row in rows:
        after = json.loads((RESULTS / f"id2face_tiny/id2face_tiny_{ABLATION[row[0]]}-41.json").read_text())["metrics"][
            "after"
        ]
        for name, cell in zip(head[1:], row[1:], strict=True):
            key = COLUMNS[name]
            scale = after[f"{key}/random"]["value"] if key.startswith("preservation/") else 1.0
            assert says(cell, after[key], scale), (row[0], name, cell, after[key])


FAMILY = {"SimPO": "simpo", "Diffusion-DPO": "dpo_pairs", "MaPO": "mapo", "SFT": "sft_pairs", "SPO": "spo"}
FAMILY_COLUMNS = {
    "win rate": ("after", "win_rate/asked-tiny-attributes-1"), "score": ("after", "score/asked-tiny-attributes-1"),
    "reward accuracy": ("after", "reward_accuracy/val"), "implicit": ("after", "reward_accuracy/implicit"),
    "winner's error": ("ratio", "loss/val/winner"), "loser's error": ("ratio", "loss/val/loser"), "FID": ("after", "fid/whole"),
}  # fmt: skip


def test_the_preference_family_is_that_of_its_cells():
    """Mean and range over the seeds; the base's numbers are every cell's."""
    head, base, *rows = table_after("**The preference family**")
    assert [row[0] for row in rows] == list(FAMILY) and head[2:] == list(FAMILY_COLUMNS)
    for row in rows:
        cells = sorted((RESULTS / "preference").glob(f"{FAMILY[row[0]]}_tiny-*.json"))
        assert int(row[1]) == len(cells) >= 1
        kept = [json.loads(path.read_text())["metrics"] for path in cells]
        for name, cell, of_base in zip(head[2:], row[2:], base[2:], strict=True):
            part, key = FAMILY_COLUMNS[name]
            if not cell:
                assert not any(one[part].get(key) for one in kept), "without pairs nobody knows a pair's errors"
                continue
            values = [one[part][key]["value"] for one in kept]
            found = {"value": sum(values) / len(values), "low": min(values), "high": max(values)}
            assert says(cell, found), (row[0], name, cell, found)
            if part == "after" and key in kept[0]["before"]:
                assert all(says(of_base, one["before"][key]) for one in kept), (name, of_base)


def the_frontier():
    spec = importlib.util.spec_from_file_location("frontier", REPOSITORY / "benchmarks/frontier.py")
    frontier = importlib.util.module_from_spec(spec)
    sys.modules["frontier"] = frontier  # its dataclass looks itself up there
    spec.loader.exec_module(frontier)
    return frontier


def test_the_rivals_are_those_of_their_files():
    frontier = the_frontier()
    kept = json.loads((RESULTS / "measured/popalign_tiny_rivals.json").read_text())
    assert kept["world"] == world_version() and kept["command"] in README
    found = frontier.settings()
    assert frontier.table(found) in README
    rows = {one.name: one for one in found if one.main}
    assert list(rows)[: len(kept["metrics"]["rivals"])] == list(kept["metrics"]["rivals"])
    assert {"PopAlign", "SFT", "Diffusion-DPO", "aDFT", "UCE", "ITI-GEN"} <= set(rows)
    seconds = {name: one.value("seconds_per_image") for name, one in rows.items() if "seconds_per_image" in one.values}
    assert min(seconds, key=seconds.get) == "guidance 1", "the cheapest way to draw"
    assert rows["injection"].value("discrepancy/gender/per_prompt") < 0.01
    assert rows["injection"].value("discrepancy/tone/per_prompt") < 0.06, "as even as 20 images of six classes can be"
    told = []
    for attribute in ("gender", "tone"):
        for name in ("per_prompt", "pooled", "heldout"):
            ours, theirs = (
                [
                    json.loads((RESULTS / f"rivals/{experiment}-{seed}.json").read_text())["metrics"]["after"][
                        f"discrepancy/{attribute}/{name}"
                    ]["value"]
                    for seed in (21, 22, 23)
                ]
                for experiment in ("popalign_tiny", "sft_tiny")
            )
            told += [(attribute, name)] if welch(ours, theirs) < 0.05 / 6 else []
    assert told == [("tone", "pooled")]


def test_grey_is_what_another_one_is_as_good_as_in_both():
    frontier = the_frontier()
    price, distance = "recall/overall", "d"

    def one(name, recall, far):
        return frontier.Setting(
            name.partition(",")[0], name, {price: (recall, None, None), distance: (far, None, None)}
        )

    some = [
        one("a", 0.9, 0.3), one("b", 0.9, 0.2), one("c", 1.0, 0.4), one("same as c", 1.0, 0.4), one("injection", 1.0, 0.0),
        one("injection, without a gate", 0.2, 0.1), one("d", 0.1, 0.15),
    ]  # fmt: skip
    grey = [found.name for found in some if frontier.dominated(found, some, distance, price)]
    assert grey == ["a"], "injection is no rival, and equal ones leave each other"
    assert frontier.dominated(one("injection, without a gate", 0.2, 0.25), some, distance, price)
    some[0].values["fid/balanced"], some[1].values["fid/balanced"] = (9.0, None, None), (10.0, None, None)
    assert [frontier.dominated(one, some[:2], distance, "fid/balanced") for one in some[:2]] == [False, False]


MAIN = {
    "top-1": "retrieval/top1/source", "top-5": "retrieval/top5/source", "top-1, another image": "retrieval/top1/identity",
    **{name: key for name, key in COLUMNS.items() if key.startswith(("id_similarity", "preservation/", "kept/"))},
    "background": "kept/background", "tone": "kept/tone", "gender": "kept/gender", "found": "detection_rate/face",
    "FID": "fid/source",
}  # fmt: skip


def test_the_main_table_of_id2face_is_that_of_its_files():
    """All rows but the originals and the one that was trained from scratch, of which no file is kept."""
    numbers = {}
    for row, name in (
        ("**comes along**", "id2face_tiny"), ("comes along, in float32", "id2face_tiny-float32"),
        ("the source's landmarks (paper)", "id2face_tiny-landmarks"), ("appearance kept, gallery of 1,000", "id2face_tiny-kept"),
        ("negated identities", "id2face_tiny-negated"),
    ):  # fmt: skip
        kept = json.loads((RESULTS / f"measured/{name}.json").read_text())
        assert kept["world"] == world_version() and kept["command"].removesuffix('"').rpartition('"')[2] in README
        numbers[row] = kept["metrics"]["after"]
        if row == "comes along, in float32":
            rivals = kept["metrics"]["rivals"]
    numbers |= {
        "blur, .3 of its strength": rivals["blur"], "pixelation, .4": rivals["pixelate"],
        "80 % opaque mask": rivals["mask"], "opaque mask": rivals["opaque mask"],
    }  # fmt: skip
    head, *rows = table_after("### ID2Face on the embedded world")
    assert {row[0] for row in rows} - set(numbers) == {"the originals", "from scratch"} and set(head[1:]) == set(MAIN)
    for row in rows:
        for name, cell in zip(head[1:], row[1:], strict=True):
            if row[0] in numbers and cell:
                after, key = numbers[row[0]], MAIN[name]
                scale = after[f"{key}/random"]["value"] if key.startswith("preservation/") else 1.0
                assert says(cell, after[key], scale), (row[0], name, cell, after[key])


def test_what_is_said_of_those_who_have_the_id_vae_is_what_their_file_says():
    kept = json.loads((RESULTS / "measured/id2face_attack.json").read_text())
    assert kept["world"] == world_version() and kept["count"] == 2000
    assert kept["command"].removesuffix(" --count 2000") in README
    pages = [" ".join(text.split()) for text in (README, (REPOSITORY / "docs/rivals.md").read_text())]
    for page, before, mapping, key in (
        (0, "Pixels inside, where lights, pose and the seam stay, find it in", "orthogonal", "top1/pixels inside/photograph"),
        (0, "is never found so (", "orthogonal", "top1/pixels inside/another photograph"),
        (0, "is never found so (", "orthogonal", "top1/pixels outside/another photograph"),
        (0, "finds top-1", "orthogonal", "top1/at right angles"), (0, "[.0003, .0036], top-5", "orthogonal", "top5/at right angles"),
        (0, "top-5 .0045, mean place", "orthogonal", "place/at right angles"),
        (0, "negates a result's latent finds", "negated", "top1/negating"), (0, "first and the person at", "negated", "place/negating"),
        (1, "who negates again finds", "negated", "top1/negating"), (1, "and the person at", "negated", "place/negating"),
    ):  # fmt: skip
        said = re.search(re.escape(before) + r" ?(\d?\.?\d+(?: \[[^]]*\])?)", pages[page])
        assert said and says(said[1], kept["metrics"][mapping][key]), (before, said and said[1])
    for attacker in ("similar", "at right angles"):
        assert kept["metrics"]["negated"][f"top1/{attacker}"]["value"] == 0


def test_what_is_said_of_id2faces_attackers_and_groups_is_what_its_files_say():
    kept = {
        name: json.loads((RESULTS / f"measured/{name}.json").read_text())["metrics"]["after"]
        for name in ("id2face_tiny", "id2face_tiny-kept", "id2face_tiny-negated")
    }
    text, number = " ".join(README[README.index("### ID2Face on the embedded") :].split()), r"(-?\.\d+(?: \[[^]]*\])?)"
    for before, name, key in (
        ("400 of the same people itself finds ", "id2face_tiny", "retrieval/top1/source/parrot"),
        ("results are to theirs: top-1 ", "id2face_tiny", "retrieval/top1/source/excluder"),
        ("mean place ", "id2face_tiny", "retrieval/place/source/excluder"),
        ("and the similarity is ", "id2face_tiny", "id_similarity/glasses/glasses"),
        ("with glasses, ", "id2face_tiny", "id_similarity/glasses/no glasses"),
        ("without, ", "id2face_tiny", "id_similarity/age/old"), ("of the old, ", "id2face_tiny", "id_similarity/age/young"),
        ("anonymizes the same people itself finds ", "id2face_tiny-negated", "retrieval/top1/source/parrot"),
        ("anonymizes the same people itself finds ", "id2face_tiny-kept", "retrieval/top1/source/parrot"),
    ):  # fmt: skip
        said = [
            found for found in re.findall(re.escape(before) + number, text) if "[" in found or name.endswith("kept")
        ]
        assert said and any(says(one, kept[name][key]) for one in said), (before, said, kept[name][key])
