"""The answer of a run: a word, a sentence, the numbers it rests on, and what moved although it should stay."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from fairanon.report.words import words

Number = Mapping[str, Any] | None
"""An estimate as metrics.json has it."""

_NO_NEWS = (0.01, 0.05)
"""A change smaller than the first, and smaller than this part of the number before, is too small to speak of."""
_A_MOVE = 0.02
"""A share that moved by less is left alone."""
_ENOUGH = 0.05
"""Nobody is called hidden before it is known that no attacker finds more than this share beyond guessing."""

_COLOURS, _PLAIN = {"better": "\033[1;32m", "worse": "\033[1;31m", "same": "\033[1m"}, "\033[0m"


@dataclass(frozen=True)
class Tile:
    """A number of the first screen.

    Attributes:
        title: What it is, in words.
        before: The number before; "" if there is none.
        after: The number now.
        change: How it changed, with its interval; "" if that is not measured.
        state: "better", "worse", "same" (no difference shown, or none to speak of) or "" (nothing is better or worse).
        note: What to compare it with.
        key: In metrics.json.
    """

    title: str
    before: str
    after: str
    change: str = ""
    state: str = ""
    note: str = ""
    key: str = ""


@dataclass(frozen=True)
class Answer:
    """What a run says to somebody who came with a question.

    Attributes:
        word: The verdict in a word or two.
        state: "better", "worse" or "same", for its colour.
        sentence: The same in a sentence, with the numbers.
        tiles: What it rests on.
        moved: Shares that training should have left alone and did not, largest change first: "smiling -.08".
        watched: How many shares were watched; 0 if none was.
    """

    word: str
    state: str
    sentence: str
    tiles: list[Tile] = field(default_factory=list)
    moved: list[str] = field(default_factory=list)
    watched: int = 0

    def lines(self, terminal: bool = False) -> list[str]:
        """The answer as text.

        Args:
            terminal: It goes to one, and the word may have a colour (NO_COLOR forbids it).
        """
        colour = _COLOURS.get(self.state, "") if terminal and not os.environ.get("NO_COLOR") else ""
        told = [f"{colour}{self.word}.{_PLAIN if colour else ''} {self.sentence}"]
        if self.watched:
            rest = f"{len(self.moved)} of {self.watched} shares that should stay moved"
            told.append(f"{rest}: {', '.join(self.moved)}." if self.moved else f"{rest}.")
        return [line.replace("→", "->") for line in told]  # not every terminal has arrows


def brief(value: float) -> str:
    """A number as short as it may be.

    Examples:
        >>> brief(0.5601), brief(0.9973), brief(0.004), brief(-0.08), brief(8.668), brief(1.0)
        ('.56', '.997', '.004', '-.08', '8.67', '1')
    """
    size = abs(value)
    if size < 1e-9:
        return "0"
    digits = 2 if 0.05 <= size <= 0.95 else 3
    text = format(value, ".1g" if size < 0.001 else f".{digits}f")
    return format(value, ".3g") if size >= 1 or text.lstrip("-")[0] == "1" else text.replace("0.", ".", 1)


def interval(number: Mapping[str, Any]) -> str:
    """An interval in brackets; "" for a number that is exact.

    Examples:
        >>> interval({"value": 0.38, "low": 0.22, "high": 0.58}), interval({"value": 2.0, "low": 2.0, "high": 2.0})
        ('[.22, .58]', '')
    """
    low, high = number["low"], number["high"]
    if low is None and high is None:
        return "[?]"
    if low == high:
        return ""
    return f"[{'?' if low is None else brief(low)}, {'?' if high is None else brief(high)}]"


def _with_interval(number: Mapping[str, Any]) -> str:
    return f"{brief(number['value'])} {interval(number)}".rstrip()


def state(result: Mapping[str, Any], key: str) -> str:
    """Whether a number became better: "better", "worse", "same" where no difference is shown or none to speak of, else "".

    A paired ratio or difference decides where there is one, otherwise whether the intervals before and after overlap.
    """
    better = result.get("higher_is_better", {}).get(key)
    before, after = result["before"].get(key), result["after"].get(key)
    if key.startswith("win_rate/") and after is not None and after["low"] is not None:
        before = {"value": 0.5, "low": 0.5, "high": 0.5}  # neither is preferred
    if better is None or before is None or after is None:
        return ""
    ratio, difference = (result.get(kind, {}).get(key) for kind in ("ratio", "difference"))
    if ratio or difference:
        low, high = ((ratio or difference)[end] for end in ("low", "high"))
        middle = 1.0 if ratio else 0.0
        up, down = low is not None and low > middle, high is not None and high < middle
    elif None in (before["low"], before["high"], after["low"], after["high"]):
        return "same"
    else:
        up, down = after["low"] > before["high"], after["high"] < before["low"]
    change = abs(after["value"] - before["value"])
    if not (up or down) or (change < _NO_NEWS[0] and change < _NO_NEWS[1] * abs(before["value"])):
        return "same"
    return "better" if up == better else "worse"


def change_of(result: Mapping[str, Any], key: str) -> str:
    """The paired change of a number with its interval; "" where none is measured."""
    ratio, difference = (result.get(kind, {}).get(key) for kind in ("ratio", "difference"))
    if ratio:
        return f"x {_with_interval(ratio)}"
    if difference:
        sign = "+" if difference["value"] >= 0 else ""
        return f"{sign}{_with_interval(difference)}"
    return ""


def tile(result: Mapping[str, Any], key: str, title: str = "", note: str = "") -> Tile:
    """A number of a run."""
    before, after = result["before"].get(key), result["after"].get(key)
    if after is not None and not note and interval(after):
        note = f"95 % interval {interval(after)}, n {after['n']:.0f}"
    return Tile(
        title or words(key), "" if before is None else brief(before["value"]),
        "not measured" if after is None else brief(after["value"]), change_of(result, key), state(result, key), note, key,
    )  # fmt: skip


def apart(before: Mapping[str, Any], after: Mapping[str, Any]) -> tuple[float, float, float]:
    """The difference of two shares with Newcombe's interval (1998), made of Wilson's.

    Examples:
        >>> from fairanon.metrics.functional.estimates import Estimate, as_json
        >>> numbers = as_json({"old": Estimate.share(56, 70), "new": Estimate.share(48, 80)})
        >>> [round(end, 4) for end in apart(numbers["new"], numbers["old"])]  # Newcombe's own example
        [0.2, 0.0524, 0.3339]
    """
    p, q = before["value"], after["value"]
    low = q - p - math.hypot(q - after["low"], before["high"] - p)
    high = q - p + math.hypot(after["high"] - q, p - before["low"])
    return q - p, low, high


def moved(result: Mapping[str, Any]) -> tuple[list[str], int]:
    """Shares that training should leave alone: those that moved, and how many were watched.

    Of an attribute with two classes one is watched: the other is its mirror.
    """
    classes: dict[str, list[str]] = {}
    for key in result["after"]:
        if key.startswith("share/"):
            classes.setdefault(key.split("/")[1], []).append(key)
    watched = [key for keys in classes.values() for key in (keys[-1:] if len(keys) == 2 else keys)]
    found = []
    for key in watched:
        before, after = result["before"].get(key), result["after"][key]
        if before is None or after is None:
            continue
        change, low, high = apart(before, after)
        if abs(change) >= _A_MOVE and (low > 0 or high < 0):
            found.append(
                (abs(change), f"{words(key).removeprefix('share of ')} {'+' if change > 0 else ''}{brief(change)}")
            )
    return [said for _, said in sorted(found, reverse=True)], len(watched)


def answer(result: Mapping[str, Any]) -> Answer:
    """The answer of a run.

    Args:
        result: The content of its metrics.json.
    """
    for ask in (_fairer, _hidden, _groups, _losses, _preferences):
        if found := ask(result):
            return found
    tiles = [tile(result, key) for key in result["headline"] if result["after"].get(key)][:4]
    word, how = _verdict([one.state for one in tiles], "BETTER", "WORSE")
    return Answer(word, how, f"{_sentence(_listed(tiles))}.", tiles, *moved(result))


def _keys(result: Mapping[str, Any], pattern: str) -> dict[str, str]:
    """The measured keys of a pattern, by what its group matches."""
    found = {key: re.fullmatch(pattern, key) for key, value in result["after"].items() if value is not None}
    return {match[1]: key for key, match in found.items() if match}


def _verdict(states: Sequence[str], good: str, bad: str) -> tuple[str, str]:
    known = [one for one in states if one]
    if known and all(one == "better" for one in known):
        return good, "better"
    if "better" in known and "worse" in known:
        return f"PARTLY {good}, PARTLY {bad}", "same"
    if "better" in known:
        return f"PARTLY {good}", "better"
    return (bad, "worse") if "worse" in known else ("NO DIFFERENCE SHOWN", "same")


def _sentence(text: str) -> str:
    return f"{text[:1].upper()}{text[1:]}"


def _listed(tiles: Sequence[Tile]) -> str:
    """The numbers of tiles, one after the other."""
    told = []
    for one in tiles:
        numbers = f"{one.before} → {one.after}" if one.before else one.after
        told.append(f"{one.title} {numbers}" + (f" ({one.change})" if one.change else ""))
    return "; ".join(told)


def _fairer(result: Mapping[str, Any]) -> Answer | None:
    """PopAlign and its rivals: are people drawn more evenly, prompt by prompt?"""
    found = _keys(result, r"discrepancy/(\w+)/per_prompt")
    if not found:
        return None
    tiles = []
    for name, key in found.items():
        floor = result["after"].get(f"discrepancy/{name}/floor")
        note = "" if floor is None else f"0 is even; a fair model would score {brief(floor['value'])} on so few images"
        tiles.append(tile(result, key, name, note))
    word, how = _verdict([one.state for one in tiles], "FAIRER", "LESS FAIR")
    sentence = f"How unevenly the same prompts draw people (0 is even): {_listed(tiles)}."
    tiles = [replace(one, title=f"how uneven {one.title} is") for one in tiles]
    if result["after"].get("recall/overall"):
        tiles.append(tile(result, "recall/overall"))
    return Answer(word, how, sentence, tiles, *moved(result))


def _hidden(result: Mapping[str, Any]) -> Answer | None:
    """ID2Face: is anybody found again among the originals?"""
    people, top1 = result["after"].get("retrieval/gallery/source"), result["after"].get("retrieval/top1/source")
    if not people or not top1:
        return None
    attacks = _keys(result, r"retrieval/top1/((?:source|identity)(?:/(?:parrot|excluder))?)")
    numbers = {key: result["after"][key] for key in attacks.values()}
    guessed = {key: _guessed(result, key) for key in numbers}
    told = all(one["low"] is not None and one["high"] <= guessed[key] + _ENOUGH for key, one in numbers.items())
    found = [key for key, one in numbers.items() if one["low"] is not None and one["low"] > guessed[key]]
    again = result["before"].get("retrieval/top1/identity")
    beside = f"; untouched, another image of the same person finds {brief(again['value'])}" if again else ""
    where = (
        f"Among {people['value']:.0f} people a new face leads to its original in {_with_interval(top1)} of the cases"
    )
    if found:
        word, how = "FOUND AGAIN", "worse"
        beside = f"; more often than by guessing: {', '.join(words(key) for key in found)}{beside}"
    elif told:
        word, how, where = "HIDDEN", "better", f"{where}, no more often than by guessing"
    else:
        word, how, beside = "CANNOT BE TOLD", "same", f"; these are too few people to tell it from guessing{beside}"
    tiles = [
        tile(result, "retrieval/top1/source", note=f"guessing finds {brief(guessed['retrieval/top1/source'])}"),
        tile(result, "id_similarity"),
    ]
    for key in ("preservation/pose", "preservation/expression"):
        if result["after"].get(key):
            strangers = result["after"].get(f"{key}/random")
            note = f"between strangers {brief(strangers['value'])}" if strangers else ""
            tiles.append(replace(tile(result, key, note=note), before="", state=""))
    return Answer(word, how, f"{where}{beside}.", tiles, *moved(result))


def _guessed(result: Mapping[str, Any], key: str) -> float:
    """How often guessing finds somebody."""
    chance = result["after"].get(key.replace("retrieval/", "retrieval/chance/"))
    gallery = result["after"].get(key.replace("top1", "gallery"))
    return float(chance["value"] if chance else 1 / gallery["value"] if gallery else 0.0)


def _groups(result: Mapping[str, Any]) -> Answer | None:
    """Ano-Face-Fair: is the group that is drawn worst drawn better, and does nobody lose?"""
    found = _keys(result, r"group_accuracy/(.+)")
    if not found or any(result["before"].get(key) is None for key in found.values()):
        return None
    overall = found.pop("overall", None)
    worst = min(found, key=lambda name: result["before"][found[name]]["value"])
    lost = [name for name, key in found.items() if state(result, key) == "worse"]
    how = state(result, found[worst])
    others = "no other group is shown to lose" if not lost else f"{', '.join(lost)} lost"
    word = {"better": "FAIRER", "worse": "LESS FAIR"}.get(how, "NO DIFFERENCE SHOWN")
    if how == "better" and lost:
        word, how = "PARTLY FAIRER, PARTLY LESS FAIR", "same"
    tiles = [tile(result, found[worst], f"{worst}, drawn worst before: judged right")]
    if overall:
        tiles.append(tile(result, overall, "everybody: judged right"))
    tiles += [tile(result, key) for key in ("anonymization/accuracy", "fid/source") if result["after"].get(key)]
    sentence = f"The group drawn worst, {worst}, is judged right in {tiles[0].before} → {tiles[0].after} of the cases"
    sentence += f" ({tiles[0].change}); {others}." if tiles[0].change else f"; {others}."
    return Answer(word, how, sentence, tiles, *moved(result))


def _losses(result: Mapping[str, Any]) -> Answer | None:
    """FairHuman and its rivals: did each of the losses fall, on people that training never saw?"""
    found = _keys(result, r"loss/val/(global|face|hand)")
    if not found:
        return None
    tiles = [tile(result, key, "whole image" if name == "global" else name) for name, key in found.items()]
    word, how = _verdict([one.state for one in tiles], "BETTER", "WORSE")
    sentence = f"Losses on people that training never saw: {_listed(tiles)}."
    tiles = [replace(one, title=f"loss on held-out people: {one.title}") for one in tiles]
    if result["after"].get("fid/whole"):
        tiles.append(tile(result, "fid/whole"))
    return Answer(word, how, sentence, tiles, *moved(result))


def _preferences(result: Mapping[str, Any]) -> Answer | None:
    """The preference family: does the model prefer the winners of pairs that training never saw?"""
    if not result["after"].get("reward_accuracy/val"):
        return None
    keys = ["reward_accuracy/val", *_keys(result, r"(win_rate/.+)").values(), *_keys(result, r"(score/.+)").values()]
    tiles = [tile(result, key) for key in keys[:4]]
    word, how = _verdict([one.state for one in tiles], "BETTER", "WORSE")
    return Answer(word, how, f"{_sentence(_listed(tiles[:2]))}.", tiles, *moved(result))
