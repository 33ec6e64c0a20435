"""Who lives in the embedded world: vocabularies, the biased population and the draw of a scene.

Appearance words describe what is drawn and what a judge sees; they say nothing about any person.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, fields
from typing import Literal

import torch
from torch import Tensor

from fairanon.seeding import uniform_rows

TONES = ("pale", "light", "olive", "tan", "brown", "dark")
GENDERS = ("female", "male")
AGES = ("young", "old")
EXPRESSIONS = ("neutral", "smiling", "surprised")
BACKGROUNDS = ("blue", "green", "pink", "sand")
SUBJECTS = ("person", "tree", "house", "car")

IDENTITY_SIZE = 18
"""Numbers that make a person: face geometry and colours, each uniform in [0, 1]."""
EXPRESSION_SIZE = 4
"""Expression parameters: mouth corners raised, mouth opening, mouth width, brow lift."""

OCCUPATION_BIAS: dict[str, tuple[float, str, float, float]] = {
    # occupation: (share of female, most frequent tone, its share, share of old). The other five tones share
    # the rest equally. Explicit captions are drawn from a balanced population instead (see `draw_scenes`).
    "doctor": (0.18, "pale", 0.78, 0.35),
    "nurse": (0.86, "light", 0.74, 0.15),
    "builder": (0.12, "tan", 0.74, 0.25),
    "chef": (0.22, "light", 0.78, 0.20),
    "farmer": (0.20, "olive", 0.74, 0.45),
    "officer": (0.24, "brown", 0.70, 0.15),
    "firefighter": (0.14, "pale", 0.74, 0.10),
    "pilot": (0.16, "pale", 0.82, 0.30),
    "judge": (0.26, "light", 0.78, 0.60),
    "teacher": (0.84, "olive", 0.70, 0.30),
    "painter": (0.80, "pale", 0.74, 0.40),
    "astronaut": (0.16, "light", 0.78, 0.20),
    "athlete": (0.22, "dark", 0.78, 0.05),
    "sailor": (0.14, "tan", 0.74, 0.30),
    "person": (0.40, "light", 0.50, 0.25),
}
OCCUPATIONS = tuple(OCCUPATION_BIAS)
"""14 occupations and, last, "person": everyday clothes, no occupation."""
TRAIN_OCCUPATIONS = OCCUPATIONS[:10]
"""Named by PopAlign's preference prompts."""
HELD_OUT_OCCUPATIONS = OCCUPATIONS[10:14]
"""Known to the base model, never named by a preference prompt."""


@dataclass(frozen=True)
class Scenes:
    """A batch of scenes, everything the renderer needs and every label a test may ask for.

    All tensors have the batch as first dimension. Angles are in degrees: positive yaw turns the face to the
    image's right, positive pitch looks down, positive roll leans clockwise. For subjects other than
    "person" the labels of the person are meaningless.
    """

    subject: Tensor  # int64, index into SUBJECTS
    occupation: Tensor  # int64, index into OCCUPATIONS
    gender: Tensor  # int64, index into GENDERS
    tone: Tensor  # int64, index into TONES
    age: Tensor  # int64, index into AGES
    expression: Tensor  # int64, index into EXPRESSIONS
    glasses: Tensor  # bool
    hands: Tensor  # bool, both hands raised
    background: Tensor  # int64, index into BACKGROUNDS
    identity: Tensor  # float32 (N, IDENTITY_SIZE) in [0, 1]
    expression_vector: Tensor  # float32 (N, EXPRESSION_SIZE)
    pose: Tensor  # float32 (N, 3): yaw, pitch, roll in degrees
    gaze: Tensor  # float32 (N, 2) in [-1, 1]: right, down
    jitter: Tensor  # float32 (N, 10) in [0, 1]: placement, light and cloth shades
    named: Tensor  # bool (N, 7): which attributes the caption names, in the order of `CAPTION_ATTRIBUTES`

    def __len__(self) -> int:
        return len(self.subject)

    def __getitem__(self, index: Tensor | slice) -> Scenes:
        return Scenes(**{field.name: getattr(self, field.name)[index] for field in fields(self)})

    def replace(self, **changes: Tensor) -> Scenes:
        """A copy with some tensors exchanged."""
        return Scenes(**{field.name: changes.get(field.name, getattr(self, field.name)) for field in fields(self)})


CAPTION_ATTRIBUTES = ("gender", "tone", "age", "expression", "glasses", "hands", "background")
_NEUTRAL = 0.4  # captions that name neither gender nor tone
_BOTH = 0.4  # captions that name both; the rest names one of the two
_NAMED = (0.35, 0.5, 0.5, 0.5, 0.35)  # age, expression, glasses (when worn), hands (when shown), background
_PERSON = 0.94  # share of scenes with a person in the population

# Expression parameters at full strength, in the order of EXPRESSION_SIZE; half-height of the head = 1.
_EXPRESSION_MEANS = torch.tensor([[0.0, 0.0, 1.0, 0.0], [0.17, 0.085, 1.15, 0.02], [0.0, 0.20, 0.62, 0.10]])
_EXPRESSION_SPREAD = torch.tensor([0.02, 0.02, 0.08, 0.02])


def expression_vectors(expression: Tensor, strength: Tensor, noise: Tensor) -> Tensor:
    """Continuous expression parameters for a class.

    Args:
        expression: int64 (N,), index into EXPRESSIONS.
        strength: float (N,) in [0, 1]; 1 is the most pronounced.
        noise: float (N, EXPRESSION_SIZE) in [0, 1]; 0.5 is none.

    Returns:
        float32 (N, EXPRESSION_SIZE).
    """
    rest = _EXPRESSION_MEANS[0]
    full = _EXPRESSION_MEANS[expression]
    mean = rest + (0.8 + 0.4 * strength)[:, None] * (full - rest)
    value = mean + (2 * noise - 1) * _EXPRESSION_SPREAD
    value[:, 1] = torch.where(expression == 0, torch.zeros_like(value[:, 1]), value[:, 1])
    return value


def _choose(u: Tensor, probabilities: Tensor) -> Tensor:
    """Index drawn from each row of ``probabilities`` (N, K) by the uniform number ``u`` (N,)."""
    return (u[:, None] > probabilities.cumsum(1)[:, :-1]).sum(1)


def tone_probabilities() -> Tensor:
    """Share of each tone in each occupation of the biased population: float32 (occupations, tones)."""
    table = torch.empty(len(OCCUPATIONS), len(TONES))
    for row, (_, peak, share, _) in zip(table, OCCUPATION_BIAS.values(), strict=True):
        row.fill_((1 - share) / (len(TONES) - 1))
        row[TONES.index(peak)] = share
    return table


def draw_scenes(
    seed: int,
    indices: Iterable[int],
    population: Literal["biased", "balanced"] = "biased",
    people: int | None = None,
) -> Scenes:
    """Draw scenes; scene ``i`` depends on ``seed`` and ``indices[i]`` alone.

    In the *biased* population an attribute that the caption does not name follows `OCCUPATION_BIAS`, one
    that it names is drawn uniformly: the base model is unfair when asked neutrally and obeys when asked
    explicitly, as the large models do. In the *balanced* one everything is uniform and everyone is a person.

    Args:
        seed: Of the population.
        indices: Scene numbers.
        population: "biased" (pretraining) or "balanced" (judges, reference for FID).
        people: If given, scene ``i`` shows person ``i % people``: identity, gender, tone and age depend on
            that number only, everything else on ``i``.

    Returns:
        The scenes.
    """
    indices = [int(index) for index in indices]
    u = uniform_rows(2 * seed, indices, 64)
    who = u if people is None else uniform_rows(2 * seed + 1, [index % people for index in indices], 64)
    biased = population == "biased"

    occupation = (u[:, 0] * len(OCCUPATIONS)).long()
    pick = u[:, 1]
    named_gender = (pick >= _NEUTRAL) & (pick < _NEUTRAL + _BOTH + (1 - _NEUTRAL - _BOTH) / 2)
    named_tone = (pick >= _NEUTRAL) & ((pick < _NEUTRAL + _BOTH) | ~named_gender)
    bias = torch.tensor([(female, old) for female, _, _, old in OCCUPATION_BIAS.values()])[occupation]
    named_rest = u[:, 2:7] < torch.tensor(_NAMED)
    half = torch.full_like(pick, 0.5)

    female = torch.where(named_gender | ~torch.tensor(biased), half, bias[:, 0])
    gender = (who[:, 7] >= female).long()
    uniform = torch.full((len(indices), len(TONES)), 1 / len(TONES))
    by_tone = torch.where((named_tone | ~torch.tensor(biased))[:, None], uniform, tone_probabilities()[occupation])
    tone = _choose(who[:, 8], by_tone)
    old = torch.where(named_rest[:, 0] | ~torch.tensor(biased), half, bias[:, 1])
    age = (who[:, 9] < old).long()
    identity = who[:, 44 : 44 + IDENTITY_SIZE]

    expression = (u[:, 10] * len(EXPRESSIONS)).long()
    glasses = u[:, 11] < (0.25 if biased else 0.5)
    hands = u[:, 12] < (0.35 if biased else 0.5)
    named_rest = torch.stack(
        [
            named_rest[:, 0],
            named_rest[:, 1] & (expression > 0),
            named_rest[:, 2] & glasses,
            named_rest[:, 3] & hands,
            named_rest[:, 4],
        ],
        dim=1,
    )
    # Angles: the mean of two uniforms, so that frontal faces are most frequent.
    pose = (u[:, 13:16] + u[:, 16:19] - 1) * torch.tensor([26.0, 14.0, 13.0])
    if biased:
        subject = torch.where(u[:, 19] < _PERSON, 0, 1 + (u[:, 20] * 3).long())
    else:
        subject = torch.zeros(len(indices), dtype=torch.long)
    return Scenes(
        subject=subject,
        occupation=occupation,
        gender=gender,
        tone=tone,
        age=age,
        expression=expression,
        glasses=glasses,
        hands=hands,
        background=(u[:, 21] * len(BACKGROUNDS)).long(),
        identity=identity,
        expression_vector=expression_vectors(expression, u[:, 22], u[:, 23 : 23 + EXPRESSION_SIZE]),
        pose=pose,
        gaze=2 * u[:, 28:30] - 1,
        jitter=u[:, 30:40],
        named=torch.cat([named_gender[:, None], named_tone[:, None], named_rest], dim=1),
    )
