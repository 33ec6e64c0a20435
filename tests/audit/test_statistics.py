"""An audit's formulas against closed forms, other programs' reference, and simulated worlds whose truth is known."""

import itertools
import math

import numpy as np
import pytest
import torch
from scipy.stats import chi2_contingency

from fairanon.auditor import auditing, findings
from fairanon.auditor.findings import Question
from fairanon.auditor.kinds import apart, kinds, of_kind
from fairanon.auditor.tally import Tally
from fairanon.batches import PromptRow
from fairanon.evaluation.observed import Judged
from fairanon.evaluation.portrayal import Portrayed
from fairanon.metrics.functional.confusion import Confusion, corrected_shares, prediction_powered
from fairanon.metrics.functional.discrepancy import rms_discrepancy, unbiased_squares
from fairanon.metrics.functional.estimates import Estimate


def confusion(classes, right, exact=True, images=1000):
    rows = torch.full((classes, classes), (1 - right) / (classes - 1), dtype=torch.float64)
    rows.fill_diagonal_(right)
    return Confusion(rows if exact else (rows * images).round(), exact)


def judged(counts, seed=0, other=None):
    """As many judged images of each prompt and class as a table (P, K) says, in random order."""
    rows, prompt, labels = [], [], []
    for p, row in enumerate(counts):
        rows.append(PromptRow(f"prompt {p}", "neutral", {}))
        for k, count in enumerate(row):
            prompt += [p] * int(count)
            labels += [k] * int(count)
    order = torch.randperm(len(prompt), generator=torch.Generator().manual_seed(seed))
    probabilities = {"a": torch.eye(len(counts[0]))[labels][order]}
    if other is not None:
        probabilities["b"] = torch.eye(2)[torch.tensor(other)[order]]
    return Judged(
        rows, torch.tensor(prompt)[order], Portrayed(probabilities, torch.zeros(len(prompt), dtype=torch.bool))
    )


def Neutral(found, labelled=()):  # noqa: N802  (as the findings' own)
    classes = {name: [str(k) for k in range(rows.shape[1])] for name, rows in found.values.probabilities.items()}
    tally = Tally(found.rows, classes, list(classes), {"a": labelled})
    for part in torch.arange(len(found)).split(7):  # as chunks of files come
        tally.add(found[part])
    return findings.Neutral(tally)


def question(counts, known=None, name="a", classes=None):
    classes = classes or len(counts[0])
    ideal = torch.full((len(counts), classes), 1 / classes, dtype=torch.float64)
    return Question(name, tuple(f"c{k}" for k in range(classes)), ideal, True, known)


def test_a_judge_without_errors_changes_nothing():
    counts = torch.tensor([[30.0, 15, 5], [10, 20, 20], [25, 5, 20]])
    same = confusion(3, 1.0)
    plain, taken = rms_discrepancy(counts), rms_discrepancy(counts, confusion=same)
    assert taken.value == pytest.approx(plain.value, abs=1e-12) and taken.low == pytest.approx(plain.low, abs=1e-12)
    values = [one.value for one in corrected_shares(counts[0], same)]
    assert values == pytest.approx([0.6, 0.3, 0.1], abs=1e-12)


def test_errors_are_taken_out_as_rogan_and_gladen_do():
    """Two classes: (said + specificity - 1) / (sensitivity + specificity - 1)."""
    known = Confusion(torch.tensor([[0.95, 0.05], [0.10, 0.90]]), exact=True)
    share = corrected_shares(torch.tensor([300.0, 700.0]), known)[0].value
    assert share == pytest.approx((0.3 + 0.9 - 1) / (0.95 + 0.9 - 1))
    said = torch.tensor([[0.3, 0.7]], dtype=torch.float64) * 1e7
    truth = torch.tensor([share, 1 - share])
    assert float(unbiased_squares(said, torch.tensor([0.5, 0.5]), known.inverse)) == pytest.approx(
        float((truth - 0.5).square().sum()), abs=1e-5
    )


def test_the_square_is_unbiased_with_the_errors_taken_out():
    """The mean over all outcomes of four images, weighed by their probabilities, is the true square."""
    known = confusion(2, 0.8)
    truth = torch.tensor([0.7, 0.3], dtype=torch.float64)
    said = float((truth @ known.shares)[0])
    total = 0.0
    for k, ways in enumerate((1, 4, 6, 4, 1)):
        probability = ways * said**k * (1 - said) ** (4 - k)
        counts = torch.tensor([[float(k), 4.0 - k]], dtype=torch.float64)
        total += probability * float(unbiased_squares(counts, torch.tensor([0.5, 0.5]), known.inverse))
    assert total == pytest.approx(float((truth - 0.5).square().sum()), abs=1e-12)


@pytest.mark.parametrize(("classes", "right"), [(2, 0.93), (6, 0.7)])
def test_a_fair_model_is_not_called_unfair(classes, right):
    generator, known = np.random.default_rng(classes), confusion(classes, right)
    covered = taken_at_its_word = 0
    for seed in range(200):
        counted = [generator.multinomial(500, row) for row in known.shares.numpy()]
        measured = Confusion(torch.from_numpy(np.stack(counted)).double())
        said = generator.multinomial(50, np.full(classes, 1 / classes) @ known.shares.numpy(), 10)
        covered += rms_discrepancy(torch.from_numpy(said).double(), None, seed, measured).low == 0
        taken_at_its_word += rms_discrepancy(torch.from_numpy(said).double(), None, seed).low == 0
    assert covered >= 190 and taken_at_its_word >= 190


def test_the_interval_holds_the_true_distance_only_with_the_errors_taken_out():
    generator, known, prompts, classes = np.random.default_rng(3), confusion(6, 0.7), 40, 6
    truth = (5 / (6 * (6 + 1))) ** 0.5  # the root mean square of shares that are Dirichlet(1)
    hits = raw = 0
    for seed in range(150):
        shares = generator.dirichlet(np.ones(classes), prompts)
        said = torch.from_numpy(generator.multinomial(50, shares @ known.shares.numpy())).double()
        measured = Confusion(
            torch.from_numpy(np.stack([generator.multinomial(500, row) for row in known.shares.numpy()])).double()
        )
        found, plain = rms_discrepancy(said, None, seed, measured), rms_discrepancy(said, None, seed)
        hits += found.low <= truth <= found.high
        raw += plain.low <= truth <= plain.high
    assert 0.9 <= hits / 150 <= 1.0 and raw / 150 < 0.1


def test_shares_of_single_prompts_hold_the_truth():
    generator, known = np.random.default_rng(5), confusion(2, 0.9)
    hits = 0
    for _ in range(400):
        share = generator.uniform(0.05, 0.95)
        said = torch.from_numpy(generator.multinomial(50, np.array([share, 1 - share]) @ known.shares.numpy())).double()
        one = corrected_shares(said, known)[0]
        hits += one.low <= share <= one.high
    assert 0.92 <= hits / 400 <= 0.99


def test_labels_sharpen_what_the_judge_says_and_say_when_its_errors_are_others():
    generator = np.random.default_rng(7)
    hits = errors = alone = 0
    for _ in range(200):
        truth = generator.random(3000) < 0.3
        wrong = generator.random(3000) < np.where(truth, 0.1, 0.15)
        said = torch.from_numpy(np.where(wrong, ~truth, truth).astype(np.int64))
        rows = torch.from_numpy(generator.choice(3000, 300, replace=False))
        labels = torch.from_numpy(truth.astype(np.int64))[rows]
        found = prediction_powered(torch.bincount(said).double(), said[rows], labels)[1]
        hits += found.low <= 0.3 <= found.high
        errors += (found.value - 0.3) ** 2
        alone += (float(labels.double().mean()) - 0.3) ** 2
    assert 0.92 <= hits / 200 <= 0.99 and errors < 0.7 * alone


@pytest.mark.slow
def test_prompts_are_named_only_beyond_what_chance_names():
    """Of 100 fair prompts none is named in most worlds (Benjamini and Hochberg 1995)."""
    generator, worlds = np.random.default_rng(1), 0
    for _ in range(60):
        counts = generator.multinomial(20, [0.5, 0.5], 100).tolist()
        rows = findings.of_attribute(Neutral(judged(counts)), question(counts))["prompts"]
        worlds += any(row["named"] for row in rows)
    assert worlds <= 12
    rows = findings.of_attribute(Neutral(judged([[20, 0], *[[10, 10]] * 9])), question([[0, 0]] * 10))["prompts"]
    assert [row["named"] for row in rows] == [True] + [False] * 9


@pytest.mark.slow
def test_equal_models_cannot_be_told_apart_and_others_can():
    generator, told = np.random.default_rng(2), 0
    shares = generator.dirichlet([2, 2], 30)
    for _ in range(100):
        tables = [generator.multinomial(30, shares).tolist() for _ in range(2)]
        row = findings.compared(*(Neutral(judged(t)) for t in tables), question(tables[0]), question(tables[1]))
        told += row["chance"] < 0.05
    assert told <= 11
    even, skewed = [[15, 15]] * 30, generator.multinomial(30, [0.9, 0.1], 30).tolist()
    row = findings.compared(Neutral(judged(even)), Neutral(judged(skewed)), question(even), question(skewed))
    assert row["change"].value > 0 and row["chance"] < 1e-4 and row["prompts"] == 30
    assert findings.holm({"a": 0.03, "b": 0.04}) == {"a": False, "b": False}


def test_what_goes_together_is_seen_within_prompts_and_not_because_of_them():
    """Each prompt has a class of its own: no dependence within a prompt. Then both classes are one."""
    counts = [[20, 0], [0, 20]]
    found = findings.together(
        Neutral(judged(counts, other=[0] * 20 + [1] * 20)), question(counts), question(counts, name="b")
    )
    assert found["dependence"].value == pytest.approx(0, abs=1e-9) and found["chance"] == 1.0
    assert found["cells"][found["smallest"]].value == 0
    counts = [[10, 10]] * 5
    found = findings.together(
        Neutral(judged(counts, other=([0] * 10 + [1] * 10) * 5)), question(counts), question(counts, name="b")
    )
    assert found["dependence"].value > 0.6 and found["chance"] < 0.01


def test_what_else_neutral_prompts_ask_for_is_counted():
    """An occupation is asked for by prompts that name no group; a group by those that name one alone."""
    rows = [
        PromptRow("a chef", "neutral", {"b": "1", "a": "1"}),
        PromptRow("a female nurse", "specific", {"a": "1", "b": "0"}),
    ]
    seen = {"a": torch.eye(2)[[1, 1, 0, 1]], "b": torch.eye(2)[[1, 0, 0, 0]]}
    tally = Tally(rows, {"a": ["0", "1"], "b": ["0", "1"]}, ["a"])
    tally.add(Judged(rows, torch.tensor([0, 0, 1, 1]), Portrayed(seen, torch.zeros(4, dtype=torch.bool))))
    assert findings.aligned(tally)["b"].value == 0.75 and findings.aligned(tally)["b"].n == 4
    assert findings.obeyed(tally)["a: 1"].value == 0.5 and findings.obeyed(tally)["all"].n == 2


def test_random_tables_are_those_of_shuffling():
    """Sums of rows and columns stay, and each table is as frequent as shuffling one attribute makes it."""
    table = torch.tensor([[3, 1, 0, 1, 2, 2]], dtype=torch.float64)  # 2 x 3
    drawn = findings.independent(table.expand(20_000, -1), 2, np.random.default_rng(0)).view(-1, 2, 3)
    assert (drawn.sum(2) == torch.tensor([4.0, 5])).all() and (drawn.sum(1) == torch.tensor([4.0, 3, 2])).all()
    first, second = torch.tensor([0] * 4 + [1] * 5), torch.tensor([0, 0, 0, 1, 0, 1, 1, 2, 2])
    generator = torch.Generator().manual_seed(0)
    shuffled = [
        torch.bincount(first * 3 + second[torch.randperm(9, generator=generator)], minlength=6) for _ in range(20_000)
    ]
    keys = {}
    for one, tables in enumerate((drawn.view(-1, 6).long(), torch.stack(shuffled))):
        for row in tables.tolist():
            keys.setdefault(tuple(row), [0, 0])[one] += 1
    assert len(keys) > 5 and chi2_contingency(np.array(list(keys.values()))).pvalue > 1e-3


def test_many_prompts_are_tested_with_fewer_tables(monkeypatch):
    """Of many prompts 20 tables are drawn, and their mean is normal: dependent ones are seen, independent ones are not."""
    monkeypatch.setattr(findings, "_TABLES", 60_000)
    generator = np.random.default_rng(4)
    asked = [question([[0, 0]] * 3000, name=name, classes=2) for name in ("a", "b")]
    for together, seen in ((0.1, True), (0.0, False)):
        cells = generator.multinomial(6, [0.25 + together, 0.25 - together, 0.25 - together, 0.25 + together], 3000)
        rows = [PromptRow(str(k), "neutral", {}) for k in range(3000)]
        tally = Tally(rows, {"a": ["0", "1"], "b": ["0", "1"]}, ["a", "b"])
        tally.images += 6
        tally.joint["a", "b"] += torch.from_numpy(cells)
        found = findings.together(findings.Neutral(tally), *asked)
        assert (found["chance"] < 1e-3) == seen and found["chance"] > 0.001 * (not seen)


@pytest.mark.parametrize("tables", [pytest.param(60_000, marks=pytest.mark.slow), 10])
def test_independent_attributes_seem_to_depend_as_often_as_is_said(monkeypatch, tables):
    """At 5 %, in 200 worlds whose prompts differ: with many tables of each prompt, and with 20 and a normal mean."""
    prompts, generator, told = 60, np.random.default_rng(8), 0
    monkeypatch.setattr(findings, "_TABLES", tables * prompts)
    monkeypatch.setattr(findings, "_SHUFFLES", (20, 100))
    asked = [question([[0, 0]] * prompts, name=name, classes=2) for name in ("a", "b")]
    rows = [PromptRow(str(k), "neutral", {}) for k in range(prompts)]
    for _ in range(200):
        first, second = generator.uniform(0.05, 0.95, (2, prompts))
        likely = np.stack([first * second, first * (1 - second), (1 - first) * second, (1 - first) * (1 - second)], 1)
        tally = Tally(rows, {"a": ["0", "1"], "b": ["0", "1"]}, ["a", "b"])
        tally.images += 20
        tally.joint["a", "b"] += torch.from_numpy(generator.multinomial(20, likely))
        told += findings.together(findings.Neutral(tally), *asked)["chance"] <= 0.05
    assert 0.02 <= told / 200 <= 0.085, told


def test_missing_faces_are_three_numbers_and_bounds():
    one = judged([[10, 10], [10, 10]])
    one.values.probabilities["a"][:4] = torch.nan
    one.values.blank[:2] = True
    one.values.probabilities["a"][4:10] = torch.tensor([0.6, 0.4])
    found = findings.of_attribute(Neutral(one), question([[0, 0]] * 2))
    assert {key: value.value for key, value in found["missing"].items()} == {
        "blank": 0.05,
        "no_face": 0.05,
        "unsure": 0.15,
    }
    low, high = found["bounds"]
    assert low < high and found["numbers"]["per_prompt"].n == 2


def test_one_person_again_and_again_is_no_variety():
    one = judged([[6, 6]])
    one.values.features = torch.ones(12, 8)
    assert findings.variety(Neutral(one), "a").value == pytest.approx(0, abs=1e-9)
    one.values.features = torch.randn(12, 64, generator=torch.Generator().manual_seed(0))
    assert findings.variety(Neutral(one), "a").value > 0.8


def test_every_number_of_the_counts_is_its_closed_form():
    counts = [[30, 10], [20, 20]]
    found = findings.of_attribute(Neutral(judged(counts)), question(counts))["numbers"]
    assert found["total_variation"].value == pytest.approx((0.25 + 0) / 2)
    assert found["gap"].value == pytest.approx((0.5 + 0) / 2)
    soft = torch.tensor([30.5, 10.5]) / 41
    assert found["divergence"].value == pytest.approx(float((soft * (soft * 2).log()).sum()) / 2, abs=1e-6)
    assert found["pooled"].value == pytest.approx(2**0.5 * 0.125)
    assert found["per_prompt"].value == pytest.approx(2**0.5 * 0.25 / 2)


def test_the_square_is_unbiased_whichever_classes_the_judge_confuses():
    """Three classes, errors of one direction only: rows and columns of the confusion must not be exchanged."""
    known = Confusion(torch.tensor([[0.9, 0.1, 0.0], [0.0, 0.8, 0.2], [0.05, 0.0, 0.95]]), exact=True)
    truth, even = torch.tensor([0.6, 0.3, 0.1], dtype=torch.float64), torch.full((3,), 1 / 3, dtype=torch.float64)
    said, total = (truth @ known.shares).tolist(), 0.0
    for a, b in itertools.product(range(5), repeat=2):
        if a + b <= 4:
            ways = math.factorial(4) / (math.factorial(a) * math.factorial(b) * math.factorial(4 - a - b))
            counts = torch.tensor([[a, b, 4 - a - b]], dtype=torch.float64)
            weight = ways * said[0] ** a * said[1] ** b * said[2] ** (4 - a - b)
            total += weight * float(unbiased_squares(counts, even, known.inverse))
    assert total == pytest.approx(float((truth - even).square().sum()), abs=1e-12)


@pytest.mark.parametrize(("share", "images"), [(1 / 6, 10), (0.9, 10), (0.95, 30), (0.02, 20)])
def test_shares_of_many_classes_hold_the_truth_too(share, images):
    generator, known, hits = np.random.default_rng(int(100 * share)), confusion(6, 0.8), 0
    for _ in range(400):
        rest = generator.dirichlet(np.ones(5)) * (1 - share)
        said = generator.multinomial(images, np.concatenate([[share], rest]) @ known.shares.numpy())
        one = corrected_shares(torch.from_numpy(said).double(), known)[0]
        hits += one.low <= share <= one.high
    assert hits / 400 >= 0.92


def test_shares_of_nobody_hold_less_often_where_the_judges_errors_were_hardly_counted():
    """A confusion counted on 50 images of each class: docs/audit.md says so."""
    generator, right, hits = np.random.default_rng(4), confusion(2, 0.93).shares.numpy(), 0
    for _ in range(1000):
        known = Confusion(torch.from_numpy(np.stack([generator.multinomial(50, row) for row in right])).double())
        said = torch.from_numpy(generator.multinomial(20, right[0])).double()
        one = corrected_shares(said, known)[1]
        hits += one.low <= 0 <= one.high
    assert 0.87 <= hits / 1000 <= 0.94


def test_without_errors_the_interval_of_a_share_is_wilsons():
    same, plain = corrected_shares(torch.tensor([19.0, 1]), confusion(2, 1.0))[0], Estimate.share(19, 20)
    assert (same.low, same.high) == pytest.approx((plain.low, plain.high), abs=1e-12)


def test_labels_accuse_only_a_judge_whose_errors_are_others():
    """Half of the women are called men, and the file says one in a hundred; then the file is right."""
    generator, known = np.random.default_rng(3), confusion(2, 0.99, exact=False)
    truth = generator.random(1000) < 0.5
    for share, accused in ((0.5, True), (0.01, False)):
        said = np.where(truth & (generator.random(1000) < share), False, truth)
        one = judged([[1000 - said.sum(), said.sum()]])
        one.values.probabilities["a"] = torch.eye(2)[torch.from_numpy(said.astype(np.int64))]
        labels = {k: int(truth[k]) for k in range(300)}
        found = auditing._by_people(Neutral(one, labels), question([[0, 0]], known), labels)
        assert bool(found["apart"]) == accused and found["images"] == 300
    absent = auditing._by_people(
        Neutral(judged([[60, 0]]), range(60)),
        question([[0, 0]], confusion(2, 0.97, exact=False)),
        dict.fromkeys(range(60), 0),
    )
    assert absent["apart"] == [], "a class that nobody shows says nothing against the judge"


@pytest.mark.parametrize(("images", "labelled"), [(300, 300), (400, 300), (2000, 100)])
def test_labels_of_most_images_hold_the_truth_too(images, labelled):
    """They are a part of the images whose judgements sharpen them."""
    generator, hits = np.random.default_rng(images + labelled), 0
    for _ in range(400):
        truth = torch.from_numpy((generator.random(images) < 0.4).astype(np.int64))
        said = torch.where(torch.from_numpy(generator.random(images) < 0.05), 1 - truth, truth)
        rows = torch.from_numpy(generator.choice(images, labelled, replace=False))
        one = prediction_powered(torch.bincount(said).double(), said[rows], truth[rows])[1]
        hits += one.low <= 0.4 <= one.high
    assert 0.92 <= hits / 400 <= 0.99


def test_a_single_prompt_is_named_among_hundreds_that_say_nothing():
    counts = [[2, 2]] * 299 + [[0, 30]]
    rows = findings.of_attribute(Neutral(judged(counts)), question(counts))["prompts"]
    assert [row["prompt"] for row in rows if row["named"]] == ["prompt 299"] and rows[-1]["chance"] < 1e-5


@pytest.mark.slow
def test_models_that_lean_to_different_sides_are_equal_also_when_the_judge_is_not_known_well():
    generator, told, prompts = np.random.default_rng(9), 0, 60
    right = confusion(2, 0.93).shares.numpy()
    for _ in range(100):
        known = Confusion(torch.from_numpy(np.stack([generator.multinomial(200, row) for row in right])).double())
        tables = [
            generator.multinomial(50, np.array(side) @ right, prompts).tolist() for side in ([0.8, 0.2], [0.2, 0.8])
        ]
        row = findings.compared(*(Neutral(judged(t)) for t in tables), *(question(t, known) for t in tables))
        told += row["chance"] < 0.05
    assert told <= 11
    few = findings.compared(
        Neutral(judged([[2, 0]] * 2)), Neutral(judged([[1, 1]] * 2)), question([[0, 0]] * 2), question([[0, 0]] * 2)
    )
    assert few["chance"] >= 0.5, "two prompts prove nothing"


def test_bounds_hold_whatever_the_missing_show():
    """Half of the images are unsure: an even split of them would leave nothing."""
    one = judged([[10, 0]])
    one.values.probabilities["a"] = torch.tensor([[1.0, 0.0]] * 5 + [[0.5, 0.5]] * 5)
    low, high = findings.of_attribute(Neutral(one), question([[0, 0]]))["bounds"]
    assert low == 0 and high == pytest.approx(0.5**0.5)
    target = Question("a", ("x", "y"), torch.tensor([[0.2, 0.8]], dtype=torch.float64), False, None)
    found = findings.of_attribute(Neutral(one), target)
    assert found["bounds"][0] <= found["numbers"]["distance_as_judged"].value <= found["bounds"][1]


def test_prompts_that_happen_to_be_alike_still_have_few_images():
    found = rms_discrepancy(torch.tensor([[0.0, 20], [0, 20]]))
    assert found.low < 0.66 and found.high == pytest.approx(0.5**0.5)


def kinds_of(shares, images, seed, repeats=10):
    """So many prompts of each kind, whose shares of the first class vary round the kind's own; of images and prompts one number, or one for each kind."""
    generator = np.random.default_rng(seed)
    rows, counts = [], []
    sizes, lengths = (dict.fromkeys(shares, one) if isinstance(one, int) else one for one in (images, repeats))
    for value, share in shares.items():
        for k in range(lengths[value]):
            own = generator.beta(4 * share, 4 * (1 - share)) if 0 < share < 1 else share
            first = generator.binomial(sizes[value], own)
            rows.append(PromptRow(f"{value} {k}", "neutral", {"language": value, "half": "ab"[k % 2]}))
            counts.append([first, sizes[value] - first])
    tally = Tally(rows, {"a": ["0", "1"]}, ["a"])
    tally.counts["a"] = torch.tensor(counts, dtype=torch.float64)
    tally.images = tally.counts["a"].sum(1)
    return tally


def asked_of(neutral):
    return [question(neutral.counts("a"), classes=2)]


SIX = {f"k{n}": 0.7 for n in range(6)}
FEW_AND_MANY = {"few": 0.9, "many": 0.9}


@pytest.mark.parametrize(("shares", "images", "repeats"), [
    (FEW_AND_MANY, 20, 10), (SIX, 20, 10), (FEW_AND_MANY, {"few": 2, "many": 100}, {"few": 5, "many": 30}),
    (FEW_AND_MANY, {"few": 2, "many": 20}, 10), (FEW_AND_MANY, {"few": 4, "many": 50}, {"few": 4, "many": 40}),
])  # fmt: skip
def test_alike_kinds_are_told_apart_as_seldom_as_is_said(shares, images, repeats, monkeypatch):
    """The nearest and the farthest of several are chosen for being apart, and some have few images: at most 5 % are named. (2 standard errors: 11.)"""
    monkeypatch.setattr("fairanon.auditor.kinds._DEALS", 2000)
    wrong = 0
    for seed in range(120):
        columns, _ = kinds(kinds_of(shares, images, seed, repeats))
        wrong += any(row["told"] for row in apart(columns, asked_of))
    assert wrong <= 11, wrong


def test_kinds_that_differ_are_told_apart_and_each_has_its_numbers(monkeypatch):
    monkeypatch.setattr("fairanon.auditor.kinds._DEALS", 2000)
    told = 0
    for seed in range(20):
        columns, left_out = kinds(kinds_of({"even": 0.5, "skewed": 0.8, "far": 1.0}, 30, seed))
        assert list(columns) == ["language", "half"] and not left_out
        language, half = apart(columns, asked_of)
        assert (language["near"], language["far"], half["told"]) == ("even", "far", False)
        told += language["told"]
        numbers = of_kind(columns["language"]["far"], asked_of(columns["language"]["far"]))
        assert numbers["prompts"] == 10 and numbers["images"] == 300 and numbers["naming"] == 0
        assert numbers["distance"]["a"].value == pytest.approx(0.5**0.5) and numbers["shares"]["a"]["c0"].value == 1
    assert told >= 18, told
    columns, _ = kinds(kinds_of({"all": 1.0, "none": 1.0}, 5, 0))
    assert apart(columns, asked_of)[0]["chance"] == 1, "kinds without any variance that are equal"
