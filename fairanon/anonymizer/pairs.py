"""Which files belong together, and who is on them, as a table says it."""

from __future__ import annotations

import unicodedata
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from fairanon.anonymizer.manifest import printable
from fairanon.anonymizer.photos import PHOTOS
from fairanon.files import TextError, named_path, read_table, walk


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


@dataclass
class Labels:
    """Who people are, as a table says it.

    Attributes:
        rows: By the file's name, see `composed`: the columns of its line; groups and identities as `_plain` has them.
        changed: How groups are written in the table and what they count as, where the two differ.
        unused: Columns of the table that nobody reads.
        unsaid: How often a group or an identity is a word that says that nobody knows it.
    """

    rows: dict[str, dict[str, str]] = field(default_factory=dict)
    changed: dict[str, str] = field(default_factory=dict)
    unused: tuple[str, ...] = ()
    unsaid: Counter[str] = field(default_factory=Counter)

    def of(self, name: str) -> tuple[str | None, str | None]:
        """Group and identity, None where nobody says it."""
        row = self.rows.get(composed(name), {})
        return row.get("group") or None, row.get("identity") or None


def read_labels(table: Path, option: str = "--table", column: str = "original") -> Labels:
    """Read a CSV: a file's name and, as far as they are known, group, identity, and what the result is called.

    Args:
        table: The file.
        option: That named it, for messages.
        column: Which has the names, relative to the folder: "original" beside "anonymized", "group" and "identity".

    Raises:
        TextError: It is none, or names a file twice.
    """
    labels, group_of = Labels(), dict[str, str]()
    read = (column, "anonymized", "group", "identity")
    for number, row in read_table(table, option, read[:1], read[1:]):
        labels.unused = tuple(name for name in row if name not in read)
        name = composed(named_path(row[column], f"{table}, line {number}").as_posix())
        if name in labels.rows:
            raise TextError(f"{option}: {table}, line {number} names {name} a second time; leave one line of the two.")
        group = row.get("group") or ""
        row["group"], row["identity"] = _plain(group), _plain(row.get("identity") or "")
        for key in ("group", "identity"):
            if row[key] in _NOBODY:
                labels.unsaid[row[key]] += 1
                row[key] = ""
        both = row["identity"] and row["group"]
        if both and group_of.setdefault(row["identity"], row["group"]) != row["group"]:
            raise TextError(
                f"{option}: {table}, line {number}: {row['identity']!r} is in the group {group!r} and in another one above; a "
                "person has one group."
            )
        if group != row["group"] and row["group"]:
            labels.changed[group] = row["group"]
        taken = row["group"] in _TAKEN or row["group"].startswith("gap:")
        if taken or any(sign in row["group"] for sign in "/<"):
            raise TextError(
                f"{option}: {table}, line {number}: a group cannot be called {group!r}; give it another name."
            )
        labels.rows[name] = row
    return labels


def _plain(text: str) -> str:
    """As groups and people are compared: one way to write each letter, nothing that cannot be seen, no capitals."""
    composed = unicodedata.normalize("NFKC", text)
    return " ".join(
        "".join(character for character in composed if unicodedata.category(character) != "Cf").split()
    ).casefold()


_NOBODY = ("unknown", "nan", "none", "null", "-", "?", "n/a", "n.a.", "na")
"""What people, and programs, write into a cell of which nobody knows more."""
_TAKEN = ("worst", "gap", "gap_by_chance")
"""What numbers of all groups are called."""


@dataclass
class Paired:
    """Which files belong together.

    Attributes:
        pairs: Those that do.
        alone: Originals without a counterpart.
        unknown: Names of the table that no file has.
        unnamed: How many originals a table does not name.
    """

    pairs: list[Pair] = field(default_factory=list)
    alone: list[str] = field(default_factory=list)
    unknown: list[str] = field(default_factory=list)
    unnamed: int = 0


def pair_up(originals: Path, anonymized: Path, labels: Labels | None = None, parrot: Path | None = None) -> Paired:
    """Find the pairs.

    Args:
        originals: A folder.
        anonymized: Another; files of the same relative path belong together, whatever their endings.
        labels: Of a table; then only the files that it names are compared.
        parrot: A folder in which the originals are anonymized once more.

    Raises:
        FileNotFoundError: A folder is missing, or there is no pair.
    """
    known = {path.relative_to(originals).as_posix(): path for path in walk(originals, PHOTOS).files}
    written = {composed(name): name for name in known}
    stems = Counter(map(_stem, known))
    paired = Paired()
    others, third = _by_stem(anonymized), {} if parrot is None else _by_stem(parrot)
    rows = {name: {} for name in known} if labels is None else dict[str, dict[str, str]]()
    for called, line in ({} if labels is None else labels.rows).items():
        if called in written:
            rows[written[called]] = line
        else:
            paired.unknown.append(called)
    paired.unnamed = len(known.keys() - rows.keys())
    for name, row in sorted(rows.items()):
        wanted = row.get("anonymized") or name
        other = others.get(wanted) or others.get(composed(wanted))
        if other is None and (
            row.get("anonymized") or stems[_stem(name)] == 1
        ):  # or two originals would have one result
            other = others.get(_stem(wanted))
        if other is None or (parrot is not None and _stem(name) not in third):
            paired.alone.append(name)
            continue
        who = row.get("group") or None, row.get("identity") or None
        paired.pairs.append(Pair(name, known[name], other, *who, third.get(_stem(name))))
    if not known:
        raise FileNotFoundError(f"{originals} has no pictures.")
    if not rows:
        raise FileNotFoundError(f"--table names no file of {originals} ({printable(paired.unknown[0])} is not there).")
    if not paired.pairs:
        raise FileNotFoundError(f"{anonymized} has no file that is called like one in {originals}; --table pairs them.")
    return paired


def composed(name: str) -> str:
    """A name as names are compared: accents as one letter, which macOS writes as two."""
    return unicodedata.normalize("NFC", name)


def _stem(name: str) -> str:
    """A name without its ending."""
    return composed(Path(name).with_suffix("").as_posix())


def _by_stem(folder: Path) -> dict[str, Path]:
    paths = {path.relative_to(folder).as_posix(): path for path in walk(folder, PHOTOS).files}
    return {key(name): path for key in (_stem, composed) for name, path in paths.items()} | paths
