"""What an audit takes from files beside the images: targets, and what people say."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from fairanon.config.experiments import locate
from fairanon.files import TextError, named_path, read_table


@dataclass(frozen=True)
class Targets:
    """Which shares are asked for.

    Attributes:
        shares: By attribute and prompt in small letters ("" is any): share of each class.
    """

    shares: Mapping[tuple[str, str], Mapping[str, float]]

    def of(self, attribute: str, classes: Sequence[str], prompts: Sequence[str]) -> tuple[Tensor, bool]:
        """The target of each prompt, float64 (P, K), and whether it is the even one."""
        even = {name: 1 / len(classes) for name in classes}
        rows = [self.shares.get((attribute, p.casefold())) or self.shares.get((attribute, "")) or even for p in prompts]
        targets = torch.tensor([[row[name] for name in classes] for row in rows], dtype=torch.float64)
        return targets.view(-1, len(classes)), all(row is even for row in rows)


def read_targets(path: Path | None, classes: Mapping[str, Sequence[str]], prompts: Sequence[str]) -> Targets:
    """Read a CSV of shares; None is even shares.

    Args:
        path: Columns attribute, class, share, and prompt where they differ by prompts.
        classes: Of each attribute that is counted.
        prompts: Those that name no group.

    Raises:
        TextError: A line names what the judge does not say, or shares do not sum to 1.
    """
    targets, known = dict[tuple[str, str], dict[str, float]](), {prompt.casefold() for prompt in prompts}
    path = None if path is None else locate(path)
    for number, row in [] if path is None else read_table(path, "--target", ("attribute", "class", "share")):
        where = f"--target: {path}, line {number}"
        named = {key.lower(): value for key, value in row.items()}
        attribute, name, prompt = (named.get(key, "").strip() for key in ("attribute", "class", "prompt"))
        if prompt and prompt.casefold() not in known:
            raise TextError(f"{where}: no prompt is called {prompt!r}.")
        prompt = prompt.casefold()
        if attribute not in classes:
            raise TextError(f"{where}: the judge says nothing of {attribute!r}, only of {', '.join(classes)}.")
        if name not in classes[attribute]:
            raise TextError(f"{where}: {attribute} has no class {name!r}; it has {', '.join(classes[attribute])}.")
        try:
            share = float(row["share"])
        except ValueError:
            share = -1.0
        if not 0 <= share <= 1:
            raise TextError(f"{where}: a share is a number from 0 to 1, got {row['share']!r}.")
        shares = targets.setdefault((attribute, prompt), {})
        if name in shares:
            raise TextError(f"{where}: the share of {name!r} stands there twice.")
        shares[name] = share
    for (attribute, prompt), shares in targets.items():
        if abs(sum(shares.values()) - 1) > 0.005:
            of = f" of {prompt!r}" if prompt else ""
            raise TextError(
                f"--target: {path}: the shares of {attribute}{of} sum to {sum(shares.values()):g}, not to 1."
            )
        for name in classes[attribute]:
            shares.setdefault(name, 0.0)
    return Targets(targets)


def read_labels(
    path: Path | None, classes: Mapping[str, Sequence[str]], files: Sequence[str]
) -> dict[str, dict[int, int]]:
    """What people say of some images: by attribute the class of each image's number.

    Raises:
        TextError: A line names no image, attribute or class that there is.
    """
    place, labels = {name: k for k, name in enumerate(files)}, dict[str, dict[int, int]]()
    for number, row in [] if path is None else read_table(path, "--labels", ("file", "attribute", "class")):
        where = f"--labels: {path}, line {number}"
        file, attribute, name = (
            named_path(row["file"], where).as_posix(),
            row["attribute"].strip(),
            row["class"].strip(),
        )
        if file not in place:
            raise TextError(f"{where}: there is no image {file}.")
        if attribute not in classes or name not in classes[attribute]:
            known = "; ".join(f"{key}: {', '.join(values)}" for key, values in classes.items())
            raise TextError(f"{where}: {attribute} {name!r} is nothing that is counted; there are {known}.")
        label = list(classes[attribute]).index(name)
        if labels.setdefault(attribute, {}).setdefault(place[file], label) != label:
            raise TextError(f"{where}: {file} has two classes of {attribute}; leave one of the lines.")
    return labels
