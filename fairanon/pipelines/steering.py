"""Steered sampling: other ways to draw with the same weights. One denoising loop, and a small object for each rival.

Every random number is keyed like the starting noise, so that an image does not depend on its neighbours in a batch.
"""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import torch
from torch import Tensor

from fairanon.backbones import Backbone, Sampling
from fairanon.backbones.base import Conditioning
from fairanon.imaging import to_pixels
from fairanon.prompts import wanted_shares
from fairanon.seeding import Key, keyed_generator, keyed_randn

_WORD = re.compile(r"\w+(?:-\w+)*")


@dataclass(frozen=True)
class Step:
    """One step of the denoising loop.

    Attributes:
        left: Share of the steps that is left: 1 in the first one, 1 / steps in the last one.
        time: Share of the noise schedule that has passed, by its timesteps: 0 in the first step.
        scale: How strongly the prompt acts.
        prompt: Encoded prompts of B rows.
        empty: The empty prompt, B times.
        keys: B keys of the images.
        predict: What the U-Net predicts from a conditioning of B rows, or of a multiple of B: float32 (B, C, h, w), likewise.
        concepts: What `Steering.concepts` asked for, B rows each.
        memory: What a steering notes for the next steps of these images.
    """

    left: float
    time: float
    scale: float
    prompt: Conditioning
    empty: Conditioning
    keys: Sequence[Sequence[Key]]
    predict: Callable[[Conditioning], Tensor]
    concepts: Sequence[Conditioning] = ()
    memory: dict[str, Tensor] = field(default_factory=dict)

    def guided(self) -> Tensor:
        """Classifier-free guidance: u + scale (c - u); at 1 the empty prompt is not asked."""
        if self.scale == 1:
            return self.predict(self.prompt)
        without, with_prompt = self.predict(together(self.empty, self.prompt)).chunk(2)
        return without + self.scale * (with_prompt - without)


class Steering:
    """Plain guidance; a rival changes the prompts, or what a step predicts.

    Args:
        scale: How strongly a prompt acts, in place of the sampler's; 1 is the cheapest way to draw more evenly.
    """

    def __init__(self, scale: float | None = None) -> None:
        _finite(scale=scale)
        self.scale = scale

    def prompts(self, prompts: Sequence[str], keys: Sequence[Sequence[Key]]) -> list[str]:
        """What is drawn instead of B prompts."""
        return list(prompts)

    def concepts(self, prompts: Sequence[str], keys: Sequence[Sequence[Key]]) -> list[list[str]]:
        """Further texts that are encoded for the steps: lists of B."""
        return []

    def prediction(self, step: Step) -> Tensor:
        """What the loop takes for the noise, or the velocity: float32 (B, C, h, w)."""
        return (step if self.scale is None else replace(step, scale=self.scale)).guided()

    def origin(self) -> list[Any]:
        """Names stored judgements: which rival, and its settings."""
        return [type(self).__qualname__, _listed(vars(self))]


class CADS(Steering):
    """Condition-annealed sampling (Sadat et al. 2023, equation 2): the first steps hardly see the prompt.

    Its embedding becomes sqrt(g) y + noise sqrt(1 - g) n, and is brought back to its own mean and standard deviation. g is 0 while
    more than ``tau2`` of the steps is left, and 1 from ``tau1`` on.

    Args:
        tau1: Where the prompt is seen whole.
        tau2: Until where it is not seen.
        noise: Standard deviation of what is added.
        rescale: How much of the embedding is brought back (psi); 0 leaves it as it is.
        official: As PopAlign's script has it: its time runs backwards, so that the *last* steps are noised, where nothing is
            decided any more, and the empty prompt is noised, too.
    """

    def __init__(
        self, tau1: float = 0.6, tau2: float = 0.9, noise: float = 0.25, rescale: float = 1.0, official: bool = False
    ) -> None:
        super().__init__()
        _check(tau1=tau1, tau2=tau2)
        if not (0 <= noise < math.inf and 0 <= rescale <= 1):
            raise ValueError(
                f"evaluate.steerings: noise must not be negative, rescale be 0 to 1, got {noise} and {rescale}."
            )
        self.tau1, self.tau2, self.noise, self.rescale, self.official = tau1, tau2, noise, rescale, official

    def prediction(self, step: Step) -> Tensor:
        """See `Steering`."""
        seen = annealed(step.time if self.official else step.left, self.tau1, self.tau2)
        if seen == 1:
            return step.guided()
        prompt = self._noised(step.prompt, seen, step, "prompt")
        empty = self._noised(step.empty, seen, step, "empty") if self.official else step.empty
        return replace(step, prompt=prompt, empty=empty).guided()

    def _noised(self, condition: Conditioning, seen: float, step: Step, purpose: str) -> Conditioning:
        def noised(y: Tensor, name: str) -> Tensor:
            keys = [(*key, "CADS", purpose, name, f"{step.left:.6f}") for key in step.keys]
            dtype, y = y.dtype, y.float()
            noise = keyed_randn(keys, y.shape[1:]).to(y)
            noisy = math.sqrt(seen) * y + self.noise * math.sqrt(1 - seen) * noise
            inner = tuple(range(1, y.ndim))
            spread = noisy.std(inner, keepdim=True)
            back = (noisy - noisy.mean(inner, keepdim=True)) / spread.clamp_min(1e-12) * y.std(inner, keepdim=True)
            return (self.rescale * (back + y.mean(inner, keepdim=True)) + (1 - self.rescale) * noisy).to(dtype)

        pooled = None if condition.pooled is None else noised(condition.pooled, "pooled")
        return replace(condition, context=noised(condition.context, "context"), pooled=pooled)


class DynamicGuidance(Steering):
    """Guidance that grows: the first steps are guided by ``floor``, the last ones wholly (Dynamic CFG of the same paper).

    Args:
        tau1: From where on guidance is whole, as a share of the steps that is left.
        tau2: Until where it is ``floor``.
        floor: The least guidance. 1 follows the prompt unguided. 0, as PopAlign's script has it, draws the population of the
            empty prompt first.
        schedule: "linear", or "cosine" as that script has it, which is negative in the second half and takes no other number.
    """

    def __init__(
        self, tau1: float = 0.6, tau2: float = 0.9, floor: float = 1.0, schedule: Literal["linear", "cosine"] = "linear"
    ) -> None:
        super().__init__()
        _check(tau1=tau1, tau2=tau2)
        _finite(floor=floor)
        if schedule == "cosine" and (tau1, tau2, floor) != (0.6, 0.9, 1.0):
            raise ValueError("evaluate.steerings: the cosine takes no tau1, tau2 or floor; leave them out.")
        self.tau1, self.tau2, self.floor, self.schedule = tau1, tau2, floor, schedule

    def prediction(self, step: Step) -> Tensor:
        """See `Steering`."""
        if self.schedule == "cosine":
            return replace(step, scale=step.scale * math.cos(math.pi * (1 - step.left))).guided()
        grown = annealed(step.left, self.tau1, self.tau2)
        return replace(step, scale=self.floor + (step.scale - self.floor) * grown).guided()


class IntervalGuidance(Steering):
    """Guidance on an interval (Kynkäänniemi et al. 2024): none outside, which saves time as well.

    Args:
        low: Where it ends, as a share of the steps that is left.
        high: Where it begins.
    """

    def __init__(self, low: float = 0.2, high: float = 0.8) -> None:
        super().__init__()
        _check(low=low, high=high)
        self.low, self.high = low, high

    def prediction(self, step: Step) -> Tensor:
        """See `Steering`."""
        return (step if self.low <= step.left <= self.high else replace(step, scale=1.0)).guided()


BY_NAME: dict[str, type[Steering]] = {"cads": CADS, "dynamic": DynamicGuidance, "interval": IntervalGuidance}
"""Those that need no settings."""


class PromptInjection(Steering):
    """A class of each attribute is put into the prompt: the bound with which everything that is trained is compared.

    Of each ``images`` images of a prompt that follow one another each class gets exactly its share (the next whole numbers to it), in
    an order that is keyed by the prompt.

    Args:
        attributes: For each attribute its classes: the name of a class and how it is said of a subject, where "..." stands for the
            subject, for example ``{gender: {female: female ..., male: male ...}}``.
        subjects: Words that name a person in a prompt; the first of them is the subject.
        images: Images of a prompt.
        named: For each attribute further words that name one of its classes: such a prompt is left as it is. How a class itself is
            said counts always; of several words all of them, side by side.
        shares: For each attribute the classes' shares, where they are not all equal.
        gate: Leave a prompt as it is that names a class, or has no subject. Without it a prompt for a woman draws men.
    """

    def __init__(
        self,
        attributes: dict[str, dict[str, str]],
        subjects: list[str],
        images: int,
        named: dict[str, list[str]] | None = None,
        shares: dict[str, dict[str, float]] | None = None,
        gate: bool = True,
    ) -> None:
        super().__init__()
        self.attributes, self.subjects, self.images, self.gate = attributes, subjects, images, gate
        self.named, self.shares = named or {}, shares or {}
        if images < 1:
            raise ValueError(f"evaluate.steerings: images must be at least 1, got {images}.")
        if bad := [word for word in subjects if _words(word) != [word]] or ([] if subjects else ["none"]):
            raise ValueError(f"evaluate.steerings: subjects are single words in small letters, got {bad[0]!r}.")
        if not attributes or any(len(classes) < 2 for classes in attributes.values()):
            raise ValueError("evaluate.steerings: attributes has to name some, each with at least two classes.")
        if lost := [name for name in (*self.named, *self.shares) if name not in attributes]:
            raise ValueError(f"evaluate.steerings: {lost[0]!r} is none of the attributes {', '.join(attributes)}.")
        for name, classes in attributes.items():
            if any(phrase.count("...") != 1 for phrase in classes.values()):
                raise ValueError(
                    f'evaluate.steerings: each class of {name} is said with "..." once, where the subject stands.'
                )
            wanted_shares(list(classes), self.shares.get(name), f"evaluate.steerings: the shares of {name}")

    def prompts(self, prompts: Sequence[str], keys: Sequence[Sequence[Key]]) -> list[str]:
        """See `Steering`."""
        return [
            self.with_classes(prompt, self.asked(prompt, int(key[-1])))
            for prompt, key in zip(prompts, keys, strict=True)
        ]

    def asked(self, prompt: str, number: int) -> dict[str, str]:
        """The class of each attribute that image ``number`` of a prompt is asked for, as far as the gate lets it through."""
        if self._subject(prompt) is None:
            return {}
        names = [name for name in self.attributes if not (self.gate and self._names(name, prompt))]
        return {name: self.dealt(name, prompt, number) for name in names}

    def _subject(self, prompt: str) -> re.Match[str] | None:
        return next((match for match in _WORD.finditer(prompt) if match[0].lower() in self.subjects), None)

    def with_classes(self, prompt: str, classes: Mapping[str, str]) -> str:
        """A prompt whose subject is said to be of these classes, by attribute."""
        subject = self._subject(prompt)
        if subject is None or not classes:
            return prompt
        phrase = subject[0].lower()
        for name, label in classes.items():
            phrase = self.attributes[name][label].replace("...", phrase)
        before = prompt[: subject.start()]
        article = re.search(r"(?i)\ban?\s+$", before)
        if article is not None:
            before = before[: article.start()] + ("an " if phrase[0] in "aeiou" else "a ")
        return before + phrase + prompt[subject.end() :]

    def _names(self, attribute: str, prompt: str) -> bool:
        """Whether a prompt names a class: by words side by side that not all classes are said with, or by one of ``named``."""
        said = [phrase.split("...") for phrase in self.attributes[attribute].values()]
        shared = set.intersection(*({word for part in parts for word in _words(part)} for parts in said))
        own = [run for parts in said for part in parts for run in _runs(_words(part), shared)]
        inside = f" {' '.join(_words(prompt))} "
        return any(f" {' '.join(words)} " in inside for words in [*own, *map(_words, self.named.get(attribute, []))])

    def dealt(self, attribute: str, prompt: str, number: int) -> str:
        """The class that image ``number`` of a prompt is asked for."""
        classes = self.attributes[attribute]
        shares = self.shares.get(attribute, dict.fromkeys(classes, 1 / len(classes)))
        generator = keyed_generator("injection", attribute, prompt, number // self.images)
        pile = [
            name
            for name, count in zip(
                shares, largest_remainders(list(shares.values()), self.images, generator), strict=True
            )
            for _ in range(count)
        ]
        order = torch.randperm(self.images, generator=generator)
        return pile[int(order[number % self.images])]


def _words(text: str) -> list[str]:
    return [word.lower() for word in _WORD.findall(text)]


def _runs(words: Sequence[str], shared: set[str]) -> list[list[str]]:
    """Words that stand side by side, cut where one is shared."""
    return [list(run) for cut, run in itertools.groupby(words, shared.__contains__) if not cut]


def _listed(value: Any) -> Any:
    """The same, with lists of pairs for dictionaries: the order of classes decides who is drawn."""
    return [[key, _listed(entry)] for key, entry in value.items()] if isinstance(value, dict) else value


def _finite(**settings: float | None) -> None:
    for name, value in settings.items():
        if value is not None and not math.isfinite(value):
            raise ValueError(f"evaluate.steerings: {name} must be a number, got {value}.")


def _check(**ends: float) -> None:
    (first, low), (second, high) = ends.items()
    if not 0 <= low < high <= 1:
        raise ValueError(
            f"evaluate.steerings: {first} must be below {second}, both between 0 and 1, got {low} and {high}."
        )


def annealed(left: float, tau1: float, tau2: float) -> float:
    """How much of the prompt is seen (CADS, equation 4): 1 up to ``tau1``, 0 from ``tau2`` on, linear between.

    Examples:
        >>> annealed(1.0, 0.6, 0.9), annealed(0.75, 0.6, 0.9), annealed(0.2, 0.6, 0.9)
        (0.0, 0.5, 1.0)
    """
    return min(1.0, max(0.0, (tau2 - left) / (tau2 - tau1)))


def largest_remainders(shares: Sequence[float], count: int, generator: torch.Generator) -> list[int]:
    """Whole numbers that add up to ``count`` and are nearest to the shares; who is equal is drawn.

    Examples:
        >>> largest_remainders([0.5, 0.25, 0.25], 8, torch.Generator())
        [4, 2, 2]
    """
    wanted = torch.tensor(shares, dtype=torch.float64) * count
    whole = (wanted + 1e-9).floor()
    tied = torch.rand(len(shares), generator=generator, dtype=torch.float64) * 1e-6
    rest = (wanted - whole + tied).argsort(descending=True)[: count - int(whole.sum())]
    whole[rest] += 1
    return [int(number) for number in whole]


def together(*parts: Conditioning) -> Conditioning:
    """Conditionings, one after the other."""

    def joined(name: str) -> Any:
        tensors = [getattr(part, name) for part in parts]
        return None if tensors[0] is None else torch.cat(tensors)

    return Conditioning(joined("context"), joined("pooled"), joined("time_ids"), joined("control"))


def refuse_what_cannot_be_steered(backbone: Backbone) -> None:
    """Refuse models that draw otherwise than from prompts, or whose text encoder has been trained.

    Raises:
        ValueError: Names the setting.
    """
    if backbone.inpaints or backbone.control is not None or backbone.trains_text_encoder:
        raise ValueError(
            "evaluate.steerings: they draw with text-to-image models whose text encoder is as it was; leave them out."
        )


def steered(
    backbone: Backbone, prompts: Sequence[str], keys: Sequence[Sequence[Key]], sampling: Sampling, steering: Steering
) -> Tensor:
    """Sample images; with plain guidance what `Backbone.sample` does, up to rounding in float32.

    Args:
        backbone: A text-to-image model.
        prompts: B prompts.
        keys: B keys of the images; the last part of each is the image's number.
        sampling: How.
        steering: What is different.

    Returns:
        uint8 (B, 3, H, W) on the CPU; image i depends on ``prompts[i]`` and ``keys[i]`` alone.

    Raises:
        ValueError: See `refuse_what_cannot_be_steered`.
    """
    refuse_what_cannot_be_steered(backbone)
    predict = backbone.predict_reference if sampling.reference else backbone.predict
    with backbone.sampling(sampling.reference, False, sampling.lora_weight):
        prompt = backbone.encode_prompts(steering.prompts(prompts, keys))
        empty = backbone.encode_prompts([""] * len(prompts))
        concepts = [backbone.encode_prompts(texts) for texts in steering.concepts(prompts, keys)]
        memory: dict[str, Tensor] = {}
        schedule = backbone.sampler()
        schedule.set_timesteps(sampling.steps, device=backbone.device)
        latents = backbone.starting_noise(keys)
        count = len(schedule.timesteps)
        for number, t in enumerate(schedule.timesteps):
            scaled = schedule.scale_model_input(latents, t)

            def asked(conditioning: Conditioning, scaled: Tensor = scaled, t: Tensor = t) -> Tensor:
                times = len(conditioning.context) // len(scaled)
                noisy = scaled.repeat(times, 1, 1, 1)
                return predict(noisy, t.expand(len(noisy)), conditioning)

            step = Step(
                (count - number) / count, 1 - float(t) / float(schedule.timesteps[0]), sampling.guidance_scale,
                prompt, empty, keys, asked, concepts, memory,
            )  # fmt: skip
            latents = schedule.step(steering.prediction(step), t, latents).prev_sample
        return to_pixels(backbone.decode(latents)).cpu()
