"""Is a person found again?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from fairanon.batches import PromptRow
from fairanon.evaluation.measure import Measure, Rival
from fairanon.evaluation.observed import Judged, Observed
from fairanon.metrics import IdentityRetrieval
from fairanon.metrics.anonymity import found_again, resemblance, to_others
from fairanon.metrics.functional.estimates import Estimate, Estimates
from fairanon.metrics.functional.retrieval import retrieve
from fairanon.progress import progress_bar
from fairanon.protocols import AttributeClassifier, Embedder
from fairanon.redaction import REDACTIONS, Redaction, redact
from fairanon.report.plots import plot_scatter

UNSEEN = -1
"""Label of an image in which no face was found."""
_BATCH = 64


@dataclass
class Embedded(Observed):
    """Who is to be seen; each float (N, D), NaN where no face was found.

    Attributes:
        own: In the results.
        source: In the originals.
        reference: In another image of the same person; the original itself where there is none.
        has_reference: uint8 (N,), whether there is one.
        labels: Of the originals, by attribute: int64 (N,).
    """

    own: Tensor
    source: Tensor
    reference: Tensor
    has_reference: Tensor
    labels: dict[str, Tensor] = field(default_factory=dict)


def labels_of(judges: Sequence[AttributeClassifier], pixels: Tensor, names: Sequence[str]) -> dict[str, Tensor]:
    """The most probable class of some attributes: int64 (N,), `UNSEEN` where no face was found."""
    labels = {}
    for judge in judges:
        if set(names) & set(judge.classes):
            for name, rows in judge.classify(pixels).items():
                if name in names:
                    labels[name] = torch.where(rows.isnan().any(1), UNSEEN, rows.nan_to_num().argmax(1))
    return labels


def classes_of(judges: Sequence[AttributeClassifier], names: Sequence[str]) -> dict[str, tuple[str, ...]]:
    """All classes that several judges know, refused if they do not know what is asked of them."""
    known = {name: values for judge in judges for name, values in judge.classes.items()}
    for name in names:
        if name not in known:
            raise ValueError(f"evaluate.measures: no judge judges {name!r}, only {', '.join(known)}.")
    return known


class Retrieval(Measure[Embedded]):
    """Retrieval and identity similarity of anonymized images (ID2Face, tables I to III).

    Before is the original itself: what an attacker finds where nobody is anonymized.

    Args:
        embedder: Recognizes faces; had no part in training.
        judges: Judge what an original shows.
        alike: Attributes that make two people look alike.
        groups: For each class of these, as judged in the original, similarity and retrieval are reported too.
        redactions: Steps of strength at which blur, pixelation and a mask are tried; the one whose retrieval is nearest to
            the model's is reported, beside an opaque mask. 0 leaves them out.
    """

    record = Embedded
    sets = ("people", "attacker", "diverse")
    higher_is_better: ClassVar[dict[str, bool]] = {
        "retrieval": IdentityRetrieval.higher_is_better, "id_similarity": False, "diversity": False,
        "detection_rate": True,
    }  # fmt: skip

    def __init__(
        self,
        embedder: Embedder,
        judges: list[AttributeClassifier] | None = None,
        alike: tuple[str, ...] = (),
        groups: tuple[str, ...] = (),
        redactions: int = 10,
    ) -> None:
        self.attributes = judges or []
        self.classes = classes_of(self.attributes, (*alike, *groups))
        self.embedder, self.alike, self.groups, self.redactions = embedder, alike, groups, redactions
        self.judges = {"recognition": embedder.name}
        if self.attributes:
            self.judges["appearance"] = "+".join(judge.name for judge in self.attributes)
        self.settings = (alike, groups)

    def observe(self, pixels: Tensor, rows: list[PromptRow]) -> Embedded:
        """See `Measure.observe`."""
        images, references = ([getattr(row, name) for row in rows] for name in ("image", "reference"))
        if any(p is None for p in images) or any(row.person is None for row in rows):
            raise ValueError(
                "evaluate.prompts: retrieval is measured on images of known people; give every row an image and a person."
            )
        sources = torch.stack(images)
        others = torch.stack([p if r is None else r for p, r in zip(images, references, strict=True)])
        return Embedded(
            self.embedder.embed(pixels),
            self.embedder.embed(sources),
            self.embedder.embed(others),
            torch.tensor([reference is not None for reference in references]).to(torch.uint8),
            labels_of(self.attributes, sources, (*self.alike, *self.groups)),
        )

    # --- numbers -----------------------------------------------------------------------------------------

    def headline(self, keys: list[str]) -> list[str]:
        """The columns of the paper's tables."""
        columns = [f"retrieval/{name}/source" for name in ("top1", "top5", "map")]
        return [key for key in [*columns, "id_similarity", "redaction/strength"] if key in keys]

    def numbers(self, judged: Judged[Embedded], noise: Judged[Embedded] | None) -> Estimates:
        """See `Measure.numbers`."""
        people = judged.within("people")
        result = self._retrieval(people)
        result |= self._attackers(judged)
        result |= resemblance(people.values.own, people.values.source, alike=self._kinds(people.values))
        result["detection_rate/face"] = _share(~people.values.own.isnan().any(1))
        result |= self._diversity(judged)
        result |= self._by_group(people)
        return result

    def _retrieval(self, judged: Judged[Embedded]) -> Estimates:
        """Protocol ``source``: the gallery holds the originals. ``identity``: other images of the same people."""
        values, people = judged.values, _people(judged)
        result: Estimates = {}
        known = values.has_reference.bool()
        for name, gallery, rows in (
            ("source", values.source, torch.ones_like(known)), ("identity", values.reference, known),
        ):  # fmt: skip
            if rows.any():
                result |= found_again(values.own[rows], gallery[rows], people[rows], name)
        kinds = self._kinds(values)
        if kinds is not None:
            result["retrieval/chance/top1/source/alike"] = Estimate.mean(1 / torch.bincount(kinds)[kinds].double())
        return result

    def _kinds(self, values: Embedded) -> Tensor | None:
        """A number for each combination of what makes people look alike, as judged in the originals: int64 (N,)."""
        if not self.alike:
            return None
        labels = torch.stack([values.labels[name] for name in self.alike], 1)
        return labels.unique(dim=0, return_inverse=True)[1]

    def _attackers(self, judged: Judged[Embedded]) -> Estimates:
        """Attackers who know the method and anonymize images themselves.

        ``parrot`` compares with what it anonymized. ``excluder`` saw how similar its results are to their originals, and
        looks for the originals that are just as similar: orthogonal mapping may make a person *less* similar than a
        stranger is.
        """
        theirs, main = judged.within("attacker"), judged.within("people")
        if not len(theirs):
            return {}
        everybody, people = _people(main), _people(theirs)
        row = {int(name): k for k, name in enumerate(everybody.tolist())}
        probes = main.values.own[[row[int(name)] for name in people]]
        result = found_again(probes, theirs.values.own, people, "source/parrot", rates=())
        similar = float((theirs.values.own * theirs.values.source).sum(1).nanmean())
        return result | found_again(
            main.values.own, main.values.source, everybody, "source/excluder", rates=(), expected=similar
        )

    def _diversity(self, judged: Judged[Embedded]) -> Estimates:
        """Mean similarity of the new faces of one image, and of as many strangers."""
        here = judged.within("diverse")
        if len(here) < 2:
            return {}
        strangers = judged.within("people").values.source[: len(here)]
        result: Estimates = {}
        for name, embeddings in (("", here.values.own), ("/strangers", strangers)):
            nobody_apart = torch.zeros(len(embeddings), dtype=torch.long)
            result[f"diversity/similarity{name}"] = Estimate.mean(to_others(embeddings, nobody_apart))
        return result

    def _by_group(self, judged: Judged[Embedded]) -> Estimates:
        """Where it fails: similarity and being found, for each kind of original."""
        values = judged.values
        first = retrieve(values.own, values.source, _people(judged)).ranks <= 1
        similarities = (values.own * values.source).sum(1)
        result: Estimates = {}
        for name in self.groups:
            for k, group in enumerate(self.classes[name]):
                here = values.labels[name] == k
                if here.any():
                    result[f"id_similarity/{name}/{group}"] = Estimate.mean(similarities[here])
                    result[f"retrieval/top1/source/{name}/{group}"] = _share(first[here])
        return result

    # --- beside it ---------------------------------------------------------------------------------------

    def rivals(self, after: Judged[Embedded]) -> dict[str, Rival]:
        """Blur, pixelation and a mask at the strength whose top-1 retrieval is nearest to the model's, and an opaque mask.

        A mask's strength is its opacity: at .8 the face shines through.
        """
        if not self.redactions:
            return {}
        people = after.within("people")
        rows = [after.rows[k] for k in people.prompt.tolist()]
        if not all(row.holds("mask") for row in rows):
            raise ValueError("evaluate.prompts: redactions need masks; give every row one, or set redactions to 0.")
        source, numbers = people.values.source, torch.arange(len(rows))

        def top1(probes: Tensor) -> float:
            return float((retrieve(probes, source, numbers).ranks <= 1).double().mean())

        ours = top1(people.values.own)
        result: dict[str, Rival] = {}
        tries = [(k + 1) / self.redactions for k in range(self.redactions)]
        progress = progress_bar(desc="classical redactions", total=len(REDACTIONS) * len(tries), unit="try")
        for kind in REDACTIONS:
            rates = {}
            for strength in tries:
                parts = [rows[first : first + _BATCH] for first in range(0, len(rows), _BATCH)]
                rates[strength] = top1(torch.cat([self.embedder.embed(_redacted(kind, strength, p)) for p in parts]))
                progress.update()
            best = min(tries, key=lambda strength: (abs(rates[strength] - ours), strength))
            exact: Estimates = {"redaction/strength": Estimate.exact(best, len(rows))}
            result[kind] = Rival(rows, partial(_redacted, kind, best), exact)
        whole: Estimates = {"redaction/strength": Estimate.exact(1.0, len(rows))}
        result["opaque mask"] = Rival(rows, partial(_redacted, "mask", 1.0), whole)
        progress.close()
        return result

    def plot(self, folder: Path, before: Judged[Embedded], after: Judged[Embedded]) -> None:
        """``identities.png``: t-SNE of the originals' and the new faces' embeddings (figure 6)."""
        from sklearn.manifold import TSNE

        people, diverse = after.within("people").values, after.within("diverse").values
        some = 300
        sets = {
            "originals": people.source[:some],
            "anonymized": people.own[:some],
            "one person, many times": diverse.own,
        }
        sets = {name: rows[~rows.isnan().any(1)] for name, rows in sets.items()}
        points = torch.cat(list(sets.values()))
        if len(points) < 50:  # the neighbourhoods of fewer points say nothing
            return
        flat = TSNE(2, perplexity=30, init="pca", random_state=0).fit_transform(F.normalize(points, dim=1).numpy())
        parts = torch.from_numpy(flat).split([len(rows) for rows in sets.values()])
        plot_scatter(folder / "identities.png", dict(zip(sets, parts, strict=True)))


def _people(judged: Judged[Embedded]) -> Tensor:
    """A number for each person: int64 (N,)."""
    known: dict[str | None, int] = {}
    persons = [known.setdefault(row.person, len(known)) for row in judged.rows]
    return torch.tensor(persons)[judged.prompt]


def _redacted(kind: Redaction, strength: float, rows: list[PromptRow]) -> Tensor:
    """The rows' images redacted: uint8 (n, 3, H, W)."""
    held = [row.loaded() for row in rows]
    images, masks = (torch.stack([getattr(row, name) for row in held]) for name in ("image", "mask"))
    return redact(images, masks, kind, strength)


def _share(hits: Tensor) -> Estimate:
    return Estimate.share(int(hits.sum()), len(hits))
