"""What the methods' tests share."""

import os
import socket
import subprocess
import sys

from lightning.pytorch import Trainer

from fairanon.backbones.trainable import Lora

PLACES = {
    "U-Net": {"lora": Lora(rank=2)}, "text encoder": {"lora": Lora(rank=2, targets=()), "train_text_encoder": True},
}  # fmt: skip
"""Where adapters train."""


def trainer(folder, steps, **settings):
    defaults = {"accelerator": "cpu", "devices": 1, "logger": False, "enable_checkpointing": False,
                "enable_progress_bar": False, "enable_model_summary": False, "use_distributed_sampler": False,
                "limit_val_batches": 0, "gradient_clip_val": 1.0}  # fmt: skip
    return Trainer(default_root_dir=str(folder), max_steps=steps, **{**defaults, **settings})


def two_ranks(script, text):
    """Run a script in two processes that begin together: Lightning would start the second one late."""
    script.write_text(text)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "NODE_RANK": "0"}
    ranks = [
        subprocess.Popen(
            [sys.executable, str(script)], env={**os.environ, **place, "LOCAL_RANK": str(rank)},
            stderr=subprocess.PIPE, text=True,
        )
        for rank in range(2)
    ]  # fmt: skip
    said = [rank.communicate(timeout=300)[1] for rank in ranks]
    assert [rank.returncode for rank in ranks] == [0, 0], said[0][-2000:] + said[1][-2000:]


def trained(module):
    return {name: p.detach().clone() for name, p in module.named_parameters() if p.requires_grad}
