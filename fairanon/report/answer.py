"""The answer of a run: a word, a sentence, the numbers it rests on, and what moved although it should stay."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from statistics import NormalDist
from typing import Any

from fairanon.report.words import words

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
        sentences = [f"{colour}{self.word}.{_PLAIN if colour else ''} {self.sentence}"]
        if self.watched:
            some = f"{len(self.moved)} moved: {', '.join(self.moved)}" if self.moved else "none is shown to have moved"
            sentences.append(f"Of {self.watched} shares that should stay, {some}.")
        return [line.replace("→", "->") for line in sentences]  # not every terminal has arrows


def brief(value: float) -> str:
    """A number as short as it may be.

    Examples:
        >>> brief(0.5601), brief(0.9973), brief(0.004), brief(-0.08), brief(8.668), brief(1.0), brief(1.0006), brief(0.9999)
        ('.56', '.997', '.004', '-.08', '8.67', '1', '1.001', '>.999')
    """
    size = abs(value)
    if size < 5e-5:
        return "0"
    if 1 <= size < 1.05:
        return format(value, ".3f").rstrip("0").rstrip(".")
    if 0.9995 <= size < 1 - 1e-9:
        return f"{'-' if value < 0 else ''}>.999"
    digits = 2 if 0.05 <= size <= 0.95 else 3
    text = format(value, ".1g" if size < 0.001 else f".{digits}f")
    return format(value, ".3g") if size >= 1 or text.lstrip("-")[0] == "1" else text.replace("0.", ".", 1)


def distinct(values: Sequence[float]) -> list[str]:
    """Numbers that stand below each other, as short as they may be so that unequal ones read differently, up to six decimals.

    Examples:
        >>> distinct([0.9103, 0.9101, 0.2]), distinct([0.2, 0.9]), distinct([1.0, 1.0]), distinct([12.34, 12.31])
        (['.9103', '.9101', '.2000'], ['.20', '.90'], ['1', '1'], ['12.34', '12.31'])
    """
    texts, unequal = [brief(value) for value in values], len({round(value, 6) for value in values})
    if len(set(texts)) >= unequal:
        return texts
    for digits in range(1, 7):
        longer = [format(value, f".{digits}f") for value in values]
        if len(set(longer)) >= unequal:
            return [re.sub(r"^(-?)0\.", r"\1.", text) for text in longer]
    return texts


def interval(number: Mapping[str, Any]) -> str:
    """An interval in brackets; "" for a number that is exact.

    Examples:
        >>> interval({"value": 0.38, "low": 0.22, "high": 0.58}), interval({"value": 2.0, "low": 2.0, "high": 2.0})
        ('[.22, .58]', '')
        >>> interval({"value": 0.9105, "low": 0.9102, "high": 0.9109})
        '[.910, .911]'
    """
    low, high = number["low"], number["high"]
    if low is None and high is None:
        return "[?]"
    if low == high:
        return ""
    if low is None or high is None:
        return f"[{'?' if low is None else brief(low)}, {'?' if high is None else brief(high)}]"
    return f"[{', '.join(distinct([low, high]))}]"


def _with_interval(number: Mapping[str, Any]) -> str:
    return f"{brief(number['value'])} {interval(number)}".rstrip()


def state(result: Mapping[str, Any], key: str) -> str:
    """Whether a number became better.

    "better", "worse", "same" where no difference is shown or none to speak of, "missing" if it was measured before alone,
    else "".

    A paired ratio or difference decides where there is one, otherwise whether the intervals before and after overlap.
    """
    better = result.get("higher_is_better", {}).get(key)
    before, after = result["before"].get(key), result["after"].get(key)
    if before is not None and after is None and better is not None:
        return "missing"
    if key.startswith("win_rate/") and after is not None and after["low"] is not None:
        before = {"value": 0.5, "low": 0.5, "high": 0.5}  # neither is preferred
    if better is None or before is None or after is None:
        return ""
    ratio, difference = (result.get(kind, {}).get(key) for kind in ("ratio", "difference"))
    if ratio or difference:
        low, high = ((ratio or difference)[end] for end in ("low", "high"))
        middle = 1.0 if ratio else 0.0
        known = low != high  # an interval without a width says that there is none
        up, down = known and low is not None and low > middle, known and high is not None and high < middle
    elif None in (before["low"], before["high"], after["low"], after["high"]):
        return "same"
    elif before["low"] == before["high"] and after["low"] == after["high"]:
        return "same"  # a few equal values say nothing about others
    else:
        up, down = after["low"] > before["high"], after["high"] < before["low"]
    change = abs(after["value"] - before["value"])
    rest = 1 - before["value"] if 0 < before["value"] < 1 else math.inf  # of a share near 1 what is missing counts
    small = change < _NO_NEWS[0] and change < _NO_NEWS[1] * abs(before["value"]) and change < rest / 2
    return "same" if small or not (up or down) else ("better" if up == better else "worse")


def change_of(result: Mapping[str, Any], key: str) -> str:
    """The paired change of a number with its interval; "" where none is measured."""
    ratio, difference = (result.get(kind, {}).get(key) for kind in ("ratio", "difference"))
    if ratio:
        return f"after/before {_with_interval(ratio)}"
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
    """Shares that training should leave alone: those that moved, and how many were measured before and after.

    Of an attribute with two classes one is watched: the other is its mirror.
    """
    classes: dict[str, list[str]] = {}
    for key in result["after"]:
        if key.startswith("share/"):
            classes.setdefault(key.split("/")[1], []).append(key)
    measured = {name: [key for key in keys if _both(result, key)] for name, keys in classes.items()}
    watched = [key for name, keys in measured.items() for key in (keys[-1:] if len(classes[name]) == 2 else keys)]
    moves = []
    for key in watched:
        before, after = result["before"][key], result["after"][key]
        change, low, high = apart(before, after)
        if abs(change) >= _A_MOVE and (low > 0 or high < 0):
            moves.append(
                (abs(change), f"{words(key).removeprefix('share of ')} {'+' if change > 0 else ''}{brief(change)}")
            )
    return [text for _, text in sorted(moves, reverse=True)], len(watched)


def _both(result: Mapping[str, Any], key: str) -> bool:
    """Whether a number was measured before and after, with intervals."""
    both = (result["before"].get(key), result["after"].get(key))
    return all(number and number["low"] is not None and number["high"] is not None for number in both)


def answer(result: Mapping[str, Any]) -> Answer:
    """The answer of a run.

    Args:
        result: The content of its metrics.json.
    """
    if "train" not in result.get("seconds", {"train": 0}) and result["before"] == result["after"]:
        return _as_it_is(result)
    for ask in (_fairer, _hidden, _groups, _losses, _preferences):
        if reply := ask(result):
            return reply
    tiles = [tile(result, key) for key in result["headline"] if result["after"].get(key) or result["before"].get(key)]
    directed = [number.state for number in tiles if result.get("higher_is_better", {}).get(number.key) is not None]
    word, how = _verdict(directed, "BETTER", "WORSE")
    sentence = f"{_sentence(_listed(tiles[:4]))}." if tiles else "Nothing was measured."
    return Answer(word, how, sentence, tiles[:4], *moved(result))


def _as_it_is(result: Mapping[str, Any]) -> Answer:
    """A model that nobody trained: there is nothing to compare it with but what chance does."""
    alone = {**result, "before": {}, "ratio": {}, "difference": {}}
    tiles = [tile(alone, key) for key in result["headline"] if result["after"].get(key)]
    return Answer("MEASURED AS IT IS", "same", f"{_sentence(_listed(tiles[:4]))}.", tiles[:4])


def _keys(result: Mapping[str, Any], pattern: str) -> dict[str, str]:
    """The keys of a pattern that were measured, now or before, by what its group matches."""
    there = dict.fromkeys([*result["after"], *result["before"]])
    there = {key: None for key in there if result["after"].get(key) or result["before"].get(key)}
    matches = {key: re.fullmatch(pattern, key) for key in there}
    return {match[1]: key for key, match in matches.items() if match}


def _verdict(states: Sequence[str], good: str, bad: str) -> tuple[str, str]:
    known = [status or "missing" for status in states]
    if "missing" in known and "worse" not in known:
        return "CANNOT BE TOLD", "same"  # what was measured before is not there any more, or was not then
    if known and all(status == "better" for status in known):
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
    parts = []
    for shown_tile in tiles:
        numbers = f"{shown_tile.before} → {shown_tile.after}" if shown_tile.before else shown_tile.after
        parts.append(f"{shown_tile.title} {numbers}" + (f" ({shown_tile.change})" if shown_tile.change else ""))
    return "; ".join(parts)


def _fairer(result: Mapping[str, Any]) -> Answer | None:
    """PopAlign and its rivals: are people drawn more evenly, prompt by prompt?"""
    keys = _keys(result, r"discrepancy/(\w+)/per_prompt")
    if not keys:
        return None
    tiles = []
    for name, key in keys.items():
        floor = result["after"].get(f"discrepancy/{name}/floor")
        note = "" if floor is None else f"0 is even; a fair model would score {brief(floor['value'])} on so few images"
        tiles.append(tile(result, key, name, note))
    word, how = _verdict([number.state for number in tiles], "FAIRER", "LESS FAIR")
    sentence = f"How unevenly the same prompts draw people (0 is even): {_listed(tiles)}."
    tiles = [replace(number, title=f"how uneven {number.title} is") for number in tiles]
    if result["after"].get("recall/overall"):
        obeyed = tile(result, "recall/overall")
        sentence = f"{sentence[:-1]}; {_listed([obeyed])}{' (worse)' if obeyed.state == 'worse' else ''}."
        tiles.append(obeyed)
        if obeyed.state == "worse" and how == "better":
            word, how = f"{word}, BUT OBEYS LESS", "same"
    return Answer(word, how, sentence, tiles, *moved(result))


def _hidden(result: Mapping[str, Any]) -> Answer | None:
    """ID2Face: does any attacker find anybody again more often than guessing does?"""
    people, top1 = result["after"].get("retrieval/gallery/source"), result["after"].get("retrieval/top1/source")
    if not people or not top1:
        return None
    attacks = [key for pattern in _ATTACKS for key in _keys(result, pattern).values()]
    chances = {key: _guessed(result, key) for key in attacks}
    numbers = {key: result["after"].get(key) for key in attacks}
    sure = {key: (number, chance) for key, number in numbers.items() if number and (chance := chances[key]) is not None}
    successes = [key for key, (number, chance) in sure.items() if by_chance(key, number, chance) < 0.05 / len(attacks)]
    enough = (chances.get("retrieval/top1/source") or 1.0) <= _ENOUGH  # among twenty people or more
    hidden = (
        enough
        and len(sure) == len(attacks)
        and all(number["high"] is not None and number["high"] <= chance + _ENOUGH for number, chance in sure.values())
    )
    again = result["before"].get("retrieval/top1/identity")
    beside = f" Untouched, another image of the same person finds a share of {brief(again['value'])}." if again else ""
    where = f"Of {top1['n']:.0f} new faces a share of {_with_interval(top1)} leads to its original among {people['value']:.0f} people"
    if successes:
        word, how = "FOUND AGAIN", "worse"
        attackers = [
            f"{words(key)} {_with_interval(sure[key][0])}, guessing {brief(sure[key][1])}" for key in successes
        ]
        sentence = f"More often than by guessing: {'; '.join(attackers)}. {where}.{beside}"
    elif hidden:
        word, how, sentence = "HIDDEN", "better", f"{where}, no more often than by guessing.{beside}"
    else:
        word, how, sentence = (
            "CANNOT BE TOLD",
            "same",
            f"{where}: too little is measured to tell it from guessing.{beside}",
        )
    guessed = {key: chance for key, (_, chance) in sure.items()}
    tiles = [
        tile(
            result, "retrieval/top1/source", note=f"guessing finds {brief(guessed.get('retrieval/top1/source', 0.0))}"
        ),
        tile(result, "id_similarity"),
    ]
    for key in ("preservation/pose", "preservation/expression"):
        if result["after"].get(key):
            strangers = result["after"].get(f"{key}/random")
            note = f"between strangers {brief(strangers['value'])}" if strangers else ""
            tiles.append(replace(tile(result, key, note=note), before="", state=""))
    shown = [
        replace(tile(result, key, note=f"guessing finds {brief(guessed[key])}"), state="worse") for key in successes
    ]
    tiles = [*shown, *(number for number in tiles if number.key not in successes)]
    return Answer(word, how, sentence, tiles[:5], *moved(result))


def told_apart(number: Mapping[str, Any]) -> tuple[int, int]:
    """Of a share in which the missing ones count as found: how many were looked at, and found."""
    missing = round(number.get("missing", 0))
    return round(number["n"]) - missing, round(number["value"] * number["n"]) - missing


def by_chance(key: str, number: Mapping[str, Any], guessed: float) -> float:
    """The probability that guessing is right at least as often: exactly, by the binomial distribution.

    By other photographs of a person (protocol "identity") those that got one new face are found all or not at all: people count,
    not photographs. Whoever is found by their own photograph is found by one alone.

    Args:
        key: The number's; it says the protocol.
        number: A share, with its n. Those that are missing count as found in it, and nobody guessed them: they are left out.
        guessed: How often guessing is right.

    Examples:
        >>> top1 = "retrieval/top1/source"
        >>> round(by_chance(top1, {"value": 3 / 48, "n": 48}, 1 / 48), 3), by_chance(top1, {"value": 0.0, "n": 48}, 1 / 48)
        (0.078, 1.0)
        >>> by_chance(top1, {"value": 20 / 500, "n": 500, "missing": 20}, 1 / 500)
        1.0
        >>> round(by_chance("retrieval/top1/identity", {"value": 12 / 200, "n": 200, "draws": 50.0}, 1 / 50), 3)
        0.078
    """
    n, hits = told_apart(number)
    if "/identity" in key and number.get("draws"):
        n, hits = (math.ceil(count * number["draws"] / number["n"] - 1e-9) for count in (n, hits))
    if hits <= 0 or guessed >= 1:
        return 1.0
    if guessed <= 0:
        return 0.0
    less = math.fsum(
        math.exp(
            math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1) + k * math.log(guessed) + (n - k) * math.log1p(-guessed)
        )
        for k in range(hits)
    )  # fmt: skip
    return min(1.0, max(0.0, 1 - less))


_WHO = r"((?:source|identity)(?:/(?:parrot|excluder|own_alignment))?)"
_ATTACKS = (
    rf"retrieval/top1/{_WHO}", rf"retrieval/top5/{_WHO}", r"retrieval/tar/([\d.e-]+/(?:source|identity))",
    r"retrieval/top1/source/(?!parrot|excluder|own_alignment)(\w+/.+)",
)  # fmt: skip
"""Whoever looks for somebody: at the first and the first five guesses, by verification, in each group."""


def _guessed(result: Mapping[str, Any], key: str) -> float | None:
    """How often guessing finds somebody; None where nobody says."""
    parts = key.split("/")
    if parts[1] == "tar":
        return float(parts[2])  # so many impostors pass
    known = ("/".join(parts[:3]), "/".join(parts[:4]))  # a group's chance is that of all
    for prefix in reversed(known):
        chance = result["after"].get(prefix.replace("retrieval/", "retrieval/chance/"))
        gallery = result["after"].get(prefix.replace(parts[1], "gallery"))
        if chance or (gallery and gallery["value"]):
            return float(chance["value"] if chance else int(parts[1].removeprefix("top")) / gallery["value"])
    return None


def _groups(result: Mapping[str, Any]) -> Answer | None:
    """Ano-Face-Fair: is the group that is drawn worst drawn better, and does nobody lose?"""
    keys = _keys(result, r"group_accuracy/(.+)")
    overall = keys.pop("overall", None)
    if not keys or any(result["before"].get(key) is None for key in keys.values()):
        return None
    worst = min(keys, key=lambda name: result["before"][keys[name]]["value"])
    states = {name: _of_many(result, key, len(keys)) for name, key in keys.items()}
    lost = [name for name, status in states.items() if status == "worse"]
    gone = [name for name, status in states.items() if status == "missing"]
    others = f"not measured any more: {', '.join(gone)}" if gone else "no other group is shown to lose"
    if [name for name in lost if name != worst]:
        others = f"{', '.join(name for name in lost if name != worst)} lost"
    how = states[worst]
    word = {"better": "FAIRER", "worse": "LESS FAIR"}.get(how, "NO DIFFERENCE SHOWN")
    leaks = state(result, "anonymization/accuracy")
    if gone or leaks == "missing":
        word, how = "CANNOT BE TOLD", "same"
    elif how == "better" and (lost or leaks == "worse"):
        word, how = f"PARTLY FAIRER, {'HIDES LESS' if leaks == 'worse' else 'PARTLY LESS FAIR'}", "same"
    elif leaks == "worse":
        word, how = "HIDES LESS", "worse"
    shown = replace(tile(result, keys[worst], f"{worst}, drawn worst before: judged right"), state=states[worst])
    tiles = [shown]
    if overall:
        tiles.append(tile(result, overall, "everybody: judged right"))
    tiles += [tile(result, key) for key in ("anonymization/accuracy", "fid/source") if result["after"].get(key)]
    sentence = f"The group drawn worst, {worst}, is judged right in {tiles[0].before} → {tiles[0].after} of the cases"
    sentence += f" ({tiles[0].change}); {others}." if tiles[0].change else f"; {others}."
    return Answer(word, how, sentence, tiles, *moved(result))


def _of_many(result: Mapping[str, Any], key: str, many: int) -> str:
    """`state` of one of so many numbers, of which the most striking is looked at: its interval holds for all at once."""
    change = result.get("difference", {}).get(key)
    if not change or change["low"] is None or change["high"] is None:
        return state(result, key)
    wider = NormalDist().inv_cdf(1 - 0.025 / many) / NormalDist().inv_cdf(0.975)
    ends = {end: change["value"] + wider * (change[end] - change["value"]) for end in ("low", "high")}
    return state({**result, "difference": {**result["difference"], key: {**change, **ends}}}, key)


def _losses(result: Mapping[str, Any]) -> Answer | None:
    """FairHuman and its rivals: did each of the losses fall, on people that training never saw?"""
    keys = _keys(result, r"loss/val/(global|face|hand)")
    if not keys:
        return None
    tiles = [tile(result, key, "whole image" if name == "global" else name) for name, key in keys.items()]
    word, how = _verdict([number.state for number in tiles], "BETTER", "WORSE")
    sentence = f"Losses on people that training never saw: {_listed(tiles)}."
    tiles = [replace(number, title=f"loss on held-out people: {number.title}") for number in tiles]
    if result["after"].get("fid/whole"):
        tiles.append(tile(result, "fid/whole"))
    return Answer(word, how, sentence, tiles, *moved(result))


def _preferences(result: Mapping[str, Any]) -> Answer | None:
    """The preference family: does the model prefer the winners of pairs that training never saw?"""
    if not result["after"].get("reward_accuracy/val"):
        return None
    keys = ["reward_accuracy/val", *_keys(result, r"(win_rate/.+)").values(), *_keys(result, r"(score/.+)").values()]
    tiles = [tile(result, key) for key in keys]
    word, how = _verdict([number.state for number in tiles], "BETTER", "WORSE")
    return Answer(word, how, f"{_sentence(_listed(tiles[:2]))}.", tiles[:4], *moved(result))
