"""Tables of several runs, and the page of one."""

import json
import re
from pathlib import Path

import pytest
import torch

from fairanon.files import write_json
from fairanon.imaging import write_image
from fairanon.metrics.functional.estimates import Estimate, as_json
from fairanon.report import compare, summarise, table_rows, untrained, write_first_page, write_report
from fairanon.report.answer import answer, state
from fairanon.report.comparison import compared, write_comparison
from fairanon.report.words import words


def estimate(value, half=0.0):
    return {"value": value, "low": value - half, "high": value + half, "n": 10.0, "missing": 0.0}


def result(hand, moved=0.02):
    return {
        "experiment": "trial",
        "judges": {"detections": "tiny-detector-1"},
        "images_per_prompt": 2,
        "images": 10,
        "headline": ["confidence/hand"],
        "before": {"confidence/hand": estimate(0.5, 0.01), "share/age/old": estimate(0.3)},
        "after": {"confidence/hand": estimate(hand, 0.01), "share/age/old": estimate(0.3 + moved)},
        "ratio": {"discrepancy/gender/per_prompt": estimate(0.4)},
        "seconds": {"train": 1.0},
    }


def test_means_and_ranges_over_seeds():
    rows = summarise({"fair": [result(0.7), result(0.9, 0.04)], "plain": [result(0.6), result(0.6)]})
    assert list(rows) == ["base", "fair", "plain"]
    assert rows["fair"]["confidence/hand"] == {
        "value": pytest.approx(0.8),
        "low": 0.7,
        "high": 0.9,
        "n": 2.0,
        "seeds": [0.7, 0.9],
    }
    assert (
        rows["base"]["confidence/hand"]["value"] == 0.5
        and rows["base"]["ratio discrepancy/gender/per_prompt"]["value"] == 1
    )
    assert rows["fair"]["largest share moved"]["value"] == pytest.approx(0.03)
    lines = compare(rows).splitlines()
    assert lines[0] == "|  | confidence/hand | ratio discrepancy/gender/per_prompt | largest share moved |"
    assert lines[3].startswith("| fair | 0.800<br>[0.700, 0.900] | 0.400 |") and "| plain | 0.600 |" in lines[4]


def test_changes_show_the_outermost_ends_and_absent_judges_are_named():
    runs = []
    for value in (0.1, 0.2):
        run = {**result(0.7), "headline": ["confidence/hand", "lpips"], "difference": {"group": estimate(value, 0.05)}}
        runs.append({**run, "before": {**run["before"], "lpips": None}, "after": {**run["after"], "lpips": None}})
    rows = summarise({"fair": runs})
    assert rows["fair"]["change group"] == {
        "value": pytest.approx(0.15),
        "low": 0.05,
        "high": 0.25,
        "n": 2.0,
        "seeds": [0.1, 0.2],
    }
    assert rows["base"]["change group"]["high"] == 0 and rows["fair"]["lpips"] is None
    assert "| n/a |" in compare(rows).splitlines()[3]
    lines = {line[0]: line for line in table_rows(runs[0])}
    assert lines["lpips"] == ("lpips", "n/a", "n/a", "", "", "") and lines["confidence/hand"][-1] == "10"


def test_steerings_stand_beside_the_experiments_that_were_trained():
    """With their own intervals: seeds change nothing of how the reference draws. Nobody competes with the base itself."""
    runs = []
    for k in range(3):
        rivals = {
            "base": {"confidence/hand": estimate(0.5, 0.1), "share/age/old": estimate(0.3), "seconds_per_image": estimate(1.0 + k)},
            "CADS": {"confidence/hand": estimate(0.6 + k * 1e-7, 0.1), "share/age/old": estimate(0.45), "seconds_per_image": estimate(2.0 + k)},
            "another table's": {"confidence/hand": estimate(0.9)},
        }  # fmt: skip
        headline = ["confidence/hand", "seconds_per_image"]
        runs.append({**result(0.5), "seconds": {}, "headline": headline, "rivals": rivals})
    runs[1]["rivals"]["CADS"]["recall/tone/dark"] = estimate(1.0)  # of a newer version
    trained = [result(0.7), result(0.71), result(0.72)]
    every = {"plain": trained, "steered": runs}
    rows = untrained(every)
    assert list(rows) == ["steered: base", "steered: CADS"]
    cads = rows["steered: CADS"]
    assert cads["confidence/hand"] == estimate(0.6, 0.1)
    assert cads["largest share moved"]["value"] == pytest.approx(0.15) and cads["seconds_per_image"]["value"] == 2.0
    summary = summarise(every)
    assert list(summary) == ["base", "plain"], "what trains nothing is the base"
    table = {"rows": summary, "beside": rows, "command": "c", "higher_is_better": {"confidence/hand": True}}
    assert "LEADS" not in compared(table).word
    assert "| steered: CADS | 0.600 [0.500, 0.700] |".replace(" [", "<br>[") in compare(summary | rows)
    other = {
        **table,
        "rows": summary | {"worse": summarise({"worse": [result(v) for v in (0.55, 0.56, 0.57)]})["worse"]},
    }
    assert compared(other).word.startswith("plain LEADS"), "the same where there is somebody to be compared with"


def test_other_models_that_are_measured_as_they_are_stand_beside_the_first():
    """Each with its own interval; copies of the base are the base."""
    first, other, copy = (
        {
            **result(0.7, 0.05),
            "seconds": {},
            "before": {"confidence/hand": estimate(v, 0.05)},
            "after": {"confidence/hand": estimate(v, 0.05)},
        }
        for v in (0.4, 0.6, 0.4)
    )
    runs = {"first": [first], "other": [other, other], "copy": [copy]}
    assert list(summarise(runs)) == ["base"] and summarise(runs)["base"]["confidence/hand"]["value"] == 0.4
    assert untrained(runs) == {"other": {"confidence/hand": estimate(0.6, 0.05)}}


def test_a_number_that_one_seed_lacks_is_unknown():
    one, other = result(0.5), {**result(0.6), "ratio": {}}
    for runs in ([one, other], [other, one]):
        assert summarise({"a": runs})["a"]["ratio discrepancy/gender/per_prompt"] is None


def test_a_share_that_nobody_could_see_is_not_called_moved():
    blind = {
        "confidence/hand": None,
        "share/age/old": None,
        "share/age/young": estimate(0.9),
        "seconds_per_image": estimate(1.0),
    }
    run = {**result(0.5), "rivals": {"noise": blind}}
    run["before"] = {**run["before"], "share/age/old": estimate(0.3), "share/age/young": estimate(0.7)}
    assert untrained({"a": [run]})["a: noise"]["largest share moved"]["value"] == pytest.approx(0.2)


def test_a_table_of_what_trains_nothing_compares_nothing(tmp_path):
    rivals = {"CADS": {"confidence/hand": estimate(0.6, 0.1), "seconds_per_image": estimate(2.0)}}
    runs = {"steered": [{**result(0.5), "seconds": {}, "rivals": rivals}]}
    content = {
        "rows": summarise(runs),
        "beside": untrained(runs),
        "command": "c",
        "higher_is_better": {"confidence/hand": True},
    }
    page = write_comparison(tmp_path / "t.html", content).read_text()
    assert "There is nothing to compare." in page and "steered: CADS" in page and "the base model" in page


def test_experiments_of_different_judges_are_not_compared():
    ours, theirs = ({**result(0.7), "judges": {"attributes": name}} for name in ("one", "other"))
    with pytest.raises(
        ValueError, match=r"table: a was measured by one, b by other \(attributes\); compare experiments that share"
    ):
        summarise({"a": [ours], "b": [theirs]})
    with pytest.raises(ValueError, match="a was measured by one, b by other"):
        summarise({"older": [result(0.7)], "a": [ours], "b": [theirs]})
    assert summarise({"a": [ours], "b": [ours]})


def test_the_page_shows_a_run_beside_its_rivals(tmp_path):
    rows = summarise({"plain": [result(0.6), result(0.65)]})
    content = {**result(0.7), "rivals": rows, "rivals_from": "fairanon table plain --seeds 1,2"}
    (tmp_path / "metrics.json").write_text(json.dumps(content))
    page = write_report(tmp_path).read_text()
    assert ">Rivals</label>" in page and "<td>plain</td><td>0.625 [0.600, 0.650]</td>" in page
    assert "<td>this run</td><td>0.700 [0.690, 0.710]</td>" in page and "--seeds 1,2" in page
    assert "measured elsewhere" not in page
    content["rivals"]["base"]["confidence/hand"]["value"] = 0.4
    (tmp_path / "metrics.json").write_text(json.dumps(content))
    there = "there confidence in each hand asked for was .40 for the base model, here it was .50"
    assert there in write_report(tmp_path).read_text()
    (tmp_path / "metrics.json").write_text(json.dumps(result(0.7)))
    assert "Rivals" not in write_report(tmp_path).read_text()


KEPT = [
    path
    for path in sorted(Path("experiments/results").glob("*/*.json"))
    if "after" in json.loads(path.read_text())["metrics"]
]  # the others are no run's


@pytest.mark.parametrize("path", KEPT, ids=lambda path: path.stem)
def test_every_kept_run_has_words_for_each_of_its_numbers(path):
    found = json.loads(path.read_text())["metrics"]
    for key in found["after"]:
        assert words(key) != key, f"{key} has no words"


def test_a_model_that_nobody_trained_is_not_compared_with_itself():
    alone = fair(estimate(1.0))
    alone["after"], alone["seconds"] = dict(alone["before"]), {"evaluate_before": 1.0, "evaluate_after": 0.0}
    found = answer(alone)
    assert found.word == "MEASURED AS IT IS" and "→" not in found.sentence and ".50" in found.sentence
    assert answer({**alone, "seconds": {"train": 1.0}}).word == "NO DIFFERENCE SHOWN"


def test_what_is_crafted_crashes_nothing_and_earns_no_good_word():
    empty = {"headline": [], "before": {}, "after": {}}
    assert answer(empty).word == "NO DIFFERENCE SHOWN" and answer(empty).sentence == "Nothing was measured."
    everybody = {"group_accuracy/overall": estimate(0.9)}
    assert answer({**empty, "before": everybody, "after": everybody}).state == "same"
    alone = {**estimate(0.5), "low": None, "high": None}
    assert answer({**empty, "before": {"share/age/old": alone}, "after": {"share/age/old": alone}}).watched == 0
    one = fair(estimate(0.0))  # an interval without a width
    assert answer(one).word == "NO DIFFERENCE SHOWN"
    both = fair(estimate(0.4, 0.2))
    both["after"]["discrepancy/tone/per_prompt"] = estimate(0.99)  # and nothing before
    assert answer(both).word == "CANNOT BE TOLD"
    keys = ["reward_accuracy/val", *(f"win_rate/{name}" for name in "abcde")]
    pairs = {
        "headline": keys, "higher_is_better": dict.fromkeys(keys, True), "before": dict.fromkeys(keys[:1], estimate(0.5, 0.01)),
        "after": {**dict.fromkeys(keys, estimate(0.8, 0.01)), keys[-1]: estimate(0.1, 0.01)},
    }  # fmt: skip
    assert answer(pairs).word == "PARTLY BETTER, PARTLY WORSE", "also what the first screen has no room for"


def fair(ratio, **shares):
    key = "discrepancy/gender/per_prompt"
    numbers = {f"share/age/{name}": pair for name, pair in shares.items()}
    return {
        "headline": [key], "higher_is_better": {key: False}, "ratio": {key: ratio},
        "before": {key: estimate(0.5, 0.1)} | {name: before for name, (before, _) in numbers.items()},
        "after": {key: estimate(0.5 * ratio["value"], 0.1)} | {name: after for name, (_, after) in numbers.items()},
    }  # fmt: skip


@pytest.mark.parametrize(
    ("ratio", "word"),
    [(estimate(0.4, 0.2), "FAIRER"), (estimate(1.5, 0.2), "LESS FAIR"), (estimate(0.9, 0.2), "NO DIFFERENCE SHOWN"),
     ({**estimate(0.4), "low": 0.1, "high": None}, "NO DIFFERENCE SHOWN")],
)  # fmt: skip
def test_the_word_is_the_intervals_not_the_numbers(ratio, word):
    found = answer(fair(ratio))
    assert found.word == word and "gender .50 → " in found.sentence


def test_a_change_too_small_to_speak_of_is_no_news():
    key = "alignment/occupation"

    def narrow(value):
        return {**estimate(value), "low": value - 1e-4, "high": value + 1e-4}

    content = {"higher_is_better": {key: True}, "before": {key: narrow(0.986)}, "after": {key: narrow(0.987)}}
    assert state(content, key) == "same"
    content["after"] = {key: narrow(0.930)}
    assert state(content, key) == "worse"
    content["before"], content["after"] = {key: narrow(0.9995)}, {key: narrow(0.991)}
    assert state(content, key) == "worse", "eighteen times as many failures"
    alike = [as_json({key: Estimate.mean(torch.full((3,), value))}) for value in (0.5, 0.9)]
    content["before"], content["after"] = alike
    assert state(content, key) == "same", "three equal values have an interval without a width, and are no proof"


def test_shares_that_should_stay_and_moved_are_named_once_for_two_classes():
    def share(hits):
        return as_json({"": Estimate.share(hits, 500)})[""]

    still = answer(fair(estimate(0.4), young=(share(360), share(355)), old=(share(140), share(145))))
    assert still.moved == [] and still.watched == 1 and still.lines()[-1].endswith("stay, none is shown to have moved.")
    moved = answer(fair(estimate(0.4), young=(share(362), share(327)), old=(share(138), share(173))))
    assert moved.moved == ["old +.07"]
    three = {"a": (share(100), share(150)), "b": (share(100), share(101)), "c": (share(300), share(249))}
    assert answer(fair(estimate(0.4), **three)).moved == ["c -.10", "a +.10"]


def share_of(hits, n, **more):
    return {**as_json({"": Estimate.share(hits, n)})[""], **more}


def hidden(hits, n=1000, people=1000.0, **others):
    numbers = {"retrieval/top1/source": share_of(hits, n), "retrieval/gallery/source": estimate(people), **others}
    return answer({"headline": [], "before": {}, "after": numbers})


def test_nobody_is_called_hidden_whom_some_attacker_finds_or_of_whom_too_little_is_known():
    assert hidden(0).word == hidden(3).word == "HIDDEN", "three of a thousand come by guessing"
    assert hidden(20).word == "FOUND AGAIN"
    assert hidden(1, 1, 1.0).word == hidden(50, 100, 2.0).word == hidden(0, 10, 0.0).word == "CANNOT BE TOLD"
    assert hidden(3, 48, 48.0).word == "CANNOT BE TOLD", "three of 48 come by guessing in one case of thirteen"
    attacks = {
        "retrieval/top1/source/parrot": "knows the method", "retrieval/top5/source": "first 5 guesses",
        "retrieval/tar/0.001/source": "verified", "retrieval/top1/source/tone/dark": "dark",
    }  # fmt: skip
    for key, words_of_it in attacks.items():
        told = hidden(0, **{key: share_of(60, 1000)})
        assert told.word == "FOUND AGAIN" and told.state == "worse" and words_of_it in told.sentence, key
        assert told.tiles[0].key == key and told.tiles[0].state == "worse"
        lost = answer({"headline": [], "before": {key: share_of(60, 1000)}, "after": {
            "retrieval/top1/source": share_of(0, 1000), "retrieval/gallery/source": estimate(1000.0), key: None}})  # fmt: skip
        assert lost.word == "CANNOT BE TOLD", "an attack that was measured before and is not any more"


def test_fairer_is_not_said_without_a_but_where_prompts_are_obeyed_less():
    content = fair(estimate(0.4, 0.2))
    content["higher_is_better"]["recall/overall"] = True
    for side, value in (("before", 0.997), ("after", 0.22)):
        content[side]["recall/overall"] = estimate(value, 0.01)
    found = answer(content)
    assert (found.word, found.state) == ("FAIRER, BUT OBEYS LESS", "same") and ".997 → .22 (worse)" in found.sentence


def test_what_is_not_measured_any_more_forbids_a_good_word():
    content = fair(estimate(0.4, 0.2))
    tone = "discrepancy/tone/per_prompt"
    content["higher_is_better"][tone] = False
    content["before"][tone], content["after"][tone] = estimate(0.5), None
    assert answer(content).word == "CANNOT BE TOLD"
    content["after"]["share/age/old"] = None
    content["before"]["share/age/old"] = estimate(0.3)
    assert answer(content).watched == 0, "a share that is not measured is not said to have stayed"


def groups(changes, hides=(0.99, 0.99)):
    names = [f"group_accuracy/{name}" for name in changes]
    numbers = {
        "headline": names, "higher_is_better": {**dict.fromkeys(names, True), "anonymization/accuracy": True},
        "before": dict(zip(names, (estimate(0.5 + 0.1 * k, 0.1) for k in range(len(names))), strict=True)),
        "after": dict(zip(names, (estimate(0.9, 0.1) for _ in names), strict=True)),
        "difference": dict(zip(names, changes.values(), strict=True)),
    }  # fmt: skip
    for side, value in zip(("before", "after"), hides, strict=True):
        numbers[side]["anonymization/accuracy"] = estimate(value, 0.005)
    return numbers


def test_the_worst_group_is_chosen_among_many_and_its_interval_knows():
    barely = estimate(0.2, 0.19)
    assert answer(groups({"a": barely})).word == "FAIRER"
    assert answer(groups(dict.fromkeys("abcdef", barely))).word == "NO DIFFERENCE SHOWN"
    sure = dict.fromkeys("abcdef", estimate(0.2, 0.05))
    assert answer(groups(sure)).word == "FAIRER"
    assert answer(groups({**sure, "d": estimate(-0.2, 0.05)})).word == "PARTLY FAIRER, PARTLY LESS FAIR"
    assert answer(groups(sure, hides=(0.99, 0.5))).word == "PARTLY FAIRER, HIDES LESS"
    assert answer(groups(dict.fromkeys("ab", estimate(0.0, 0.1)), hides=(0.99, 0.5))).word == "HIDES LESS"
    gone = groups(sure)
    gone["after"]["group_accuracy/c"] = None
    assert answer(gone).word == "CANNOT BE TOLD"


def seeds(value, half):
    each = [value - half, value, value + half]
    return {"value": value, "low": each[0], "high": each[2], "n": 3.0, "seeds": each}


@pytest.mark.parametrize(
    ("plain", "fair", "base", "word"),
    [
        ((0.6, 0.8), (0.3, 0.9), (0.7, 0.7), "fair LEADS IN 2 OF 2 NUMBERS"),
        ((0.6, 0.8), (0.3, 0.9), (0.7, 0.91), "fair LEADS IN 1 OF 2 NUMBERS"),
        ((0.6, 0.9), (0.3, 0.8), (0.7, 0.7), "DIFFERENT ONES LEAD IN DIFFERENT NUMBERS"),
        ((0.32, 0.8), (0.3, 0.81), (0.7, 0.7), "NONE IS SHOWN TO BE BEST"),
        ((0.6, 0.8), (0.3, 0.8), (0.7, 0.7), "fair LEADS IN 1 OF 2 NUMBERS"),
    ],
)
def test_a_table_calls_the_better_one_where_its_seeds_are_certainly_ahead(plain, fair, base, word):
    keys = {"discrepancy/gender/per_prompt": False, "recall/overall": True}
    rows = {
        name: dict(zip(keys, (seeds(value, 0.02) for value in values), strict=True))
        for name, values in {"base": base, "plain": plain, "fair": fair}.items()
    }
    found = compared({"rows": rows, "higher_is_better": keys, "command": "fairanon table"})
    assert found.word == word and len(found.tiles) == 2 and "the base .70" in found.tiles[0].note


@pytest.mark.parametrize("many", [2, 3, 8])
def test_of_equal_experiments_none_leads_more_often_than_a_test_at_five_percent_allows(many):
    generator = torch.Generator().manual_seed(many)
    keys = {f"number/{k}": True for k in range(10)}
    led = 0
    for _ in range(100):
        drawn = torch.randn(many, len(keys), 3, generator=generator)
        rows = {
            f"e{n}": {key: {"value": float(v.mean()), "low": float(v.min()), "high": float(v.max()), "n": 3.0, "seeds": v.tolist()}
                      for key, v in zip(keys, one, strict=True)}
            for n, one in enumerate(drawn)
        }  # fmt: skip
        led += compared({"rows": rows, "higher_is_better": keys, "command": "c"}).word != "NONE IS SHOWN TO BE BEST"
    assert led <= 10


def test_a_table_of_fewer_than_three_seeds_says_nothing():
    rows = {name: {"recall/overall": {**seeds(value, 0), "n": 2.0}} for name, value in (("a", 0.6), ("b", 0.61))}
    found = compared({"rows": rows, "higher_is_better": {"recall/overall": True}, "command": "c"})
    assert found.word == "NONE IS SHOWN TO BE BEST" and "With 2 seeds nothing is said" in found.sentence


def test_a_table_of_one_experiment_or_of_judges_that_are_absent_says_so(tmp_path):
    row = {"lpips": None, "recall/overall": seeds(0.9, 0.01)}
    table = {
        "rows": {"base": row, "plain": row},
        "higher_is_better": {"lpips": False, "recall/overall": True},
        "command": "c",
    }
    assert compared(table).word == "NONE IS SHOWN TO BE BEST"
    page = write_comparison(tmp_path / "table.html", table).read_text()
    assert "<code>c</code>" in page and ".90" in page


def test_every_page_speaks_to_phones_screen_readers_and_dark_rooms_and_asks_no_other_host(tmp_path):
    (tmp_path / "metrics.json").write_text(json.dumps(result(0.7)))
    (tmp_path / "grids").mkdir()
    write_json(tmp_path / "grids" / "prompts.json", {"neutral": ["a doctor"]})
    for stage in ("before", "after"):
        write_image(torch.zeros(3, 8, 8, dtype=torch.uint8), tmp_path / "grids" / f"neutral-{stage}.png")
    report = write_report(tmp_path).read_text()
    assert len(re.findall("<img[^>]*alt=", report)) == len(re.findall("<img", report)) >= 4
    for text in (report, write_first_page(tmp_path, "trial", result(0.7)["before"], []).read_text()):
        assert "<html lang=en>" in text and "width=device-width" in text and "prefers-color-scheme:dark" in text
        assert "http://" not in text and "https://" not in text and "@media print" in text
