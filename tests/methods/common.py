"""What the methods' tests share."""

from lightning.pytorch import Trainer


def trainer(folder, steps, **settings):
    defaults = {"accelerator": "cpu", "devices": 1, "logger": False, "enable_checkpointing": False,
                "enable_progress_bar": False, "enable_model_summary": False, "use_distributed_sampler": False,
                "limit_val_batches": 0, "gradient_clip_val": 1.0}  # fmt: skip
    return Trainer(default_root_dir=str(folder), max_steps=steps, **{**defaults, **settings})


def trained(module):
    return {name: p.detach().clone() for name, p in module.named_parameters() if p.requires_grad}
