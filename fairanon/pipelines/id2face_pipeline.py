"""ID2Face's inference: degrade the face, draw another identity, sample; nothing is optimised or steered."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any, Literal

import torch
from diffusers import AutoencoderKL, DiffusionPipeline, UNet2DConditionModel
from torch import Tensor, nn

from fairanon.degradation import Degradation
from fairanon.evaluators.description import FaceDescription
from fairanon.evaluators.judge import to_device
from fairanon.evaluators.recognizers import FeatureMaps, Recognizer
from fairanon.imaging import dilate, to_model, to_pixels
from fairanon.landmarks import HeadFrame
from fairanon.networks.harmonizer import Harmonizer
from fairanon.networks.id2face_networks import IdentityMapping, IdentityNetworks
from fairanon.pipelines.id2face_folder import Judges, read, write
from fairanon.pipelines.inpaint import paste
from fairanon.seeding import Key, keyed_randn

Appearance = Literal["redrawn", "kept"]
"""What a new identity looks like: anybody, or somebody whose appearance (tone group, gender, ...) is judged like the old
one's. Kept appearance makes a smaller crowd to hide in."""
_CANDIDATES = {"redrawn": 16, "kept": 128}
"""Draws among which a new identity is chosen: one of 16 is hardly changed by the mapping, and one of 128 looks like the
source, whichever of 24 groups it belongs to."""
Shape = Literal["new", "source"]
"""Whose landmarks are drawn: the new person's, who does what the source does, or the source's own, as in the paper (they
alone tell who it is more often than chance does)."""


@contextmanager
def leading(
    networks: IdentityNetworks,
    features: FeatureMaps,
    degradation: Degradation | None,
    images: Tensor,
    masks: Tensor,
    landmarks: Tensor,
    description: Tensor,
    control: Tensor,
    keys: Sequence[Sequence[Key]],
    drawn: Tensor | None = None,
) -> Iterator[Tensor]:
    """Inside, the U-Net is led to draw somebody in the place of whoever is shown, in training and in use alike.

    Args:
        networks: The trained ones.
        features: Of the degraded image, without gradient.
        degradation: None leaves the face as it is.
        images: uint8 (B, 3, H, W).
        masks: bool (B, 1, H, W), their faces.
        landmarks: float (B, 68, 2), their faces', as shares of their sides.
        description: float (B, G), see `FaceDescription`.
        control: float (B, D), who is to be drawn.
        keys: B keys of the degradation.
        drawn: Landmarks of the face that is to be drawn; None are those of the face that is there.

    Yields:
        The U-Net's context, float (B, N + T, W): tokens without identity and, last, those of the identity.
    """
    hidden = torch.zeros_like(masks)
    if degradation is not None:
        images, hidden = degradation(images, masks, landmarks, keys)
    degraded, drawn = to_model(images), landmarks if drawn is None else drawn
    with torch.no_grad():
        maps = features.maps(degraded)
    rest, identity = networks.recomposer(maps, drawn, control)
    spatial = networks.spatial
    with nullcontext() if spatial is None else spatial.steering(degraded, hidden, drawn, description):
        yield torch.cat([rest, identity], 1)


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
        description: Says what the source does and wears; None for a model without paths beside the tokens.
        shape: See `Shape`.
        feather: Outside the identity mask the image stays the original's, with a seam of so many pixels outside it: no
            pixel inside has anything of the original's. None takes all of what was drawn.
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
        mapping: IdentityMapping | None = None,
        appearance: Appearance = "redrawn",
        description: FaceDescription | None = None,
        shape: Shape = "source",
        feather: int | None = None,
    ) -> None:
        super().__init__()
        self.register_modules(
            vae=vae, unet=unet, scheduler=scheduler, networks=networks, harmonizer=harmonizer, recognizer=recognizer,
            features=features,
        )  # fmt: skip
        self.degradation, self.mapping, self.appearance = degradation, mapping, appearance
        self.description, self.shape, self.feather = description, shape, feather

    def to(  # diffusers' own asks every module for a dtype
        self, device: torch.device | str | None = None, dtype: torch.dtype | None = None
    ) -> ID2FacePipeline:
        """Move everything; only the diffusion model takes another precision, whose image it is stays in float32."""
        for module in (self.vae, self.unet, self.harmonizer):
            if module is not None:
                module.to(device, dtype)
        for module in (self.networks, self.recognizer, self.features):
            module.to(device)
        to_device(self.description, self.unet.device)
        return self

    @property
    def device(self) -> torch.device:
        """Where the U-Net is."""
        return self.unet.device

    @property
    def dtype(self) -> torch.dtype:
        """The U-Net's precision."""
        return self.unet.dtype

    def _exactly(self) -> torch.autocast:
        """Inside, who it is stays in float32, whichever precision draws it."""
        return torch.autocast(self.unet.device.type, enabled=False)

    @property
    def judges(self) -> Judges:
        """Who has to be there when it is read from a folder."""
        return {"recognizer": self.recognizer, "features": self.features, "description": self.description}

    @torch.no_grad()
    def latents_of(self, images: Tensor) -> Tensor:
        """Who is shown, as the ID-VAE's mean: float (B, d) of images uint8 (B, 3, H, W)."""
        with self._exactly():
            embeddings = self.recognizer.recognize(to_model(images.to(self.unet.device)))
            return self.networks.id_vae.encode(embeddings)[0]

    @property
    def draws_shape(self) -> tuple[int, int]:
        """Of the draws that a new identity is chosen from, see `IdentityNetworks.choose`."""
        return (_CANDIDATES[self.appearance], self.networks.numbers)

    @torch.no_grad()
    def identities(self, source: Tensor, draws: Tensor) -> Tensor:
        """New identities.

        Args:
            source: float (B, d), who must not be drawn, see `latents_of`.
            draws: Standard normal (B, *`draws_shape`).

        Returns:
            Control vectors: unit, float (B, D).
        """
        with self._exactly():
            return self.networks.choose(source, draws.to(source), self.mapping, self.appearance == "kept")

    def seen(self, images: Tensor) -> Tensor:
        """What faces do and wear: float (B, G) of images uint8 (B, 3, H, W); G is 0 without a description."""
        traits = torch.zeros(len(images), 0) if self.description is None else self.description.see(images)
        return traits.to(self.unet.device)

    def placed(self, landmarks: Tensor, seen: Tensor, control: Tensor) -> Tensor:
        """Landmarks of the face that is to be drawn, float (B, 68, 2), see `Shape`."""
        if self.shape == "source":
            return landmarks
        if self.networks.landmarks is None:
            raise ValueError("landmarks: the model knows no shapes of new faces; train it with a description.")
        with self._exactly():
            return HeadFrame.of(landmarks).to_image(self.networks.landmarks(seen, control))

    def changed(self, masks: Tensor, landmarks: Tensor) -> Tensor:
        """Which pixels of a result are not the original's, bool (B, 1, H, W); arguments as in `__call__`."""
        if self.feather is None or self.degradation is None:
            return torch.ones_like(masks)
        return dilate(self.degradation.mask(masks, landmarks), self.feather)

    @torch.no_grad()
    def __call__(
        self,
        images: Tensor,
        masks: Tensor,
        landmarks: Tensor,
        keys: Sequence[Sequence[Key]],
        control: Tensor | None = None,
        num_inference_steps: int = 15,
    ) -> Tensor:
        """Anonymize a batch; image i depends on its own row and key, not on its place in the batch.

        Args:
            images: uint8 (B, 3, H, W), one aligned face in each.
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
        self._check(images, masks, landmarks, keys)
        device = self.unet.device
        dtype = torch.float32 if torch.is_autocast_enabled(device.type) else self.unet.dtype
        if control is None:
            draws = keyed_randn([(*key, "identity") for key in keys], self.draws_shape)
            control = self.identities(self.latents_of(images), draws)
        images, masks, landmarks = images.to(device), masks.to(device), landmarks.to(device)
        control, seen = control.to(device), self.seen(images)
        drawn = self.placed(landmarks, seen, control)
        factor = 2 ** (len(self.vae.config.block_out_channels) - 1)
        shape = (self.vae.config.latent_channels, *(side // factor for side in images.shape[-2:]))
        noise = keyed_randn([(*key, "noise") for key in keys], shape).to(device, dtype)
        self.scheduler.set_timesteps(num_inference_steps, device=device)
        latents = noise * self.scheduler.init_noise_sigma
        named = [(*key, "degrade") for key in keys]
        with leading(
            self.networks, self.features, self.degradation, images, masks, landmarks, seen, control, named, drawn
        ) as context:
            for t in self.progress_bar(self.scheduler.timesteps):
                scaled = self.scheduler.scale_model_input(latents, t)
                prediction = self.unet(scaled, t, encoder_hidden_states=context.to(dtype)).sample
                latents = self.scheduler.step(prediction, t, latents).prev_sample
        scale = float(self.vae.config.scaling_factor)
        new = to_pixels(self.vae.decode((latents / scale).to(dtype)).sample)
        if self.feather is not None:
            new = paste(images, new, self.changed(masks, landmarks), self.feather)
        return new.cpu()

    def _check(self, images: Tensor, masks: Tensor, landmarks: Tensor, keys: Sequence[Sequence[Key]]) -> None:
        count = len(images)
        factor = 2 ** (len(self.vae.config.block_out_channels) - 1) * 2 ** (
            len(self.unet.config.block_out_channels) - 1
        )
        if any(side % factor for side in images.shape[-2:]):
            raise ValueError(f"sides must be multiples of {factor}, got {tuple(images.shape[-2:])}; crop or resize.")
        if masks.shape != (count, 1, *images.shape[-2:]) or masks.dtype != torch.bool:
            raise ValueError(
                f"masks must be bool {(count, 1, *images.shape[-2:])}, got {masks.dtype} {tuple(masks.shape)}."
            )
        if len(landmarks) != count or len(keys) != count:
            raise ValueError(f"{count} images, {len(landmarks)} landmarks and {len(keys)} keys do not fit.")
        for name, seen in (("mask", masks.flatten(1).any(1)), ("landmarks", landmarks.isfinite().all((1, 2)))):
            if not seen.all():
                row = int((~seen).nonzero()[0])
                raise ValueError(f"image {row} has no {name}: no face was found, and nobody would be anonymized.")

    # --- folders -----------------------------------------------------------------------------------------

    def save_pretrained(  # there is nothing else to choose
        self, save_directory: str | os.PathLike[str]
    ) -> None:
        """Write a folder, see `fairanon.pipelines.id2face_folder.write`."""
        write(self, Path(save_directory))

    @classmethod
    def from_pretrained(  # diffusers' own finds parts by their names in its own package
        cls,
        folder: str | os.PathLike[str],
        recognizer: Recognizer,
        features: FeatureMaps,
        description: FaceDescription | None = None,
    ) -> ID2FacePipeline:
        """Read a folder that `save_pretrained` wrote.

        Args:
            folder: The folder.
            recognizer: The one it was trained with.
            features: Likewise.
            description: Likewise; None if it was trained without.

        Raises:
            ValueError: Others than those it was trained with.
        """
        parts = read(Path(folder), {"recognizer": recognizer, "features": features, "description": description})
        pipeline = cls(recognizer=recognizer, features=features, description=description, **parts)
        for module in pipeline.components.values():
            if isinstance(module, nn.Module):
                module.requires_grad_(False).eval()
        return pipeline
