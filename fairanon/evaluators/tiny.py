"""The embedded world's own judges: small networks for 64x64 portraits, weights in ``fairanon/assets/judges``.

Each network takes float32 images in [-1, 1] (so it can stand in a loss); the judge round it takes uint8.
Shapes: N images, C channels.
"""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar, Literal

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional as F

from fairanon.embedded import embedded
from fairanon.evaluators.judge import Judge, weights_file
from fairanon.imaging import Square, to_model
from fairanon.protocols import Detections

VERSION = 1
ATTRIBUTES: dict[str, tuple[str, ...]] = {
    "subject": ("person", "tree", "house", "car"),
    "occupation": ("doctor", "nurse", "builder", "chef", "farmer", "officer", "firefighter", "pilot", "judge",
                   "teacher", "painter", "astronaut", "athlete", "sailor", "person"),
    "gender": ("female", "male"),
    "tone": ("pale", "light", "olive", "tan", "brown", "dark"),
    "age": ("young", "old"),
    "expression": ("neutral", "smiling", "surprised"),
    "glasses": ("no glasses", "glasses"),
    "hands": ("no hands", "hands"),
}  # fmt: skip
"""What the attribute classifier tells apart; a test compares it with the world's own vocabulary."""

JUDGES_FOLDER = embedded("judges")
LATER_JUDGES_FOLDER = embedded("later_judges")
"""Of judges that came later. They train and draw nothing, so `world_version` leaves them out: tables that are kept stay valid."""


def _conv(inputs: int, outputs: int, stride: int = 1, groups: int = 1) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, 3, stride, 1, groups=groups, bias=False), nn.GroupNorm(8, outputs), nn.SiLU()
    )


class _Trunk(nn.Sequential):
    """64x64x3 to 8x8xC, plain convolutions."""

    def __init__(self, widths: tuple[int, int, int]) -> None:
        a, b, c = widths
        super().__init__(_conv(3, a, 2), _conv(a, a), _conv(a, b, 2), _conv(b, b), _conv(b, c, 2), _conv(c, c))


class AttributeNet(nn.Module):
    """Attribute logits; its pooled features also serve as the feature net of the embedded FID."""

    def __init__(self, trunk: nn.Sequential | None = None, last: nn.Module | None = None) -> None:
        super().__init__()
        self.trunk = trunk or _Trunk((24, 48, 96))
        self.last = last or _conv(96, 96, 2)
        self.heads = nn.ModuleDict({name: nn.Linear(96, len(values)) for name, values in ATTRIBUTES.items()})

    def features(self, x: Tensor) -> Tensor:
        """float32 (N, 96)."""
        return self.last(self.trunk(x)).mean((2, 3))

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """Logits (N, K) per attribute."""
        pooled = self.features(x)
        return {name: head(pooled) for name, head in self.heads.items()}


class EmbedderNet(nn.Module):
    """Plain convolutions, flattened: where a feature stands matters for identity."""

    def __init__(self) -> None:
        super().__init__()
        self.trunk = _Trunk((24, 48, 64))
        self.head = nn.Sequential(_conv(64, 32), nn.Flatten(), nn.Linear(32 * 64, 64))

    def forward(self, x: Tensor) -> Tensor:
        """Unit vectors (N, 64)."""
        return F.normalize(self.head(self.trunk(x)), dim=1)


class _Separable(nn.Module):
    """Depthwise convolution and a two-layer perceptron per pixel, residual."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.depthwise = nn.Conv2d(width, width, 5, 1, 2, groups=width)
        self.norm = nn.GroupNorm(1, width)
        self.mix = nn.Sequential(nn.Conv2d(width, 2 * width, 1), nn.GELU(), nn.Conv2d(2 * width, width, 1))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.mix(self.norm(self.depthwise(x)))


def _patches() -> nn.Sequential:
    """64x64x3 to 8x8x96, separable convolutions on patches."""
    return nn.Sequential(
        nn.Conv2d(3, 48, 4, 4), _Separable(48), _Separable(48),
        nn.Conv2d(48, 96, 2, 2), _Separable(96), _Separable(96), _Separable(96),
    )  # fmt: skip


class SecondAttributeNet(AttributeNet):
    """Another architecture than `AttributeNet`, trained apart: the judge of what that one trained."""

    def __init__(self) -> None:
        super().__init__(_patches(), nn.Sequential(nn.GroupNorm(1, 96), nn.Conv2d(96, 96, 3, 2, 1), nn.GELU()))


class SecondEmbedderNet(nn.Module):
    """Another architecture than `EmbedderNet` (patches, separable convolutions): the judge of what that one trained."""

    def __init__(self) -> None:
        super().__init__()
        self.body = _patches()
        self.head = nn.Sequential(nn.GroupNorm(1, 96), nn.Conv2d(96, 24, 1), nn.Flatten(), nn.Linear(24 * 64, 64))

    def forward(self, x: Tensor) -> Tensor:
        """Unit vectors (N, 64)."""
        return F.normalize(self.head(self.body(x)), dim=1)


class DetectorNet(nn.Module):
    """Centre heat maps of faces and hands at a quarter of the resolution, with box sizes; any image size.

    Output (N, 6, H / 4, W / 4): logits of face and hand centres, then width and height of a face and of a hand
    as shares of 64 pixels.
    """

    def __init__(self) -> None:
        super().__init__()
        self.fine = nn.Sequential(_conv(3, 16, 2), _conv(16, 32, 2), _conv(32, 32))
        self.coarse = nn.Sequential(_conv(32, 48, 2), _conv(48, 48), _conv(48, 48))
        last = nn.Conv2d(48, 6, 1)
        self.head = nn.Sequential(_conv(80, 48), last)
        assert last.bias is not None
        nn.init.constant_(last.bias[:2], -4.0)

    def forward(self, x: Tensor) -> Tensor:
        """See the class."""
        fine = self.fine(x)
        coarse = F.interpolate(self.coarse(fine), size=fine.shape[-2:], mode="nearest")
        return self.head(torch.cat([fine, coarse], dim=1))


class _Geometry(nn.Module):
    """68 landmarks (pixels), pose (degrees), expression parameters and gaze ([-1, 1])."""

    SIZES: ClassVar = {"landmarks": 136, "pose": 3, "expression": 4, "gaze": 2}

    def __init__(self, trunk: nn.Module, hidden: nn.Module) -> None:
        super().__init__()
        self.trunk, self.hidden = trunk, hidden
        self.heads = nn.ModuleDict({name: nn.Linear(96, size) for name, size in self.SIZES.items()})

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """One tensor per quantity of the class."""
        hidden = self.hidden(self.trunk(x))
        out = {name: head(hidden) for name, head in self.heads.items()}
        return {
            "landmarks": 32 + 10 * out["landmarks"].view(-1, 68, 2),
            "pose": 10 * out["pose"],
            "expression": 0.1 * out["expression"],
            "gaze": out["gaze"],
        }


class GeometryNet(_Geometry):
    """Plain convolutions; it may stand in a condition."""

    def __init__(self) -> None:
        hidden = nn.Sequential(_conv(64, 32), nn.Flatten(), nn.Linear(32 * 64, 96), nn.SiLU())
        super().__init__(_Trunk((24, 48, 64)), hidden)


class SecondGeometryNet(_Geometry):
    """Another architecture than `GeometryNet`, trained apart: the judge of what that one conditioned."""

    def __init__(self) -> None:
        hidden = [nn.GroupNorm(1, 96), nn.Conv2d(96, 24, 1), nn.Flatten(), nn.Linear(24 * 64, 96), nn.SiLU()]
        super().__init__(_patches(), nn.Sequential(*hidden))


NETWORKS: dict[str, type[nn.Module]] = {
    "attributes": AttributeNet,
    "attributes_b": SecondAttributeNet,
    "embedder_a": EmbedderNet,
    "embedder_b": SecondEmbedderNet,
    "detector": DetectorNet,
    "geometry": GeometryNet,
    "geometry_b": SecondGeometryNet,
}


def judge_folder(name: str) -> Path:
    """Where the weights of a judge come along."""
    return LATER_JUDGES_FOLDER if name == "attributes_b" else JUDGES_FOLDER


def load_network(name: str, folder: str | Path | None = None) -> nn.Module:
    """Load a judge's network, frozen, in float32.

    Args:
        name: A key of `NETWORKS`.
        folder: Where ``NAME.safetensors`` lies; None is the packaged folder, see `judge_folder`.

    Returns:
        The network in evaluation mode without gradients.
    """
    file = Path(folder or judge_folder(name)) / f"{name}.safetensors"
    path = weights_file(file, f"judge {name}", "`make assets` rebuilds it")
    with torch.device("cpu"):  # real also where the model round it is only counted
        network = NETWORKS[name]()
    network.load_state_dict({key: value.float() for key, value in load_file(path).items()})
    return network.eval().requires_grad_(False)


_BATCH = 128
_SIDE = 64
"""Of the portraits that these networks know."""


def _in_batches(network: nn.Module, pixels: Tensor) -> list[Tensor]:
    """Apply a network whose output is one tensor, in batches, without gradients."""
    device = next(network.parameters()).device
    with torch.no_grad():
        return [network(to_model(part.to(device))) for part in pixels.split(_BATCH)]


class TinyAttributes(Judge):
    """One of the two embedded attribute classifiers and feature nets.

    Args:
        folder: Folder of the network's weights, and of the detector's where it is the first one; None is the packaged one.
        faces: Ask the detector too: images without a face get NaN, as with any real-world judge.
        network: "attributes" (may stand in a training loss), or "attributes_b" (only judges).
    """

    side = _SIDE

    def __init__(
        self,
        folder: str | None = None,
        faces: bool = True,
        network: Literal["attributes", "attributes_b"] = "attributes",
    ) -> None:
        self.name = f"tiny-{network.replace('_', '-')}-{VERSION}"
        self.classes = dict(ATTRIBUTES)
        self.network = load_network(network, folder)
        self.detector = TinyDetector(folder if network == "attributes" else None) if faces else None

    def classify(self, pixels: Tensor) -> dict[str, Tensor]:
        """See `AttributeClassifier`; "subject" and "occupation" are judged with or without a face."""
        assert isinstance(self.network, AttributeNet)
        with torch.no_grad():
            parts = [self.network(to_model(part.to(self.device))) for part in pixels.split(_BATCH)]
        result = {name: torch.cat([part[name] for part in parts]).softmax(1).cpu() for name in ATTRIBUTES}
        if self.detector is not None:
            missing = self.detector.best_scores(pixels, "face") < DETECTION_THRESHOLD
            for name, value in result.items():
                if name not in ("subject", "occupation"):
                    value[missing] = float("nan")
        return result

    def differentiable(self, images: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        """See `DifferentiableClassifier`."""
        assert isinstance(self.network, AttributeNet)
        pooled = self.network.features(images)
        return {name: head(pooled) for name, head in self.network.heads.items()}, pooled

    def features(self, pixels: Tensor) -> Tensor:
        """See `FeatureNet`."""
        assert isinstance(self.network, AttributeNet)
        with torch.no_grad():
            return torch.cat([self.network.features(to_model(p.to(self.device))) for p in pixels.split(_BATCH)]).cpu()


BACKGROUNDS = {"blue": (143, 184, 224), "green": (158, 204, 158), "pink": (235, 178, 194), "sand": (230, 209, 158)}
"""The embedded world's wall colours; a test compares them with the renderer's."""


class TinyBackground(Judge):
    """Names the wall behind a portrait by its nearest colour, from the image's upper edges, where nobody stands."""

    def __init__(self) -> None:
        self.name = f"tiny-background-{VERSION}"
        self.classes = {"background": tuple(BACKGROUNDS)}

    def classify(self, pixels: Tensor) -> dict[str, Tensor]:
        """See `AttributeClassifier`; a wall is there with or without a face."""
        side = pixels.shape[-1]
        edges = torch.cat([pixels[..., : side // 2, : side // 16], pixels[..., : side // 2, -(side // 16) :]], 3)
        colour = edges.flatten(2).float().median(2).values
        distance = (colour[:, None] - torch.tensor(list(BACKGROUNDS.values())).to(colour)).square().sum(2)
        return {"background": F.one_hot(distance.argmin(1), len(BACKGROUNDS)).float().cpu()}


class TinyPerceptual(Judge):
    """A stand-in for LPIPS by the embedded classifier's features, uncalibrated: not to be compared with LPIPS.

    The squared distance of the channels, scaled to unit length at each place, averaged over the places and over the
    trunk's layers (LPIPS, equation 1, with all weights equal).

    Args:
        folder: Folder of the judges' weights; None is the packaged one.
    """

    side = _SIDE

    def __init__(self, folder: str | None = None) -> None:
        self.name = f"tiny-perceptual-{VERSION}"
        network = load_network("attributes", folder)
        assert isinstance(network, AttributeNet)
        self.layers = network.trunk

    def distance(self, pixels: Tensor, others: Tensor) -> Tensor:
        """See `PerceptualDistance`."""
        x, y = to_model(pixels.to(self.device)), to_model(others.to(self.device))
        total = torch.zeros(len(pixels), device=self.device)
        with torch.no_grad():
            for layer in self.layers:
                x, y = layer(x), layer(y)
                total += (F.normalize(x, dim=1) - F.normalize(y, dim=1)).square().sum(1).mean((1, 2))
        return (total / len(self.layers)).cpu()


PORTRAIT = 2.76
"""Side of a portrait of the embedded world as a multiple of its face's mean side."""


class TinyEmbedder(Judge):
    """One of the two embedded identity embedders.

    Args:
        network: "embedder_a" (may stand in a training loss) or "embedder_b" (only judges).
        folder: Folder of the judges' weights; None is the packaged one.
    """

    def __init__(self, network: str = "embedder_b", folder: str | None = None) -> None:
        self.name = f"tiny-{network.replace('_', '-')}-{VERSION}"
        self.network = load_network(network, folder)
        self.detector = TinyDetector(folder)

    licence, drawn_world = "Apache-2.0", True
    size = _SIDE
    metric: Literal["cosine", "euclidean"] = "cosine"
    published: float | None = None

    def align(self, image: Tensor, box: Tensor) -> Square | None:
        """See `FaceMatcher`: the square in which the face is as large as in a portrait."""
        x0, y0, x1, y1 = box.tolist()
        return Square((x0 + x1) / 2, (y0 + y1) / 2, PORTRAIT * ((x1 - x0) * (y1 - y0)) ** 0.5)

    def embed_aligned(self, cuts: Tensor) -> Tensor:
        """See `FaceMatcher`."""
        return torch.cat(_in_batches(self.network, cuts)).cpu()

    def embed(self, pixels: Tensor) -> Tensor:
        """See `Embedder`."""
        embeddings = self.embed_aligned(pixels)
        embeddings[self.detector.best_scores(pixels, "face") < DETECTION_THRESHOLD] = float("nan")
        return embeddings


DETECTION_THRESHOLD = 0.5


class TinyDetector(Judge):
    """The embedded face and hand detector.

    Args:
        folder: Folder of the judges' weights; None is the packaged one.
        threshold: Detections below this score are not returned.
    """

    def __init__(self, folder: str | None = None, threshold: float = DETECTION_THRESHOLD) -> None:
        self.name, self.licence, self.any_scale = f"tiny-detector-{VERSION}", "Apache-2.0", False
        self.drawn_world = True
        self.kinds: tuple[str, ...] = ("face", "hand")
        self.threshold = threshold
        self.network = load_network("detector", folder)

    def best_scores(self, pixels: Tensor, kind: str) -> Tensor:
        """The highest score of a kind in each image, found or not: float32 (N,)."""
        maps = torch.cat(_in_batches(self.network, pixels)).cpu()
        return maps[:, self.kinds.index(kind)].sigmoid().amax((1, 2))

    def detect(self, pixels: Tensor) -> list[dict[str, Detections]]:
        """See `Detector`."""
        maps = torch.cat(_in_batches(self.network, pixels)).cpu()
        scores = maps[:, :2].sigmoid()
        peaks = torch.where(F.max_pool2d(scores, 3, 1, 1) == scores, scores, 0.0)
        results = []
        for n in range(len(pixels)):
            by_kind = {}
            for k, kind in enumerate(self.kinds):
                rows, columns = (peaks[n, k] >= self.threshold).nonzero(as_tuple=True)
                order = peaks[n, k, rows, columns].argsort(descending=True)
                rows, columns = rows[order], columns[order]
                centre = torch.stack([columns, rows], dim=1) * 4.0 + 2.0
                half = maps[n, 2 + 2 * k : 4 + 2 * k, rows, columns].T * 32.0
                by_kind[kind] = Detections(torch.cat([centre - half, centre + half], dim=1), peaks[n, k, rows, columns])
            results.append(by_kind)
        return results


class TinyGeometry(Judge):
    """One of the two embedded regressors of landmarks, pose, expression and gaze.

    Args:
        network: "geometry" (may stand in a condition) or "geometry_b" (only judges).
        folder: Folder of the judges' weights; None is the packaged one.
    """

    side = _SIDE

    def __init__(self, network: str = "geometry", folder: str | None = None) -> None:
        self.name = f"tiny-{network.replace('_', '-')}-{VERSION}"
        self.sizes = {name: size for name, size in _Geometry.SIZES.items() if name != "landmarks"}
        self.network = load_network(network, folder)
        self.detector = TinyDetector(folder)

    def measure(self, pixels: Tensor) -> dict[str, Tensor]:
        """Landmarks (N, 68, 2) in pixels, pose (N, 3) in degrees, expression (N, 4), gaze (N, 2); NaN without a face."""
        with torch.no_grad():
            parts = [self.network(to_model(part.to(self.device))) for part in pixels.split(_BATCH)]
        missing = self.detector.best_scores(pixels, "face") < DETECTION_THRESHOLD
        result = {name: torch.cat([part[name] for part in parts]).cpu() for name in _Geometry.SIZES}
        for value in result.values():
            value[missing] = float("nan")
        return result

    def landmarks(self, pixels: Tensor) -> Tensor:
        """See `LandmarkDetector`."""
        return self.measure(pixels)["landmarks"]
