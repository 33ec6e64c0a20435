"""An evaluation's pairs, stretch by stretch: here, in other processes, or in parts on several machines.

What others look at lies in a folder of OUT until all of it is there. It tells who is who, so that the last one removes it.
"""

from __future__ import annotations

import itertools
import logging
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from fairanon import __version__
from fairanon.anonymizer.attack import Attacker, Threshold, told_threshold, usual_threshold
from fairanon.anonymizer.find import Finder
from fairanon.anonymizer.judges import FINDS, MATCHES, judge, judge_file, judges
from fairanon.anonymizer.looking import STRETCH, Looked, Looker, Looks
from fairanon.anonymizer.pairs import Pair
from fairanon.anonymizer.request import LOOKS, EvaluateRequest
from fairanon.config.experiments import UserError
from fairanon.config.runs import code_version
from fairanon.engines import Crew, Start, Task, Tell, Work, devices_of, hands_of
from fairanon.evaluators.inception import inception_weights
from fairanon.files import content_key
from fairanon.places import remove_folder, stamp
from fairanon.progress import progress_bar

_log = logging.getLogger(__name__)
LOOKED = ".looked"
"""Folder of OUT with what other processes saw: it tells who is who."""
_AT_ONCE = 32
"""Stretches whose files are looked up at once."""
_SEEN_BY = (
    "recognizer", "thresholds", "detector", "detector_threshold", "side", "no_tiles", *LOOKS, "size", "cut_scale"
)  # fmt: skip
"""Options on which it depends what is seen."""
_NOBODY_IS_EMPTY = Threshold(-1.0, "not known before everybody was seen")
"""Of recognizers whose threshold is calibrated afterwards; then it is said who sees nobody."""


@dataclass(frozen=True)
class Stretch:
    """Pairs that are looked at together.

    Attributes:
        number: Its own.
        pairs: Files.
        hidden_by: What the manifest says of their faces, by the originals' names.
    """

    number: int
    pairs: Sequence[Pair]
    hidden_by: Mapping[str, Sequence[Mapping[str, Any]]]


def stretches_of(pairs: Sequence[Pair], hidden_by: Mapping[str, Sequence[Mapping[str, Any]]]) -> list[Stretch]:
    """Pairs in their order, `STRETCH` at a time."""
    stretches = []
    for number, first in enumerate(range(0, len(pairs), STRETCH)):
        here = pairs[first : first + STRETCH]
        stretches.append(Stretch(number, here, {p.name: hidden_by[p.name] for p in here if p.name in hidden_by}))
    return stretches


def looker_of(request: EvaluateRequest, device: str, stack: ExitStack) -> Looker:
    """All who look at pairs.

    Args:
        request: What is wanted.
        device: Where they work.
        stack: Undoes afterwards what is undone.

    Raises:
        UserError: A judge is not there, or cannot do this.
    """
    stack.callback(torch.set_num_threads, torch.get_num_threads())
    torch.set_num_threads(1)
    finders = judges(request.detector, "--detector", FINDS, threshold=request.detector_threshold, usual=0.5)
    matchers = judges(request.recognizer, "--recognizer", MATCHES)
    refuse_alike([matcher.name for matcher in matchers])
    looks = Looks(
        **{
            name: _one(judges(getattr(request, name), f"--{name}", (does,)), f"--{name}")
            for name, does in LOOKS.items()
            if getattr(request, name) is not None
        }
    )
    if _inception(request):
        looks.features = judge("inception", "--features")
    for option, look in vars(looks).items():
        side = getattr(look, "side", request.size)
        if side != request.size:
            raise UserError(f"--{option}: {look.name} looks at faces of {side} pixels; add --size {side}.")
    for model in (*finders, *matchers, *vars(looks).values()):
        if model is not None:
            model.to(device)
    own_thresholds = {m.name: told_threshold(m.name, request.thresholds, m.published) for m in matchers}
    usual = {m.name: own_thresholds[m.name] or usual_threshold(m.name, m.published) for m in matchers}
    attacker = Attacker(
        matchers,
        {name: limit or _NOBODY_IS_EMPTY for name, limit in own_thresholds.items()},
        finders[0],
        usual={name: limit.value for name, limit in usual.items() if limit is not None},
    )
    finder = Finder(finders, request.side, tiles=not request.no_tiles)
    return Looker(finder, attacker, looks, request.size, request.cut_scale, request.workers)


def refuse_alike(recognizers: list[str]) -> None:
    """Numbers are told apart by the ends of their keys, and a group's name stands before that."""
    for name, other in itertools.permutations(recognizers, 2):
        if name.endswith(f"/{other}"):
            raise UserError(f"the recognizers {name!r} and {other!r} have names that end alike; rename one.")


def _one(candidates: list[Any], key: str) -> Any:
    if len(candidates) > 1:
        raise UserError(f"{key} takes one judge, got {len(candidates)}.")
    return candidates[0]


class Elsewhere:
    """Looks at stretches in other processes or in parts, by files in OUT.

    Args:
        request: What is wanted.
        stretches: All of them.
    """

    def __init__(self, request: EvaluateRequest, stretches: Sequence[Stretch]) -> None:
        self.request, self.stretches, self.folder = request, stretches, request.out / LOOKED
        self._paths: dict[int, Path] = {}
        self._settings = content_key(__version__, code_version(), _seen_by(request))

    def look(self, part: tuple[int, int] | None = None) -> int:
        """Look at what nobody has looked at yet.

        Args:
            part: Of the stretches, from 1 on, and of how many; None: all.

        Returns:
            How many pairs of them are looked at now; 0 where no stretch falls to the part.
        """
        number, parts = part or (1, 1)
        mine = [stretch for stretch in self.stretches if stretch.number % parts == number - 1]
        self.folder.mkdir(parents=True, exist_ok=True)
        self.folder.chmod(0o700)
        tasks = []
        with ThreadPoolExecutor(_AT_ONCE) as pool:  # of a store each file is asked for
            paths = list(pool.map(self.path, mine))
        for stretch, path in zip(mine, paths, strict=True):
            if not path.exists():
                first = stretch.number * STRETCH
                name = f"the stretch of pairs {first + 1} to {first + len(stretch.pairs)}"
                tasks.append(Task(stretch.number, name, (stretch, path)))
        otherwise = sum(any(self.folder.glob(f"{task.number:06}-*.safetensors")) for task in tasks)
        if otherwise:
            _log.warning(
                "%d stretches of 64 pairs were looked at with other options, files or weights, and are looked at again",
                otherwise,
            )
        pairs = sum(len(task.about[0].pairs) for task in tasks)
        devices = devices_of(self.request.device)
        with ExitStack() as stack:
            bar = stack.enter_context(progress_bar(total=pairs, desc="pairs", unit="pair", disable=not pairs))

            def tell(_: str, __: bool) -> None:
                bar.update()

            if tasks and self.request.engine == "here" and len(devices) == 1:
                work = looking(self.request, _inception(self.request), devices[0], stack)
                for task in tasks:
                    work(task, tell)
            elif tasks:
                start = Start(looking, (self.request, _inception(self.request)), ("compared", "unreadable"))
                hands = hands_of(start, self.request.engine, devices, self.request.device, self.request.workers)
                stack.callback(hands.end)
                Crew(hands)(tasks, tell)
        return sum(len(stretch.pairs) for stretch in mine)

    def looked(self) -> Iterator[tuple[Sequence[Pair], Looked]]:
        """What was seen of all."""
        for stretch in self.stretches:
            yield stretch.pairs, Looked.read(self.path(stretch))

    def path(self, stretch: Stretch) -> Path:
        """Where it lies what is seen of a stretch; another place once one of its files has changed."""
        if stretch.number in self._paths:
            return self._paths[stretch.number]
        files = [
            (pair.name, pair.group, pair.identity, [(str(path), stamp(path)) for path in _files_of(pair)])
            for pair in stretch.pairs
        ]
        key = content_key(self._settings, files, dict(stretch.hidden_by))
        self._paths[stretch.number] = self.folder / f"{stretch.number:06}-{key[:16]}.safetensors"
        return self._paths[stretch.number]

    def forget(self) -> None:
        """Remove what was seen."""
        remove_folder(self.folder)


def _files_of(pair: Pair) -> list[Path]:
    return [path for path in (pair.original, pair.anonymized, pair.parrot) if path is not None]


def _seen_by(request: EvaluateRequest) -> list[Any]:
    """What decides what is seen: options, and the files that they name."""
    settings: list[Any] = [_inception(request)]
    for name in _SEEN_BY:
        value = getattr(request, name)
        settings.append((name, str(value)))
        if name == "thresholds":
            settings += [path.read_text(encoding="utf-8") for path in value]
        elif name in ("recognizer", "detector", *LOOKS) and value:
            settings += [judge_file(entry, f"--{name}").read_text(encoding="utf-8") for entry in value.split(",")]
    return settings


def _inception(request: EvaluateRequest) -> bool:
    """Whether Inception gives the features, since nobody else is named and its weights are here."""
    return request.features is None and inception_weights().exists()


def looking(request: EvaluateRequest, inception: bool, device: str, stack: ExitStack) -> Work:
    """Who looks at stretches and writes down what is seen, see `fairanon.engines.Start`.

    Args:
        request: What is wanted.
        inception: Whether the first process has Inception's weights.
        device: Where judges work.
        stack: Undoes afterwards what is undone.
    """
    if inception != _inception(request):
        raise UserError(
            "--features: Inception's weights are on some machines only; put them on all, or name other features."
        )
    looker = looker_of(request, device, stack)

    def work(task: Task, tell: Tell) -> None:
        stretch, path = task.about
        looked = looker.look(stretch.pairs, stretch.hidden_by, tell)
        if not path.parent.exists():
            raise UserError(f"--out: {path.parent.parent} was finished meanwhile; there is nothing left to do.")
        looked.write(path)
        path.chmod(0o600)

    return work
