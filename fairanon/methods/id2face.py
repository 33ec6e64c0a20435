"""ID2Face: a diffusion model whose picture says what is seen and whose identity vector says who it is."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import torch
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from torch import Tensor, nn
from torch.nn import functional as F

from fairanon.backbones import Backbone, Conditioning
from fairanon.batches import IdentityBatch, PromptRow
from fairanon.degradation import Degradation
from fairanon.evaluators.judge import place
from fairanon.evaluators.protocols import AttributeClassifier
from fairanon.evaluators.recognizers import FeatureMaps, Recognizer
from fairanon.imaging import to_model
from fairanon.losses.identity import (
    identity_similarity,
    identity_vae,
    landmark_emphasis,
    latent_reconstruction,
    region_prediction,
)
from fairanon.methods.base import ConstantWithWarmup, DiffusionMethod, stacked
from fairanon.networks.harmonizer import Harmonizer
from fairanon.networks.id2face import IdentityNetworks, OrthogonalIdentityMapping
from fairanon.pipelines.id2face import ID2FacePipeline, identity_context
from fairanon.seeding import Key, keyed_randn

_CARD = """---
pipeline_tag: image-to-image
tags: [fairanon, face-anonymization, diffusers]
base_model: {base}
---

# {name}

ID2Face, trained by fairanon from `{base}`. Use:
`fairanon.pipelines.ID2FacePipeline.from_pretrained("FOLDER/pipeline", recognizer, features)` with the recognizer
{recognizer} and the features {features}.

The `metrics.json` of the run says how often people are still found, by which recognizer and among how many. That is no
guarantee that a person is not recognized: read RESPONSIBLE_USE.md of fairanon before you rely on it.
"""


class ID2Face(DiffusionMethod):
    """Draws a picture anew from its own degraded face and an identity (ID2Face, section III).

    A step: the face of x is degraded, its features are placed by landmarks and become tokens without identity; the
    identity of y, another picture of the same person, goes through the ID-VAE and becomes identity tokens; both see
    each other and lead the U-Net, whose gates say where the identity belongs. Nothing that trains reads text.

    Gradients: noise, reconstruction, similarity and region losses reach U-Net, branches, recomposer and, through the
    control vector, the ID-VAE; the control vector that the similarity compares with is detached, see
    `fairanon.losses.identity`. The ID-VAE's own losses reach the ID-VAE alone, the appearance's its head alone.

    Args:
        backbone: The diffusion model; all of its U-Net trains.
        recognizer: Who a face is, with a gradient.
        features: Multi-scale features of the degraded picture.
        optimizer: Called with the trainable parameters.
        lr_scheduler: Called with the optimizer, stepped after each optimizer step.
        degradation: What is done to the face; None leaves it as it is ("w/o masking").
        appearance: Judges what people look like, for a new identity that shares it with the old one; None leaves that out.
        attributes: Which of its attributes.
        kept: Whether new identities do share it when the model is used: see `fairanon.pipelines.id2face.Appearance`.
        mapping: Of drawn identities when the model is used; None leaves them as they are ("w/o OIM").
        latent: Width of the ID-VAE's latent.
        hidden: Width of its hidden layers.
        tokens: Identity tokens.
        heads: Attention heads of the recomposer.
        side: Feature maps are pooled to at most this side.
        bands: Octaves of the Fourier features of places and landmarks.
        aligned: Bidirectional alignment (equation 4).
        harmonized: Gated branches; without them the tokens are concatenated for ordinary cross-attention ("w/o IGLH").
        reconstruction_weight: lambda 1; 0 is "w/o L_diff-recon".
        landmark_weight: See `fairanon.losses.identity.landmark_emphasis`; 0 is the paper.
        similarity_weight: Of the identity's similarity; 1 in equation 18.
        similarity_floor: Samples with a smaller alpha-bar, which is their weight, are not decoded for the similarity:
            decoding and recognizing cost almost as much as everything else.
        region_weight: lambda 2; 0 is "w/o L_id-region".
        region_share: See `fairanon.losses.identity.region_prediction`: with more than half, places where glasses cover a
            face are drawn from what the picture shows there.
        divergence_weight: lambda 3.
        seed: Names the noise of the run.
    """

    def __init__(
        self,
        backbone: Backbone,
        recognizer: Recognizer,
        features: FeatureMaps,
        optimizer: OptimizerCallable = torch.optim.AdamW,
        lr_scheduler: LRSchedulerCallable = ConstantWithWarmup,
        degradation: Degradation | None = None,
        mapping: OrthogonalIdentityMapping | None = None,
        appearance: AttributeClassifier | None = None,
        attributes: tuple[str, ...] = (),
        kept: bool = False,
        latent: int = 256,
        hidden: int = 1024,
        tokens: int = 4,
        heads: int = 8,
        side: int = 16,
        bands: int = 8,
        aligned: bool = True,
        harmonized: bool = True,
        reconstruction_weight: float = 0.1,
        landmark_weight: float = 0.0,
        similarity_weight: float = 1.0,
        similarity_floor: float = 0.0,
        region_weight: float = 0.1,
        region_share: float = 0.5,
        divergence_weight: float = 1e-5,
        seed: int = 0,
    ) -> None:
        if backbone.adapted != (backbone.unet,) or backbone.trains_adapters or backbone.inpaints:
            raise ValueError(
                "model.backbone: ID2Face trains the whole U-Net of a text-to-image model; leave lora, control and "
                "train_text_encoder out, and name no inpainting model."
            )
        super().__init__(backbone, optimizer, lr_scheduler, 0.0, seed)
        backbone.keep_unet_alone()
        weights = {
            "reconstruction_weight": reconstruction_weight, "landmark_weight": landmark_weight, "similarity_weight": similarity_weight,
            "region_weight": region_weight, "divergence_weight": divergence_weight,
        }  # fmt: skip
        for name, value in weights.items():
            if value < 0:
                raise ValueError(f"{name} must not be negative, got {value}.")
        if not 0 <= similarity_floor < 1:
            raise ValueError(f"similarity_floor must be in [0, 1), got {similarity_floor}.")
        if not 0 < region_share <= 1:
            raise ValueError(f"region_share must be in (0, 1], got {region_share}.")
        self.weights, self.similarity_floor, self.region_share = weights, similarity_floor, region_share
        self.degradation, self.mapping, self.kept = degradation, mapping, kept
        if attributes and (appearance is None or not set(attributes) <= set(appearance.classes)):
            raise ValueError(f"attributes: nobody judges {', '.join(attributes)}; name a judge in appearance.")
        if kept and not attributes:
            raise ValueError("kept: name the attributes that are to be kept.")
        self.appearance, self.attributes = appearance, attributes
        self.recognizer, self.features = recognizer, features
        for network in self._frozen():
            network.requires_grad_(False).eval()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            width = int(backbone.unet.config.cross_attention_dim)
            self.networks = IdentityNetworks(
                recognizer.width,
                features.channels,
                width,
                latent,
                hidden,
                tokens,
                heads,
                side,
                bands,
                aligned,
                {name: len(appearance.classes[name]) for name in attributes} if appearance is not None else None,
            )
            self.harmonizer = Harmonizer(backbone.unet, tokens) if harmonized else None

    def on_fit_start(self) -> None:
        """The judge of appearances works where the model does."""
        place(self.appearance, self.device)

    def train(self, mode: bool = True) -> ID2Face:
        """The frozen networks stay in evaluation mode."""
        super().train(mode)
        for network in self._frozen():
            network.eval()
        return self

    def _frozen(self) -> list[nn.Module]:
        return [cast(nn.Module, self.recognizer), cast(nn.Module, self.features)]

    def loss(self, batch: IdentityBatch) -> tuple[Tensor, dict[str, Tensor]]:
        """Equation 22 on one batch of pairs; see `DiffusionMethod.loss`."""
        with torch.no_grad():
            identity = self.recognizer.recognize(to_model(batch.references))
        noise = None
        if self.training:
            noise = keyed_randn(
                [(self.noise_seed, "identity", key) for key in batch.keys], (self.networks.id_vae.latent,)
            ).to(self.device)
        control, mean, log_variance = self.networks.id_vae(identity, noise)
        condition = Conditioning(
            identity_context(
                self.networks, self.features, self.degradation, batch.images, batch.masks, batch.landmarks, control,
                [(self.noise_seed, "degrade", key) for key in batch.keys],
            )
        )  # fmt: skip

        latents = self.latents(batch.images, batch.keys)
        noise, timesteps = self.draw(batch.keys, latents.shape[1:], "train" if self.training else "val")
        noisy = self.backbone.add_noise(latents, noise, timesteps)
        prediction = self.backbone.predict(noisy, timesteps, condition)
        drawn = self.backbone.predict_x0(noisy, prediction, timesteps)
        abar = self.backbone.alphas_cumprod(timesteps)

        emphasis = landmark_emphasis(
            batch.landmarks, latents.shape[-2], latents.shape[-1], self.weights["landmark_weight"]
        )
        reconstruction, divergence = identity_vae(identity, control, mean, log_variance)
        parts = {
            "noise": (emphasis * (prediction - self.backbone.target(latents, noise, timesteps)).square()).mean(),
            "vae": reconstruction,
            "divergence": self.weights["divergence_weight"] * divergence,
        }
        if self.weights["reconstruction_weight"]:
            parts["reconstruction"] = self.weights["reconstruction_weight"] * latent_reconstruction(
                latents, drawn, abar
            )
        if self.weights["similarity_weight"]:
            clear = abar >= self.similarity_floor
            parts["similarity"] = abar.new_zeros(())
            if clear.any():
                found = self.recognizer.recognize(self.backbone.decode(drawn[clear]))
                lost = identity_similarity(found, control[clear], abar[clear])
                parts["similarity"] = self.weights["similarity_weight"] * lost.sum() / len(abar)
        if self.harmonizer is not None and self.weights["region_weight"]:
            gates = region_prediction(self.harmonizer.maps(), batch.masks, self.region_share)
            parts["region"] = self.weights["region_weight"] * gates
        if self.networks.appearance is not None:
            parts["appearance"] = self._appearance_loss(identity, batch.references)
        return torch.stack(list(parts.values())).sum(), {name: value.detach() for name, value in parts.items()}

    def _appearance_loss(self, identity: Tensor, references: Tensor) -> Tensor:
        """Cross-entropy of what an embedding looks like, as the judge says; it reaches the head alone."""
        assert self.appearance is not None and self.networks.appearance is not None
        judged, logits = self.appearance.classify(references), self.networks.appearance(identity)
        losses = []
        for name, rows in logits.items():
            seen = ~judged[name].isnan().any(1).to(rows.device)
            labels = judged[name].nan_to_num().argmax(1).to(rows.device)
            losses.append((F.cross_entropy(rows, labels, reduction="none") * seen).sum() / len(rows))
        return torch.stack(losses).sum()

    def held_out_batch(self, batch: IdentityBatch, start: bool) -> dict[str, Tensor]:
        """How near identities are after decoding: new ones to the old (``identity/cosine``), and rebuilt ones to the old."""
        if start:
            return {}
        with self.pipeline() as pipeline:
            source = pipeline.latents_of(batch.images)
            draws = keyed_randn([("val", "identity", key) for key in batch.keys], pipeline.draws_shape)
            own = self.recognizer.recognize(to_model(batch.images))
            new, rebuilt = pipeline.identities(source, draws), self.networks.id_vae.decode(source)
        return {"identity/cosine": (new * own).sum(1), "identity/rebuilt": (rebuilt * own).sum(1)}

    def check_use(self, rows: Sequence[PromptRow], guidance_scale: float, lora_weight: float) -> None:
        """See `DiffusionMethod.check_use`."""
        if guidance_scale != 1 or lora_weight != 1:
            raise ValueError(
                f"evaluate: ID2Face has neither guidance nor adapters; set guidance_scale ({guidance_scale}) and "
                f"lora_weight ({lora_weight}) to 1."
            )
        for row in rows:
            if not all(row.holds(name) for name in ("picture", "mask", "landmarks")):
                raise ValueError("evaluate.prompts: give every row a picture, a mask and landmarks.")

    def settings_of_use(self) -> tuple[Any, ...]:
        """See `DiffusionMethod`."""
        return repr(self.degradation), repr(self.mapping), self.kept

    def pictures(
        self,
        rows: Sequence[PromptRow],
        keys: Sequence[Sequence[Key]],
        *,
        steps: int,
        guidance_scale: float,
        start: bool = False,
        lora_weight: float = 1.0,
    ) -> Tensor:
        """The rows' pictures, anonymized; with ``start`` as they are: the untrained model is no baseline.

        There is no guidance and there are no adapters: both weights are 1.
        """
        pictures, masks, landmarks = (
            stacked(getattr(row, name) for row in rows) for name in ("picture", "mask", "landmarks")
        )
        assert pictures is not None and masks is not None and landmarks is not None  # see `check_use`
        if start:
            return pictures
        with self.pipeline() as pipeline:
            return pipeline(pictures, masks, landmarks, keys, num_inference_steps=steps)

    def export_weights(self, folder: Path, name: str) -> Path:
        """Write ``pipeline``, which needs the recognizer and the features beside it, and a model card."""
        with self.pipeline() as pipeline:
            pipeline.save_pretrained(folder / "pipeline")
        base = self.backbone.fingerprint().split()[0]
        text = _CARD.format(name=name, base=base, recognizer=self.recognizer.name, features=self.features.name)
        (folder / "README.md").write_text(text)
        return folder / "pipeline"

    def export_pipeline(self, folder: Path, name: str, lora_weight: float = 1.0) -> Path:
        """The same in a folder of its own, which must not exist."""
        if folder.exists():
            raise ValueError(f"{folder} exists; choose another folder.")
        if lora_weight != 1:
            raise ValueError("ID2Face trains no adapters; leave --weight out.")
        folder.mkdir(parents=True)
        self.export_weights(folder, name)
        return folder

    @contextmanager
    def pipeline(self) -> Iterator[ID2FacePipeline]:
        """Inside, the diffusers pipeline of what has been trained so far, with DPM-Solver++; evaluation mode."""
        training = self.training
        self.eval()
        backbone = self.backbone
        pipeline = ID2FacePipeline(
            backbone.vae, backbone.unet, backbone.sampler(), self.networks, self.harmonizer, self.recognizer,
            self.features, self.degradation, self.mapping, "kept" if self.kept else "redrawn",
        )  # fmt: skip
        pipeline.set_progress_bar_config(disable=True)
        try:
            with backbone.computing():
                yield pipeline
        finally:
            self.train(training)
