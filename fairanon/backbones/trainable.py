"""What trains in a backbone or beside it: how it is attached, what it adds, how to get back to the reference, how it leaves."""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Literal

import torch
from diffusers import ControlNetModel, StableDiffusionPipeline, T2IAdapter, UNet2DConditionModel
from diffusers.utils import convert_state_dict_to_diffusers
from peft.utils import get_peft_model_state_dict
from torch import Tensor, nn

from fairanon.backbones import hub
from fairanon.backbones.adapters import TRAINED, Control, Lora, add_adapters, cast_network, frozen_start, fuse, weighted
from fairanon.files import atomic_write

PipelineKind = Literal["text_to_image", "inpaint", "controlnet", "t2i_adapter"]


class Trainable(ABC):
    """What trains.

    Attributes:
        networks: Networks of the backbone that train or hold adapters: the U-Net, the text encoder, or one behind the other.
        copies: Frozen ones that are the reference in their place, by name ("unet", "text_encoder"). They belong neither
            into a checkpoint nor into DDP's buckets.
        control: A network beside the U-Net that steers it.
        lora: Settings of the adapters, if those train.
    """

    networks: tuple[Any, ...] = ()
    control: Any = None
    lora: Lora | None = None

    def __init__(self) -> None:
        self.copies: dict[str, Any] = {}

    def steer(
        self, noisy: Tensor, timesteps: Tensor, control: Tensor | None, arguments: dict[str, object]
    ) -> dict[str, object]:
        """What it adds to the U-Net's arguments.

        Args:
            noisy: See `Backbone.predict`.
            timesteps: Likewise.
            control: Condition images, float (B, 3, H, W) in [0, 1].
            arguments: The U-Net's own.
        """
        return {}

    @contextmanager
    def reference(self) -> Iterator[None]:
        """Inside, adapters step back to what they were before training; ``copies`` are the caller's business."""
        yield

    @contextmanager
    def weighted(self, weight: float) -> Iterator[None]:
        """Inside, adapters act ``weight`` times as strongly."""
        if weight != 1:
            raise ValueError(f"lora_weight is {weight}, but the model has no low-rank adapters; leave it at 1.")
        yield

    def fuse(self, weight: float) -> None:
        """Make adapters, times ``weight``, part of the weights; nothing trains afterwards."""
        if weight != 1:
            raise ValueError(f"--weight is {weight}, but the model has no low-rank adapters; leave it out.")

    def pipeline(self) -> tuple[PipelineKind, dict[str, Any]] | None:
        """The kind of pipeline that it needs where it steers, and further components; None for the model's own."""
        return None

    def last_block(self, unet: UNet2DConditionModel) -> list[nn.Parameter]:
        """What trains in the last block that has something that trains."""
        blocks = self._blocks(unet)
        trainable = [[p for p in block.parameters() if p.requires_grad] for block in blocks]
        return next((parameters for parameters in reversed(trainable) if parameters), [])

    def _blocks(self, unet: UNet2DConditionModel) -> Sequence[nn.Module]:
        return list(unet.up_blocks)

    @abstractmethod
    def export(self, folder: Path) -> tuple[Path, str, str]:
        """Write what was trained in diffusers' formats.

        Returns:
            The file or folder, how it is used, and further tags of its model card.
        """


class Nothing(Trainable):
    """A frozen model, for preparing and measuring."""

    def export(self, folder: Path) -> tuple[Path, str, str]:
        """There is nothing."""
        raise ValueError("model.backbone.frozen: nothing was trained, there is nothing to export.")


class Whole(Trainable):
    """All of the U-Net, and of the text encoder if it is given; frozen copies are the reference.

    Args:
        networks: Of float32 weights, changed in place.
        dtype: In which the copies are held.
    """

    def __init__(self, networks: Sequence[Any], dtype: torch.dtype) -> None:
        super().__init__()
        self.networks = tuple(networks)
        for name, network in zip(("unet", "text_encoder"), networks, strict=False):
            network.requires_grad_(False)
            self.copies[name] = copy.deepcopy(network).eval()
            cast_network(self.copies[name], dtype)
            network.requires_grad_(True)

    @contextmanager
    def reference(self) -> Iterator[None]:
        """See `Trainable`.

        Raises:
            RuntimeError: The copies were freed.
        """
        if not self.copies:
            raise RuntimeError("the reference was freed before the training; set model.reference to copy.")
        yield

    def export(self, folder: Path) -> tuple[Path, str, str]:
        """The folder ``unet``, beside it ``text_encoder`` if that was trained."""
        uses = []
        for network, name in reversed([*zip(self.networks, ("unet", "text_encoder"), strict=False)]):
            uses.append(_save(network, folder / name))
        return folder / "unet", f"Use: {' and '.join(uses)} with the base model's other parts.", ""


class Adapters(Trainable):
    """Low-rank adapters in the U-Net, in the text encoder if it is given, or in both; without them it is the reference.

    Args:
        networks: The U-Net, and maybe the text encoder, of float32 weights, changed in place: what is frozen is held in ``dtype``.
        lora: The adapters.
        dtype: The precision of the computation.

    Raises:
        ValueError: No network gets any.
    """

    def __init__(self, networks: Sequence[Any], lora: Lora, dtype: torch.dtype) -> None:
        super().__init__()
        self.networks, self.lora = tuple(networks[0 if lora.targets else 1 :]), lora
        if not self.networks:
            raise ValueError(
                "model.backbone.lora.targets: nothing would train; name layers of the U-Net, or train the text encoder of a "
                "StableDiffusion."
            )
        for network in self.networks:
            add_adapters(network, lora, dtype)

    @contextmanager
    def reference(self) -> Iterator[None]:
        """See `Trainable`."""
        with ExitStack() as stack:
            for network in self.networks:
                stack.enter_context(frozen_start(network))
            yield

    @contextmanager
    def weighted(self, weight: float) -> Iterator[None]:
        """See `Trainable`."""
        with ExitStack() as stack:
            for network in self.networks if weight != 1 else ():
                stack.enter_context(weighted(network, weight))
            yield

    def fuse(self, weight: float) -> None:
        """See `Trainable`."""
        for network in self.networks:
            fuse(network, weight)
        self.networks, self.lora = (), None

    def export(self, folder: Path) -> tuple[Path, str, str]:
        """``lora.safetensors``, for ``pipeline.load_lora_weights``."""
        path = folder / "lora.safetensors"
        layers = {}
        for network in self.networks:
            part = "unet" if isinstance(network, UNet2DConditionModel) else "text_encoder"
            state = convert_state_dict_to_diffusers(get_peft_model_state_dict(network, adapter_name=TRAINED))
            layers[f"{part}_lora_layers"] = {key: value.detach().float().cpu() for key, value in state.items()}
            settings = network.peft_config[TRAINED].to_dict()
            layers[f"{part}_lora_adapter_metadata"] = {  # sets have no order, files should
                name: sorted(value) if isinstance(value, set) else value for name, value in settings.items()
            }
        with atomic_write(path) as partial:
            StableDiffusionPipeline.save_lora_weights(folder, weight_name=partial.name, **layers)
        return path, 'Use: `pipeline.load_lora_weights(FOLDER, weight_name="lora.safetensors")`.', ", lora"


class ControlNet(Trainable):
    """A copy of the U-Net's encoder beside it; without it the model is the reference.

    Args:
        unet: The U-Net that it steers.
        scale_factor: Image size divided by latent size.
        start_from: A folder or hub id in diffusers' format that training starts from; None starts anew.
    """

    kind: PipelineKind = "controlnet"
    network: Any = ControlNetModel

    def __init__(self, unet: UNet2DConditionModel, scale_factor: int, start_from: str | None = None) -> None:
        super().__init__()
        if start_from is not None:
            folder = hub.model_folder(start_from, key="model.backbone.control.start_from")
            network = self.network.from_pretrained(folder)
        else:
            network = self._new(unet, scale_factor)
        self.control = network.float().requires_grad_(True)

    def _new(self, unet: UNet2DConditionModel, scale_factor: int) -> Any:
        widths = (16, 32, 96, 256)[: scale_factor.bit_length()]  # one halving per step from images to latents
        return ControlNetModel.from_unet(unet, conditioning_embedding_out_channels=widths)

    def steer(
        self, noisy: Tensor, timesteps: Tensor, control: Tensor | None, arguments: dict[str, object]
    ) -> dict[str, object]:
        """See `Trainable`."""
        down, middle = self.control(noisy, timesteps, controlnet_cond=_given(control), return_dict=False, **arguments)
        return {"down_block_additional_residuals": down, "mid_block_additional_residual": middle}

    def pipeline(self) -> tuple[PipelineKind, dict[str, Any]] | None:
        """See `Trainable`."""
        return self.kind, {"controlnet": self.control}

    def _blocks(self, unet: UNet2DConditionModel) -> Sequence[nn.Module]:
        return list(self.control.children())

    def export(self, folder: Path) -> tuple[Path, str, str]:
        """The folder ``controlnet`` or ``t2i_adapter``."""
        path = folder / self.kind
        return path, f"Use: {_save(self.control, path)} with the base model's other parts.", ""


class T2I(ControlNet):
    """A small network beside the U-Net, T2I-Adapter; arguments as `ControlNet`."""

    kind: PipelineKind = "t2i_adapter"
    network: Any = T2IAdapter

    def _new(self, unet: UNet2DConditionModel, scale_factor: int) -> Any:
        # Where the first block has no attention its features are added behind its halving, as in SDXL's adapters.
        late = unet.config.down_block_types[0] == "DownBlock2D"
        channels = list(unet.config.block_out_channels)
        if late and len(channels) > 2:
            channels.append(channels[-1])  # a feature for the middle block
        return T2IAdapter(
            channels=channels,
            num_res_blocks=2,
            downscale_factor=scale_factor * (2 if late else 1),
            adapter_type="full_adapter_xl" if late else "full_adapter",
        )

    def steer(
        self, noisy: Tensor, timesteps: Tensor, control: Tensor | None, arguments: dict[str, object]
    ) -> dict[str, object]:
        """See `Trainable`."""
        return {"down_intrablock_additional_residuals": self.control(_given(control))}

    def pipeline(self) -> tuple[PipelineKind, dict[str, Any]] | None:
        """See `Trainable`."""
        return self.kind, {"adapter": self.control}

    def _blocks(self, unet: UNet2DConditionModel) -> Sequence[nn.Module]:
        return list(self.control.adapter.body)


def trainable(
    unet: UNet2DConditionModel,
    text_encoder: nn.Module | None,
    lora: Lora | None,
    control: Control | None,
    frozen: bool,
    scale_factor: int,
    dtype: torch.dtype,
) -> Trainable:
    """What a backbone's settings say; everything else is frozen already.

    Args:
        unet: The U-Net, changed in place where it trains or gets adapters.
        text_encoder: The same; None is not to be trained.
        lora: Adapters train.
        control: A network beside the U-Net trains.
        frozen: Nothing trains.
        scale_factor: Image size divided by latent size.
        dtype: The precision of the computation.

    Raises:
        ValueError: The settings exclude each other.
    """
    if sum([lora is not None, control is not None, frozen]) > 1 or (
        text_encoder is not None and (control is not None or frozen)
    ):
        raise ValueError(
            "model.backbone: give one of lora, control and frozen; a text encoder that trains goes with lora or with none "
            "of them."
        )
    networks = [unet, *([] if text_encoder is None else [text_encoder])]
    if frozen:
        return Nothing()
    if control is not None:
        return (ControlNet if control.kind == "controlnet" else T2I)(unet, scale_factor, control.start_from)
    return Whole(networks, dtype) if lora is None else Adapters(networks, lora, dtype)


def _given(control: Tensor | None) -> Tensor:
    if control is None:
        raise ValueError("data: the control network needs condition images; choose a data set that has them.")
    return control


def _save(network: Any, path: Path) -> str:
    """Write a network beside its place; returns how to read it."""
    with atomic_write(path) as partial:
        network.save_pretrained(partial)
    return f'`{type(network).__name__}.from_pretrained("FOLDER/{path.name}")`'
