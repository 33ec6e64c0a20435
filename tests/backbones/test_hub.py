"""What is fetched from the hub, and what is said when it cannot be."""

import errno
from types import SimpleNamespace

import pytest
import torch
from huggingface_hub.errors import DryRunError, GatedRepoError, LocalEntryNotFoundError, RepositoryNotFoundError

from fairanon.backbones import Lora, StableDiffusion, hub
from fairanon.backbones.random_models import save_random_stable_diffusion

SDXL = [
    "model_index.json", "sd_xl_base_1.0.safetensors", "sd_xl_base_1.0_0.9vae.safetensors", "README.md",
    "scheduler/scheduler_config.json", "tokenizer/vocab.json", "tokenizer/merges.txt", "unet/config.json",
    "unet/diffusion_pytorch_model.safetensors", "unet/diffusion_pytorch_model.fp16.safetensors",
    "unet/model.onnx", "vae/config.json", "vae/diffusion_pytorch_model.safetensors",
    "vae/diffusion_pytorch_model.fp16.safetensors", "vae_1_0/config.json", "vae_1_0/diffusion_pytorch_model.safetensors",
    "text_encoder/config.json", "text_encoder/model.safetensors", "text_encoder/model.fp16.safetensors",
    "text_encoder/flax_model.msgpack",
]  # fmt: skip
PARTS = {"unet": False, "text_encoder": True, "tokenizer": False, "scheduler": False}


def test_only_the_components_files_are_fetched_each_in_one_precision():
    assert sorted(hub.needed(SDXL, PARTS)) == sorted([
        "model_index.json", "scheduler/scheduler_config.json", "tokenizer/vocab.json", "tokenizer/merges.txt",
        "unet/config.json", "unet/diffusion_pytorch_model.safetensors", "text_encoder/config.json",
        "text_encoder/model.fp16.safetensors",
    ])  # fmt: skip
    assert "unet/diffusion_pytorch_model.fp16.safetensors" in hub.needed(SDXL, {"unet": True})
    single = [
        "config.json",
        "diffusion_pytorch_model.safetensors",
        "sdxl_vae.safetensors",
        "diffusion_pytorch_model.bin",
    ]
    assert hub.needed(single, None) == single[:2]
    parts = [
        "unet/diffusion_pytorch_model.fp16-00001-of-00002.safetensors",
        "unet/diffusion_pytorch_model-00001-of-00003.safetensors",
    ]
    assert hub.needed(parts, {"unet": False}) == parts[1:] and hub.needed(parts, {"unet": True}) == parts[:1]


@pytest.fixture
def repository(monkeypatch, tmp_path):
    """A hub that lists SDXL's files, 1 GiB each, and remembers what was fetched."""
    fetched = []

    def snapshot_download(name, revision=None, allow_patterns=None, dry_run=False):
        if dry_run:
            return [SimpleNamespace(filename=f, file_size=2**30, will_download=True, commit_hash="c0") for f in SDXL]
        fetched.append((name, revision, allow_patterns))
        return str(tmp_path)

    monkeypatch.setattr(hub, "snapshot_download", snapshot_download)
    monkeypatch.setattr(hub, "HF_HUB_CACHE", str(tmp_path / "none" / "yet"))
    monkeypatch.setattr(hub.shutil, "disk_usage", lambda _: SimpleNamespace(free=100 * 2**30))
    return fetched


def test_its_size_is_said_and_a_small_disk_is_a_sentence(repository, monkeypatch, capsys, tmp_path):
    assert hub.model_folder("somebody/model", parts=PARTS) == tmp_path
    assert "fetching somebody/model: 8.0 GiB" in capsys.readouterr().out
    ((_, revision, files),) = repository
    assert revision == "c0" and len(files) == 8
    monkeypatch.setattr(hub.shutil, "disk_usage", lambda _: SimpleNamespace(free=3 * 2**30))
    with pytest.raises(OSError, match=r"needs 8.0 GiB in .*, and 3.0 GiB are free; make room") as error:
        hub.model_folder("somebody/model", parts=PARTS)
    assert not isinstance(error.value, hub.MissingModelError)


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (GatedRepoError("no", response=SimpleNamespace(status_code=403, headers={}, request=None)), "licence accepted"),
        (RepositoryNotFoundError("no", response=SimpleNamespace(status_code=404, headers={}, request=None)), "is gone"),
        (LocalEntryNotFoundError("no"), "nor to be reached"),
    ],
)
def test_why_a_model_is_not_there(monkeypatch, error, said):
    def refuse(*_, dry_run=False, **__):
        if dry_run:
            raise DryRunError("no") from error
        raise LocalEntryNotFoundError("no")

    monkeypatch.setattr(hub, "snapshot_download", refuse)
    with pytest.raises(hub.MissingModelError, match=said) as found:
        hub.model_folder("stabilityai/stable-diffusion-2-1-base")
    assert "Manojb/stable-diffusion-2-1-base" in str(found.value) and "\n" not in str(found.value)


def test_a_disk_that_fills_up_is_no_missing_model(monkeypatch):
    def full(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(hub, "snapshot_download", full)
    with pytest.raises(OSError, match="No space left"):
        hub.model_folder("somebody/model")


def test_half_precision_files_are_read_where_they_are_enough(tmp_path):
    folder = save_random_stable_diffusion(tmp_path / "model")
    for name in ("unet", "vae"):
        plain = folder / name / "diffusion_pytorch_model.safetensors"
        (folder / name / "diffusion_pytorch_model.fp16.safetensors").write_bytes(plain.read_bytes())
    broken = folder / "unet" / "diffusion_pytorch_model.safetensors"
    whole = broken.read_bytes()
    broken.write_bytes(b"")
    StableDiffusion(str(folder), dtype="float16", lora=Lora(rank=2))
    with pytest.raises(Exception, match=r"(?i)header|safetensors|empty|load"):
        StableDiffusion(str(folder), dtype="float16")  # its U-Net trains, from the plain file
    broken.write_bytes(whole)
    assert StableDiffusion(str(folder), dtype="float16").unet.conv_in.weight.dtype == torch.float32
