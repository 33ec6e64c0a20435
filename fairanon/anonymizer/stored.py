"""Embeddings that are kept in files, ours or anybody's: numbers can be had again without the pictures."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import functional as F

from fairanon.anonymizer.evidence import Evidence, Recognized
from fairanon.anonymizer.pairs import Labels
from fairanon.files import atomic_write
from fairanon.metrics.functional.verification import Metric


def keep(evidence: Evidence, originals: Path, anonymized: Path) -> None:
    """Write embeddings: two files, one of the originals and one of the results. They tell who is who: guard them."""
    for path, side in ((originals, "originals"), (anonymized, "hidden")):
        tensors = {name: getattr(recognized, side).contiguous() for name, recognized in evidence.recognized.items()}
        about: dict[str, str] = {
            f"metric {name}": recognized.metric for name, recognized in evidence.recognized.items()
        }
        about |= {
            f"published {name}": str(recognized.published)
            for name, recognized in evidence.recognized.items()
            if recognized.published is not None
        }
        about["names"] = json.dumps(evidence.names)
        with atomic_write(path) as partial:
            save_file(tensors, partial, metadata=about)


def read_kept(originals: Path, anonymized: Path, labels: Labels | None = None) -> Evidence:
    """What `keep` wrote, or anybody else: a tensor float (N, D) by recognizer, rows of the two files belong together.

    Args:
        originals: A safetensors file.
        anonymized: Another.
        labels: Of the names in the files.

    Raises:
        ValueError: They do not belong together.
    """
    evidence = Evidence()
    sides: list[dict[str, Tensor]] = []
    abouts: list[dict[str, str]] = []
    for path in (originals, anonymized):
        try:
            with safe_open(path, "pt") as file:
                abouts.append(file.metadata() or {})
                sides.append({name: file.get_tensor(name).float() for name in file.keys()})  # noqa: SIM118  (not a dictionary)
        except (SafetensorError, FileNotFoundError) as error:
            raise ValueError(f"{path} cannot be read as stored embeddings ({error}).") from None
    for name, rows in sides[0].items():
        other = sides[1].get(name)
        if other is None:
            raise ValueError(f"{anonymized} has no embeddings of {name}, which {originals} has; leave it out there.")
        if rows.shape != other.shape or rows.dim() != 2:
            raise ValueError(
                f"{originals} and {anonymized} have different numbers of embeddings of {name}; write both at once."
            )
        metric = _metric_of(_said(abouts, f"metric {name}", originals), originals)
        hidden = usable(other, metric)
        published = _positive(_said(abouts, f"published {name}", originals), originals)
        evidence.recognized[name] = Recognized(metric, usable(rows, metric), hidden, hidden, published=published)
    count = max((len(recognized.originals) for recognized in evidence.recognized.values()), default=0)
    if not count:
        raise ValueError(f"{originals} has no embeddings.")
    names = _said(abouts, "names", originals)
    evidence.names = [str(k) for k in range(count)] if names is None else _names_of(names, originals)
    if any(len(recognized.originals) != len(evidence.names) for recognized in evidence.recognized.values()):
        raise ValueError(
            f"{originals} names {len(evidence.names)} files and has another number of embeddings; write both at once."
        )
    labelled = [(None, None) if labels is None else labels.of(name) for name in evidence.names]
    evidence.groups, evidence.identities = ([both[k] for both in labelled] for k in (0, 1))
    return evidence


def _said(abouts: Sequence[Mapping[str, str]], key: str, path: Path) -> str | None:
    """What the metadata of two files say, who must not contradict each other."""
    values = {about[key] for about in abouts if key in about}
    if len(values) > 1:
        raise ValueError(
            f"{path} and the other file do not agree on their {key}: name two files that were written together."
        )
    return next(iter(values), None)


def _metric_of(metric: str | None, path: Path) -> Metric:
    if metric not in (None, "cosine", "euclidean"):
        raise ValueError(f"{path}: the metric {metric!r} is not known; write cosine or euclidean.")
    return "euclidean" if metric == "euclidean" else "cosine"


def _positive(text: str | None, path: Path) -> float | None:
    try:
        threshold = None if text is None else float(text)
    except ValueError:
        threshold = math.nan
    if threshold is not None and not (math.isfinite(threshold) and threshold > 0):
        raise ValueError(f"{path}: the published threshold {text!r} is no distance above 0; leave it out.")
    return threshold


def _names_of(text: str, path: Path) -> list[str]:
    try:
        names = json.loads(text)
    except ValueError:
        names = None
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise ValueError(f"{path}: its metadata `names` must be a JSON list of file names.")
    return names


def usable(rows: Tensor, metric: Metric) -> Tensor:
    """Embeddings as they are compared: of length 1 for cosines; NaN where a row is no embedding (zeros, inf, NaN).

    Examples:
        >>> usable(torch.tensor([[3.0, 4.0], [0.0, 0.0]]), "cosine").tolist()
        [[0.6000000238418579, 0.800000011920929], [nan, nan]]
    """
    if metric == "euclidean":
        return rows.masked_fill((~rows.isfinite().all(1) | (rows == 0).all(1))[:, None], torch.nan)
    normalized = F.normalize(rows.double(), dim=1, eps=1e-300).float()
    return normalized.masked_fill(~((normalized.norm(dim=1) - 1).abs() < 1e-3)[:, None], torch.nan)
