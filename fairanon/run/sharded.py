"""The strategy of ``OVERLAY=shard``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lightning.pytorch.strategies import ModelParallelStrategy

from fairanon.methods.load import read_checkpoint


class Sharded(ModelParallelStrategy):
    """What trains is laid over all devices of all machines; a checkpoint is one file that any number of devices reads."""

    def __init__(self) -> None:
        super().__init__(tensor_parallel_size=1, save_distributed_checkpoint=False)

    def setup_environment(self) -> None:
        """See Lightning: as many parts as there are processes."""
        self._data_parallel_size = self.num_nodes * self.num_processes
        super().setup_environment()

    def load_checkpoint(self, checkpoint_path: Any, weights_only: bool | None = None) -> dict[str, Any]:
        """See Lightning; the method looks at all of it before, and refuses what does not fit."""
        assert self.lightning_module is not None
        self.lightning_module.on_load_checkpoint(read_checkpoint(Path(checkpoint_path)))
        return super().load_checkpoint(checkpoint_path, weights_only=weights_only)
