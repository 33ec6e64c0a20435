"""ID2Face's inference: degrade the face, draw another identity, sample; nothing is optimised or steered."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, cast

import torch
from diffusers import AutoencoderKL, DDIMScheduler, DiffusionPipeline, DPMSolverMultistepScheduler, UNet2DConditionModel
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from fairanon.degradation import Degradation
from fairanon.evaluators.recognizers import FeatureMaps, Recognizer
from fairanon.imaging import to_model, to_pixels
from fairanon.networks.harmonizer import Harmonizer
from fairanon.networks.id2face import IdentityNetworks, OrthogonalIdentityMapping
from fairanon.seeding import Key, keyed_randn

Appearance = Literal["redrawn", "kept"]
"""What a new identity looks like: anybody, or somebody whose appearance (tone group, gender, ...) is judged like the old
one's. Kept appearance makes a smaller crowd to hide in."""
_CANDIDATES = 64
"""Draws among which one with the same appearance is looked for: of twelve groups, all but 4 in 1,000 find one."""
_SCHEDULERS = {"DDIMScheduler": DDIMScheduler, "DPMSolverMultistepScheduler": DPMSolverMultistepScheduler}


def identity_context(
    networks: IdentityNetworks,
    features: FeatureMaps,
    degradation: Degradation | None,
    images: Tensor,
    masks: Tensor,
    landmarks: Tensor,
    control: Tensor,
    keys: Sequence[Sequence[Key]],
) -> Tensor:
    """What leads the U-Net in training and in use: tokens without identity and, last, those of the identity.

    Args:
        networks: The trained ones.
        features: Of the degraded picture, without gradient.
        degradation: None leaves the face as it is.
        images: uint8 (B, 3, H, W).
        masks: bool (B, 1, H, W), their faces.
        landmarks: float (B, 68, 2), as shares of their sides.
        control: float (B, D), who is to be drawn.
        keys: B keys of the degradation.

    Returns:
        float (B, N + T, W).
    """
    if degradation is not None:
        images = degradation(images, masks, keys)
    with torch.no_grad():
        maps = features.maps(to_model(images))
    rest, identity = networks.recomposer(maps, landmarks, control)
    return torch.cat([rest, identity], 1)


class ID2FacePipeline(DiffusionPipeline):
    """Anonymizes aligned faces.

    ``scheduler`` decides about the sampler: the paper's is DDIM with 40 steps, DPM-Solver++ with 10 to 20 does as well;
    both are ``from_config`` of each other.

    Args:
        vae: Autoencoder.
        unet: Trained, with the harmonizer's attention processors in it.
        scheduler: A sampler of diffusers.
        networks: Trained.
        harmonizer: The gated branches; None for a model without ("w/o IGLH").
        recognizer: Says whose face it is.
        features: Multi-scale features.
        degradation: As in training.
        mapping: Makes drawn identities orthogonal to the source's; None leaves them as they are ("w/o OIM").
        appearance: See `Appearance`.
    """

    def __init__(
        self,
        vae: AutoencoderKL,
        unet: UNet2DConditionModel,
        scheduler: Any,
        networks: IdentityNetworks,
        harmonizer: Harmonizer | None,
        recognizer: Recognizer,
        features: FeatureMaps,
        degradation: Degradation | None = None,
        mapping: OrthogonalIdentityMapping | None = None,
        appearance: Appearance = "redrawn",
    ) -> None:
        super().__init__()
        self.register_modules(
            vae=vae, unet=unet, scheduler=scheduler, networks=networks, harmonizer=harmonizer, recognizer=recognizer,
            features=features,
        )  # fmt: skip
        self.degradation, self.mapping, self.appearance = degradation, mapping, appearance

    def to(  # diffusers' own asks every module for a dtype
        self, device: torch.device | str | None = None, dtype: torch.dtype | None = None
    ) -> ID2FacePipeline:
        """Move everything; only the diffusion model takes another precision, whose picture it is stays in float32."""
        for module in (self.vae, self.unet, self.harmonizer):
            if module is not None:
                module.to(device, dtype)
        for module in (self.networks, self.recognizer, self.features):
            module.to(device)
        return self

    @property
    def device(self) -> torch.device:
        """Where the U-Net is."""
        return self.unet.device

    @property
    def dtype(self) -> torch.dtype:
        """The U-Net's precision."""
        return self.unet.dtype

    @torch.no_grad()
    def latents_of(self, pictures: Tensor) -> Tensor:
        """Who is shown, as the ID-VAE's mean: float (B, d) of pictures uint8 (B, 3, H, W)."""
        embeddings = self.recognizer.recognize(to_model(pictures.to(self.unet.device)))
        return self.networks.id_vae.encode(embeddings)[0]

    @property
    def draws_shape(self) -> tuple[int, int]:
        """Of the draws that a new identity is chosen from: (K, d)."""
        return (1 if self.appearance == "redrawn" else _CANDIDATES, int(self.networks.config["latent"]))

    @torch.no_grad()
    def identities(self, source: Tensor, draws: Tensor) -> Tensor:
        """New identities.

        Args:
            source: float (B, d), who must not be drawn, see `latents_of`.
            draws: Standard normal (B, K, d), see `draws_shape`.

        Returns:
            Control vectors: unit, float (B, D).
        """
        return self.networks.choose(source, draws.to(source), self.mapping)

    @torch.no_grad()
    def __call__(
        self,
        pictures: Tensor,
        masks: Tensor,
        landmarks: Tensor,
        keys: Sequence[Sequence[Key]],
        control: Tensor | None = None,
        num_inference_steps: int = 15,
    ) -> Tensor:
        """Anonymize a batch; picture i depends on its own row and key, not on its place in the batch.

        Args:
            pictures: uint8 (B, 3, H, W), one aligned face in each.
            masks: bool (B, 1, H, W), what shows whose face it is.
            landmarks: float (B, 68, 2), x and y as shares of the sides.
            keys: B keys: degradation, starting noise and new identity are drawn from them.
            control: float (B, D), who is drawn; None draws somebody for each key.
            num_inference_steps: Steps of the scheduler.

        Returns:
            uint8 (B, 3, H, W) on the CPU.

        Raises:
            ValueError: A mask is empty, landmarks are not finite, sides are no multiples of the latents', or the numbers
                of rows differ.
        """
        self._check(pictures, masks, landmarks, keys)
        device = self.unet.device
        dtype = torch.float32 if torch.is_autocast_enabled(device.type) else self.unet.dtype
        if control is None:
            draws = keyed_randn([(*key, "identity") for key in keys], self.draws_shape)
            control = self.identities(self.latents_of(pictures), draws)
        context = identity_context(
            self.networks, self.features, self.degradation, pictures.to(device), masks.to(device),
            landmarks.to(device), control.to(device), [(*key, "degrade") for key in keys],
        ).to(dtype)  # fmt: skip
        factor = 2 ** (len(self.vae.config.block_out_channels) - 1)
        shape = (self.vae.config.latent_channels, *(side // factor for side in pictures.shape[-2:]))
        noise = keyed_randn([(*key, "noise") for key in keys], shape).to(device, dtype)
        self.scheduler.set_timesteps(num_inference_steps, device=device)
        latents = noise * self.scheduler.init_noise_sigma
        for t in self.progress_bar(self.scheduler.timesteps):
            scaled = self.scheduler.scale_model_input(latents, t)
            prediction = self.unet(scaled, t, encoder_hidden_states=context).sample
            latents = self.scheduler.step(prediction, t, latents).prev_sample
        scale = float(self.vae.config.scaling_factor)
        return to_pixels(self.vae.decode((latents / scale).to(dtype)).sample).cpu()

    def _check(self, pictures: Tensor, masks: Tensor, landmarks: Tensor, keys: Sequence[Sequence[Key]]) -> None:
        count = len(pictures)
        factor = 2 ** (len(self.vae.config.block_out_channels) - 1) * 2 ** (
            len(self.unet.config.block_out_channels) - 1
        )
        if any(side % factor for side in pictures.shape[-2:]):
            raise ValueError(f"sides must be multiples of {factor}, got {tuple(pictures.shape[-2:])}; crop or resize.")
        if masks.shape != (count, 1, *pictures.shape[-2:]) or masks.dtype != torch.bool:
            raise ValueError(
                f"masks must be bool {(count, 1, *pictures.shape[-2:])}, got {masks.dtype} {tuple(masks.shape)}."
            )
        if len(landmarks) != count or len(keys) != count:
            raise ValueError(f"{count} pictures, {len(landmarks)} landmarks and {len(keys)} keys do not fit.")
        for name, seen in (("mask", masks.flatten(1).any(1)), ("landmarks", landmarks.isfinite().all((1, 2)))):
            if not seen.all():
                row = int((~seen).nonzero()[0])
                raise ValueError(f"picture {row} has no {name}: no face was found, and nobody would be anonymized.")

    # --- folders -----------------------------------------------------------------------------------------

    def save_pretrained(  # there is nothing else to choose
        self, save_directory: str | os.PathLike[str]
    ) -> None:
        """Write a folder: diffusers' own for its parts, ``id2face`` for ours; recognizer and features by name alone.

        Raises:
            ValueError: There is something else in that folder.
        """
        folder = Path(save_directory)
        if folder.exists() and any(folder.iterdir()) and not (folder / "id2face" / "config.json").exists():
            raise ValueError(f"{folder} holds something else than a pipeline; choose a new folder.")
        partial = folder.with_name(f"{folder.name}.partial")
        shutil.rmtree(partial, ignore_errors=True)
        for name in ("vae", "unet", "scheduler"):
            getattr(self, name).save_pretrained(partial / name)
        ours = partial / "id2face"
        ours.mkdir()
        save_file(
            {key: value.contiguous() for key, value in self._ours().state_dict().items()}, ours / "model.safetensors"
        )
        config = {
            "networks": self.networks.config,
            "harmonized": self.harmonizer is not None,
            "degradation": None if self.degradation is None else dataclasses.asdict(self.degradation),
            "appearance": self.appearance,
            "mapping": None if self.mapping is None else dataclasses.asdict(self.mapping),
            "recognizer": self.recognizer.name,
            "features": self.features.name,
        }
        (ours / "config.json").write_text(json.dumps(config, indent=2))
        (partial / "model_index.json").write_text(json.dumps({"_class_name": type(self).__name__}, indent=2))
        shutil.rmtree(folder, ignore_errors=True)
        partial.rename(folder)

    @classmethod
    def from_pretrained(  # diffusers' own finds parts by their names in its own package
        cls, folder: str | os.PathLike[str], recognizer: Recognizer, features: FeatureMaps
    ) -> ID2FacePipeline:
        """Read a folder that `save_pretrained` wrote.

        Args:
            folder: The folder.
            recognizer: The one it was trained with.
            features: Likewise.

        Raises:
            ValueError: Another recognizer or other features.
        """
        folder = Path(folder)
        if not (folder / "id2face" / "config.json").exists():
            raise FileNotFoundError(f"{folder} holds no ID2Face pipeline: id2face/config.json is missing.")
        config = json.loads((folder / "id2face" / "config.json").read_text())
        for what, given in (("recognizer", recognizer), ("features", features)):
            if given.name != config[what]:
                raise ValueError(f"{folder} was trained with the {what} {config[what]}, not with {given.name}.")
        kind = json.loads((folder / "scheduler" / "scheduler_config.json").read_text())["_class_name"]
        if kind not in _SCHEDULERS:
            raise ValueError(f"{folder}: the scheduler {kind} is none of {', '.join(_SCHEDULERS)}.")
        unet = UNet2DConditionModel.from_pretrained(folder, subfolder="unet")
        networks = IdentityNetworks(**config["networks"])
        harmonizer = Harmonizer(unet, config["networks"]["tokens"]) if config["harmonized"] else None
        degradation, mapping = config["degradation"], config["mapping"]
        pipeline = cls(
            AutoencoderKL.from_pretrained(folder, subfolder="vae"), unet,
            _SCHEDULERS[kind].from_pretrained(folder, subfolder="scheduler"), networks, harmonizer, recognizer, features,
            None if degradation is None else Degradation(**degradation),
            None if mapping is None else OrthogonalIdentityMapping(**mapping), config["appearance"],
        )  # fmt: skip
        pipeline._ours().load_state_dict(load_file(folder / "id2face" / "model.safetensors"))
        for module in (unet, pipeline.vae, networks, harmonizer, recognizer, features):
            if module is not None:
                cast(nn.Module, module).requires_grad_(False).eval()
        return pipeline

    def _ours(self) -> nn.ModuleDict:
        parts = {"networks": self.networks}
        if self.harmonizer is not None:
            parts["harmonizer"] = self.harmonizer
        return nn.ModuleDict(parts)
