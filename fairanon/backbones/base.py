"""The shared diffusion backbone: what every method may ask of a text-to-image model.

Shapes: B batch, C latent channels, h x w latent size, H x W image size, L tokens, D width of the context.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from diffusers import (
    AutoencoderKL,
    DDPMScheduler,
    DiffusionPipeline,
    DPMSolverMultistepScheduler,
    UNet2DConditionModel,
)
from diffusers.models.attention import BasicTransformerBlock
from diffusers.models.resnet import ResnetBlock2D
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from transformers import PreTrainedTokenizerBase

from fairanon.backbones import hub
from fairanon.backbones.adapters import (
    DTYPES,
    START_FROM,
    Control,
    Lora,
    add_fused,
    cast_network,
)
from fairanon.backbones.inpainting import mask_latents
from fairanon.backbones.lora_files import lora_file
from fairanon.backbones.sampling import Sampling
from fairanon.backbones.sharding import gathered, shard, whole
from fairanon.backbones.trainable import Trainable, Whole, trainable
from fairanon.files import read_json
from fairanon.imaging import to_pixels
from fairanon.seeding import Key, keyed_randn

DType = Literal["float32", "bfloat16", "float16"]
HALF = ("bfloat16", "float16")
"""With these, half precision is enough for what is frozen."""


@contextmanager
def without_weights() -> Iterator[None]:
    """Inside, backbones are built on the meta device from configurations alone: to be counted, not to be used."""
    token = hub.OUTLINE.set(True)
    try:
        with torch.device("meta"):
            yield
    finally:
        hub.OUTLINE.reset(token)


def load(kind: Any, folder: Path, half: bool) -> Any:
    """A component in float32, read from its half-precision files where those are there and enough.

    Args:
        kind: Class of diffusers or transformers.
        folder: The component's.
        half: Whether half precision is enough.
    """
    if hub.OUTLINE.get():
        config = read_json(folder / "config.json", "model.backbone.model")
        return kind.from_config(config) if hasattr(kind, "from_config") else kind(kind.config_class.from_dict(config))
    return kind.from_pretrained(folder, variant=hub.variant(folder, half)).float()


def load_scheduler(folder: Path) -> DDPMScheduler:
    """The noise schedule; its numbers are real also where a model is only counted."""
    with torch.device("cpu"):
        return DDPMScheduler.from_pretrained(folder)


def tokenize(tokenizer: PreTrainedTokenizerBase, prompts: Sequence[str]) -> Tensor:
    """Token ids, cut and padded to the tokenizer's length as diffusers' pipelines do: int64 (B, L)."""
    return tokenizer(
        list(prompts),
        padding="max_length",
        max_length=tokenizer.model_max_length,
        truncation=True,
        return_tensors="pt",
    ).input_ids


def cut_off(tokenizer: PreTrainedTokenizerBase, prompts: Sequence[str]) -> list[str]:
    """What `tokenize` leaves out of each prompt, as words; "" where nothing is lost."""
    room = tokenizer.model_max_length - 2  # a beginning and an end come with it
    rows = tokenizer(list(prompts), add_special_tokens=False, verbose=False).input_ids if prompts else []
    return [str(tokenizer.decode(row[room:])).strip() if len(row) > room else "" for row in rows]


def refuse_cut_off(tokenizer: Any, texts: Sequence[str], key: str, remedy: str) -> None:
    """Refuse texts whose end a text encoder does not read.

    Args:
        tokenizer: The text encoder's.
        texts: N texts.
        key: Of the configuration, for the error message.
        remedy: What can be done.

    Raises:
        ValueError: One of them is too long.
    """
    for text, lost in zip(texts, cut_off(tokenizer, texts), strict=True):
        if lost:
            raise ValueError(f"{key}: {text!r} is too long for the text encoder ({lost!r} is cut off); {remedy}.")


@dataclass(frozen=True)
class Conditioning:
    """Encoded prompts.

    Attributes:
        context: float (B, L, D), one vector per token.
        pooled: float (B, P), one vector per prompt; None where the model has none.
        time_ids: float (B, 6), original size, crop corner and target size (height before width); None likewise.
        control: float (B, 3, H, W) in [0, 1], condition images for a control network; None without one.
        trained: By a text encoder that trains.
    """

    context: Tensor
    pooled: Tensor | None = None
    time_ids: Tensor | None = None
    control: Tensor | None = None
    trained: bool = False

    def __getitem__(self, rows: Tensor | slice) -> Conditioning:
        return Conditioning(
            self.context[rows],
            None if self.pooled is None else self.pooled[rows],
            None if self.time_ids is None else self.time_ids[rows],
            None if self.control is None else self.control[rows],
            self.trained,
        )


class Backbone(nn.Module, ABC):
    """A U-Net, an autoencoder, text encoders and a noise schedule.

    What trains is the U-Net (and the text encoder, if asked), adapters in one or both of them, or a control network beside the U-Net;
    everything else is frozen, in evaluation mode.

    Precision is decided here and nowhere else: what trains is loaded and held as float32, what is frozen is held in
    ``dtype``, and everything is computed in ``dtype`` under autocast (`computing`), in training, for the reference, in
    sampling, preparing and measuring alike. Latents, noise, predictions and images that go in and out are float32.
    """

    vae: AutoencoderKL
    unet: UNet2DConditionModel
    scheduler: Any  # a diffusers noise schedule
    control: Any
    """A network that trains beside the U-Net, if there is one."""
    trainable: Trainable
    _fingerprint: str
    _files: dict[str, tuple[Path, bool]]
    """Where the parts beside the U-Net were loaded from, and whether half precision was enough."""
    _unet_folder: Path

    @staticmethod
    @abstractmethod
    def wanted(**settings: Any) -> dict[str, hub.Wanted]:
        """The models that a backbone of these settings is put together from, by the setting that names each.

        Nothing is read, fetched or loaded.

        Args:
            settings: The constructor's arguments, or the same as a configuration has them.
        """

    @classmethod
    def missing(cls, **settings: Any) -> list[str]:
        """What is not there of a backbone of these settings, a sentence each; of models nothing but file lists is fetched."""
        problems = []
        for wanted in cls.wanted(**settings).values():
            try:
                hub.to_fetch(*wanted)
            except (OSError, ValueError) as error:
                problems.append(str(error))
        for key in ("lora", "control"):
            start = (settings.get(key) or {}).get("start_from")
            if start is not None and not Path(start).exists():
                problems.append(f"model.backbone.{key}.start_from: {start} is missing; give a file or folder, or null.")
        return problems

    def _finish(
        self,
        lora: Lora | None,
        control: Control | None,
        frozen: bool,
        dtype: DType | None,
        gradient_checkpointing: bool,
        channels_last: bool,
        text_encoder: nn.Module | None = None,
    ) -> None:
        """Freeze, attach what trains and set precision and memory layout; called last by every constructor."""
        self.dtype, self.frozen = DTYPES[dtype or "float32"], frozen
        self.requires_grad_(False)
        self.trainable = trainable(self.unet, text_encoder, lora, control, frozen, self.scale_factor, self.dtype)
        self.control = self.trainable.control
        for part in self.children():
            if part not in (*self.trainable.networks, self.control):
                cast_network(part, self.dtype)
        self._trained_text = text_encoder is not None
        self._pipelines: dict[tuple[bool, bool], DiffusionPipeline] = {}
        self._added: list[Any] = []
        self._outline: tuple[nn.Module, ...] = ()  # not a part of this one
        if gradient_checkpointing:
            self.unet.enable_gradient_checkpointing()
            if getattr(self.control, "_supports_gradient_checkpointing", False):
                self.control.enable_gradient_checkpointing()
        if channels_last:
            self.unet.to(memory_format=torch.channels_last)
            self.vae.to(memory_format=torch.channels_last)
        self.train(False)

    def free_reference(self) -> None:
        """Free the frozen copies; whoever asks for the reference afterwards is refused. Adapters step back as before."""
        self.trainable.copies = {}
        self._pipelines = {kind: pipeline for kind, pipeline in self._pipelines.items() if not kind[0]}

    def shard(self, mesh: DeviceMesh) -> None:
        """Lay what trains over the devices of a mesh; a second time does nothing."""
        if self._outline:
            return
        if self.trains_text_encoder:
            raise ValueError(
                "model.backbone.train_text_encoder: a text encoder that trains is not laid over devices; set it to false, "
                "or take OVERLAY=ddp."
            )
        self._outline = (shard(self.laid_out, self.blocks(self.laid_out), mesh),)

    @property
    def laid_out(self) -> Any:
        """The network that `shard` lays over devices: the one that trains."""
        return self.unet if self.control is None else self.control

    @contextmanager
    def gathered(self) -> Iterator[None]:
        """Inside, every device holds all that trains and computes alone; where nothing is sharded it changes nothing."""
        with gathered(self.laid_out):
            yield

    def put_together(self) -> None:
        """Every device holds all that was trained, for good; all must ask. Where nothing is sharded it changes nothing."""
        if not self._outline:
            return
        self._pipelines, (outline,), self._outline = {}, self._outline, ()
        if self.control is None:
            self.unet = whole(self.unet, outline)
            self.trainable.networks = (self.unet,)
        else:
            self.control = self.trainable.control = whole(self.control, outline)

    def keep_unet_alone(self) -> None:
        """Free the reference and the text encoder, for methods that need neither."""
        self.free_reference()
        self._modules.pop("text_encoder", None)

    def train(self, mode: bool = True) -> Backbone:
        """Only what trains follows the mode; what is frozen stays in evaluation mode."""
        super().train(False)
        for network in self._training_networks():
            network.train(mode)
        return self

    def _training_networks(self) -> list[Any]:
        return [*self.trainable.networks, *([] if self.control is None else [self.control])]

    def _apply(self, fn, recurse: bool = True):  # type: ignore[no-untyped-def]  # nn.Module's own signature
        """Move the frozen copies with the rest."""
        if "trainable" in self.__dict__:
            for network in self.trainable.copies.values():
                network._apply(fn, recurse)
        return super()._apply(fn, recurse)  # type: ignore[no-untyped-call]

    @property
    def prediction_type(self) -> Literal["epsilon", "v_prediction"]:
        """What the U-Net predicts."""
        return self.scheduler.config.prediction_type

    @property
    def num_timesteps(self) -> int:
        """Number of training timesteps."""
        return int(self.scheduler.config.num_train_timesteps)

    @property
    def latent_channels(self) -> int:
        """C."""
        return int(self.vae.config.latent_channels)

    @property
    def inpaints(self) -> bool:
        """Whether the U-Net also takes a mask and the latents of the masked image: 2C + 1 channels."""
        return int(self.unet.config.in_channels) == 2 * self.latent_channels + 1

    @property
    def scale_factor(self) -> int:
        """Image size divided by latent size."""
        return int(2 ** (len(self.vae.config.block_out_channels) - 1))

    def fingerprint(self) -> str:
        """Names the exact model that trains: its id and a digest of its U-Net's files."""
        return self._fingerprint

    def knows(self, fingerprint: str) -> bool:
        """Whether it names this base model, in whichever precision its files were read."""
        name, _, digest = fingerprint.rpartition(" ")
        same = name == self._fingerprint.rpartition(" ")[0]
        return same and digest in {hub.digest(self._unet_folder, half) for half in (True, False)}

    def blocks(self, network: nn.Module | None = None) -> list[nn.Module]:
        """The blocks of a network, of the U-Net if none is given: gradient checkpointing recomputes them one by one."""
        parts = (self.unet if network is None else network).modules()
        return [part for part in parts if isinstance(part, (ResnetBlock2D, BasicTransformerBlock))]

    def origin(self) -> list[Any]:
        """Everything that images of the reference depend on, for the names of what is made of them."""
        schedule = {key: str(value) for key, value in self.scheduler.config.items() if not key.startswith("_")}
        adapters = self.trainable.lora.start_from if self.trainable.lora is not None else None
        digests = {name: hub.digest(path, half) for name, (path, half) in self._files.items()}
        return [
            self._fingerprint,
            digests,
            schedule,
            str(self.dtype),
            None if adapters is None else hub.digest(lora_file(adapters, START_FROM)),
            [] if isinstance(self.trainable, Whole) else self._added,  # a copy was made before they were added
        ]

    @property
    def trains_adapters(self) -> bool:
        """Whether low-rank adapters train."""
        return self.trainable.lora is not None

    @property
    def trains_text_encoder(self) -> bool:
        """Whether the text encoder trains; captions must then be encoded anew in every step, with gradient."""
        return self._trained_text

    def sizes(self) -> dict[str, int]:
        """Bytes of what trains, of what is frozen, of the reference that stands beside it."""
        counts = {"trains": 0, "frozen": 0, "reference": 0}
        for parameter in self.parameters():
            counts["trains" if parameter.requires_grad else "frozen"] += parameter.numel() * parameter.element_size()
        for network in self.trainable.copies.values():
            counts["reference"] += sum(p.numel() * p.element_size() for p in network.parameters())
        return counts

    @property
    def device(self) -> torch.device:
        """Where the U-Net is."""
        return self.unet.device

    def computing(self) -> AbstractContextManager[None]:
        """Inside, networks compute in this backbone's precision; pipelines round its modules are called in it.

        For float32 it changes nothing: a trainer's own autocast, where there is one, stays.
        """
        if self.dtype == torch.float32:
            return nullcontext()
        return torch.autocast(self.device.type, self.dtype)

    def encode_images(self, images: Tensor, noise: Tensor | None = None) -> Tensor:
        """Images to scaled latents, without gradient.

        Args:
            images: float (B, 3, H, W) in [-1, 1].
            noise: Standard normal (B, C, h, w) to sample the posterior; None takes its mean.

        Returns:
            float32 (B, C, h, w), standard deviation about 1.
        """
        with torch.no_grad(), self.computing():
            posterior = self.vae.encode(images).latent_dist
            latents = posterior.mean.float()
            if noise is not None:
                latents = latents + posterior.std.float() * noise
            return latents * float(self.vae.config.scaling_factor)

    def mask_latents(self, images: Tensor, masks: Tensor) -> Tensor:
        """What tells an inpainting model where to draw, see `fairanon.backbones.inpainting.mask_latents`."""
        with torch.no_grad(), self.computing():
            return mask_latents(self.vae, images, masks)

    def decode(self, latents: Tensor) -> Tensor:
        """Scaled latents (B, C, h, w) to images: float32 (B, 3, H, W), about [-1, 1]; differentiable."""
        with self.computing():
            return self.vae.decode(latents.float() / float(self.vae.config.scaling_factor)).sample.float()

    def decoder_features(self, latents: Tensor) -> Tensor:
        """What the decoder's middle makes of scaled latents: float32 (B, F, h, w); differentiable."""
        scaled = latents / float(self.vae.config.scaling_factor)
        with self.computing():
            if self.vae.post_quant_conv is not None:
                scaled = self.vae.post_quant_conv(scaled)
            return self.vae.decoder.mid_block(self.vae.decoder.conv_in(scaled)).float()

    @abstractmethod
    def encode_prompts(self, prompts: Sequence[str], reference: bool = False) -> Conditioning:
        """Prompts to the U-Net's conditioning, without gradient unless the text encoder trains; "" is no condition.

        Args:
            prompts: B prompts.
            reference: As they were encoded before training, without gradient.
        """

    def framed(self, conditioning: Conditioning, frames: Tensor) -> Conditioning:
        """The conditioning for images that were cut from others; most models are not told.

        Args:
            conditioning: Encoded prompts of B rows.
            frames: int64 (B, 4), see `fairanon.batches.RegionBatch`.
        """
        return conditioning

    def embed_prompts(self, prompts: Sequence[str], reference: bool = False) -> Tensor:
        """One vector per prompt, see `StableDiffusion.embed_prompts`."""
        raise ValueError(f"model.backbone: {type(self).__name__} has no embeddings of whole prompts.")

    @abstractmethod
    def build_pipeline(self, reference: bool = False, steered: bool = False) -> DiffusionPipeline:
        """A diffusers pipeline round this backbone's modules, with a DPM-Solver++ sampler.

        Args:
            reference: With the frozen copies in the place of what trained as a whole; adapters are the caller's business.
            steered: With the control network.
        """

    @abstractmethod
    def _unet_arguments(self, conditioning: Conditioning) -> dict[str, object]:
        """Keyword arguments of the U-Net."""

    def add_noise(self, latents: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """Forward diffusion: sqrt(abar_t) x0 + sqrt(1 - abar_t) noise; all (B, C, h, w), timesteps int64 (B,)."""
        signal, spread = self._levels(timesteps, latents)
        return signal * latents + spread * noise

    def target(self, latents: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """What the U-Net should predict: the noise, or the velocity sqrt(abar_t) noise - sqrt(1 - abar_t) x0."""
        if self.prediction_type == "epsilon":
            return noise
        signal, spread = self._levels(timesteps, latents)
        return signal * noise - spread * latents

    def predict_x0(self, noisy: Tensor, prediction: Tensor, timesteps: Tensor) -> Tensor:
        """The clean latents that a prediction implies; differentiable in ``prediction``."""
        signal, spread = self._levels(timesteps, noisy)
        if self.prediction_type == "epsilon":
            return (noisy - spread * prediction) / signal
        return signal * noisy - spread * prediction

    def alphas_cumprod(self, timesteps: Tensor) -> Tensor:
        """The signal's share of the variance, abar: float32 (B,) at timesteps int64 (B,)."""
        return self.scheduler.alphas_cumprod.to(timesteps.device)[timesteps]

    def _levels(self, timesteps: Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
        abar = self.alphas_cumprod(timesteps).to(like).view(-1, 1, 1, 1)
        return abar.sqrt(), (1 - abar).sqrt()

    def predict(self, noisy: Tensor, timesteps: Tensor, conditioning: Conditioning) -> Tensor:
        """The U-Net's prediction: float32 (B, C, h, w).

        Args:
            noisy: float (B, C, h, w); 2C + 1 channels for an inpainting model.
            timesteps: int64 (B,).
            conditioning: Encoded prompts of B rows.
        """
        with self.computing():
            arguments = self._unet_arguments(conditioning)
            steering = self.trainable.steer(noisy, timesteps, conditioning.control, arguments)
            return self.unet(noisy, timesteps, **arguments, **steering).sample.float()

    def predict_reference(self, noisy: Tensor, timesteps: Tensor, conditioning: Conditioning) -> Tensor:
        """What the reference predicts, without gradient; of a control network, the model without it."""
        if conditioning.trained:
            raise ValueError(
                "model.backbone.train_text_encoder: an objective with a reference model compares both under the same "
                "prompts; leave the text encoder frozen."
            )
        unet = self.trainable.copies.get("unet", self.unet)
        with torch.no_grad(), self.trainable.reference(), self.computing():
            return unet(noisy, timesteps, **self._unet_arguments(conditioning)).sample.float()

    def last_block(self) -> list[nn.Parameter]:
        """What trains in the last block that has something that trains."""
        return self.trainable.last_block(self.unet)

    @contextmanager
    def sampling(
        self, reference: bool = False, steered: bool = False, lora_weight: float = 1.0
    ) -> Iterator[DiffusionPipeline]:
        """Inside, a pipeline of the trained model or of its reference; evaluation mode, no gradients.

        Args:
            reference: The reference.
            steered: With the control network.
            lora_weight: How strongly trained adapters act; 1 changes nothing, without adapters either.
        """
        training = any(network.training for network in self._training_networks())
        self.eval()
        pipeline = self._pipeline(reference, steered)
        acting = self.trainable.reference() if reference else self.trainable.weighted(lora_weight)
        try:
            with torch.no_grad(), self.computing(), acting:
                yield pipeline
        finally:
            self.train(training)

    def _pipeline(self, reference: bool, steered: bool) -> DiffusionPipeline:
        """`build_pipeline`, once for each kind: faces are drawn one by one."""
        if (reference, steered) not in self._pipelines:
            self._pipelines[reference, steered] = self.build_pipeline(reference, steered)
            self._pipelines[reference, steered].set_progress_bar_config(disable=True)
        return self._pipelines[reference, steered]

    def fuse(self, weight: float) -> None:
        """Make the trained adapters, times ``weight``, part of the weights; they are gone afterwards."""
        self.trainable.fuse(weight)

    def add(self, lora: str, weight: float) -> None:
        """Add adapters that another run trained to the U-Net's own weights.

        Args:
            lora: See `read_lora`; a text-to-image model's fits an inpainting model.
            weight: How strongly it acts; Ano-Face-Fair's official code has 0.5.
        """
        if self.trains_adapters:
            raise ValueError(
                "start_from.lora: the model trains low-rank adapters itself; set model.backbone.lora to null."
            )
        add_fused(self.unet, lora, weight)
        self._added = [hub.digest(lora_file(lora, "start_from.lora")), weight]

    def sample(
        self,
        prompts: Sequence[str],
        keys: Sequence[Sequence[Key]],
        sampling: Sampling,
        size: int | None = None,
        controls: Tensor | None = None,
    ) -> Tensor:
        """Sample images; image i depends on ``prompts[i]`` and ``keys[i]``, not on its place in the batch.

        Args:
            prompts: B prompts.
            keys: B keys of the starting noise.
            sampling: How.
            size: Image side; None is the model's own.
            controls: Condition images for a control network, uint8 (B, 3, H, W).

        Returns:
            uint8 (B, 3, size, size) on the CPU.
        """
        noise = self.starting_noise(keys, size)
        steered = {} if self.control is None or sampling.reference else {"image": _condition(controls).to(self.device)}
        with self.sampling(sampling.reference, bool(steered), sampling.lora_weight) as pipeline:
            latents = pipeline(
                prompt=list(prompts),
                latents=noise,
                num_inference_steps=sampling.steps,
                guidance_scale=sampling.guidance_scale,
                height=noise.shape[-2] * self.scale_factor,
                width=noise.shape[-1] * self.scale_factor,
                output_type="latent",
                **steered,
            ).images
            return to_pixels(self.decode(latents)).cpu()

    def starting_noise(self, keys: Sequence[Sequence[Key]], size: int | None = None) -> Tensor:
        """Noise to sample from, (B, C, h, w), one draw per key; ``size`` is the image side, None the model's own."""
        side = int(self.unet.config.sample_size) if size is None else size // self.scale_factor
        return keyed_randn(keys, (self.latent_channels, side, side)).to(self.device)

    def sampler(self) -> DPMSolverMultistepScheduler:
        """DPM-Solver++ for this model's noise schedule."""
        return DPMSolverMultistepScheduler.from_config(self.scheduler.config)


def _condition(controls: Tensor | None) -> Tensor:
    """Condition images as control networks take them: uint8 (B, 3, H, W) to float32 [0, 1]."""
    if controls is None:
        raise ValueError("evaluate.prompts: the control network needs condition images; name a data set's prompts.")
    return controls.float() / 255
