"""``OVERLAY=shard``: its strategy, and what ends it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch.distributed as dist
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.strategies import ModelParallelStrategy
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)
from torch.optim import Optimizer

from fairanon.config.experiments import UserError
from fairanon.methods.base import DiffusionMethod
from fairanon.methods.load import read_checkpoint


class Sharded(ModelParallelStrategy):
    """What trains is laid over all devices of all machines.

    A checkpoint is the file that one device writes: any number of devices goes on with it, sharded or not.
    """

    def __init__(self) -> None:
        super().__init__(tensor_parallel_size=1, save_distributed_checkpoint=False)

    def setup_environment(self) -> None:
        """See Lightning: as many parts as there are processes."""
        self._data_parallel_size = self.num_nodes * self.num_processes
        super().setup_environment()

    def setup_optimizers(self, trainer: Trainer) -> None:
        """See Lightning; refuses an optimizer that does not know sharded weights."""
        super().setup_optimizers(trainer)
        for optimizer in self.optimizers:
            if type(optimizer).__module__.startswith("bitsandbytes"):
                raise UserError(
                    "model.optimizer: bitsandbytes does not know weights that are laid over devices; take torch's."
                )

    def optimizer_state(self, optimizer: Optimizer) -> dict[str, Any]:
        """The whole state on the first rank, numbered as one device numbers it; nothing on the others."""
        assert self.model is not None
        plain = getattr(optimizer, "_optimizer", optimizer)
        state = get_optimizer_state_dict(
            self.model, plain, options=StateDictOptions(full_state_dict=True, cpu_offload=True)
        )
        if self.global_rank:
            return {}
        return _renamed(state, {name: number for number, name in enumerate(self._names())})

    def load_checkpoint(self, checkpoint_path: Any, weights_only: bool | None = None) -> dict[str, Any]:
        """See Lightning; each rank reads the file, and the method refuses what does not fit before anything is loaded."""
        assert self.model is not None
        assert self.lightning_module is not None
        checkpoint = read_checkpoint(Path(self.broadcast(checkpoint_path)))
        self.lightning_module.on_load_checkpoint(checkpoint)
        options = StateDictOptions(full_state_dict=True, strict=False)
        set_model_state_dict(self.model, checkpoint.pop("state_dict"), options=options)
        for optimizer, state in zip(self.optimizers, checkpoint["optimizer_states"], strict=True):
            if state["state"]:
                named = _renamed(state, dict(enumerate(self._names())))
                set_optimizer_state_dict(self.model, optimizer, named, options=StateDictOptions(full_state_dict=True))
            for group, saved in zip(optimizer.param_groups, state["param_groups"], strict=True):
                group.update({key: value for key, value in saved.items() if key != "params"})
        return checkpoint

    def _names(self) -> list[str]:
        """What trains, in the order in which an optimizer on one device numbers it."""
        assert self.model is not None
        return [name for name, value in self.model.named_parameters() if value.requires_grad]


def _renamed(state: Mapping[str, Any], names: Mapping[Any, Any]) -> dict[str, Any]:
    groups = [{**group, "params": [names[name] for name in group["params"]]} for group in state["param_groups"]]
    return {"state": {names[name]: value for name, value in state["state"].items()}, "param_groups": groups}


class PutTogether(Callback):
    """After the training every device has all of what was trained: it is measured and exported. No checkpoint is written any more."""

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Free what the optimizer held, then gather."""
        if not isinstance(trainer.strategy, Sharded) or not isinstance(pl_module, DiffusionMethod):
            return
        for optimizer in trainer.strategy.optimizers:
            optimizer.zero_grad(set_to_none=True)
            optimizer.state.clear()
        trainer.strategy.optimizers = []
        pl_module.backbone.put_together()
        if dist.is_initialized():
            trainer.strategy.barrier()
