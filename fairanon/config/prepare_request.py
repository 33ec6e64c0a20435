"""What one asks of a preparation. Imports nothing heavy."""

from __future__ import annotations

from dataclasses import dataclass

from fairanon.config.options import ENGINE, InParts, check_who_works, option, tidy


@dataclass(frozen=True)
class PrepareRequest(InParts):
    """Make the data that a training needs.

    Its attributes are the options of ``fairanon prepare``; ``fairanon prepare --help`` says what each is.

    Attributes:
        settings: Any keys of the file, as words of a command line: ``("--prepare.init_args.grow=8",)``.

    Raises:
        UserError: An option is out of range.
    """

    name: str = option("", "experiments/prepare/NAME.yaml, or a file of your own", metavar="NAME|FILE", positional=True)
    images: str | None = option(
        None, "a folder of images to make it of; without it the file's own", metavar="IMAGES", positional=True
    )
    device: str = option(
        "auto", "where models work, of several devices a process each (default: a GPU if there is one)", "D,D"
    )
    engine: str = option("here", ENGINE, "E")
    part: str | None = option(
        None, "for several machines: make part K of N, for example 3/100, and put nothing together yet", "K/N"
    )
    finish: bool = option(False, "after the parts: make what they have left, and put all together")
    settings: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        tidy(self)
        check_who_works(self.engine, self.device, self.part, self.finish)
