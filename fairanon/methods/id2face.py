"""ID2Face: a diffusion model whose image says what is seen and whose identity vector says who it is."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn

from fairanon.backbones import Backbone, Conditioning, Sampling
from fairanon.batches import IdentityBatch, PromptRow, stacked
from fairanon.degradation import Degradation
from fairanon.evaluators.description import FaceDescription
from fairanon.evaluators.judge import to_device
from fairanon.evaluators.recognizers import FeatureMaps, Recognizer
from fairanon.files import write_text
from fairanon.imaging import to_model, to_pixels
from fairanon.losses.identity import (
    identity_similarity,
    identity_vae,
    latent_reconstruction,
    region_prediction,
)
from fairanon.methods.base import DiffusionMethod
from fairanon.networks.harmonizer import Harmonizer
from fairanon.networks.id2face_networks import (
    IdentityMapping,
    IdentityNetworks,
    NegatedIdentity,
    OrthogonalIdentityMapping,
    refuse_negated,
)
from fairanon.networks.identity_fit import Known, fit_identities
from fairanon.pipelines.id2face_folder import card
from fairanon.pipelines.id2face_pipeline import ID2FacePipeline, Shape, leading
from fairanon.progress import progress_bar
from fairanon.protocols import AttributeClassifier
from fairanon.seeding import Key, keyed_randn


@dataclass(frozen=True)
class Widths:
    """Sizes of the networks beside the U-Net.

    Attributes:
        latent: Width of the ID-VAE's latent.
        hidden: Width of its hidden layers.
        tokens: Identity tokens.
        heads: Attention heads of the recomposer.
        side: Feature maps are pooled to at most this side.
        bands: Octaves of the Fourier features of places and landmarks.
    """

    latent: int = 256
    hidden: int = 1024
    tokens: int = 4
    heads: int = 8
    side: int = 16
    bands: int = 8


@dataclass(frozen=True)
class LossWeights:
    """What each loss counts beside the noise's, whose weight is 1 (equation 22).

    Attributes:
        reconstruction: lambda 1; 0 is "w/o L_diff-recon".
        similarity: Of the identity's similarity; 1 in equation 18.
        similarity_floor: Samples with a smaller alpha-bar, which is their weight, are not decoded for the similarity:
            decoding and recognizing cost almost as much as everything else.
        region: lambda 2; 0 is "w/o L_id-region".
        divergence: lambda 3.
    """

    reconstruction: float = 0.1
    similarity: float = 1.0
    similarity_floor: float = 0.0
    region: float = 0.1
    divergence: float = 1e-5

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if value < 0:
                raise ValueError(f"model.weights.{name} must not be negative, got {value}.")
        if self.similarity_floor >= 1:
            raise ValueError(f"model.weights.similarity_floor must be in [0, 1), got {self.similarity_floor}.")


@dataclass(frozen=True)
class Fit:
    """What is fitted to identities alone, before the first step.

    Attributes:
        id_vae: ``first``: fitted then, on the identities of ``pairs`` images, and frozen. ``joint``: it learns with
            everything else, the paper's reading.
        pairs: Images; the heads for new landmarks and appearances are fitted to them likewise.
        steps: Steps of 512 of that.
        mixture: Components that new identities are drawn from, fitted likewise; 0 is the standard normal, as in the paper.
    """

    id_vae: Literal["first", "joint"] = "first"
    pairs: int = 8192
    steps: int = 2500
    mixture: int = 0

    def __post_init__(self) -> None:
        if self.mixture and self.id_vae == "joint":
            raise ValueError(
                "model.fit.mixture: an ID-VAE that goes on learning has no latents to fit it to; set it to 0."
            )


class ID2Face(DiffusionMethod):
    """Draws an image anew from its own degraded face and an identity (ID2Face, section III).

    A step: the face of x is degraded, its features are placed by landmarks and become tokens without identity; the
    identity of y, another image of the same person, goes through the ID-VAE and becomes identity tokens; both see
    each other and lead the U-Net, whose gates say where the identity belongs. Nothing that trains reads text.

    Gradients: noise, reconstruction, similarity and region losses reach U-Net, branches, recomposer and the paths beside
    the tokens, and with a joint ID-VAE that too, through the control vector; the control vector that the similarity
    compares with is detached, see `fairanon.losses.identity`. The ID-VAE's own losses reach the ID-VAE alone.

    Args:
        backbone: The diffusion model; all of its U-Net trains.
        recognizer: Who a face is, with a gradient.
        features: Multi-scale features of the degraded image.
        conditioning: ``tokens`` is the paper's; ``tokens+spatial`` adds `fairanon.networks.spatial`: through tokens alone
            a model is slow to learn to follow pose and landmarks.
        description: Says what a face does and wears: leads the U-Net under ``tokens+spatial``, and new landmarks.
        degradation: What is done to the face; None leaves it as it is ("w/o masking").
        appearance: Judges what people look like, for a new identity that shares it with the old one; None leaves that out.
        attributes: Which of its attributes.
        kept: Whether new identities do share it when the model is used: see `fairanon.pipelines.id2face_pipeline.Appearance`.
        landmarks: Whose are drawn when the model is used: see `fairanon.pipelines.id2face_pipeline.Shape`.
        mapping: Of drawn identities when the model is used; None leaves them as they are ("w/o OIM"). ``negated`` is
            `NegatedIdentity`: it can be measured, but nothing is trained, exported or anonymized with it.
        feather: See `ID2FacePipeline`.
        widths: See `Widths`.
        weights: See `LossWeights`.
        fit: See `Fit`.
        aligned: Bidirectional alignment (equation 4).
        harmonized: Gated branches; without them the tokens are concatenated for ordinary cross-attention ("w/o IGLH").
        seed: Of the noise of the run.
        shared: See `DiffusionMethod`; there are no captions to be dropped.
    """

    def __init__(
        self,
        backbone: Backbone,
        recognizer: Recognizer,
        features: FeatureMaps,
        conditioning: Literal["tokens+spatial", "tokens"] = "tokens+spatial",
        description: FaceDescription | None = None,
        degradation: Degradation | None = None,
        mapping: OrthogonalIdentityMapping | Literal["negated"] | None = None,
        appearance: AttributeClassifier | None = None,
        attributes: tuple[str, ...] = (),
        kept: bool = False,
        landmarks: Shape = "new",
        feather: int | None = 2,
        widths: Widths = Widths(),
        weights: LossWeights = LossWeights(),
        fit: Fit = Fit(),
        aligned: bool = True,
        harmonized: bool = True,
        seed: int = 0,
        **shared: Any,
    ) -> None:
        if backbone.trainable.networks != (backbone.unet,) or backbone.trains_adapters or backbone.inpaints:
            raise ValueError(
                "model.backbone: ID2Face trains the whole U-Net of a text-to-image model; leave lora, control and "
                "train_text_encoder out, and name no inpainting model."
            )
        if landmarks == "new" and description is None:
            raise ValueError("landmarks: new ones need a description of what the face does; name one, or take source.")
        super().__init__(backbone, caption_dropout=0.0, seed=seed, **shared)
        backbone.keep_unet_alone()
        self.widths, self.weights, self.fit = widths, weights, fit
        self.degradation, self.kept = degradation, kept
        self.mapping: IdentityMapping | None = NegatedIdentity() if mapping == "negated" else mapping
        self.shape, self.feather = landmarks, feather
        if attributes and (appearance is None or not set(attributes) <= set(appearance.classes)):
            raise ValueError(f"attributes: nobody judges {', '.join(attributes)}; name a judge in appearance.")
        if kept and not attributes:
            raise ValueError("kept: name the attributes that are to be kept.")
        self.appearance, self.attributes, self.description = appearance, attributes, description
        self.recognizer, self.features = recognizer, features
        for network in self._frozen():
            network.requires_grad_(False).eval()
        self.joint = fit.id_vae == "joint"
        unet = backbone.unet
        spatial = None
        if conditioning == "tokens+spatial":
            first = int(unet.config.block_out_channels[0])
            spatial = [first, unet.time_embedding.linear_1.out_features, backbone.scale_factor]
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.networks = IdentityNetworks(
                identity=recognizer.width,
                channels=features.channels,
                width=int(unet.config.cross_attention_dim),
                **asdict(widths),
                aligned=aligned,
                appearance={name: len(appearance.classes[name]) for name in attributes} if appearance else None,
                description=0 if description is None else description.width,
                spatial=spatial,
                mixture=fit.mixture,
            )
            self.harmonizer = Harmonizer(unet, widths.tokens) if harmonized else None
        if self.networks.spatial is not None:
            self.networks.spatial.install(unet)
        self._fitted = False
        for part in self._fitted_first():
            part.requires_grad_(False)

    def train(self, mode: bool = True) -> ID2Face:
        """The frozen networks stay in evaluation mode."""
        super().train(mode)
        for network in self._frozen():
            network.eval()
        return self

    def _frozen(self) -> list[nn.Module]:
        return [cast(nn.Module, self.recognizer), cast(nn.Module, self.features)]

    # --- before the first step ---------------------------------------------------------------------------

    def _fitted_first(self) -> list[nn.Module]:
        """What `fit_identities` trains: frozen afterwards, and in the checkpoint all the same."""
        networks = self.networks
        parts = [networks.appearance, networks.landmarks, networks.mixture, None if self.joint else networks.id_vae]
        return [part for part in parts if part is not None]

    def _trainable_names(self) -> set[str]:
        fitted = {id(p) for part in self._fitted_first() for p in part.parameters()}
        return super()._trainable_names() | {name for name, p in self.named_parameters() if id(p) in fitted}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """What is loaded was fitted."""
        super().on_load_checkpoint(checkpoint)
        self._fitted = True

    def configure_model(self) -> None:
        """See `DiffusionMethod`; what hides nobody is not trained."""
        refuse_negated(self.mapping)
        super().configure_model()

    def on_fit_start(self) -> None:
        """The judges work where the model does; what knows identities alone is fitted."""
        to_device([self.appearance, self.description], self.device)
        if self._fitted or not self._fitted_first() or not self.trainer.max_steps:
            return
        known = self._known_people()
        fit_identities(
            self.networks,
            known,
            not self.joint,
            self.weights.divergence,
            self.fit.steps,
            self.global_rank > 0,
        )
        self._fitted = True

    @torch.no_grad()
    def _known_people(self) -> Known:
        """The first ``fit.pairs`` pairs of the training data, in the order of one rank with all of the batch."""
        data = self.trainer.datamodule  # type: ignore[attr-defined]  # Lightning's own attribute
        size = self.trainer.world_size * data.batch_size
        count = -(-self.fit.pairs // size)
        rows: list[list[Tensor]] = []
        batches = itertools.islice(data.train_dataloader(), count)
        for batch in progress_bar(
            batches, desc="who is there", total=count, unit="batch", disable=self.global_rank > 0
        ):
            identity = self.recognizer.recognize(to_model(batch.references.to(self.device))).float().cpu()
            judged = {} if self.appearance is None else self.appearance.classify(batch.references)
            looks = [judged[name] for name in self.attributes]
            rows.append([identity, batch.landmarks, self.seen(batch.images).cpu(), *looks])
            if self.trainer.world_size > 1:
                parts: list[Any] = [None] * self.trainer.world_size
                dist.all_gather_object(parts, rows[-1])
                rows[-1] = [torch.cat(columns) for columns in zip(*parts, strict=True)]
        identity, landmarks, seen, *looks = (torch.cat(columns) for columns in zip(*rows, strict=True))
        return Known(identity, landmarks, seen, dict(zip(self.attributes, looks, strict=True)))

    # --- a step ------------------------------------------------------------------------------------------

    def seen(self, images: Tensor) -> Tensor:
        """What faces do and wear: float (B, G), see `FaceDescription`; G is 0 without one."""
        traits = torch.zeros(len(images), 0) if self.description is None else self.description.see(images)
        return traits.to(self.device)

    def loss(self, batch: IdentityBatch) -> tuple[Tensor, dict[str, Tensor]]:
        """Equation 22 on one batch of pairs; see `DiffusionMethod.loss`."""
        with torch.no_grad():
            identity = self.recognizer.recognize(to_model(batch.references))
            seen = self.seen(batch.images)
        noise = None
        if self.training:
            noise = keyed_randn(
                [(self.noise_seed, "identity", key) for key in batch.keys], (self.networks.id_vae.latent,)
            ).to(self.device)
        control, mean, log_variance = self.networks.id_vae(identity, noise)

        keys = [(self.noise_seed, "degrade", key) for key in batch.keys]
        with leading(
            self.networks,
            self.features,
            self.degradation,
            batch.images,
            batch.masks,
            batch.landmarks,
            seen,
            control,
            keys,
        ) as context:
            x = self.noised(self.latents(batch.images, batch.keys), batch.keys, Conditioning(context))
            prediction = self.backbone.predict(x.noisy, x.timesteps, x.condition)
        drawn = self.backbone.predict_x0(x.noisy, prediction, x.timesteps)
        abar = self.backbone.alphas_cumprod(x.timesteps)

        parts = {"noise": (prediction - x.target).square().mean()}
        if self.joint:
            reconstruction, divergence = identity_vae(identity, control, mean, log_variance)
            parts |= {"vae": reconstruction, "divergence": self.weights.divergence * divergence}
        if self.weights.reconstruction:
            parts["reconstruction"] = self.weights.reconstruction * latent_reconstruction(x.latents, drawn, abar)
        if self.weights.similarity:
            clear = abar >= self.weights.similarity_floor
            parts["similarity"] = abar.new_zeros(())
            if clear.any():
                embeddings = self.recognizer.recognize(self.backbone.decode(drawn[clear]))
                lost = identity_similarity(embeddings, control[clear], abar[clear])
                parts["similarity"] = self.weights.similarity * lost.sum() / len(abar)
        if self.harmonizer is not None and self.weights.region:
            gates = region_prediction(self.harmonizer.maps(), batch.masks)
            parts["region"] = self.weights.region * gates
        return torch.stack(list(parts.values())).sum(), {name: value.detach() for name, value in parts.items()}

    def held_out(self, batch: IdentityBatch, reference: bool) -> dict[str, Tensor]:
        """What the parts do, on people who were not in training.

        ``identity/cosine`` and ``identity/rebuilt``: how near identities are after decoding, new ones to the old, rebuilt
        ones to the old. ``recomposed/error``: mean absolute difference, of 255, inside the identity mask between an image
        and the same one drawn again with its own identity and landmarks; ``recomposed/autoencoder``: what of it the
        autoencoder alone does.
        """
        if reference:
            return {}
        with self.pipeline() as pipeline:
            source = pipeline.latents_of(batch.images)
            draws = keyed_randn([("val", "identity", key) for key in batch.keys], pipeline.draws_shape)
            own = self.recognizer.recognize(to_model(batch.images))
            new, rebuilt = pipeline.identities(source, draws), self.networks.id_vae.decode(source)
            pipeline.shape = "source"
            keys = [("val", key) for key in batch.keys]
            again = pipeline(batch.images, batch.masks, batch.landmarks, keys, rebuilt, 10).to(self.device)
            coded = to_pixels(self.backbone.decode(self.latents(batch.images, batch.keys)))
        hidden = batch.masks
        if self.degradation is not None:
            _, hidden = self.degradation(batch.images, batch.masks, batch.landmarks, keys)
        area = hidden.flatten(1).sum(1)

        def error(images: Tensor) -> Tensor:
            away = (images.int() - batch.images.int()).abs().float().mean(1, keepdim=True)
            return (away * hidden).flatten(1).sum(1) / area

        return {
            "identity/cosine": (new * own).sum(1), "identity/rebuilt": (rebuilt * own).sum(1),
            "recomposed/error": error(again), "recomposed/autoencoder": error(coded),
        }  # fmt: skip

    def check_use(self, rows: Sequence[PromptRow], sampling: Sampling) -> None:
        """See `DiffusionMethod.check_use`."""
        if sampling.guidance_scale != 1 or sampling.lora_weight != 1:
            raise ValueError(
                f"evaluate: ID2Face has neither guidance nor adapters; set guidance_scale ({sampling.guidance_scale}) "
                f"and lora_weight ({sampling.lora_weight}) to 1."
            )
        for row in rows:
            if not all(row.holds(name) for name in ("image", "mask", "landmarks")):
                raise ValueError("evaluate.prompts: give every row an image, a mask and landmarks.")

    def settings_of_use(self) -> tuple[Any, ...]:
        """See `DiffusionMethod`."""
        described = None if self.description is None else self.description.describe()
        return repr(self.degradation), repr(self.mapping), self.kept, self.shape, self.feather, described

    def images(
        self,
        rows: Sequence[PromptRow],
        keys: Sequence[Sequence[Key]],
        sampling: Sampling,
    ) -> Tensor:
        """The rows' images, anonymized; with ``reference`` as they are: the untrained model is no baseline.

        There is no guidance and there are no adapters: both weights are 1.
        """
        held = [row.loaded() for row in rows]
        images, masks, landmarks = (
            stacked(getattr(row, name) for row in held) for name in ("image", "mask", "landmarks")
        )
        assert images is not None and masks is not None and landmarks is not None  # see `check_use`
        if sampling.reference:
            return images
        with self.pipeline() as pipeline:
            return pipeline(images, masks, landmarks, keys, num_inference_steps=sampling.steps)

    def export_weights(self, folder: Path, name: str) -> Path:
        """Write ``pipeline``, which needs the recognizer and the features beside it, and a model card."""
        with self.pipeline() as pipeline:
            pipeline.save_pretrained(folder / "pipeline")
            write_text(folder / "README.md", card(pipeline, name, self.backbone.fingerprint().split()[0]))
        return folder / "pipeline"

    def export_pipeline(self, folder: str | Path, name: str, lora_weight: float = 1.0) -> Path:
        """The same in a folder of its own, which must not exist."""
        folder = Path(folder)
        if folder.exists():
            raise ValueError(f"{folder} exists; choose another folder.")
        if lora_weight != 1:
            raise ValueError("ID2Face trains no adapters; leave --weight out.")
        refuse_negated(self.mapping)
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
            self.features, self.degradation, self.mapping, "kept" if self.kept else "redrawn", self.description,
            self.shape, self.feather,
        )  # fmt: skip
        pipeline.set_progress_bar_config(disable=True)
        try:
            with backbone.computing():
                yield pipeline
        finally:
            self.train(training)
