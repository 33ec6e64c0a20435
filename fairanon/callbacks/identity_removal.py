"""Is a person found again, and is everything else still there?"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F
from tqdm import tqdm

from fairanon.batches import PromptRow
from fairanon.callbacks.measures import Judged, Measure
from fairanon.evaluators.protocols import AttributeClassifier, Embedder, FaceGeometry, FeatureNet, Scorer
from fairanon.metrics import IdentityRetrieval
from fairanon.metrics.distances import frechet_interval
from fairanon.metrics.functional.intervals import Estimate, mean_interval, wilson
from fairanon.metrics.geometry import geometry_distance
from fairanon.metrics.whole import whole
from fairanon.redaction import REDACTIONS, Redaction, redact
from fairanon.report import plot_scatter

_UNSEEN = -1
_BATCH = 64


class IdentityRemoval(Measure):
    """Retrieval, similarity, preservation and quality of anonymized pictures (ID2Face, tables I to III).

    Before is the original itself: what an attacker finds where nobody is anonymized.

    Args:
        embedder: Recognizes faces; had no part in training.
        judges: Judge what a picture shows.
        kept: What should still be there.
        redrawn: What belongs to the appearance of a person; the share that stayed is reported all the same.
        groups: For each class of these, as judged in the original, similarity and retrieval are reported too.
        geometry: Measures landmarks, pose, expression and gaze; None leaves them out.
        features: Computes features for the Fréchet distance to the originals; None leaves it out.
        quality: Rates pictures without a reference, as MUSIQ does; None where its weights are absent: "n/a".
        redactions: Steps of strength at which blur, pixelation and a solid mask are tried; the one whose retrieval is
            nearest to the model's is reported. 0 leaves them out.
    """

    def __init__(
        self,
        embedder: Embedder,
        judges: list[AttributeClassifier],
        kept: tuple[str, ...] = (),
        redrawn: tuple[str, ...] = (),
        groups: tuple[str, ...] = (),
        geometry: FaceGeometry | None = None,
        features: FeatureNet | None = None,
        quality: Scorer | None = None,
        redactions: int = 10,
    ) -> None:
        self.classes = {name: values for judge in judges for name, values in judge.classes.items()}
        for name in (*kept, *redrawn, *groups):
            if name not in self.classes:
                raise ValueError(f"evaluate.measure: no judge judges {name!r}, only {', '.join(self.classes)}.")
        self.embedder, self.attributes = embedder, judges
        self.kept, self.redrawn, self.groups = kept, redrawn, groups
        self.geometry, self.features, self.quality, self.redactions = geometry, features, quality, redactions
        self.judges = {"recognition": embedder.name, "attributes": "+".join(judge.name for judge in judges)}
        optional = {"geometry": geometry, "features": features, "quality": quality}
        self.judges |= {what: judge.name for what, judge in optional.items() if judge is not None}
        self.settings = (kept, redrawn, groups)

    # --- judgements --------------------------------------------------------------------------------------

    def observe(self, pixels: Tensor, rows: list[PromptRow]) -> dict[str, Tensor]:
        """Embeddings, labels, geometry and features of the results and ("source.") of the originals."""
        pictures, references = ([getattr(row, name) for row in rows] for name in ("picture", "reference"))
        if any(p is None for p in pictures) or any(row.person is None for row in rows):
            raise ValueError(
                "evaluate.prompts: identity removal is measured on pictures of known people; give every row a picture "
                "and a person."
            )
        sources = torch.stack(pictures)
        values = self._judge(pixels) | {f"source.{name}": value for name, value in self._judge(sources).items()}
        known = torch.tensor([reference is not None for reference in references])
        others = self.embedder.embed(
            torch.stack([p if r is None else r for p, r in zip(pictures, references, strict=True)])
        )
        return values | {"reference": others, "reference.known": known.to(torch.uint8)}

    def _judge(self, pixels: Tensor) -> dict[str, Tensor]:
        values = {"embedding": self.embedder.embed(pixels)}
        for judge in self.attributes:
            for name, rows in judge.classify(pixels).items():
                if name in (*self.kept, *self.redrawn, *self.groups):
                    values[f"label.{name}"] = torch.where(rows.isnan().any(1), _UNSEEN, rows.nan_to_num().argmax(1))
        if self.geometry is not None:
            values |= {f"geometry.{name}": rows.contiguous() for name, rows in self.geometry.measure(pixels).items()}
        if self.features is not None:
            values["features"] = self.features.features(pixels)
        if self.quality is not None:
            values["quality"] = self.quality.score(pixels, [""] * len(pixels))
        return values

    # --- numbers -----------------------------------------------------------------------------------------

    def headline(self, keys: list[str]) -> list[str]:
        """The columns of the paper's tables in their order, then what was kept."""
        columns = ["retrieval/top1/source", "retrieval/top5/source", "retrieval/map/source", "id_similarity"]
        columns += [f"preservation/{name}" for name in ("landmarks", "pose", "expression", "gaze")]
        columns += ["quality", "fid/source", *(f"kept/{name}" for name in (*self.kept, *self.redrawn))]
        return [key for key in [*columns, "redaction/strength"] if key in keys]

    def numbers(self, judged: Judged, noise: Judged | None) -> dict[str, Estimate | None]:
        """See `Measure.numbers`."""
        people = judged.within("people")
        values = {name: rows[people] for name, rows in judged.values.items()}
        names = self._people(judged)
        result: dict[str, Estimate | None] = {}
        result |= self._retrieval(values, names[people])
        result |= self._attacker(judged, names)
        result |= self._similarity(values)
        for name in (*self.kept, *self.redrawn):
            result[f"kept/{name}"] = _share(
                (values[f"label.{name}"] == values[f"source.label.{name}"]) & (values[f"label.{name}"] != _UNSEEN)
            )
        result["detection_rate/face"] = _share(~values["embedding"].isnan().any(1))
        result |= self._preservation(values)
        if "features" in values:
            result["fid/source"] = frechet_interval(values["features"], values["source.features"])
        result["quality"] = mean_interval(values["quality"]) if "quality" in values else None
        result |= self._diversity(judged)
        result |= self._by_group(values, names[people])
        return result

    def _people(self, judged: Judged) -> Tensor:
        """A number for each person: int64 (N,)."""
        known: dict[str | None, int] = {}
        persons = [known.setdefault(row.person, len(known)) for row in judged.rows]
        return torch.tensor(persons)[judged.prompt]

    def _retrieval(self, values: dict[str, Tensor], people: Tensor) -> dict[str, Estimate | None]:
        """Protocol ``source``: the gallery holds the originals. ``identity``: other pictures of the same people."""
        result: dict[str, Estimate | None] = {}
        known = values["reference.known"].bool()
        for protocol, gallery, rows in (
            ("source", values["source.embedding"], torch.ones_like(known)), ("identity", values["reference"], known),
        ):  # fmt: skip
            if not rows.any():
                continue
            metric = whole(IdentityRetrieval())
            metric.update(values["embedding"][rows], gallery[rows], people[rows])
            for name, value in metric.compute().items():
                result[f"retrieval/{name}/{protocol}"] = value
        kinds = self._kinds(values)
        if kinds is not None:
            result["retrieval/chance/top1/source/alike"] = mean_interval(1 / torch.bincount(kinds)[kinds].double())
        return result

    def _kinds(self, values: dict[str, Tensor]) -> Tensor | None:
        """A number for each combination of what a person's appearance is, as judged in the originals: int64 (N,)."""
        if not self.redrawn:
            return None
        labels = torch.stack([values[f"source.label.{name}"] for name in self.redrawn], 1)
        return labels.unique(dim=0, return_inverse=True)[1]

    def _attacker(self, judged: Judged, names: Tensor) -> dict[str, Estimate | None]:
        """Attackers who know the method and anonymize pictures themselves.

        ``parrot`` compares with what it anonymized. ``excluder`` saw how similar its results are to their originals, and
        looks for the originals that are just as similar: orthogonal mapping may make a person *less* similar than a
        stranger is.
        """
        here = judged.within("attacker")
        if not here.any():
            return {}
        gallery, people = judged.values["embedding"][here], names[here]
        main = judged.within("people")
        row = {int(name): k for k, name in enumerate(names[main].tolist())}
        probes = judged.values["embedding"][main][[row[int(name)] for name in people]]
        metric = whole(IdentityRetrieval(false_match_rates=()))
        metric.update(probes, gallery, people)
        result = {f"retrieval/{name}/source/parrot": value for name, value in metric.compute().items()}
        own = (gallery * judged.values["source.embedding"][here]).sum(1)
        metric = whole(IdentityRetrieval(false_match_rates=(), expected=float(own.nanmean())))
        metric.update(judged.values["embedding"][main], judged.values["source.embedding"][main], names[main])
        return result | {f"retrieval/{name}/source/excluder": value for name, value in metric.compute().items()}

    def _similarity(self, values: dict[str, Tensor]) -> dict[str, Estimate | None]:
        """To the original, and of different people: any two, and two who look alike as judged."""
        own, source = values["embedding"], values["source.embedding"]
        found = (own * source).sum(1)
        result: dict[str, Estimate | None] = {"id_similarity": _mean(found)}
        everybody = torch.zeros(len(source), dtype=torch.long)
        for name, kinds in (("", everybody), ("/alike", self._kinds(values))):
            if kinds is not None:
                result[f"id_similarity/random{name}"] = _mean(_to_others(source, kinds))
        return result

    def _preservation(self, values: dict[str, Tensor]) -> dict[str, Estimate | None]:
        """Distances to the original, and between two originals."""
        result: dict[str, Estimate | None] = {}
        for key in [key for key in values if key.startswith("geometry.")]:
            name, source = key.removeprefix("geometry."), values[f"source.{key}"]
            result[f"preservation/{name}"] = _mean(geometry_distance(name, values[key], source))
            result[f"preservation/{name}/random"] = _mean(geometry_distance(name, source.roll(1, 0), source))
        return result

    def _diversity(self, judged: Judged) -> dict[str, Estimate | None]:
        """Mean similarity of the new faces of one picture, and of as many strangers."""
        here = judged.within("diverse")
        if int(here.sum()) < 2:
            return {}
        people = judged.values["source.embedding"][judged.within("people")][: int(here.sum())]
        result: dict[str, Estimate | None] = {}
        for name, found in (("", judged.values["embedding"][here]), ("/strangers", people)):
            nobody_apart = torch.zeros(len(found), dtype=torch.long)
            result[f"diversity/similarity{name}"] = _mean(_to_others(found, nobody_apart))
        return result

    def _by_group(self, values: dict[str, Tensor], people: Tensor) -> dict[str, Estimate | None]:
        """Where it fails: similarity and being found, for each kind of original."""
        result: dict[str, Estimate | None] = {}
        metric = whole(IdentityRetrieval(false_match_rates=()))
        metric.update(values["embedding"], values["source.embedding"], people)
        first = metric.hits(1)
        found = (values["embedding"] * values["source.embedding"]).sum(1)
        for name in self.groups:
            for k, group in enumerate(self.classes[name]):
                here = values[f"source.label.{name}"] == k
                if here.any():
                    result[f"id_similarity/{name}/{group}"] = _mean(found[here])
                    result[f"retrieval/top1/source/{name}/{group}"] = _share(first[here])
        return result

    # --- beside it ---------------------------------------------------------------------------------------

    def rivals(self, after: Judged) -> dict[str, dict[str, Estimate | None]]:
        """Blur, pixelation and a solid mask at the strength whose top-1 retrieval is nearest to the model's."""
        if not self.redactions:
            return {}
        here = after.within("people")
        rows = [after.rows[k] for k in after.prompt[here].tolist()]
        if any(row.mask is None for row in rows):
            raise ValueError("evaluate.prompts: redactions need masks; give every row one, or set redactions to 0.")
        known = {
            name: values[here] for name, values in after.values.items() if name.startswith(("source.", "reference"))
        }
        people = torch.arange(len(rows))

        def top1(probes: Tensor) -> float:
            metric = whole(IdentityRetrieval(places=(1,), false_match_rates=()))
            metric.update(probes, known["source.embedding"], people)
            return float(metric.hits(1).double().mean())

        ours = top1(after.values["embedding"][here])
        result: dict[str, dict[str, Estimate | None]] = {}
        tries = [(k + 1) / self.redactions for k in range(self.redactions)]
        progress = tqdm(desc="classical redactions", total=len(REDACTIONS) * (len(tries) + 1), unit="try")
        for kind in REDACTIONS:
            found = {}
            for strength in tries:
                found[strength] = top1(torch.cat([self.embedder.embed(x) for x in _redacted(rows, kind, strength)]))
                progress.update()
            best = min(tries, key=lambda strength: (abs(found[strength] - ours), strength))
            parts = [self._judge(x) for x in _redacted(rows, kind, best)]
            values = known | {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
            progress.update()
            judged = Judged(rows, people, values, torch.empty(0, 3, 1, 1, dtype=torch.uint8), people[:0])
            exact = {"value": best, "low": best, "high": best, "n": float(len(rows)), "missing": 0.0}
            result[kind] = {**self.numbers(judged, None), "redaction/strength": exact}
        progress.close()
        return result

    def draw(self, folder: Path, before: Judged, after: Judged) -> None:
        """``identities.png``: t-SNE of the originals' and the new faces' embeddings (figure 6)."""
        from sklearn.manifold import TSNE

        people, diverse = after.within("people"), after.within("diverse")
        some = 300
        sets = {
            "originals": after.values["source.embedding"][people][:some],
            "anonymized": after.values["embedding"][people][:some],
            "one person, many times": after.values["embedding"][diverse],
        }
        sets = {name: rows[~rows.isnan().any(1)] for name, rows in sets.items()}
        points = torch.cat(list(sets.values()))
        if len(points) < 50:  # the neighbourhoods of fewer points say nothing
            return
        flat = TSNE(2, perplexity=30, init="pca", random_state=0).fit_transform(F.normalize(points, dim=1).numpy())
        parts = torch.from_numpy(flat).split([len(rows) for rows in sets.values()])
        plot_scatter(folder / "identities.png", dict(zip(sets, parts, strict=True)))


def _redacted(rows: list[PromptRow], kind: Redaction, strength: float) -> Iterator[Tensor]:
    """The rows' pictures redacted, in batches: uint8 (n, 3, H, W)."""
    for first in range(0, len(rows), _BATCH):
        part = rows[first : first + _BATCH]
        pictures, masks = (torch.stack([getattr(row, name) for row in part]) for name in ("picture", "mask"))
        yield redact(pictures, masks, kind, strength)


def _to_others(embeddings: Tensor, kinds: Tensor) -> Tensor:
    """Each face's mean similarity to all others of its kind: float64 (N,), NaN where there is none, or no face."""
    wide = embeddings.double()
    seen = ~wide.isnan().any(1)
    size = int(kinds.max()) + 1
    total = torch.zeros(size, wide.shape[1], dtype=wide.dtype).index_add(0, kinds[seen], wide[seen])
    others = torch.bincount(kinds[seen], minlength=size)[kinds] - 1
    found = ((wide * total[kinds]).sum(1) - wide.square().sum(1)) / others
    return torch.where(others > 0, found, torch.nan)


def _share(hits: Tensor) -> Estimate:
    low, high = wilson(int(hits.sum()), len(hits))
    return {"value": float(hits.double().mean()), "low": low, "high": high, "n": float(len(hits)), "missing": 0.0}


def _mean(values: Tensor) -> Estimate:
    seen = values[~values.isnan()]
    return mean_interval(seen, len(values) - len(seen))
