"""The door out for weights: diffusers' own formats, with a model card."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from diffusers import ControlNetModel, T2IAdapter, UNet2DConditionModel
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import CLIPTextModel

from fairanon.backbones import Backbone
from fairanon.files import atomic_write, write_text

_CARD = """---
library_name: diffusers
pipeline_tag: text-to-image
tags: [fairanon, text-to-image, diffusers{tag}]
base_model: {base}
---

# {name}

Trained by fairanon from `{base}`. {how}

Numbers before and after, with intervals, are in `metrics.json` beside this file: appearance as judged by the named
classifier, which says nothing about what a person is. Binary gender appearance and a fixed list of groups leave
people out; read RESPONSIBLE_USE.md of fairanon before you deploy it.
"""


_CARD_OF_TOKENS = """# {name}
Tokens of {base} for the classes {classes}. Use: `pipeline.load_textual_inversion("FOLDER/tokens/CLASS.safetensors", token="<CLASS>")`
for each, and a prompt such as `a photo of a doctor {example}`.
"""


def export_weights(backbone: Backbone, folder: Path, name: str) -> Path:
    """Write what was trained.

    Args:
        backbone: The trained backbone.
        folder: Where to.
        name: Title of the model card.

    Returns:
        ``lora.safetensors`` (for ``pipeline.load_lora_weights``) if adapters were trained, otherwise the folder
        ``unet``, ``controlnet`` or ``t2i_adapter`` (for ``from_pretrained`` of diffusers' class), beside ``unet`` a
        folder ``text_encoder`` if that was trained.
    """
    base = backbone.fingerprint().split()[0]
    path, how, tag = backbone.trainable.export(folder)
    write_text(folder / "README.md", _CARD.format(name=name, base=base, how=how, tag=tag))
    return path


def export_tokens(backbone: Backbone, folder: Path, name: str, tokens: Mapping[str, Tensor], example: str) -> Path:
    """Write learned tokens, a file for each class, for diffusers' ``load_textual_inversion``.

    Args:
        backbone: The model whose text encoder reads them.
        folder: Where to.
        name: Title of the model card.
        tokens: For each class float32 (T, W), T tokens of the text encoder's width.
        example: Classes that a prompt may have together, for the card.

    Returns:
        The folder ``tokens``.
    """
    for label, rows in tokens.items():
        with atomic_write(folder / "tokens" / f"{label}.safetensors") as partial:
            save_file({f"<{label}>": rows.contiguous()}, partial)
    base = backbone.fingerprint().split()[0]
    card = _CARD_OF_TOKENS.format(name=name, base=base, classes=", ".join(tokens), example=example)
    write_text(folder / "README.md", card)
    return folder / "tokens"


def read_back(folder: Path) -> list[str]:
    """Load what `export_weights` wrote, as whoever gets it would.

    Args:
        folder: Where it was written.

    Returns:
        What was found: names of files and folders.

    Raises:
        ValueError: Nothing is there, or a weight is not finite.
    """
    kinds = {
        "unet": UNet2DConditionModel,
        "text_encoder": CLIPTextModel,
        "controlnet": ControlNetModel,
        "t2i_adapter": T2IAdapter,
    }
    weights: dict[str, dict[str, Tensor]] = {}
    for name, kind in kinds.items():
        if (folder / name).is_dir():
            weights[name] = kind.from_pretrained(folder / name).state_dict()
    parts = (part for name in ("pipeline", "tokens") for part in (folder / name).rglob("*.safetensors"))
    for path in [folder / "lora.safetensors", *parts]:
        if path.exists():
            weights[str(path.relative_to(folder))] = load_file(path)
    if not weights:
        raise ValueError(f"{folder} holds nothing that was exported.")
    for name, tensors in weights.items():
        if bad := [key for key, value in tensors.items() if value.is_floating_point() and not value.isfinite().all()]:
            raise ValueError(f"{folder / name}: {bad[0]} is not finite.")
    return list(weights)


def export_pipeline(backbone: Backbone, folder: Path, name: str, lora_weight: float = 1.0) -> Path:
    """Write a whole pipeline; trained adapters are fused into the weights: sampling costs what it did before.

    Args:
        backbone: The trained backbone; its adapters stay fused and are gone afterwards.
        folder: Where to; must not exist.
        name: Title of the model card.
        lora_weight: How strongly the adapters act; FairHuman uses 0.3.

    Returns:
        ``folder``, for ``DiffusionPipeline.from_pretrained``.
    """
    if folder.exists():
        raise ValueError(f"{folder} exists; choose another folder.")
    if backbone.control is not None:
        raise ValueError("a control network is no pipeline by itself; the run's own folder holds it.")
    backbone.fuse(lora_weight)
    how = "Use: `DiffusionPipeline.from_pretrained(FOLDER)`."
    base = backbone.fingerprint().split()[0]
    with atomic_write(folder) as partial:
        backbone.build_pipeline().to(backbone.dtype).save_pretrained(partial)
        write_text(partial / "README.md", _CARD.format(name=name, base=base, how=how, tag=""))
    return folder
