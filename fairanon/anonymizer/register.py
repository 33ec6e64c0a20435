"""Who is who in a collection: one new face for each person, the same in all pictures, also in those that come later."""

from __future__ import annotations

import base64
import hashlib
import hmac
import itertools
import json
import re
import secrets
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

import numpy as np
import torch
from torch import Tensor

from fairanon.anonymizer.attack import seen_in
from fairanon.anonymizer.faces import Face, Picture
from fairanon.config.experiments import UserError
from fairanon.files import write_text
from fairanon.imaging import Square
from fairanon.metrics.functional.verification import distances
from fairanon.pipelines.collection import people_by_likeness
from fairanon.progress import progress_bar
from fairanon.protocols import FaceMatcher

Scope = Literal["folder", "everywhere"]
_HOW = "make one with `head -c 32 /dev/urandom > FILE`"


def read_key(path: Path) -> bytes:
    """A key that nobody can guess.

    Raises:
        ValueError: It is short, repeats itself, or is made of words or rows of digits.
        FileNotFoundError: There is no such file.
    """
    if not path.is_file():
        raise FileNotFoundError(f"--key-file: {path} is missing; {_HOW}.")
    key = path.read_bytes()
    text = _text(key)
    if text is not None:
        key = text.encode()
        digits = _digits(text)
        if digits is None:
            raise ValueError(f"--key-file: {path} is a word or a sentence, which is soon guessed; {_HOW}.")
        raw = digits
    else:
        raw = key
    if len(raw) < 16:
        raise ValueError(f"--key-file: {path} has {len(raw)} bytes, anybody could try them all; {_HOW}.")
    steps = [(b - a) % 256 for a, b in itertools.pairwise(raw)]
    repeated = any(raw[k:] == raw[:-k] for k in range(1, len(raw) // 2 + 1))
    if repeated or max(Counter(steps).values()) > len(steps) / 3 or len(set(raw)) < 10:
        raise ValueError(f"--key-file: {path} repeats itself or counts, which is soon guessed; {_HOW}.")
    return key


def _text(key: bytes) -> str | None:
    """What a key says, if it is text: 16 random bytes are that once in a thousand million."""
    try:
        text = key.decode("utf-8-sig").strip("\r\n")
    except UnicodeDecodeError:
        return None
    return text if text.replace("\n", " ").isprintable() else None


def _digits(text: str) -> bytes | None:
    """The bytes that hexadecimal or base 64 digits stand for; None of anything else, and of words."""
    if re.fullmatch(r"(?:[0-9a-fA-F]{2})+", text):
        return bytes.fromhex(text)
    words = sum(len(run) for run in re.findall(r"[A-Z]?[a-z]{2,}|[A-Z]{3,}|[0-9]{3,}", text))
    if not re.fullmatch(r"[A-Za-z0-9+/_-]+={0,2}", text) or words > 0.88 * len(text):  # of random digits it is a half
        return None
    return base64.b64decode(text.rstrip("=").translate(str.maketrans("-_", "+/")) + "==")


class Register:
    """Which faces of a collection are one person, and who is drawn instead: a file that says nothing without the key.

    Faces stand in it as keyed digests, people and their new identities masked by keyed bytes of their own.

    Args:
        path: The file; a new one, or that of this collection.
        key: See `read_key`.
        scope: Where the key gives the same new face: in this folder alone, or, for faces of the same file name, everywhere.
        writes: Whether what is added is written.

    Raises:
        ValueError: The file was written with another key.
    """

    def __init__(self, path: Path, key: bytes, scope: Scope = "folder", writes: bool = True) -> None:
        self.path, self.scope, self.writes = path, scope, writes
        lines = [json.loads(line) for line in path.read_text().split("\n") if line] if path.exists() else []
        head = lines[0] if lines else {"salt": secrets.token_hex(16)}
        self._key = hmac.new(key, bytes.fromhex(head["salt"]), hashlib.sha256).digest()
        self._everywhere = key
        check = self._digest("check", "", 16).hex()
        if head.setdefault("check", check) != check:
            raise ValueError(f"--key-file: {path.parent} was begun with another key; take that, or name a new folder.")
        self._lines: list[dict[str, str]] = [head, *lines[1:]]
        self._people = {line["face"]: line["person"] for line in lines[1:] if "face" in line}
        self._controls = {line["drawn"]: line["as"] for line in lines[1:] if "drawn" in line}

    def person(self, face: str) -> str | None:
        """Whose face it is, by its name; None if it is new."""
        masked = self._people.get(self._digest("face", face, 16).hex())
        return None if masked is None else _xor(bytes.fromhex(masked), self._digest("person of", face, 16)).hex()

    def name(self, face: str) -> str:
        """A name for a person whose first face this is."""
        if self.scope == "everywhere":
            return hmac.new(
                self._everywhere, b"person" + face.encode("utf-8", "surrogateescape"), "sha256"
            ).hexdigest()[:32]
        return self._digest("name", face, 16).hex()

    def control(self, person: str) -> Tensor | None:
        """Who is drawn for a person, float (D,); None if nobody was chosen."""
        masked = self._controls.get(self._digest("drawn", person, 16).hex())
        if masked is None:
            return None
        raw = bytes.fromhex(masked)
        return torch.from_numpy(np.frombuffer(_xor(raw, self._digest("as", person, len(raw))), np.float32).copy())

    def add(self, people: dict[str, str], controls: dict[str, Tensor]) -> None:
        """Note new faces with their people, and new people with who is drawn; writes the file."""
        for face, person in people.items():
            digest = self._digest("face", face, 16).hex()
            self._people[digest] = _xor(bytes.fromhex(person), self._digest("person of", face, 16)).hex()
            self._lines.append({"face": digest, "person": self._people[digest]})
        for person, control in controls.items():
            raw = control.float().numpy().tobytes()
            digest = self._digest("drawn", person, 16).hex()
            self._controls[digest] = _xor(raw, self._digest("as", person, len(raw))).hex()
            self._lines.append({"drawn": digest, "as": self._controls[digest]})
        if self.writes and (people or controls or not self.path.exists()):
            write_text(self.path, "".join(json.dumps(line) + "\n" for line in self._lines))

    def _digest(self, purpose: str, text: str, size: int) -> bytes:
        """Bytes that only who has the key can repeat, others for each purpose and text."""
        raw = json.dumps([purpose, text]).encode()  # what is no UTF-8 in a name is escaped
        return hashlib.shake_256(hmac.new(self._key, raw, hashlib.sha256).digest()).digest(size)


def _xor(raw: bytes, other: bytes) -> bytes:
    return bytes(a ^ b for a, b in zip(raw, other, strict=True))


class _Chooses(Protocol):
    """See `fairanon.anonymizer.draw.Drawer`."""

    size: int

    def latents(self, cuts: Tensor) -> Tensor: ...

    def identities(self, latents: Tensor, people: Sequence[str], key: bytes) -> Tensor | None: ...


@dataclass
class People:
    """One new face for each person of a collection.

    Attributes:
        key: The collection's secret.
        names: Whose face it is, by the picture's name and the face's number.
        controls: Who is drawn instead, by person, float (D,); None: the key says it.
    """

    key: bytes
    names: dict[tuple[str, int], str]
    controls: dict[str, Tensor] | None


def who_is_who(
    pictures: Iterable[Picture], square: Callable[[Tensor, Face], Square], drawer: _Chooses, matcher: FaceMatcher,
    threshold: float, key: bytes, register: Register, person_of: Mapping[str, str],
) -> People:  # fmt: skip
    """Go through all pictures once: who is in the register stays who they are, all others are compared with them.

    Args:
        pictures: With faces.
        square: Says where a face is cut out of pixels.
        drawer: Chooses new identities.
        matcher: Compares faces.
        threshold: Distance up to which two are one person.
        key: See `read_key`.
        register: Is written before anything is drawn.
        person_of: Who the largest face of a picture is, by the picture's name; all others are told apart by the recognizer.
    """
    where: list[tuple[str, int]] = []
    embeddings: list[Tensor] = []
    latents: list[Tensor] = []
    named: dict[int, str] = {}
    for picture in progress_bar(pictures, desc="who is who", unit="img"):
        largest = max(picture.asked, key=lambda face: face.area, default=None)
        for number, face in enumerate(picture.faces):
            if not face.asked:
                continue
            if picture.name in person_of and face is largest:
                named[len(where)] = f"person {person_of[picture.name]}"
            where.append((picture.name, number))
            embeddings.append(_embedded(matcher, picture, face))
            cut = square(picture.photo.pixels, face).crop(picture.photo.pixels, drawer.size)
            latents.append(drawer.latents(cut[None])[0])
    if not where:
        return People(key, {}, None)
    width = max(map(len, embeddings))
    rows = torch.stack([row if len(row) == width else torch.full((width,), torch.nan) for row in embeddings])
    apart = distances(rows, rows, matcher.metric)
    faces = [f"{name}#{k}" for name, k in where]
    for row in named:  # they need not be compared, and nobody is taken for them
        apart[row], apart[:, row] = torch.nan, torch.nan
    alike = [named.get(row, person) for row, person in enumerate(people_by_likeness(faces, apart, threshold))]
    known = [register.person(face) for face in faces]
    _agree(known, {row: person_of[where[row][0]] for row in named}, where)
    called = list(known)
    groups: dict[str, list[int]] = {}
    for row, person in enumerate(alike):
        groups.setdefault(person, []).append(row)
    for row, face in enumerate(faces):
        if called[row] is not None:
            continue
        same = groups[alike[row]]
        met = [k for k in same if known[k] is not None]
        first = next((called[k] for k in same if called[k] is not None), None)
        nearest = min(met, key=lambda k: float(apart[row, k]), default=None)
        called[row] = known[nearest] if nearest is not None else first or register.name(face)
    people = [person for person in called if person is not None]
    new = [person for person in dict.fromkeys(people) if register.control(person) is None]
    chosen: dict[str, Tensor] = {}
    if new:
        mean = [
            torch.stack([latent for latent, of in zip(latents, people, strict=True) if of == p]).mean(0) for p in new
        ]
        drawn = drawer.identities(torch.stack(mean), new, key)
        chosen = {} if drawn is None else dict(zip(new, drawn, strict=True))
    fresh = {face: person for face, person, before in zip(faces, people, known, strict=True) if before is None}
    register.add(fresh, chosen)
    controls = {person: control for person in people if (control := register.control(person)) is not None}
    return People(key, dict(zip(where, people, strict=True)), controls or None)


def _agree(known: list[str | None], person_of: dict[int, str], where: list[tuple[str, int]]) -> None:
    """Refuse a table that says otherwise than what the register already knows."""
    one_of: dict[str, tuple[str, int]] = {}
    called: dict[str, tuple[str, int]] = {}
    for row, person in person_of.items():
        if (before := known[row]) is None:
            continue
        for seen, key, this in ((one_of, person, before), (called, before, person)):
            other, first = seen.setdefault(key, (this, row))
            if other != this:
                raise UserError(
                    f"--people: of {where[first][0]} and {where[row][0]} it says otherwise than an earlier run, whose faces are "
                    "drawn; take that run's table, with more lines where there are more pictures, or name a new OUT."
                )


def _embedded(matcher: FaceMatcher, picture: Picture, face: Face) -> Tensor:
    seen = seen_in(matcher, picture.photo.pixels, torch.tensor(face.box), face.quarters)
    return torch.full((1,), torch.nan) if seen is None else seen[1]
