"""LoRA files of other tools: diffusers', peft's and kohya's, each with its rank and strength."""

from __future__ import annotations

import json
import logging
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from diffusers import UNet2DConditionModel
from diffusers.loaders import StableDiffusionLoraLoaderMixin
from diffusers.utils import convert_unet_state_dict_to_peft
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from fairanon.files import read_json

_log = logging.getLogger(__name__)
_NAMES = ("lora.safetensors", "pytorch_lora_weights.safetensors", "adapter_model.safetensors")
_PEFT = "base_model.model."
_KOHYA = ("lora_unet_", "lora_te")
_OTHERS = ("lora_magnitude_vector", "dora_scale", "hada_", "lokr_", "oft_")
_SETTINGS = ("r", "lora_alpha", "rank_pattern", "alpha_pattern", "target_modules", "use_rslora", "lora_bias")


class LoraError(ValueError):
    """A LoRA that cannot be used; the message names key and file."""


@dataclass(frozen=True)
class LoraFile:
    """Adapters of a U-Net.

    Attributes:
        state: Their weights, by peft's names ("down_blocks.0....to_q.lora_A.weight").
        settings: Arguments of peft's ``LoraConfig`` where the file says them, ...
        alphas: ... or the scale of each layer where it says only that (kohya); with neither every scale is 1.
    """

    state: dict[str, Tensor]
    settings: dict[str, Any] | None
    alphas: dict[str, float] | None

    def load(self, unet: UNet2DConditionModel, name: str) -> None:
        """Add them to a U-Net.

        Args:
            unet: Frozen or not; the adapters train.
            name: Of the adapter.
        """
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Already found a `peft_config`")  # the reference
            warnings.filterwarnings("ignore", message=".*is a no-op")  # an outline has no weights to fill
            unet.load_lora_adapter(
                {f"unet.{key}": value for key, value in self.state.items()},
                prefix="unet",
                adapter_name=name,
                metadata=None if self.settings is None else {f"unet.{key}": v for key, v in self.settings.items()},
                network_alphas=self.alphas,
            )


def read_lora(source: str, unet: UNet2DConditionModel, key: str) -> LoraFile:
    """Read a LoRA and see whether it fits; nothing is asked of the hub.

    Args:
        source: A file, or a folder with one.
        unet: The U-Net that it is for.
        key: The configuration key that named it, for error messages.

    Raises:
        LoraError: It is missing, no LoRA, of a kind that is not read, or of another model.
    """
    path = lora_file(source, key)
    where = f"{key}: {path}"
    state, metadata = _read(path, where)
    if other := next((name for name in state if any(kind in name for kind in _OTHERS)), None):
        raise LoraError(f"{where} is no plain LoRA ({other}); DoRA, LoHa, LoKr and OFT are not read.")
    settings, alphas = None, None
    if all(name.startswith(_KOHYA) for name in state):
        state, alphas = StableDiffusionLoraLoaderMixin.lora_state_dict(state, unet_config=unet.config)
    elif all(name.startswith(_PEFT) for name in state):
        state = {f"unet.{name.removeprefix(_PEFT).removeprefix('unet.')}": value for name, value in state.items()}
        config = path.with_name("adapter_config.json")
        if not config.exists():
            raise LoraError(f"{where}: adapter_config.json, which says its rank and alpha, is not beside it.")
        settings = {name: value for name, value in read_json(config, key).items() if name in _SETTINGS}
    elif settings_json := metadata.get("lora_adapter_metadata"):
        unet_settings = {
            n.removeprefix("unet."): v for n, v in json.loads(settings_json).items() if n.startswith("unet.")
        }
        settings = unet_settings or None
    parts = {name.partition(".")[0] for name in state}
    if "unet" not in parts:
        raise LoraError(f"{where} has adapters of {', '.join(sorted(parts))} and none of a U-Net.")
    if others := parts - {"unet"}:
        _log.warning("%s: passed over its adapters of %s", where, ", ".join(sorted(others)))
    ours = {
        name.removeprefix("unet.").replace(".processor.", "."): value  # as diffusers once wrote them
        for name, value in state.items()
        if name.startswith("unet.")
    }
    ours = convert_unet_state_dict_to_peft(ours)
    _check(ours, unet, where)
    return LoraFile(ours, settings, alphas or None)


def lora_file(source: str, key: str) -> Path:
    """The file of a LoRA that is named by itself or by its folder; errors as `read_lora`."""
    path = Path(source).expanduser()
    if path.is_file():
        return path
    if not path.is_dir():
        raise LoraError(f"{key}: {path} is missing; give a LoRA's .safetensors file, or the folder that it is in.")
    inside = sorted(path.glob("*.safetensors"))
    if named := [file for file in inside if file.name in _NAMES]:
        inside = named
    if len(inside) != 1:
        names = ", ".join(file.name for file in inside[:4]) or "none"
        raise LoraError(f"{key}: {path} has {len(inside)} .safetensors files ({names}); name the one.")
    return inside[0]


def _read(path: Path, where: str) -> tuple[dict[str, Tensor], dict[str, str]]:
    try:
        with safe_open(path, "pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}, file.metadata() or {}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise LoraError(f"{where} is no safetensors file, or a damaged one ({error}).") from None


def _check(state: dict[str, Tensor], unet: UNet2DConditionModel, where: str) -> None:
    """Whether every adapter has a layer of its size."""
    layers = dict(unet.named_modules())
    if not state:
        raise LoraError(f"{where} has no adapter.")
    for name, value in state.items():
        layer, matrix, _ = name.partition(".lora_")
        module = layers.get(layer)
        weight = getattr(module, "weight", None)
        if not matrix or not isinstance(weight, nn.Parameter):
            raise LoraError(f"{where} is of another model: this one has no layer {layer}.")
        side = 1 if name.endswith("lora_A.weight") else 0
        if value.ndim > 1 and value.shape[side] != weight.shape[side]:
            raise LoraError(
                f"{where} is of another model: {name} is {tuple(value.shape)}, its layer {tuple(weight.shape)}."
            )
