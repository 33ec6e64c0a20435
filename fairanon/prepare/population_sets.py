"""Makes population preferences by the pipeline of PopAlign, section 3.1.

Neutral prompts give the losing set; the same prompts with identity keywords give the winning set (``augmented``),
or the judge selects a fair set from the neutral samples themselves (``filtered``, appendix C). Every image is
judged, and what the judge does not confirm is dropped and counted.
"""

from __future__ import annotations

import itertools
import json
import logging
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import pyarrow as pa
import pyarrow.parquet as pq
import torch

from fairanon.backbones import Backbone, Sampling
from fairanon.evaluators.judge import jsonable
from fairanon.files import atomic_write, content_key, write_json
from fairanon.imaging import read_image, write_image
from fairanon.prepare.base import Preparation
from fairanon.progress import progress_bar
from fairanon.prompts import said_of_classes, wanted_shares, with_words
from fairanon.protocols import AttributeClassifier
from fairanon.seeding import keyed_generator

_log = logging.getLogger(__name__)

Group = tuple[str, ...]
"""One class per attribute, in the order of ``attributes``."""


_Winners = dict[str, dict[Group, list[str]]]
_Losers = dict[str, list[str]]


@dataclass(frozen=True)
class _Job:
    """One image to sample."""

    caption: str  # the neutral prompt, the caption in training
    prompt: str  # what is sampled
    group: Group | None  # what was asked for; None for a neutral prompt
    name: str  # file name, from everything the image depends on
    number: int


class PopulationSets(Preparation):
    """Pairs of an image from a fair set and one from what the model draws by itself.

    Args:
        folder: Result: ``images/``, ``judged.jsonl``, ``pairs.parquet`` and ``recipe.json`` (counts).
        backbone: The model that is to be aligned.
        judge: Confirms the attributes.
        prompts: CSV with a column ``prompt`` (neutral; the official files' ``Prompt`` too) and, optionally, ``specific``: the prompt with identity
            keywords, with a placeholder per attribute ("a photo of a {gender} doctor with {tone} skin").
        attributes: For each attribute the judge's classes and the keyword that asks for each.
        specific: The prompt with keywords where the CSV has no such column; ``{prompt}`` is the neutral one.
        source: ``augmented`` or ``filtered``.
        neutral_images: Images per neutral prompt; the paper's 100.
        specific_images: Images per group and prompt; the paper's 10.
        pairs: Pairs per prompt; an image may stand in several.
        unchanged: Attributes that should stay as they are: of the asked group's images the one wins that keeps
            their shares most alike on the two sides (minimization, Pocock and Simon 1975), the least used among
            equals. What differs between the sides by chance would be learnt too. The paper has none.
        target: Ideal shares of an attribute's classes other than uniform (appendix H.2).
        val_share: Share of the pairs held out; they are made of images that no training pair shows.
        sampling_steps: DPM-Solver++ steps.
        guidance_scale: 1 is no guidance.
        size: Image side; None is the model's own.
        batch_size: Images sampled at once.
        seed: Of the images and the pairing.
    """

    result = "pairs.parquet"
    reads = ("prompts",)

    def __init__(
        self,
        folder: str,
        backbone: Backbone,
        judge: AttributeClassifier,
        prompts: str,
        attributes: dict[str, dict[str, str]],
        specific: str | None = None,
        source: Literal["augmented", "filtered"] = "augmented",
        neutral_images: int = 100,
        specific_images: int = 10,
        pairs: int = 100,
        unchanged: tuple[str, ...] = (),
        target: dict[str, dict[str, float]] | None = None,
        val_share: float = 0.05,
        sampling_steps: int = 15,
        guidance_scale: float = 5.0,
        size: int | None = None,
        batch_size: int = 32,
        seed: int = 0,
    ) -> None:
        super().__init__(folder)
        for attribute, keywords in attributes.items():
            known = judge.classes.get(attribute)
            if known is None:
                raise ValueError(
                    f"prepare.attributes: {judge.name} does not judge {attribute!r}, only {', '.join(judge.classes)}."
                )
            if unknown := sorted(set(keywords) - set(known)):
                raise ValueError(f"prepare.attributes.{attribute}: {unknown[0]!r} is not one of {', '.join(known)}.")
        for attribute in unchanged:
            if attribute in attributes or attribute not in judge.classes:
                raise ValueError(
                    f"prepare.unchanged: {attribute!r} must be another attribute that {judge.name} judges "
                    f"({', '.join(name for name in judge.classes if name not in attributes)})."
                )
        for attribute, shares in (target or {}).items():
            wanted_shares(list(attributes.get(attribute, {})), shares, f"prepare.target.{attribute}")
        self.backbone, self.judge, self.attributes, self.source = backbone, judge, attributes, source
        self.neutral_images, self.specific_images, self.pairs = neutral_images, specific_images, pairs
        self.judged_attributes = (*attributes, *unchanged)
        self.target, self.val_share, self.size = target or {}, val_share, size
        self.sampling_steps, self.guidance_scale = sampling_steps, guidance_scale
        self.batch_size, self.seed, self.confirmed = batch_size, seed, True
        self.prompts = said_of_classes(Path(prompts), "prepare", self.attributes, specific)

    def _groups(self) -> list[Group]:
        return list(itertools.product(*self.attributes.values()))

    def _jobs(self) -> list[_Job]:
        settings = [self.backbone.origin(), self.sampling_steps, self.guidance_scale, self.size, self.seed]
        jobs = []
        for caption, specific in self.prompts:
            asked: list[tuple[str, Group | None, int]] = [(caption, None, self.neutral_images)]
            if self.source == "augmented":
                for group in self._groups():
                    words = {a: self.attributes[a][value] for a, value in zip(self.attributes, group, strict=True)}
                    asked.append((with_words(specific, words), group, self.specific_images))
            for prompt, wanted, count in asked:
                for number in range(count):
                    name = content_key(*settings, prompt, number) + ".png"
                    jobs.append(_Job(caption, prompt, wanted, name, number))
        return jobs

    def shorten(self) -> None:
        """See `Preparation.shorten`; what two sampling steps draw shows nobody, so everything asked for is taken as drawn."""
        self.prompts, self.pairs, self.sampling_steps, self.confirmed = self.prompts[:1], 8, 2, False
        self.neutral_images, self.specific_images, self.val_share = self.batch_size, 2, 0.25

    def drawn(self) -> int:
        """See `Preparation.images`."""
        return len(self._jobs())

    def make(self) -> None:
        """See `Preparation`."""
        self.make_pieces()
        jobs = self._jobs()
        judged = self._judge(jobs, self.folder / "images")
        rows, counts = self._pair(jobs, judged)
        if not rows:
            raise ValueError(
                f"prepare: no pair is left after judging ({dict(counts)}); loosen the prompts or the judge."
            )
        with atomic_write(self.folder / "pairs.parquet") as partial:
            pq.write_table(pa.Table.from_pylist(rows), partial)
        write_json(
            self.folder / "recipe.json",
            {
                "judge": self.judge.name,
                "backbone": self.backbone.fingerprint(),
                "source": self.source,
                "counts": dict(counts),
                "pairs": len(rows),
            },
        )
        _log.info("%s: %d pairs; %s", self.folder, len(rows), ", ".join(f"{k} {v}" for k, v in counts.items()))

    def make_pieces(self, share: int = 0, of: int = 1) -> None:
        """See `Preparation.make_pieces`."""
        images = self.folder / "images"
        images.mkdir(parents=True, exist_ok=True)
        jobs = [job for job in self._jobs()[share::of] if not (images / job.name).exists()]
        with progress_bar(total=len(jobs), desc="sampling preferences", unit="img", disable=not jobs) as bar:
            for first in range(0, len(jobs), self.batch_size):
                part = jobs[first : first + self.batch_size]
                pixels = self.backbone.sample(
                    [job.prompt for job in part],
                    [(self.seed, "preferences", job.prompt, job.number) for job in part],
                    Sampling(self.sampling_steps, self.guidance_scale),
                    self.size,
                )
                for job, image in zip(part, pixels, strict=True):
                    write_image(image, images / job.name)
                bar.update(len(part))

    def _judge(self, jobs: list[_Job], images: Path) -> dict[str, Group | None]:
        """Each image's class per judged attribute, None where no face was found; kept in ``judged.jsonl``."""
        path = self.folder / "judged.jsonl"
        asked = content_key(self.judge.name, jsonable(self.judge), list(self.judged_attributes))
        known: dict[str, Group | None] = {}
        if path.exists():
            for line in path.read_text(encoding="utf-8", errors="replace").split("\n"):
                try:
                    record = json.loads(line)
                except json.JSONDecodeError:
                    continue  # the line that a kill cut short
                if record.get("asked") == asked:
                    known[record["file"]] = None if record["group"] is None else tuple(record["group"])
        missing = list(dict.fromkeys(job.name for job in jobs if job.name not in known))
        with (
            path.open("a") as file,
            progress_bar(total=len(missing), desc="judging", unit="img", disable=not missing) as bar,
        ):
            file.write("\n" if missing else "")
            for first in range(0, len(missing), 128):
                names = missing[first : first + 128]
                pixels = torch.stack([read_image(images / name, str(images / name)) for name in names])
                probabilities = self.judge.classify(pixels)
                for n, name in enumerate(names):
                    rows = {attribute: probabilities[attribute][n] for attribute in self.judged_attributes}
                    seen = not any(bool(row.isnan().any()) for row in rows.values())
                    group = tuple(self.judge.classes[a][int(row.argmax())] for a, row in rows.items()) if seen else None
                    known[name] = group
                    record = {
                        "file": name,
                        "judge": self.judge.name,
                        "attributes": list(self.judged_attributes),
                        "asked": asked,
                        "group": group,
                    }
                    file.write(json.dumps(record) + "\n")
                bar.update(len(names))
        return known

    def _sides(
        self, jobs: list[_Job], judged: dict[str, Group | None], counts: Counter[str]
    ) -> tuple[_Winners, _Losers]:
        """For each neutral prompt the images of each group that may win, and those that may lose."""
        winners: _Winners = {caption: {} for caption, _ in self.prompts}
        losers: _Losers = {caption: [] for caption, _ in self.prompts}
        for job in jobs:
            seen = judged[job.name] if self.confirmed else job.group or self._groups()[0]
            if seen is None:
                counts["dropped: no face"] += 1
                continue
            group = seen[: len(self.attributes)]
            if job.group is None:
                losers[job.caption].append(job.name)
                counts["neutral images kept"] += 1
                if self.source == "filtered" and group in self._groups():
                    winners[job.caption].setdefault(group, []).append(job.name)
            elif job.group == group:
                winners[job.caption].setdefault(group, []).append(job.name)
                counts["specific images kept"] += 1
            else:
                counts["dropped: judge disagrees"] += 1
        return winners, losers

    def _pair(self, jobs: list[_Job], judged: dict[str, Group | None]) -> tuple[list[dict[str, object]], Counter[str]]:
        counts: Counter[str] = Counter()
        asked_with = {job.name: job.prompt for job in jobs}
        winners, losers = self._sides(jobs, judged, counts)
        rows: list[dict[str, object]] = []
        for caption, _ in self.prompts:
            if missing := sum(not winners[caption].get(group) for group in self._groups()):
                counts["groups without an image"] += missing
            if not winners[caption] or not losers[caption]:
                counts["prompts dropped: one side empty"] += 1
                continue
            held = self._held_out(caption, [*winners[caption].values(), losers[caption]])
            whole = round(self.val_share * self.pairs)
            for split, count in (("val", whole), ("train", self.pairs - whole)):
                sides = [
                    {group: [n for n in names if (n in held) == (split == "val")] for group, names in side.items()}
                    for side in (winners[caption], {(): losers[caption]})
                ]
                generator = keyed_generator(self.seed, "pairs", caption, split)
                pairs = self._matched(sides[0], sides[1][()], count, judged, generator)
                counts["pairs without two images"] += count - len(pairs)
                rows += [
                    {
                        "jpg_0": f"images/{winner}", "jpg_1": f"images/{loser}",
                        "prompt_0": asked_with[winner], "prompt_1": asked_with[loser], "caption": caption,
                        "label_0": 1.0, "label_1": 0.0, "group_0": " ".join(group), "split": split,
                    }
                    for group, winner, loser in pairs
                ]  # fmt: skip
        return rows, counts

    def _held_out(self, caption: str, pools: list[list[str]]) -> set[str]:
        """Images of one prompt that only held-out pairs may show: of each pool its share, at least one of several."""
        held: set[str] = set()
        for number, names in enumerate(pools):
            left = sorted(set(names) - held)
            count = max(round(self.val_share * len(left)), 1 if self.val_share and len(left) > 1 else 0)
            held |= set(_shuffled(left, keyed_generator(self.seed, "held out", caption, number))[:count])
        return held

    def _matched(
        self,
        winners: dict[Group, list[str]],
        losers: list[str],
        count: int,
        judged: dict[str, Group | None],
        generator: torch.Generator,
    ) -> list[tuple[Group, str, str]]:
        """``count`` pairs (group, winner, loser) of one prompt in random order; fewer where images are lacking."""
        groups = [group for group in self._groups() if winners.get(group)]
        if not groups or not losers:
            return []
        asked = self._quota(groups, count, generator)
        order = torch.randperm(len(asked), generator=generator).tolist()
        pools = {group: _shuffled(winners[group], generator) for group in groups}
        neutral = itertools.cycle(_shuffled(losers, generator))
        used: Counter[str] = Counter()
        tilt: Counter[tuple[int, str]] = Counter()  # winners minus losers so far, per class that should stay
        pairs = []
        for k in order:
            group, loser = groups[asked[k]], next(neutral)
            if pools[group] == [loser]:  # a filtered image stands on both sides, but not of one pair
                loser = next(neutral)
            pool = [name for name in pools[group] if name != loser]
            if not pool:
                continue
            tilt.subtract(self._unchanged_classes(judged[loser]))
            winner = min(
                pool, key=lambda name: (sum(tilt[c] for c in self._unchanged_classes(judged[name])), used[name])
            )
            tilt.update(self._unchanged_classes(judged[winner]))
            used[winner] += 1
            pairs.append((group, winner, loser))
        return pairs

    def _unchanged_classes(self, seen: Group | None) -> list[tuple[int, str]]:
        """An image's classes of the attributes that should stay, each with its attribute's place."""
        return [] if seen is None else list(enumerate(seen))[len(self.attributes) :]

    def _quota(self, groups: list[Group], count: int, generator: torch.Generator) -> list[int]:
        """Which group wins in each of ``count`` pairs: the target shares, rounded."""
        weight = torch.ones(len(groups), dtype=torch.float64)
        for k, attribute in enumerate(self.attributes):
            if attribute in self.target:
                weight *= torch.tensor([self.target[attribute][group[k]] for group in groups], dtype=torch.float64)
        exact = weight / weight.sum() * count
        whole = exact.floor()
        rest = exact - whole + 1e-9 * torch.rand(len(groups), generator=generator)
        whole[rest.argsort(descending=True)[: count - int(whole.sum())]] += 1
        return [k for k, times in enumerate(whole.long().tolist()) for _ in range(times)]


def _shuffled(names: list[str], generator: torch.Generator) -> list[str]:
    return [names[k] for k in torch.randperm(len(names), generator=generator).tolist()]
