"""How often each 95 % interval holds the truth, by simulation: the table in docs/metrics.md.

python benchmarks/coverage.py [--trials 1000] [--only NAME] [--json]
python benchmarks/coverage.py --power    how often the test of a collection against chance refuses it
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from tqdm import tqdm

from fairanon.anonymizer.attack import Threshold
from fairanon.anonymizer.block import blocks_for
from fairanon.anonymizer.chance import against_chance, compare
from fairanon.anonymizer.faces import Face, Seen
from fairanon.batches import PromptRow
from fairanon.evaluation import Population
from fairanon.evaluation.observed import Judged
from fairanon.evaluation.population import Appearance
from fairanon.evaluators.judge import Judge
from fairanon.imaging import Square
from fairanon.metrics.functional.discrepancy import discrepancy, fairness_discrepancy, rms_discrepancy
from fairanon.metrics.functional.distances import frechet_interval, kernel_distance
from fairanon.metrics.functional.estimates import Estimate, Spread, as_json, ratio, spread_of_shares
from fairanon.metrics.functional.retrieval import identity_retrieval
from fairanon.metrics.functional.verification import false_match_interval
from fairanon.report.answer import apart
from fairanon.report.comparison import compared

Draw = Callable[[torch.Generator], Estimate | None]


def cases() -> Iterator[tuple[str, str, float, Draw]]:
    """Number, what is drawn, the truth, and one draw of its estimate."""
    for p, n in ((0.002, 500), (0.5, 6), (0.95, 50)):
        yield "share", f"{p} of {n}", p, lambda g, p=p, n=n: Estimate.share(int(hits(g, p, n).sum()), n)
    for p, people, images in ((0.02, 50, 4), (0.5, 50, 4), (0.9, 50, 4), (0.5, 3, 20), (0.9, 5, 20), (0.9, 10, 20)):
        what = f"{p}, {people} people, {images} images each"
        yield (
            "share, persons",
            what,
            p,
            lambda g, p=p, people=people, images=images: Estimate.share_of(*album(g, p, people, images)),
        )
    for n in (3, 10, 100):
        yield "mean", f"{n} normal values", 0.0, lambda g, n=n: Estimate.mean(torch.randn(n, generator=g))
    yield (
        "mean, persons",
        "20 people, 4 images each",
        0.0,
        lambda g: Estimate.mean(
            (torch.randn(20, 1, generator=g) + torch.randn(20, 4, generator=g)).flatten(), torch.arange(80) // 4
        ),
    )
    for n in (100, 500):
        by_chance = float((1 / torch.arange(1, n + 1).double()).mean())
        yield "retrieval/map", f"chance, gallery of {n}", by_chance, lambda g, n=n: retrieval(g, n)["map"]
    yield "retrieval/top1", "chance, gallery of 500", 1 / 500, lambda g: retrieval(g, 500)["top1"]
    for p, q in ((0.1, 0.5), (0.02, 0.9)):
        yield (
            "failure_relative",
            f"{p} of 50 / {q} of 100",
            p / q,
            lambda g, p=p, q=q: ratio(
                Estimate.share(int(hits(g, p, 50).sum()), 50), Estimate.share(int(hits(g, q, 100).sum()), 100)
            ),
        )
    for shares in ((0.9,) * 6, (0.5,) * 2, (0.9,) * 5 + (0.7,), (0.99, 0.95, 0.9, 0.85, 0.8, 0.6)):
        name = f"{len(shares)} groups of 50: " + (
            str(shares[0]) if len(set(shares)) == 1 else f"{shares[0]} to {shares[-1]}"
        )
        yield "accuracy/gap", name, max(shares) - min(shares), lambda g, shares=shares: spread(g, shares).gap
    for shares in ((0.9,) * 6, (0.9,) * 5 + (0.7,)):
        name = "6 groups of 50: .9" + (" and one .7" if shares[-1] < 0.9 else "")
        yield "accuracy/worst", name, min(shares), lambda g, shares=shares: spread(g, shares).worst
    for prompts, n, classes in ((10, 20, 2), (10, 50, 6), (100, 20, 2), (100, 20, 6)):
        fair = torch.full((classes,), 1 / classes)
        yield (
            "discrepancy/rms",
            f"fair, {prompts} prompts, {n} images, {classes} classes",
            0.0,
            lambda g, f=fair, p=prompts, n=n: rms_discrepancy(counts(g, f.expand(p, -1), n)),
        )
    for prompts, classes in ((10, 2), (40, 6)):
        # The truth of prompts that are drawn from a Dirichlet distribution: the root of the mean square.
        truth = float((1 / classes * (1 - 1 / classes) / (classes + 1) * classes) ** 0.5)
        yield (
            "discrepancy/rms",
            f"Dirichlet(1), {prompts} prompts, 50 images, {classes} classes",
            truth,
            lambda g, p=prompts, k=classes: rms_discrepancy(counts(g, dirichlet(g, p, k), 50)),
        )
    for prompts in (3, 5, 10, 40):
        truth = (0.2 * 0.5) ** 0.5
        yield (
            "discrepancy/rms",
            f"a fifth of {prompts} prompts all of one class, the others fair, 50 images",
            truth,
            lambda g, p=prompts: rms_discrepancy(counts(g, partly(g, p), 50)),
        )
    for key in ("per_prompt", "pooled"):
        truth = discrepancy(torch.tensor([0.75, 0.25])).item()
        yield f"discrepancy/{key}", ".75, 10 prompts, 50 images", truth, lambda g, key=key: biased(g)[key]
    yield (
        "kid",
        "128 normal features, 4 dimensions",
        0.0,
        lambda g: kernel_distance(torch.randn(128, 4, generator=g), torch.randn(2000, 4, generator=g)),
    )
    yield "calibrate: false matches", "150 people", 0.01, lambda g: false_matches(g)
    for p, q in ((0.25, 0.25), (0.1, 0.1), (0.72, 0.65)):
        yield "share moved", f"{p} of 500 to {q} of 500", round(q - p, 3), lambda g, p=p, q=q: moved(g, p, q)
    for prompts in (10, 40):
        truth = 0.95 * 0.5**0.5
        yield (
            "discrepancy/per_prompt",
            f"nineteen in twenty of {prompts} prompts all of one class, the others fair, 50 images",
            truth,
            lambda g, p=prompts: unanimous(g, p),
        )
    for p, people in ((0.9, 20), (0.9, 50), (0.97, 100)):
        what = f"{p}, {people} people, 1 to 30 images each"
        yield "share, persons", what, p, lambda g, p=p, n=people: Estimate.share_of(*albums(g, p, n))
    for share in (0.5, 0.75):
        truth = discrepancy(torch.tensor([share, 1 - share])).item()
        what = f"{share}, 10 prompts, 50 images"
        yield "discrepancy/worst", what, truth, lambda g, p=share: biased(g, p)["worst"]
    yield "discrepancy/per_prompt", "0.5, 10 prompts, 50 images", 0.0, lambda g: biased(g, 0.5)["per_prompt"]
    for p, many in ((0.5, 50), (0.5, 200), (0.9, 200)):
        what = f"{p}, 100 people of one image and one of {many}"
        yield "share, persons", what, p, lambda g, p=p, n=many: Estimate.share_of(*alike(g, p, [1] * 100 + [n]))
    what = "0.9, 10 people, 20 images each, .8 of them as the person's first"
    yield "share, persons", what, 0.9, lambda g: Estimate.share_of(*alike(g, 0.9, [20] * 10, 0.8))
    for ours, theirs in (([1] * 50, [20] * 10), ([1] * 50, [40] * 5), ([200] + [1] * 30, [1] * 30)):
        what = f".9 in both groups: {_albums(ours)}; {_albums(theirs)}; .9 of the images as the person's first"
        yield "accuracy/gap", what, 0.0, lambda g, a=ours, b=theirs: unequal(g, 0.9, a, b)
    for many in (2, 4, 8):
        what = f"{many} equal experiments, 10 numbers, 3 seeds"
        yield "table: how many lead", what, 0.0, lambda g, n=many: leading(g, n)
    for far in (0.0, 0.5):
        what = f"300 normal features, 8 dimensions, {far} apart in each"
        yield "fid", what, 8 * far**2, lambda g, far=far: frechet(g, far)
    yield "retrieval/tar/0.01", "300 people, 2 images each", accepted(), lambda g: verified(g)["tar/0.01"]
    for prompts in (5, 40):
        what = f"{prompts} prompts, 20 images, any rate of winning as probable as any other"
        yield "win_rate", what, 0.5, lambda g, p=prompts: won(g, p)
    for p, q in ((0.75, 0.75), (0.9, 0.6)):
        what = f"{p} before, {q} after, 20 prompts, 50 images"
        yield "ratio discrepancy/per_prompt", what, round((q - 0.5) / (p - 0.5), 4), lambda g, p=p, q=q: fairer(g, p, q)
    for prompts, images, unjudged in ((20, 50, (0.0, 0.7)), (10, 12, (0.0, 0.0))):
        lost = f", {unjudged[1]} of them unjudged afterwards" if unjudged[1] else ""
        what = f".75 before and after, {prompts} prompts, {images} images{lost}"
        yield (
            "ratio discrepancy/per_prompt",
            what,
            1.0,
            lambda g, p=prompts, n=images, u=unjudged: fairer(g, 0.75, 0.75, p, n, u),
        )
    for heavy in (3, 4):
        what = f"0.5, 100 people of one image and {heavy} of 50, .9 of them as the person's first"
        yield (
            "share, persons",
            what,
            0.5,
            lambda g, n=heavy: Estimate.share_of(*alike(g, 0.5, [1] * 100 + [50] * n, 0.9)),
        )
    for few, many in ((10, 20_000), (2, 2000)):
        what = f"0.5, {few} people of one image and one of {many}, .9 of them as the person's first"
        yield (
            "share, persons",
            what,
            0.5,
            lambda g, k=few, n=many: Estimate.share_of(*alike(g, 0.5, [1] * k + [n], 0.9)),
        )


def hits(generator: torch.Generator, p: float, n: int) -> Tensor:
    """Bool (n,)."""
    return torch.rand(n, generator=generator) < p


def moved(generator: torch.Generator, p: float, q: float) -> Estimate:
    """The difference of two shares of 500 images, as a report judges whether one moved."""
    numbers = {
        name: Estimate.share(int(hits(generator, share, 500).sum()), 500) for name, share in (("p", p), ("q", q))
    }
    estimates = as_json(numbers)
    return Estimate(*apart(estimates["p"] or {}, estimates["q"] or {}), 500)


def album(generator: torch.Generator, p: float, people: int, images: int) -> tuple[Tensor, Tensor]:
    """Hits of people with several images each, of which .45 are as the person's first, and who is who."""
    first, own = hits(generator, p, people).repeat_interleave(images), hits(generator, p, people * images)
    return torch.where(hits(generator, 0.45, people * images), first, own), torch.arange(people * images) // images


def alike(generator: torch.Generator, p: float, images: list[int], often: float = 0.45) -> tuple[Tensor, Tensor]:
    """Hits of people with so many images, of which a share are as the person's first, and who is who."""
    whose = torch.arange(len(images)).repeat_interleave(torch.tensor(images))
    first, own = hits(generator, p, len(images))[whose], hits(generator, p, len(whose))
    return torch.where(hits(generator, often, len(whose)), first, own), whose


def _albums(images: list[int]) -> str:
    """How many people have how many images, in words."""
    return " and ".join(f"{images.count(n)} of {n}" for n in dict.fromkeys(images))


def unequal(generator: torch.Generator, p: float, *groups: list[int]) -> Estimate:
    """The gap between groups of which one has longer albums."""
    group_spread = spread_of_shares(*zip(*(alike(generator, p, group, 0.9) for group in groups), strict=True))
    assert group_spread is not None
    return group_spread.gap


def leading(generator: torch.Generator, experiments: int) -> Estimate:
    """How many of equal experiments a table calls the best in something."""
    drawn = torch.randn(experiments, 10, 3, generator=generator)
    rows = {
        str(n): {str(k): {"value": sum(v) / 3, "low": min(v), "high": max(v), "n": 3, "seeds": v} for k, v in enumerate(experiment)}
        for n, experiment in enumerate(drawn.tolist())
    }  # fmt: skip
    table = {"rows": rows, "higher_is_better": {str(k): True for k in range(10)}}
    led = sum(bool(tile.state) for tile in compared(table).tiles)
    return Estimate.exact(led, experiments)


def frechet(generator: torch.Generator, far: float) -> Estimate:
    """Features beside those of 3,000 references."""
    return frechet_interval(torch.randn(300, 8, generator=generator) + far, torch.randn(3000, 8, generator=generator))


def verified(generator: torch.Generator, people: int = 300) -> dict[str, Estimate | None]:
    """Two images of each person, as like each other as a weak recognizer finds them."""
    who = torch.randn(people, 16, generator=generator)
    one, two = (F.normalize(who + torch.randn(people, 16, generator=generator), dim=1) for _ in range(2))
    return identity_retrieval(one, two, torch.arange(people), false_match_rates=(0.01,))


def accepted() -> float:
    """The true rate of `verified`: of a crowd."""
    estimate = verified(torch.Generator().manual_seed(6), 4000)["tar/0.01"]
    assert estimate is not None
    return round(estimate.value, 3)


def won(generator: torch.Generator, prompts: int) -> Estimate:
    """How often one model's images are liked better: by the prompt now one's, now the other's."""
    rate = torch.rand(prompts, generator=generator).repeat_interleave(20)
    wins = torch.rand(len(rate), generator=generator) < rate
    return Estimate.skewed(wins.float(), torch.arange(len(rate)) // 20)


def fairer(
    generator: torch.Generator,
    p: float,
    q: float,
    prompts: int = 20,
    images: int = 50,
    unjudged: tuple[float, float] = (0.0, 0.0),
) -> Estimate:
    """What is left of a discrepancy, as `evaluate.measures` compares two models."""
    rows = [PromptRow(f"a doctor {n}", "neutral", {}) for n in range(prompts)]
    prompt, models = torch.arange(prompts * images) // images, []
    for share, lost in zip((p, q), unjudged, strict=True):
        labels = torch.multinomial(torch.tensor([share, 1 - share]), len(prompt), replacement=True, generator=generator)
        seen = torch.eye(2)[labels]
        seen[hits(generator, lost, len(prompt))] = torch.nan
        models.append(Judged(rows, prompt, Appearance({"gender": seen})))
    return Population(_Judge(), ("gender",), repeats=300).compare(*models)["discrepancy/gender/per_prompt"]


class _Judge(Judge):
    name, classes = "drawn", {"gender": ("female", "male")}


def albums(generator: torch.Generator, p: float, people: int) -> tuple[Tensor, Tensor]:
    """Hits of people who have between 1 and 30 images, most of them few; of .45 of the images as of the person's first."""
    images = (1 + torch.empty(people).exponential_(1 / 6, generator=generator)).clamp_max(30).long()
    whose = torch.arange(people).repeat_interleave(images)
    first, own = hits(generator, p, people)[whose], hits(generator, p, len(whose))
    return torch.where(hits(generator, 0.45, len(whose)), first, own), whose


def retrieval(generator: torch.Generator, n: int) -> dict[str, Estimate | None]:
    """Results that have nothing to do with their originals."""
    rows, others = (F.normalize(torch.randn(n, 32, generator=generator), dim=1) for _ in range(2))
    return identity_retrieval(rows, others, torch.arange(n), false_match_rates=())


def spread(generator: torch.Generator, shares: tuple[float, ...]) -> Spread:
    """Groups of 50 people."""
    group_spread = spread_of_shares(
        [hits(generator, p, 50) for p in shares], [torch.arange(50) + 50 * k for k in range(len(shares))]
    )
    assert group_spread is not None
    return group_spread


def counts(generator: torch.Generator, shares: Tensor, n: int) -> Tensor:
    """Images of each class: float (P, K)."""
    drawn = torch.multinomial(shares, n, replacement=True, generator=generator)
    return torch.zeros_like(shares).scatter_add_(1, drawn, torch.ones(len(shares), n))


def dirichlet(generator: torch.Generator, prompts: int, classes: int) -> Tensor:
    """Shares of each prompt, any as probable as any other."""
    rows = -torch.rand(prompts, classes, generator=generator).log()
    return rows / rows.sum(1, keepdim=True)


def partly(generator: torch.Generator, prompts: int) -> Tensor:
    """Prompts of which a fifth draw one class alone."""
    return torch.where(hits(generator, 0.2, prompts)[:, None], torch.tensor([1.0, 0.0]), torch.tensor([0.5, 0.5]))


def biased(generator: torch.Generator, share: float = 0.75) -> dict[str, Estimate]:
    """Ten prompts that all draw this share of one class."""
    labels = torch.multinomial(torch.tensor([share, 1 - share]), 500, replacement=True, generator=generator)
    return fairness_discrepancy(torch.eye(2)[labels], torch.arange(500) // 50, repeats=300)


def unanimous(generator: torch.Generator, prompts: int) -> Estimate:
    """Prompts that nearly all draw one class alone."""
    shares = torch.where(hits(generator, 0.95, prompts)[:, None], torch.tensor([1.0, 0.0]), torch.tensor([0.5, 0.5]))
    labels = torch.multinomial(shares, 50, replacement=True, generator=generator).flatten()
    rows, prompt = torch.eye(2)[labels], torch.arange(50 * prompts) // 50
    return fairness_discrepancy(rows, prompt, repeats=300)["per_prompt"]


_CROWD = torch.Generator().manual_seed(5)


def people(generator: torch.Generator, count: int) -> Tensor:
    """Embeddings, some like many others."""
    return torch.randn(count, 12, generator=generator) * (0.6 + 0.8 * torch.rand(count, 1, generator=generator))


_APART = torch.pdist(people(_CROWD, 3000))
_LIMIT = float(_APART.kthvalue(int(0.01 * len(_APART))).values)


def false_matches(generator: torch.Generator) -> Estimate:
    """The rate at a threshold at which one in a hundred pairs of the whole crowd matches."""
    rows = people(generator, 150)
    low, high = false_match_interval(torch.cdist(rows, rows), _LIMIT, resamples=200)
    return Estimate(0.01, low, high, 150)


class _Recognizer:
    name, licence, size, published, metric = "drawn", "none", 1, None, "cosine"


def refused(
    generator: torch.Generator, faces: int, share: float, slightly: float, photographs: int = 1, key: bool = False
) -> bool:
    """Whether the test against chance refuses a collection.

    Embeddings are normal, 128 numbers. A share of the faces is its own original; all faces have a little of it in them. So many
    photographs show one person: the embedding with a tenth of noise. With a key they get one new face.
    """
    people = torch.randn(faces // photographs, 128, generator=generator).repeat_interleave(photographs, 0)
    originals = people if photographs == 1 else people + 0.1 * torch.randn(faces, 128, generator=generator)
    who = torch.arange(faces) // photographs if key else torch.arange(faces)
    hidden = torch.randn(faces, 128, generator=generator)[who] + 0.1 * torch.randn(faces, 128, generator=generator)
    hidden = hidden + slightly * originals
    leaks = torch.rand(faces, 1, generator=generator) < share
    originals, hidden = F.normalize(originals, dim=1), F.normalize(torch.where(leaks, originals, hidden), dim=1)
    blocks: list[list[Face]] = [[] for _ in range(blocks_for(faces))]
    new_faces: list[list[str]] = [[] for _ in blocks]
    for k, number in enumerate(torch.randint(len(blocks), (faces,), generator=generator).tolist()):
        seen = Seen(Square(0, 0, 1), originals[k], 99.0, hidden[k])
        blocks[number].append(Face((0, 0, 1, 1), 1.0, seen={"drawn": seen}))
        new_faces[number].append(str(int(who[k])) if key else "")
    matchers: Any = [_Recognizer()]
    limits = {"drawn": Threshold(0.3, "")}
    comparisons = [compare(block, matchers, limits, names) for block, names in zip(blocks, new_faces, strict=True)]
    return bool(against_chance(comparisons).hits)


def power(trials: int) -> None:
    """How often the test of a collection against chance refuses, without a leak and with one."""
    leaks = {
        "nothing": (0.0, 0.0), "nothing, 5 photographs a person": (0.0, 0.0, 5),
        "nothing, 5 photographs that got one new face": (0.0, 0.0, 5, True), "nothing, 25 photographs that got one new face": (0.0, 0.0, 25, True), "1 % of the faces wholly": (0.01, 0.0), "1 %, 5 photographs that got one new face": (0.01, 0.0, 5, True), "2 %": (0.02, 0.0), "5 %": (0.05, 0.0),
        "10 %": (0.1, 0.0), "every face keeps 5 %": (0.0, 0.05), "every face keeps 10 %": (0.0, 0.1),
    }  # fmt: skip
    print(f"| faces | blocks | {' | '.join(leaks)} |\n|---|---|{'---|' * len(leaks)}")
    for faces in (50, 100, 500, 1000):
        row = [str(faces), str(blocks_for(faces))]
        for leak in leaks.values():
            generator = torch.Generator().manual_seed(faces)
            draws = tqdm(range(trials), desc=f"{faces} faces", unit="collection", leave=False)
            row.append(f"{sum(refused(generator, faces, *leak) for _ in draws) / trials:.2f}")
        print(f"| {' | '.join(row)} |", flush=True)


def main() -> None:
    """Print a row for each case."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--trials", type=int, default=1000)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--only", default="", help="numbers whose name has this")
    parser.add_argument("--power", action="store_true")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    if arguments.power:
        power(arguments.trials)
        return
    rows = []
    for number, (key, what, truth, draw) in enumerate(cases()):
        if arguments.only not in key:
            continue
        generator = torch.Generator().manual_seed(number)
        held, width, values = 0, 0.0, 0.0
        for _ in tqdm(range(arguments.trials), desc=key, unit="draw", leave=False):
            estimate = draw(generator)
            assert estimate is not None and estimate.low is not None and estimate.high is not None
            held += estimate.low - 1e-9 <= truth <= estimate.high + 1e-9
            width, values = width + estimate.high - estimate.low, values + estimate.value
        mean = [round(total / arguments.trials, 4) for total in (held, values, width)]
        rows.append(
            {
                "number": key,
                "drawn": what,
                "truth": round(truth, 4),
                "held": mean[0],
                "mean value": mean[1],
                "width": mean[2],
            }
        )
    if arguments.json:
        print(json.dumps(rows, indent=1))
        return
    print(f"| {' | '.join(rows[0])} |\n|{'---|' * len(rows[0])}")
    for row in rows:
        print(f"| {' | '.join(str(cell) for cell in row.values())} |")


if __name__ == "__main__":
    main()
