"""What methods without a backbone found leaves here."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from lightning.pytorch import Callback, LightningModule, Trainer

from fairanon.files import write_json
from fairanon.methods.popalign_gaussian import PopAlignGaussian
from fairanon.report.plots import plot_mixtures


@runtime_checkable
class HasResults(Protocol):
    """A module with numbers of its own."""

    title: str
    """Of their file."""

    def results(self) -> dict[str, Any]:
        """The numbers, as JSON has them."""
        ...

    def lines(self) -> list[str]:
        """The same for a terminal."""
        ...


class Results(Callback):
    """Writes a module's results as ``TITLE.json``, its mixtures as ``TITLE.png``, and prints a table."""

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Once, on the first rank."""
        if not trainer.is_global_zero or not isinstance(pl_module, HasResults):
            return
        folder = Path(trainer.default_root_dir)
        write_json(folder / f"{pl_module.title}.json", pl_module.results())
        print("\n" + "\n".join(pl_module.lines()))
        if isinstance(pl_module, PopAlignGaussian):
            plot_mixtures(folder / f"{pl_module.title}.png", **pl_module.mixtures())
            print(f"figure: {folder / f'{pl_module.title}.png'}")
