"""LoRA files as other tools write them act as they do there, and what does not fit is one sentence."""

import json

import pytest
import torch
from diffusers import StableDiffusionPipeline, UNet2DConditionModel
from diffusers.utils import convert_state_dict_to_diffusers, convert_state_dict_to_kohya
from peft import LoraConfig
from peft.utils import get_peft_model_state_dict
from safetensors.torch import load_file, save_file

from fairanon.backbones.adapters import Lora, add_adapters, add_fused, frozen_start
from fairanon.backbones.hub import model_folder
from fairanon.backbones.lora_files import LoraError, read_lora

ATTENTION = ["to_q", "to_k", "to_v", "to_out.0"]
WEIGHTS = "pytorch_lora_weights.safetensors"


def fresh() -> UNet2DConditionModel:
    return UNet2DConditionModel.from_pretrained(model_folder("tiny") / "unet").eval().requires_grad_(False)


def adapted(alpha: int = 8, targets=ATTENTION, **more) -> UNet2DConditionModel:
    torch.manual_seed(0)
    unet = fresh()
    unet.add_adapter(LoraConfig(r=4, lora_alpha=alpha, target_modules=targets, init_lora_weights=False, **more))
    return unet.requires_grad_(False)


def drawn(unet) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(1, unet.config.in_channels, 8, 8, generator=generator)
    context = torch.randn(1, 4, unet.config.cross_attention_dim, generator=generator)
    with torch.no_grad():
        return unet(x, torch.tensor([500]), encoder_hidden_states=context).sample


def state(unet) -> dict[str, torch.Tensor]:
    return {key: value.contiguous() for key, value in get_peft_model_state_dict(unet).items()}


def _diffusers(folder, unet, told=True):
    layers = convert_state_dict_to_diffusers(get_peft_model_state_dict(unet))
    metadata = {"unet_lora_adapter_metadata": unet.peft_config["default"].to_dict()} if told else {}
    StableDiffusionPipeline.save_lora_weights(folder, unet_lora_layers=layers, **metadata)
    return folder / WEIGHTS


def _old_names(folder, unet):
    old = {"lora_A": "down", "lora_B": "up"}
    names = {}
    for key, value in state(unet).items():
        layer, _, kind = key.removesuffix(".weight").rpartition(".")
        block, _, projection = layer.rpartition(".attn")
        number, _, projection = projection.partition(".")
        projection = projection.removesuffix(".0")
        names[f"unet.{block}.attn{number}.processor.{projection}_lora.{old[kind]}.weight"] = value
    save_file(names, folder / "old.safetensors")
    return folder / "old.safetensors"


def _kohya(folder, unet, alpha=8.0):
    found = convert_state_dict_to_kohya({f"base_model.model.unet.{key}": value for key, value in state(unet).items()})
    named = {
        key.replace("base_model_model_lora_unet_", "lora_unet_"): value.contiguous() for key, value in found.items()
    }
    save_file(
        {k: torch.tensor(alpha) if k.endswith("alpha") else v for k, v in named.items()}, folder / "k.safetensors"
    )
    return folder / "k.safetensors"


def _peft(folder, unet):
    save_file(
        {f"base_model.model.{key}": value for key, value in state(unet).items()}, folder / "adapter_model.safetensors"
    )
    settings = unet.peft_config["default"].to_dict()
    plain = {key: list(value) if isinstance(value, set) else value for key, value in settings.items()}
    (folder / "adapter_config.json").write_text(json.dumps(plain, default=str))
    return folder


GOOD = {
    "diffusers": lambda folder: (_diffusers(folder, adapted()), adapted()),
    "diffusers, its folder": lambda folder: (_diffusers(folder, adapted()).parent, adapted()),
    "diffusers, nothing said": lambda folder: (_diffusers(folder, adapted(), told=False), adapted(alpha=4)),
    "diffusers, old names": lambda folder: (_old_names(folder, adapted()), adapted(alpha=4)),
    "kohya": lambda folder: (_kohya(folder, adapted()), adapted()),
    "kohya, half as strong": lambda folder: (_kohya(folder, adapted(), 2.0), adapted(alpha=2)),
    "peft": lambda folder: (_peft(folder, adapted()), adapted()),
    "convolutions as well": lambda folder: (
        _diffusers(folder, adapted(targets=[*ATTENTION, "conv1", "ff.net.0.proj"])),
        adapted(targets=[*ATTENTION, "conv1", "ff.net.0.proj"]),
    ),
    "two ranks": lambda folder: (
        _diffusers(folder, adapted(rank_pattern={"to_k": 2}, alpha_pattern={"to_k": 6})),
        adapted(rank_pattern={"to_k": 2}, alpha_pattern={"to_k": 6}),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", GOOD)
def test_adapters_of_other_tools_act_as_there(tmp_path, name):
    path, other = GOOD[name](tmp_path)
    wanted, plain = drawn(other), drawn(fresh())
    assert (wanted - plain).abs().max() > 0.01, "the test must be able to fail"
    trains = fresh()
    add_adapters(trains, Lora(start_from=str(path)), torch.float32)
    torch.testing.assert_close(drawn(trains), wanted, atol=1e-4, rtol=1e-4)
    with frozen_start(trains):
        torch.testing.assert_close(drawn(trains), wanted, atol=1e-4, rtol=1e-4)
    fused = fresh()
    add_fused(fused, str(path), 1.0)
    torch.testing.assert_close(drawn(fused), wanted, atol=1e-4, rtol=1e-4)


def _changed(folder, change):
    path = _diffusers(folder, adapted())
    save_file(change(load_file(path)), path)
    return path


def _page(folder):
    (folder / "x.safetensors").write_bytes(b"<html>404: not found</html>")
    return folder / "x.safetensors"


def _two(folder):
    for name in "ab":
        save_file({"unet.x.lora_A.weight": torch.ones(1)}, folder / f"{name}.safetensors")
    return folder


def _peft_alone(folder):
    _peft(folder, adapted())
    (folder / "adapter_config.json").unlink()
    return folder


BAD = {
    "missing": (lambda folder: folder / "nowhere", "nowhere is missing; give a LoRA's .safetensors file"),
    "a hub's name": (lambda folder: "owner/name", "owner/name is missing"),
    "empty folder": (lambda folder: folder, r"has 0 .safetensors files \(none\); name the one"),
    "two files": (_two, r"has 2 .safetensors files \(a.safetensors, b.safetensors\)"),
    "a web page": (_page, "x.safetensors is no safetensors file, or a damaged one"),
    "another model": (lambda f: _changed(f, lambda s: {k: v.repeat(2, 2) for k, v in s.items()}), r"is of another model: .* is \(8, "),
    "another model's layers": (lambda f: _changed(f, lambda s: {k.replace("down_blocks.1", "down_blocks.9"): v for k, v in s.items()}), "has no layer down_blocks.9"),
    "a text encoder's": (lambda f: _changed(f, lambda s: {k.replace("unet.", "text_encoder."): v for k, v in s.items()}), "has adapters of text_encoder and none of a U-Net"),
    "DoRA": (lambda f: _changed(f, lambda s: {**s, "unet.x.dora_scale": torch.ones(1)}), r"is no plain LoRA \(unet.x.dora_scale\)"),
    "LoKr": (lambda f: _changed(f, lambda s: {"unet.x.lokr_w1": torch.ones(1)}), "is no plain LoRA"),
    "peft's without its settings": (_peft_alone, "adapter_config.json, which says its rank and alpha, is not beside it"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_what_does_not_fit_is_one_sentence(tmp_path, name):
    make, said = BAD[name]
    with pytest.raises(LoraError, match=f"model.x: .*{said}") as error:
        read_lora(str(make(tmp_path)), fresh(), "model.x")
    assert len(str(error.value)) < 500
