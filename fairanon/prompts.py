"""Prompt tables: what is sampled, and what each prompt asks for."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from fairanon.batches import PromptRow
from fairanon.config.experiments import locate
from fairanon.files import TextError, read_table

SETS = ("neutral", "heldout", "specific", "generic", "people", "attacker", "diverse")
"""Sets of prompts: identity-neutral ones that training names and that it does not, identity-specific ones, those
without a person, and descriptions of people where nobody's appearance is the question. Of images to anonymize: whose
result is measured, those that an attacker who knows the method anonymized, and one image many times."""


def read_prompts(path: Path, key: str = "evaluate.prompts") -> list[PromptRow]:
    """Read a prompt table.

    Args:
        path: CSV with the columns prompt and set (one of `SETS`); every other column is an attribute, filled
            where the prompt names it.
        key: The configuration key that named the file, for error messages.
    """
    path = locate(path)
    if not path.exists():
        raise FileNotFoundError(f"{key}: {path} is missing; give a CSV with the columns prompt, set.")
    rows = []
    for number, line in read_table(path, key, ("prompt", "set")):
        if line["set"] not in SETS:
            raise TextError(
                f"{key}: {path}, line {number} has the set {line['set']!r}; accepted are {', '.join(SETS)}."
            )
        if not line["prompt"].strip():
            raise TextError(f"{key}: {path}, line {number} has no prompt.")
        asked = {name: value for name, value in line.items() if name not in ("prompt", "set") and value}
        rows.append(PromptRow(line["prompt"], line["set"], asked))
    return rows


PROMPT_COLUMNS = ("prompt", "text", "caption")
"""What others call the column of prompts, in small or large letters."""


def prompt_of(row: Mapping[str, Any], where: str) -> str:
    """The prompt of a table's line, or of a file beside an image, whatever its column is called.

    Raises:
        TextError: There is none.
    """
    named = {key.strip().lower(): value for key, value in row.items()}
    prompt = next((str(named[name]).strip() for name in PROMPT_COLUMNS if named.get(name)), "")
    if not prompt:
        raise TextError(
            f"{where} has no prompt; its column is called {', '.join(PROMPT_COLUMNS[:-1])} or {PROMPT_COLUMNS[-1]}."
        )
    return prompt


def said_of_classes(
    path: Path, key: str, attributes: Iterable[str], template: str | None = None
) -> list[tuple[str, str]]:
    """Prompts of a CSV, each with how it is said of classes: a placeholder for each attribute.

    Args:
        path: Columns ``prompt`` (the official files' ``Prompt`` too) and, optionally, ``specific``.
        key: Of the configuration, for the error message: ``prepare``, ``model``.
        attributes: Names of the placeholders.
        template: How it is said where the CSV has no such column; ``{prompt}`` is the prompt.

    Raises:
        FileNotFoundError: It is not there.
        ValueError: A prompt or a placeholder is missing.
    """
    path = locate(path)
    if not path.exists():
        raise FileNotFoundError(f"{key}.prompts: {path} is missing; give a CSV with a column 'prompt'.")
    result = []
    for number, cells in read_table(path, f"{key}.prompts", ("prompt",)):
        row = {name.lower(): value for name, value in cells.items()}
        if not row["prompt"].strip():
            raise TextError(f"{key}.prompts: {path}, line {number} has no prompt.")
        specific = row.get("specific") or template
        if specific is None:
            raise ValueError(f"{key}.specific: {path} has no column 'specific'; give a template with {{prompt}}.")
        for attribute in attributes:
            if f"{{{attribute}}}" not in specific:
                raise ValueError(f"{key}.specific: {specific!r} has no placeholder {{{attribute}}}.")
        result.append((row["prompt"], specific.replace("{prompt}", row["prompt"])))
    return result


def with_words(specific: str, words: Mapping[str, str]) -> str:
    """How a prompt is said of classes; a word may be empty ("a couple" stays "a couple"): the gap it leaves is closed.

    Examples:
        >>> with_words("a photo of a {gender} doctor", {"gender": ""})
        'a photo of a doctor'
    """
    return " ".join(specific.format(**words).split())


def wanted_shares(classes: Sequence[str], shares: Mapping[str, float] | None, where: str) -> list[float]:
    """Wanted shares of an attribute's classes: even ones, where none are given.

    Args:
        classes: All that there are, in their order.
        shares: Of each.
        where: The setting, for the error message.

    Raises:
        ValueError: They are not of these classes, or do not sum to 1.

    Examples:
        >>> wanted_shares(("female", "male"), None, "model.shares")
        [0.5, 0.5]
    """
    if shares is None:
        return [1 / len(classes)] * len(classes)
    if set(shares) != set(classes) or not (abs(sum(shares.values()) - 1) <= 1e-6 and min(shares.values()) >= 0):
        raise ValueError(f"{where} must be a share of each of {', '.join(classes)}, and they must sum to 1.")
    return [shares[name] for name in classes]
