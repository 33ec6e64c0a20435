"""What every method shares: frozen parts, what goes into a checkpoint, keyed randomness, the optimizer."""

from __future__ import annotations

import hashlib
import json
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from lightning.pytorch import LightningModule
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from safetensors.torch import save_file
from torch import Tensor
from torch.distributed.tensor import DTensor

from fairanon.backbones import Backbone, Conditioning, Sampling
from fairanon.backbones.export import export_pipeline, export_weights
from fairanon.backbones.sharding import total_norm
from fairanon.batches import PromptRow
from fairanon.config.experiments import UserError
from fairanon.files import atomic_write
from fairanon.imaging import to_model
from fairanon.pipelines.sample import sample_rows
from fairanon.seeding import Key, keyed_randint, keyed_randn, keyed_uniform


class ConstantWithWarmup(torch.optim.lr_scheduler.LambdaLR):
    """A learning rate that rises linearly for ``warmup`` optimizer steps and then stays.

    Args:
        optimizer: Whose learning rate it is.
        warmup: Steps of the rise; 0 starts at the full rate.
    """

    def __init__(self, optimizer: torch.optim.Optimizer, warmup: int = 0) -> None:
        super().__init__(optimizer, lambda step: min(1.0, (step + 1) / (warmup + 1)))


def sum_over_ranks(value: Tensor) -> Tensor:
    """Sum of a detached tensor over all ranks; itself on one rank."""
    if dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
        value = value.clone()
        dist.all_reduce(value)
    return value


class NonFiniteLossError(UserError):
    """The loss is not a number; the message names the step and the saved batch."""


def save_batch(folder: Path, step: int, batch: Any) -> Path:
    """Write a batch's tensors and texts as ``bad-batch-STEP.safetensors``; the texts are its metadata."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"bad-batch-{step}.safetensors"
    values = vars(batch)
    tensors = {name: value.contiguous().cpu() for name, value in values.items() if isinstance(value, Tensor)}
    texts = {name: json.dumps(value) for name, value in values.items() if not isinstance(value, Tensor)}
    with atomic_write(path) as partial:
        save_file(tensors, partial, metadata=texts)
    return path


@dataclass(frozen=True)
class Noised:
    """Noisy samples, all that the model is asked about them, and what it should answer.

    Attributes:
        latents: float32 (B, C, h, w), clean.
        noise: Likewise.
        timesteps: int64 (B,).
        noisy: Latents with noise.
        target: What the model should predict.
        condition: Encoded captions.
    """

    latents: Tensor
    noise: Tensor
    timesteps: Tensor
    noisy: Tensor
    target: Tensor
    condition: Conditioning

    def __getitem__(self, rows: Tensor | slice) -> Noised:
        return Noised(**{field.name: getattr(self, field.name)[rows] for field in fields(self)})


class DiffusionMethod(LightningModule):
    """Base of the methods.

    A method that has numbers on held-out data has a ``held_out(batch, reference)``: for each number, by its key in
    metrics.json (``loss/val/face``), one value per sample, float (B,), NaN where a sample does not have it; of the
    reference with ``reference``. It is called in evaluation mode without gradients.

    Args:
        backbone: The diffusion model; says itself what of it trains.
        optimizer: Called with the trainable parameters.
        lr_scheduler: Called with the optimizer, stepped after each optimizer step.
        caption_dropout: Share of captions replaced by "".
        seed: Of the noise of the run.
    """

    trains = True
    """Whether there is something to train; `BaseModel` is measured alone."""
    frees_reference = False
    """Whether no reference stands beside the model while it trains."""

    def __init__(
        self,
        backbone: Backbone,
        optimizer: OptimizerCallable = torch.optim.AdamW,
        lr_scheduler: LRSchedulerCallable = ConstantWithWarmup,
        caption_dropout: float = 0.0,
        seed: int = 0,
    ) -> None:
        super().__init__()
        if not 0 <= caption_dropout < 1:
            raise ValueError(f"caption_dropout must be in [0, 1), got {caption_dropout}.")
        if backbone.frozen == self.trains:
            reason = (
                "nothing would train"
                if self.trains
                else "nothing trains here, and a frozen model takes half the memory"
            )
            raise ValueError(f"model.backbone.frozen: {reason}; set it to {str(not self.trains).lower()}.")
        self.backbone = backbone
        self._optimizer, self._lr_scheduler = optimizer, lr_scheduler
        self.caption_dropout, self.noise_seed = caption_dropout, seed
        self.strict_loading = False  # the checkpoint holds what trains; `on_load_checkpoint` checks the keys

    @property
    def gradient_rows(self) -> int:
        """How many gradients of everything that trains a step holds at once."""
        return 1

    def configure_model(self) -> None:
        """Lay what trains over the devices, where the strategy says so."""
        if self.device_mesh is None:
            return
        if self.trainer.max_steps == 0:
            raise UserError("trainer.strategy: with trainer.max_steps 0 nothing trains; leave OVERLAY=shard out.")
        self.backbone.shard(self.device_mesh["data_parallel"])
        left = [name for name, p in self.named_parameters() if p.requires_grad and not isinstance(p, DTensor)]
        if left or not self.automatic_optimization:
            why = f"{left[0]} trains beside the diffusion model" if left else "it steps its optimizer itself"
            raise UserError(
                f"trainer.strategy: {type(self).__name__} is not laid over devices ({why}); take OVERLAY=ddp."
            )

    def configure_optimizers(self) -> Any:
        """Optimizer over the trainable parameters, schedule per optimizer step."""
        optimizer = self._optimizer([p for p in self.parameters() if p.requires_grad])
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": self._lr_scheduler(optimizer), "interval": "step"},
        }

    def noised(
        self, latents: Tensor, keys: Sequence[str], captions: Sequence[str] | Conditioning, minimum: int = 0
    ) -> Noised:
        """Samples with noise and timesteps from generators keyed by (seed, sample and pass).

        Validation has the same noise in every run, whatever its seed.

        Args:
            latents: float32 (B, C, h, w), clean.
            keys: One key per sample, see `fairanon.batches`.
            captions: B captions, or what they are encoded as.
            minimum: The smallest timestep.
        """
        full = [(self.noise_seed, "train", key) if self.training else ("val", key) for key in keys]
        noise = keyed_randn([(*key, "noise") for key in full], latents.shape[1:])
        count = self.backbone.num_timesteps - minimum
        timesteps = minimum + keyed_randint([(*key, "timestep") for key in full], count)
        condition = captions if isinstance(captions, Conditioning) else self.condition(captions, keys)
        return self._noised(latents, noise.to(self.device), timesteps.to(self.device), condition)

    def with_latents(self, x: Noised, latents: Tensor) -> Noised:
        """Other latents with the noise, timesteps and conditions of ``x``."""
        return self._noised(latents, x.noise, x.timesteps, x.condition)

    def _noised(self, latents: Tensor, noise: Tensor, timesteps: Tensor, condition: Conditioning) -> Noised:
        noisy, target = (f(latents, noise, timesteps) for f in (self.backbone.add_noise, self.backbone.target))
        return Noised(latents, noise, timesteps, noisy, target, condition)

    def posterior_noise(self, keys: Sequence[str], shape: Sequence[int], side: str) -> Tensor:
        """Noise that samples the autoencoder's posterior, keyed as in `noised`."""
        return keyed_randn([(self.noise_seed, "posterior", key, side) for key in keys], shape).to(self.device)

    def condition(self, captions: Sequence[str], keys: Sequence[str]) -> Conditioning:
        """Encode captions, some of them emptied (`caption_dropout`) in training."""
        if self.training and self.caption_dropout:
            u = keyed_uniform([(self.noise_seed, "caption", key) for key in keys])
            captions = ["" if drop else text for text, drop in zip(captions, u < self.caption_dropout, strict=True)]
        return self.backbone.encode_prompts(captions)

    def latents(self, pixels: Tensor, keys: Sequence[str], side: str = "image") -> Tensor:
        """Latents of uint8 images (B, 3, H, W), a posterior sample in training and its mean otherwise."""
        side_px = pixels.shape[-1] // self.backbone.scale_factor
        shape = (self.backbone.latent_channels, pixels.shape[-2] // self.backbone.scale_factor, side_px)
        noise = self.posterior_noise(keys, shape, side) if self.training else None
        return self.backbone.encode_images(to_model(pixels), noise)

    # --- steps ------------------------------------------------------------------------------------------

    @abstractmethod
    def loss(self, batch: Any) -> tuple[Tensor, dict[str, Tensor]]:
        """The method's objective.

        Args:
            batch: The method's batch type, already on this module's device.

        Returns:
            The scalar to minimise, and what to log beside it (detached scalars).
        """

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        """One objective, checked and logged."""
        value, logs = self.loss(batch)
        self.check_finite(value, batch)
        self.log_dict(
            {"train/loss": value.detach(), **{f"train/{k}": v for k, v in logs.items()}}, batch_size=len(batch)
        )
        return value

    def check_finite(self, value: Tensor, batch: Any) -> None:
        """End the run if a loss is not a number, with the batch saved."""
        if not bool(torch.isfinite(value).all()):
            path = save_batch(Path(self.trainer.default_root_dir), self.global_step, batch)
            raise NonFiniteLossError(
                f"the loss is {value.tolist()} at step {self.global_step}; its batch is saved as {path}; "
                "a smaller learning rate or full precision is the usual remedy."
            )

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        """The objective on held-out data, with the same noise in every epoch."""
        value, logs = self.loss(batch)
        self.log_dict(
            {"val/loss": value, **{f"val/{k}": v for k, v in logs.items()}}, batch_size=len(batch), sync_dist=True
        )

    def images(
        self,
        rows: Sequence[PromptRow],
        keys: Sequence[Sequence[Key]],
        sampling: Sampling,
    ) -> Tensor:
        """What the model makes of prompts, or of images that come with them.

        Args:
            rows: B prompts; each has an image and a mask, or none has.
            keys: B keys of the starting noise.
            sampling: How.

        Returns:
            uint8 (B, 3, H, W) on the CPU.
        """
        return sample_rows(self.backbone, rows, keys, sampling)

    def check_use(self, rows: Sequence[PromptRow], sampling: Sampling) -> None:
        """Refuse what `images` could not do, before anything is prepared or trained.

        Args:
            rows: All prompts that it will be asked for.
            sampling: How.

        Raises:
            ValueError: Names the setting.
        """
        if sampling.lora_weight != 1 and not self.backbone.trains_adapters:
            raise ValueError(
                f"evaluate.lora_weight is {sampling.lora_weight}, but the model has no low-rank adapters; leave it at 1."
            )
        for row in rows:
            if row.holds("image") != rows[0].holds("image") or row.holds("image") != row.holds("mask"):
                raise ValueError(f"evaluate.prompts: give every row an image and a mask, or none ({row.prompt!r}).")
            if self.backbone.control is not None and not row.holds("control"):
                raise ValueError(
                    f"evaluate.prompts: the control network needs a condition image with every prompt, and "
                    f"{row.prompt!r} has none; name a data set whose prompts have them."
                )

    def settings_of_use(self) -> tuple[Any, ...]:
        """What else than its weights the trained model's images depend on; names stored judgements."""
        return ()

    def weights_digest(self) -> str:
        """Names the exact trained weights."""
        hasher = hashlib.sha256()
        trained = {name: value for name, value in self.named_parameters() if value.requires_grad}
        for name, value in sorted(trained.items()):
            hasher.update(name.encode() + value.detach().cpu().flatten().view(torch.uint8).numpy().tobytes())
        return hasher.hexdigest()[:16]

    def export_weights(self, folder: Path, name: str) -> Path:
        """Write what was trained, see `fairanon.backbones.export.export_weights`."""
        return export_weights(self.backbone, folder, name)

    def export_pipeline(self, folder: str | Path, name: str, lora_weight: float = 1.0) -> Path:
        """Write a pipeline that needs nothing else, see `fairanon.backbones.export.export_pipeline`."""
        return export_pipeline(self.backbone, Path(folder), name, lora_weight)

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Log the gradient norm, after unscaling and before clipping; a method that does both itself logs it itself."""
        if not self.automatic_optimization:
            return
        gradients = [p.grad for p in self.parameters() if p.grad is not None]
        self.log("train/gradient_norm", total_norm(gradients))

    # --- checkpoints hold what trains -------------------------------------------------------------------

    def _trainable_names(self) -> set[str]:
        return {name for name, parameter in self.named_parameters() if parameter.requires_grad}

    def state_dict(self, *args: Any, **kwargs: Any) -> dict[str, Any]:  # type: ignore[override]  # overloads
        """The trainable parameters only."""
        prefix = kwargs.get("prefix", args[1] if len(args) > 1 else "")
        names = self._trainable_names()
        full = super().state_dict(*args, **kwargs)
        for key in [key for key in full if key.startswith(prefix) and key.removeprefix(prefix) not in names]:
            del full[key]
        return full

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Record which base model the trained tensors belong to."""
        checkpoint["base_model"] = self.backbone.fingerprint()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Refuse another base model and other tensors than those that train."""
        base_model = checkpoint.get("base_model")
        if base_model is None or not self.backbone.knows(base_model):
            raise ValueError(
                f"ckpt_path: the checkpoint was trained on another base model ({base_model}) than "
                f"model.backbone.model names ({self.backbone.fingerprint()}); give the base model it was trained on."
            )
        if "state_dict" in checkpoint:  # `Sharded` takes it out, and has shown it before
            self._check_keys(checkpoint["state_dict"])

    def _check_keys(self, state: Mapping[str, Any]) -> None:
        names = self._trainable_names()
        if set(state) != names:
            missing, extra = sorted(names - set(state))[:3], sorted(set(state) - names)[:3]
            raise ValueError(
                f"ckpt_path: the checkpoint does not fit what trains here (missing {missing}, unexpected {extra}); "
                "use the lora settings it was trained with."
            )
