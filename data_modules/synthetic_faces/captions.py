"""The caption grammar of the embedded world.

``a photo of a[n] [old|young] [smiling|surprised] [female|male] OCCUPATION [with TONE skin]
[wearing glasses] [raising both hands] [on a COLOUR background]``; "person" with a gender reads "woman" or
"man", and the subjects without a person are "tree", "house" and "car". Whatever is left out is neutral.
"""

from __future__ import annotations

from data_modules.synthetic_faces.world import (
    AGES,
    BACKGROUNDS,
    CAPTION_ATTRIBUTES,
    EXPRESSIONS,
    GENDERS,
    OCCUPATIONS,
    SUBJECTS,
    TONES,
    Scenes,
)

_FUNCTION_WORDS = ("a", "an", "photo", "of", "with", "skin", "wearing", "glasses", "raising", "both", "hands", "on",
                   "background", "woman", "man")  # fmt: skip
VOCABULARY = tuple(
    dict.fromkeys((*_FUNCTION_WORDS, *AGES, *EXPRESSIONS[1:], *GENDERS, *OCCUPATIONS, *TONES, *BACKGROUNDS, *SUBJECTS))
)
"""Every word that a caption can contain."""


def prompt(
    noun: str,
    *,
    gender: str | None = None,
    tone: str | None = None,
    age: str | None = None,
    expression: str | None = None,
    glasses: bool = False,
    hands: bool = False,
    background: str | None = None,
) -> str:
    """Build a caption; an attribute that is None or False is not mentioned.

    Args:
        noun: One of OCCUPATIONS or a subject without a person.
        gender: One of GENDERS.
        tone: One of TONES.
        age: One of AGES.
        expression: "smiling" or "surprised".
        glasses: Mention glasses.
        hands: Mention raised hands.
        background: One of BACKGROUNDS.

    Returns:
        The caption, for example "a photo of a female doctor with dark skin".
    """
    if noun == "person" and gender is not None:
        noun, gender = {"female": "woman", "male": "man"}[gender], None
    words = [word for word in (age, expression, gender, noun) if word is not None]
    article = "an" if words[0][0] in "aeio" else "a"
    parts = [f"a photo of {article}", *words]
    if tone is not None:
        parts.append(f"with {tone} skin")
    if glasses:
        parts.append("wearing glasses")
    if hands:
        parts.append("raising both hands")
    if background is not None:
        parts.append(f"on a {background} background")
    return " ".join(parts)


def captions(scenes: Scenes) -> list[str]:
    """The caption of each scene; it names what ``scenes.named`` says."""
    texts = []
    for row in range(len(scenes)):
        named = dict(zip(CAPTION_ATTRIBUTES, scenes.named[row].tolist(), strict=True))
        background = BACKGROUNDS[int(scenes.background[row])] if named["background"] else None
        subject = int(scenes.subject[row])
        if subject:
            texts.append(prompt(SUBJECTS[subject], background=background))
            continue
        texts.append(
            prompt(
                OCCUPATIONS[int(scenes.occupation[row])],
                gender=GENDERS[int(scenes.gender[row])] if named["gender"] else None,
                tone=TONES[int(scenes.tone[row])] if named["tone"] else None,
                age=AGES[int(scenes.age[row])] if named["age"] else None,
                expression=EXPRESSIONS[int(scenes.expression[row])] if named["expression"] else None,
                glasses=named["glasses"],
                hands=named["hands"],
                background=background,
            )
        )
    return texts
