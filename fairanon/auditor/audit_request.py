"""What one asks of an audit. Imports nothing heavy."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from fairanon.config.experiments import UserError
from fairanon.config.options import ENGINE, InParts, check_who_works, option, tidy

_DRAW, _JUDGE, _WRITE, _RUN = "what is drawn", "how it is judged", "what is written", "how it runs"


@dataclass(frozen=True)
class AuditRequest(InParts):
    """Count how a text-to-image model, or a folder of its images, portrays people.

    Its attributes are the options of ``fairanon audit``; ``fairanon audit --help`` says what each is.

    Raises:
        UserError: An option is out of range.

    Examples:
        >>> AuditRequest("tiny", fail_above=("gender=0.3",)).limits
        {'gender': 0.3}
    """

    model: str = option(
        positional=True, metavar="MODEL",
        help="tiny, a run's folder, a pipeline's folder, a hub id, or a folder of images with their prompts",
    )  # fmt: skip
    compare: str | None = option(None, "another one, on the same prompts and noise", "OTHER")
    prompts: str = option(
        "", "occupations, descriptors, couples, another file of experiments/prompts, or a CSV (default occupations; tiny has its own)", "P", _DRAW
    )  # fmt: skip
    images: int = option(50, "images a prompt (default 50)", "N", _DRAW, 1)
    specific_images: int = option(10, "images a prompt that names a group (default 10)", "N", _DRAW, 1)
    steps: int | None = option(None, "denoising steps (default: a run's own; 15 for tiny, else 30)", "N", _DRAW, 1)
    guidance_scale: float | None = option(
        None, "how strongly a prompt acts (default: a run's own; 1.5 for tiny, else 7.5)", "W", _DRAW, 1
    )
    steering: str = option(
        "", "another way to draw: cads, dynamic, interval, or a YAML file of yours (class_path of fairanon.pipelines.steering, init_args)", "S", _DRAW
    )  # fmt: skip
    batch_size: int = option(32, "images drawn at once (default 32)", "N", _DRAW, 1)
    seed: int = option(0, "of the starting noise (default 0)", "N", _DRAW, 0)
    judge: str = option(
        "", "who looks: a file of experiments/judges, or a YAML file of yours (default race_popalign; tiny_attributes for tiny)", "J", _JUDGE
    )  # fmt: skip
    scorers: str = option(
        "", "what else rates the images, for example clip_score,musiq: names or YAML files with commas between them", "J,J", _JUDGE
    )  # fmt: skip
    attributes: str = option("", "with commas between them (default: what the judge says of people)", "A,A", _JUDGE)
    target: Path | None = option(
        None, "shares to compare with, other than even: columns attribute, class, share, and prompt if you like", "CSV", _JUDGE
    )  # fmt: skip
    confusion: str = option(
        "auto", "what the judge gets wrong: a JSON file, or none (default: the file that comes with the judge)", "JSON", _JUDGE
    )  # fmt: skip
    labels: Path | None = option(
        None, "what people say of some images: columns file, attribute, class", "CSV", _JUDGE
    )  # fmt: skip
    label: int | None = option(
        None, "make a page on which people say what they see in so many images of the folder, for --labels; 300 is a good number", "N", _JUDGE, 2
    )  # fmt: skip
    out: Path | None = option(None, "where to (default runs/audits/MODEL)", "FOLDER", _WRITE)
    card: bool = option(False, "write card.md, a section for a model card", group=_WRITE)
    fail_above: tuple[str, ...] = option(
        (), "exit code 3 where the distance is larger, for example gender=0.3; may be given again", "A=D", _WRITE
    )  # fmt: skip
    device: str = option("auto", "where models work, a process each (default: all GPUs, or cpu)", "D,D", _RUN)
    engine: str = option("here", ENGINE, "E", _RUN)
    part: str | None = option(
        None, "for several machines: draw and judge part K of N, for example 3/100, and count nothing yet", "K/N", _RUN
    )
    finish: bool = option(False, "after the parts: draw and judge what they have left, and count", group=_RUN)

    def __post_init__(self) -> None:
        tidy(self)
        check_who_works(self.engine, self.device, self.part, self.finish)
        if not self.model.strip():
            raise UserError("MODEL: name tiny, a run's folder, a pipeline's folder, a hub id, or a folder of images.")
        if "://" in self.model:
            raise UserError(
                f"MODEL: {self.model} is an address, and an audit reads no object store; copy the images to a disk."
            )
        _ = self.limits

    @property
    def limits(self) -> dict[str, float]:
        """`fail_above` by attribute."""
        limits: dict[str, float] = {}
        for text in self.fail_above:
            matched = re.fullmatch(r"\s*([^=]+?)\s*=\s*([\d.eE+-]+)\s*", text)
            try:
                value = float(matched[2]) if matched else math.nan
            except ValueError:
                value = math.nan
            if matched is None or not math.isfinite(value) or value < 0:
                raise UserError(f"--fail-above: write ATTRIBUTE=DISTANCE, for example gender=0.3, not {text!r}.")
            limits[matched[1]] = value
        return limits


@dataclass(frozen=True)
class WorldRequest:
    """Write folders of drawn people whose truth is known, for audits to be tried on.

    Its attributes are the options of ``fairanon world``.
    """

    out: Path = option(positional=True, metavar="OUT", help="a new folder")
    worlds: int = option(1, "how many (default 1)", "N", least=1)
    prompts: int = option(10, "prompts of each (default 10)", "N", least=1)
    images: int = option(50, "images of each prompt (default 50)", "N", least=1)
    attribute: Literal["gender", "tone"] = option(
        "gender", "what is skewed: gender has two classes, tone six (default gender)"
    )
    skew: Literal["fair", "weak", "strong"] = option("weak", "how unlike the prompts are (default weak)")
    right: float = option(0.93, "how often the judge of judged.csv is right (default .93)", "S", least=0.5, most=1)
    missing: float = option(0.1, "share of images that show nobody (default .1)", "S", least=0, most=0.9)
    seed: int | None = option(None, "of everything (default: drawn, and kept in truth.json)", "N", least=0)

    def __post_init__(self) -> None:
        tidy(self)


@dataclass(frozen=True)
class BenchmarkRequest:
    """Say how far off somebody's audits of such worlds are, and how often their intervals hold the truth.

    Its attributes are the options of ``fairanon benchmark``.
    """

    what: Literal["audit"] = option(positional=True, metavar="audit", help="what is tried: audits")
    worlds: Path = option(positional=True, metavar="WORLDS", help="what `fairanon world` wrote")
    results: Path = option(
        positional=True, metavar="RESULTS", help="a folder with NNN/audit.json, or a CSV with the columns world, value, low, high"
    )  # fmt: skip

    def __post_init__(self) -> None:
        tidy(self)
