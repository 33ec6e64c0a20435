"""From configuration files to a model, its data and the trainer's settings."""

from __future__ import annotations

import inspect
import logging
import pkgutil
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from jsonargparse import _typehints
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.cli import ArgsType, LightningArgumentParser, LightningCLI

from fairanon.config.precision import replace_bfloat16
from fairanon.config.resolvers import resolving

_log = logging.getLogger(__name__)


@dataclass
class StartFrom:
    """Trained weights to begin with; the reference, with which everything is compared, stays the base model.

    Args:
        run: Folder of a finished run with the same model.
        lora: Adapters of yet another run (its folder or file), added to the U-Net's weights.
        weight: How strongly they act.
    """

    run: str
    lora: str | None = None
    weight: float = 1.0


_DTYPES = {"bf16-mixed": "bfloat16", "bf16": "bfloat16", "16-mixed": "float16", "16": "float16"}


@contextmanager
def parsing() -> Iterator[None]:
    """Inside, configurations are read as ours are: with our resolvers, and a class that replaces another begins anew."""
    kept = _typehints.discard_init_args_on_class_path_change
    _typehints.discard_init_args_on_class_path_change = _drop_arguments
    try:
        with resolving():
            yield
    finally:
        _typehints.discard_init_args_on_class_path_change = kept


def _drop_arguments(parser: Any, before: Any, now: Any) -> None:
    """A class that takes another's place does not get its arguments.

    (jsonargparse by itself keeps those that the new class knows by the same name: one segmenter's file for another's. Of
    optimizers and methods that is right: the learning rate and the backbone are the experiment's.)
    """
    if not before or "init_args" not in before or before["class_path"] == now["class_path"]:
        return
    kinds = [_class_of(settings) for settings in (before, now)]
    alike = all(kind is not None and issubclass(kind, (torch.optim.Optimizer, LightningModule)) for kind in kinds)
    known = _arguments(kinds[1]) if alike and kinds[1] is not None else set()
    settings = before["init_args"]
    for name in [name for name in (settings if isinstance(settings, dict) else vars(settings)) if name not in known]:
        settings.pop(name)


def _arguments(kind: type) -> set[str]:
    """What a class takes, with what it forwards to the classes that it extends."""
    names: set[str] = set()
    for base in kind.__mro__:
        if "__init__" in vars(base):
            parameters = inspect.signature(vars(base)["__init__"]).parameters.values()
            names |= {parameter.name for parameter in parameters}
            if all(parameter.kind is not parameter.VAR_KEYWORD for parameter in parameters):
                break
    return names


def _class_of(config: Any) -> type | None:
    try:
        candidate = pkgutil.resolve_name(config["class_path"])
    except (ImportError, AttributeError, TypeError, ValueError):
        return None
    return candidate if isinstance(candidate, type) else None


def device_of(config: Any) -> torch.device:
    """Where a single process works, by an experiment's configuration."""
    on_gpu = config.trainer.accelerator != "cpu" and torch.cuda.is_available()
    return torch.device("cuda" if on_gpu else "cpu")


class FairAnonCLI(LightningCLI):
    """Parses an experiment: ``model``, ``data``, ``trainer``, ``evaluate``, ``start_from``, ``seed_everything``.

    Args:
        args: Words of the command line.
        build: Whether to build what they describe at once; without, no weights are needed, and `build` does it later.
    """

    def __init__(self, args: list[str], build: bool = True) -> None:
        self._build = build
        with parsing():
            super().__init__(
                LightningModule,  # and any data module, or none: a model that is measured alone needs none
                subclass_mode_model=True,
                auto_configure_optimizers=False,
                save_config_callback=None,
                seed_everything_default=0,
                parser_kwargs={
                    "prog": "fairanon",
                    "parser_mode": "omegaconf+",
                    "exit_on_error": False,
                    "allow_abbrev": False,
                },
                run=False,
                args=args,
            )

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Measuring before and after training is a key of its own."""
        parser.add_argument("--extends", type=str | None, default=None, help="The experiment this one starts from.")
        parser.add_argument(
            "--prepare", type=list[str], default=[], help="Preparations that make folders of the data, if missing."
        )
        parser.add_argument("--evaluate", type=Callback | None, default=None, help="Measures before and after.")
        parser.add_argument(
            "--seed", type=int | None, default=None, help="Of everything: seed_everything, model, data."
        )
        parser.add_argument(
            "--ckpt_path",
            type=str | None,
            default=None,
            help="A checkpoint of the same model that a new run goes on from.",
        )
        parser.add_argument("--start_from", type=StartFrom | None, default=None, help="Trained weights to begin with.")
        parser.add_argument("--checkpoint_minutes", type=float, default=15.0, help="Minutes between checkpoints.")
        parser.add_argument(
            "--checkpoint_every", type=int | None, default=None, help="Optimizer steps between checkpoints instead."
        )

    def parse_arguments(self, parser: LightningArgumentParser, args: ArgsType) -> None:
        """One key decides: ``seed`` all seeds, the trainer's precision that of a backbone whose ``dtype`` nobody gives."""
        super().parse_arguments(parser, args)
        if (seed := self.config.seed) is not None:
            self.config.seed_everything = seed
            for part in (self.config.model, self.config.data):
                if part is not None and "seed" in part.init_args:
                    part.init_args.seed = seed
        backbone = self.config.get("model.init_args.backbone.init_args")
        if backbone is not None and "dtype" in backbone and backbone.dtype is None:
            backbone.dtype = _DTYPES.get(str(self.config.trainer.precision), "float32")

    def check_precision(self) -> None:
        """Refuse to train in half precision without a scaled loss, and to scale it where only a GPU could.

        Raises:
            ValueError: Says what fits.
        """
        settings = self.config.trainer
        if settings["strategy"] == "shard":
            raise ValueError("trainer.strategy: shard is an overlay; take --overlay shard.")
        if not re.fullmatch(r"auto|-1|\d+|\[?\d+(, ?\d+)*,?\]?", str(settings["devices"])):
            raise ValueError(f"trainer.devices must be a number, a list of devices or auto, got {settings['devices']}.")
        precision = str(settings["precision"])
        if precision not in (*_DTYPES, "None", "32", "32-true"):
            raise ValueError(
                f"trainer.precision: {precision} would round what trains, which is held in float32 here; take bf16-mixed, "
                "16-mixed or 32-true."
            )
        trains = getattr(_class_of(self.config.model), "trains", True)
        if trains and self.config.data is None:
            raise ValueError("data: there is none to train on; name a data module.")
        endless = trains and settings["max_steps"] == -1 and settings["max_time"] is None
        if endless and settings["limit_train_batches"] in (None, 1.0):
            raise ValueError(
                "trainer.max_steps: -1 would train for ever, the data never ends; give a number of steps, or max_time."
            )
        scaled = _DTYPES.get(precision) == "float16"
        backbone = self.config.get("model.init_args.backbone.init_args") or {}
        if scaled and (settings["accelerator"] == "cpu" or not torch.accelerator.is_available()):
            raise ValueError(
                "trainer.precision: 16-mixed needs a GPU; on a CPU take bf16-mixed (--overlay bf16) or full precision "
                "(--overlay cpu)."
            )
        if backbone.get("dtype") == "float16" and not scaled and settings["max_steps"] != 0:
            raise ValueError(
                f"model.backbone.dtype: float16 loses small gradients unless the loss is scaled, and trainer.precision is "
                f"{settings['precision']}; leave dtype out, or set precision to 16-mixed."
            )

    def before_instantiate_classes(self) -> None:
        """What names the run is read first; then bfloat16 is replaced where the processor has none."""
        self.text = self.parser.dump(self.config, skip_none=False)
        replace_bfloat16(self.config, device_of(self.config).type)

    def instantiate_classes(self) -> None:
        """Only if asked to: printing a configuration needs no weights."""
        if self._build:
            super().instantiate_classes()

    def build(self) -> FairAnonCLI:
        """Build what the configuration describes, with the same seeds as if it had just been read."""
        self._build = True
        self._set_seed()
        self.instantiate_classes()
        return self

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """Built by `build_trainer`, once the folder of the run is known."""
        self.trainer_settings = {**self._get(self.config_init, "trainer", default={}), **kwargs}
        return None  # type: ignore[return-value]  # nobody asks for it before `build_trainer` has made it
