"""The one loop that trains every embedded asset: resumable, with a progress bar and an average of the weights."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from fairanon.files import atomic_write
from fairanon.progress import progress_bar


def train_asset(
    module: nn.Module,
    loss: Callable[[int], dict[str, Tensor]],
    *,
    name: str,
    steps: int,
    learning_rate: float,
    work: Path,
    ema: float = 0.999,
    weight_decay: float = 0.01,
    save_every: int = 250,
) -> None:
    """Train ``module`` in place and leave the averaged weights in it.

    The state is written to ``work/name.safetensors`` every ``save_every`` steps (temporary name, then rename),
    so the same call goes on after an interruption and returns at once after the last step.

    Args:
        module: What trains, all of it.
        loss: Step number to named losses; their sum is minimised. Must draw its batch from the step number.
        name: Names the state file and the progress bar.
        steps: Number of optimizer steps (AdamW, 100 steps of warm-up, cosine decay to a tenth).
        learning_rate: Peak learning rate.
        work: Folder of unfinished work.
        ema: Decay of the exponential average of the weights.
        weight_decay: Of AdamW.
        save_every: Steps between two states.
    """
    parameters = dict(module.named_parameters())
    optimizer = torch.optim.AdamW(parameters.values(), lr=learning_rate, weight_decay=weight_decay)
    scheduler = torch.optim.lr_scheduler.LambdaLR(
        optimizer,
        lambda k: min(1.0, (k + 1) / 100) * (0.55 + 0.45 * math.cos(math.pi * min(1.0, k / steps))),
    )
    average = {key: value.detach().clone() for key, value in parameters.items()}
    path = work / f"{name}.safetensors"
    first = 0
    if path.exists():
        state = load_file(path)
        first = int(state["step"])
        with torch.no_grad():
            for key, value in parameters.items():
                value.copy_(state[f"weight.{key}"])
                average[key].copy_(state[f"average.{key}"])
                # The same tensors that AdamW would have made.
                optimizer.state[value] = {
                    "step": torch.tensor(float(first)),
                    "exp_avg": state[f"first.{key}"],
                    "exp_avg_sq": state[f"second.{key}"],
                }
        scheduler.last_epoch = first - 1
        scheduler.step()

    def save(step: int) -> None:
        state = {"step": torch.tensor(step)}
        for key, value in parameters.items():
            state[f"weight.{key}"] = value.detach().contiguous()
            state[f"average.{key}"] = average[key].contiguous()
            state[f"first.{key}"] = optimizer.state[value]["exp_avg"].contiguous()
            state[f"second.{key}"] = optimizer.state[value]["exp_avg_sq"].contiguous()
        with atomic_write(path) as partial:
            save_file(state, partial)

    module.train()
    bar = progress_bar(range(first, steps), desc=name, initial=first, total=steps, mininterval=2.0)
    for step in bar:
        parts = loss(step)
        total = torch.stack(list(parts.values())).sum()
        if not torch.isfinite(total):
            raise RuntimeError(f"{name}: the loss is {total.item()} at step {step}; lower the learning rate.")
        optimizer.zero_grad(set_to_none=True)
        total.backward()
        nn.utils.clip_grad_norm_(parameters.values(), 1.0)
        optimizer.step()
        scheduler.step()
        with torch.no_grad():
            decay = min(ema, (1 + step) / (10 + step))
            torch._foreach_lerp_(list(average.values()), [v.detach() for v in parameters.values()], 1 - decay)
        if step % 20 == 0:
            bar.set_postfix({key: f"{value.item():.4f}" for key, value in parts.items()})
        if (step + 1) % save_every == 0 or step + 1 == steps:
            save(step + 1)
    with torch.no_grad():
        for key, value in parameters.items():
            value.copy_(average[key])
    module.eval().requires_grad_(False)
