"""What judges see of originals and of their anonymized versions, by whomever: pairs of files, faces, embeddings."""

from __future__ import annotations

import json
import unicodedata
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import functional as F
from tqdm import tqdm

from fairanon.anonymize.attack import embed_at, found_again
from fairanon.anonymize.faces import Face
from fairanon.anonymize.find import FaceFinder, Finder
from fairanon.anonymize.photos import PHOTOS, read_photo
from fairanon.files import TextError, beside, named_path, read_table, walk
from fairanon.imaging import CorruptImageError, Square
from fairanon.metrics.functional.similarity import image_pairs
from fairanon.metrics.functional.verification import Metric
from fairanon.protocols import (
    AttributeClassifier,
    FaceGeometry,
    FaceMatcher,
    FeatureNet,
    PerceptualDistance,
    Scorer,
)

_BATCH = 16


@dataclass(frozen=True)
class Pair:
    """An original and what became of it.

    Attributes:
        name: Of the original, relative to its folder.
        original: Its file.
        anonymized: That of the other.
        group: Of the person, if a table says it.
        identity: Who it is, likewise.
        parrot: The original anonymized once more, by an attacker who knows the method.
    """

    name: str
    original: Path
    anonymized: Path
    group: str | None = None
    identity: str | None = None
    parrot: Path | None = None


def pair_up(
    originals: Path, anonymized: Path, table: Path | None = None, parrot: Path | None = None
) -> tuple[list[Pair], list[str]]:
    """Find the pairs.

    Args:
        originals: A folder.
        anonymized: Another; files of the same relative path belong together, whatever their endings.
        table: A CSV: original and, if they are called otherwise, anonymized (relative to the folders), group, identity.
        parrot: A folder in which the originals are anonymized once more.

    Returns:
        The pairs, and the names of originals without a counterpart.

    Raises:
        FileNotFoundError: A folder is missing, or there is no pair.
        TextError: The table is none.
    """
    known = {path.relative_to(originals).as_posix(): path for path in walk(originals, PHOTOS).files}
    others, third = _by_stem(anonymized), {} if parrot is None else _by_stem(parrot)
    rows: dict[str, dict[str, str]] = {name: {} for name in known}
    if table is not None:
        rows = {}
        for number, row in read_table(table, "--table", ("original",)):
            name = named_path(row["original"], f"{table}, line {number}").as_posix()
            if name not in known:
                raise TextError(f"--table: {table}, line {number} names {name}, which is not in {originals}.")
            rows[name] = row
    pairs, unpaired = [], []
    for name, row in sorted(rows.items()):
        wanted = row.get("anonymized") or name
        other = others.get(wanted) or others.get(_stem(wanted))
        if other is None or (parrot is not None and _stem(name) not in third):
            unpaired.append(name)
            continue
        group, identity = (row.get(key) or None for key in ("group", "identity"))
        pairs.append(Pair(name, known[name], other, group, identity, third.get(_stem(name))))
    if not pairs:
        raise FileNotFoundError(f"{anonymized} has no file that is called like one in {originals}; --table pairs them.")
    return pairs, unpaired


def _stem(name: str) -> str:
    """A name without its ending; accents as one letter, which macOS writes as two."""
    return unicodedata.normalize("NFC", Path(name).with_suffix("").as_posix())


def _by_stem(folder: Path) -> dict[str, Path]:
    found = {path.relative_to(folder).as_posix(): path for path in walk(folder, PHOTOS).files}
    return {_stem(name): path for name, path in found.items()} | found


@dataclass
class Recognized:
    """What one recognizer sees.

    Attributes:
        metric: How its embeddings are compared.
        originals: float (N, D), NaN where it finds no face.
        hidden: Likewise of the results, aligned as the originals are: there the attacker knows that somebody was.
        own: Likewise, aligned as a detector finds the face; as above where it finds none.
        parrot: As ``hidden``, of what an attacker anonymized; None if there is none.
    """

    metric: Metric
    originals: Tensor
    hidden: Tensor
    own: Tensor
    parrot: Tensor | None = None


@dataclass
class Looks:
    """Judges of what a face looks like, each None where its weights are absent.

    Attributes:
        geometry: Landmarks, pose, expression, gaze.
        features: For Fréchet and kernel distances.
        clip: For CLIP-I.
        perceptual: A distance beside LPIPS.
        quality: Rates images by themselves.
        attributes: Sees groups.
    """

    geometry: FaceGeometry | None = None
    features: FeatureNet | None = None
    clip: FeatureNet | None = None
    perceptual: PerceptualDistance | None = None
    quality: Scorer | None = None
    attributes: AttributeClassifier | None = None


@dataclass
class Evidence:
    """All that is known of N faces; rows belong together.

    Attributes:
        names: Of their files.
        groups: None where unknown.
        identities: Likewise; then everybody is somebody else.
        recognized: By the recognizers' names.
        found_again: bool (N,), a detector finds a face in the result.
        values: By what was measured: rows of the results, float (N, ...).
        source_values: Of the originals.
        unreadable: Files that could not be read, one of the two.
        faceless: Originals in which no face was found.
    """

    names: list[str] = field(default_factory=list)
    groups: list[str | None] = field(default_factory=list)
    identities: list[str | None] = field(default_factory=list)
    recognized: dict[str, Recognized] = field(default_factory=dict)
    found_again: Tensor | None = None
    values: dict[str, Tensor] = field(default_factory=dict)
    source_values: dict[str, Tensor] = field(default_factory=dict)
    unreadable: list[str] = field(default_factory=list)
    faceless: list[str] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.names)


@dataclass
class _Row:
    """One face, until its batch is judged."""

    pair: Pair
    cut: Tensor
    new: Tensor
    again: bool
    embeddings: dict[str, tuple[Tensor, ...]]


def gather(
    pairs: Sequence[Pair],
    finder: Finder,
    detector: FaceFinder,
    matchers: Sequence[FaceMatcher],
    looks: Looks,
    size: int = 256,
    scale: float = 1.8,
    workers: int = 2,
) -> Evidence:
    """Look at all pairs.

    Args:
        pairs: Files. With a group or an identity only the largest face of a file counts: that is who they are of.
        finder: Finds faces in originals.
        detector: Looks for them in results.
        matchers: Recognizers.
        looks: Further judges.
        size: Side of what these are shown.
        scale: How much that shows, as a multiple of the face's larger side.
        workers: Threads that read.
    """
    found = Evidence()
    rows: list[_Row] = []
    parts: list[tuple[dict[str, Tensor], dict[str, Tensor]]] = []
    kept: dict[str, list[tuple[Tensor, ...]]] = {matcher.name: [] for matcher in matchers}
    again = []

    def look(pair: Pair) -> list[_Row] | CorruptImageError:
        try:
            return list(_faces_of(pair, finder, detector, matchers, size, scale))
        except CorruptImageError as error:
            return error

    def judge_batch(batch: list[_Row]) -> None:
        cuts, new = torch.stack([row.cut for row in batch]), torch.stack([row.new for row in batch])
        parts.append((_values(looks, new, cuts), _values(looks, cuts, None)))

    with ThreadPoolExecutor(workers) as pool:
        for pair, seen in zip(
            pairs, tqdm(pool.map(look, pairs), total=len(pairs), desc="pairs", unit="pair"), strict=True
        ):
            if isinstance(seen, CorruptImageError):
                found.unreadable.append(str(seen))
                continue
            if not seen:
                found.faceless.append(pair.name)
            for row in seen:
                found.names.append(pair.name)
                found.groups.append(pair.group)
                found.identities.append(pair.identity)
                again.append(row.again)
                for name, three in row.embeddings.items():
                    kept[name].append(three)
                rows.append(row)
            while len(rows) >= _BATCH:
                judge_batch(rows[:_BATCH])
                del rows[:_BATCH]
    if rows:
        judge_batch(rows)
    if not found.names:
        raise FileNotFoundError("no face was found in any original; a lower --threshold finds more.")
    parrots = pairs[0].parrot is not None
    for matcher in matchers:
        originals, hidden, own, third = (_filled(rows) for rows in zip(*kept[matcher.name], strict=True))
        found.recognized[matcher.name] = Recognized(matcher.metric, originals, hidden, own, third if parrots else None)
    found.found_again = torch.tensor(again)
    for here, side in ((found.values, 0), (found.source_values, 1)):
        for name in parts[0][side]:
            here[name] = torch.cat([part[side][name] for part in parts])
    return found


def _filled(rows: Sequence[Tensor]) -> Tensor:
    """Embeddings (N, D); NaN where a row is empty."""
    width = max(len(row) for row in rows)
    return torch.stack([row if len(row) == width else torch.full((width,), torch.nan) for row in rows])


_NONE = torch.full((1,), torch.nan)


def _faces_of(
    pair: Pair, finder: Finder, detector: FaceFinder, matchers: Sequence[FaceMatcher], size: int, scale: float
) -> Iterator[_Row]:
    """Each face of an original beside what is in its place."""
    pixels = read_photo(pair.original.read_bytes(), pair.name).pixels
    new = _like(read_photo(pair.anonymized.read_bytes(), str(pair.anonymized)).pixels, pixels, pair.anonymized)
    third = None
    if pair.parrot is not None:
        third = _like(read_photo(pair.parrot.read_bytes(), str(pair.parrot)).pixels, pixels, pair.parrot)
    boxes = finder.find(pixels).boxes
    if len(boxes) and (pair.group or pair.identity):
        boxes = boxes[(boxes[:, 2:] - boxes[:, :2]).prod(1).argmax()][None]
    for box in boxes:
        x0, y0, x1, y1 = box.tolist()
        face, square = Face((x0, y0, x1, y1), 1.0), Square((x0 + x1) / 2, (y0 + y1) / 2, scale * max(x1 - x0, y1 - y0))
        again = found_again(detector, face, new)
        embeddings: dict[str, tuple[Tensor, ...]] = {}
        for matcher in matchers:
            place = matcher.align(pixels, box)
            hidden, found = _at(matcher, place, new), None if again is None else matcher.align(new, again)
            embeddings[matcher.name] = (
                _at(matcher, place, pixels),
                hidden,
                hidden if found is None else _at(matcher, found, new),
                _NONE if third is None else _at(matcher, place, third),
            )
        yield _Row(pair, square.cut(pixels, size), square.cut(new, size), again is not None, embeddings)


def _at(matcher: FaceMatcher, square: Square | None, pixels: Tensor) -> Tensor:
    found = None if square is None else embed_at(matcher, square, pixels)
    return _NONE if found is None else found


def _like(pixels: Tensor, other: Tensor, path: Path) -> Tensor:
    """A result in its original's size."""
    height, width = other.shape[-2:]
    if pixels.shape == other.shape:
        return pixels
    if abs(pixels.shape[-1] * height / (pixels.shape[-2] * width) - 1) > 0.02:
        raise CorruptImageError(f"{path} has another shape than its original: its faces are not where they were")
    resized = F.interpolate(pixels[None].float(), (height, width), mode="bilinear", antialias=True)
    return resized[0].round().clamp(0, 255).to(torch.uint8)


def _values(looks: Looks, pixels: Tensor, sources: Tensor | None) -> dict[str, Tensor]:
    """What judges say of faces uint8 (B, 3, S, S), and how alike they are to their sources."""
    found: dict[str, Tensor] = {}
    if sources is not None:
        found |= {f"alike/{name}": rows for name, rows in image_pairs(pixels, sources).items()}
        if looks.perceptual is not None:
            found["perceptual"] = looks.perceptual.distance(pixels, sources)
    if looks.geometry is not None:
        found |= {f"geometry/{name}": rows for name, rows in looks.geometry.measure(pixels).items()}
    if looks.features is not None:
        found["features"] = looks.features.features(pixels)
    if looks.clip is not None:
        found["clip"] = looks.clip.features(pixels)
    if looks.quality is not None:
        found["quality"] = looks.quality.score(pixels, [""] * len(pixels))
    if looks.attributes is not None:
        found |= {f"attributes/{name}": rows for name, rows in looks.attributes.classify(pixels).items()}
    return found


# --- stored embeddings -----------------------------------------------------------------------------------


def keep(evidence: Evidence, originals: Path, anonymized: Path) -> None:
    """Write embeddings: two files, one of the originals and one of the results. They tell who is who: guard them."""
    for path, side in ((originals, "originals"), (anonymized, "hidden")):
        tensors = {name: getattr(one, side).contiguous() for name, one in evidence.recognized.items()}
        about: dict[str, str] = {f"metric {name}": one.metric for name, one in evidence.recognized.items()}
        about |= {"names": json.dumps(evidence.names)}
        with beside(path) as partial:
            save_file(tensors, partial, metadata=about)


def read_kept(originals: Path, anonymized: Path, table: Path | None = None) -> Evidence:
    """What `keep` wrote, or anybody else: a tensor float (N, D) by recognizer, rows of the two files belong together.

    Args:
        originals: A safetensors file.
        anonymized: Another.
        table: See `pair_up`; of the names in the files.

    Raises:
        ValueError: They do not belong together.
    """
    found = Evidence()
    sides: dict[Path, dict[str, Tensor]] = {}
    for path in (originals, anonymized):
        try:
            with safe_open(path, "pt") as file:
                about = file.metadata() or {}
                sides[path] = {name: file.get_tensor(name).float() for name in file.keys()}  # noqa: SIM118  (not a dictionary)
        except (SafetensorError, FileNotFoundError) as error:
            raise ValueError(f"{path} cannot be read as stored embeddings ({error}).") from None
    for name in sides[originals]:
        one, other = sides[originals][name], sides[anonymized].get(name)
        if other is None or one.shape != other.shape:
            raise ValueError(f"{originals} and {anonymized} do not have as many embeddings of {name}.")
        metric: Metric = "euclidean" if about.get(f"metric {name}") == "euclidean" else "cosine"
        found.recognized[name] = Recognized(metric, one, other, other)
    count = len(next(iter(sides[originals].values())))
    found.names = json.loads(about.get("names", json.dumps([str(k) for k in range(count)])))
    said = {} if table is None else {row["original"]: row for _, row in read_table(table, "--table", ("original",))}
    found.groups = [said.get(name, {}).get("group") or None for name in found.names]
    found.identities = [said.get(name, {}).get("identity") or None for name in found.names]
    return found
