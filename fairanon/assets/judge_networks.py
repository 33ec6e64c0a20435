"""Trains the embedded judges on balanced renderings and measures them on people they have never seen.

Images are blurred, noised and shaded at random in training, so that the judges also read what an
autoencoder or a diffusion model makes.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F

from data_modules.synthetic_faces.renderer import MASKS, Rendering, render
from data_modules.synthetic_faces.world import TONES, Scenes, draw_scenes
from fairanon.anonymizer.calibrate import thresholds_of
from fairanon.anonymizer.find import Finder
from fairanon.assets.loop import train_asset
from fairanon.config.precision import mixed
from fairanon.evaluators.tiny import LATER_JUDGES_FOLDER, NETWORKS, TinyDetector, TinyEmbedder
from fairanon.files import atomic_write
from fairanon.imaging import to_model
from fairanon.progress import progress_bar

BATCH = 64
_TRAIN_SEED, _TEST_SEED = 201, 202
STEPS = {
    "attributes": 2000,
    "attributes_b": 4000,
    "embedder_a": 5000,
    "embedder_b": 10_000,
    "detector": 1500,
    "geometry": 3000,
    "geometry_b": 4000,
}


def _draw(seed: int, first: int, count: int, others: float = 0.12, masks: bool = False) -> tuple[Scenes, Rendering]:
    """Balanced scenes, a share of them without a person."""
    scenes = draw_scenes(seed, range(first, first + count), "balanced")
    number = torch.arange(first, first + count)
    period = round(1 / others) if others else count + first + 1
    scenes = scenes.replace(subject=torch.where(number % period == 0, 1 + (number // period) % 3, scenes.subject))
    return scenes, render(scenes, masks)


def _degrade(x: Tensor, generator: torch.Generator) -> Tensor:
    """Blur, noise and a shift of colour, each image its own strength."""
    count = len(x)

    def share() -> Tensor:
        return torch.rand(count, 1, 1, 1, generator=generator)

    blurred = F.avg_pool2d(F.pad(x, (1, 1, 1, 1), mode="replicate"), 3, 1)
    x = torch.lerp(x, blurred, (share() * 1.6 - 0.6).clamp_min(0))
    x = x + 0.12 * share() * share() * torch.randn(x.shape, generator=generator)
    return x * (0.97 + 0.06 * share()) + 0.04 * (torch.rand(count, 3, 1, 1, generator=generator) - 0.5)


def _attribute_loss(net: nn.Module) -> Callable[[int], dict[str, Tensor]]:
    def loss(step: int) -> dict[str, Tensor]:
        scenes, drawn = _draw(_TRAIN_SEED, step * BATCH, BATCH)
        x = _degrade(to_model(drawn.image), torch.Generator().manual_seed(step))
        with mixed("cpu"):
            logits = net(x)
        person = scenes.subject == 0
        parts = {"subject": F.cross_entropy(logits["subject"].float(), scenes.subject)}
        for name in ("occupation", "gender", "tone", "age", "expression", "glasses", "hands"):
            target = getattr(scenes, name).long()
            parts[name] = F.cross_entropy(logits[name][person].float(), target[person], label_smoothing=0.02)
        return parts

    return loss


def _embedder_loss(net: nn.Module) -> Callable[[int], dict[str, Tensor]]:
    """InfoNCE over two images of each person; every other batch is of one gender and tone (hard negatives)."""

    def loss(step: int) -> dict[str, Tensor]:
        people = 2**20
        half = BATCH // 2
        index = torch.arange(step * half, (step + 1) * half)
        scenes = draw_scenes(_TRAIN_SEED, torch.cat([index, index + people]).tolist(), "balanced", people)
        if step % 2:
            scenes = scenes.replace(
                gender=torch.full_like(scenes.gender, step // 2 % 2), tone=torch.full_like(scenes.tone, step // 4 % 6)
            )
        x = _degrade(to_model(render(scenes).image), torch.Generator().manual_seed(step))
        with mixed("cpu"):
            embeddings = net(x)
        a, b = F.normalize(embeddings.float(), dim=1).chunk(2)
        similarity = a @ b.T / 0.07
        target = torch.arange(half)
        return {"infonce": (F.cross_entropy(similarity, target) + F.cross_entropy(similarity.T, target)) / 2}

    return loss


def region_boxes(masks: Tensor, names: tuple[str, ...]) -> tuple[Tensor, Tensor]:
    """Bounding box of the union of regions.

    Args:
        masks: uint8 (N, 11, H, W), see `data_modules.synthetic_faces.renderer.MASKS`.
        names: Which regions.

    Returns:
        Boxes x0 y0 x1 y1, float32 (N, 4), and whether there is anything, bool (N,).
    """
    region = masks[:, [MASKS.index(name) for name in names]].amax(1).bool()
    columns, rows = region.any(1), region.any(2)
    width, height = region.shape[-1], region.shape[-2]
    x0, y0 = columns.int().argmax(1), rows.int().argmax(1)
    x1, y1 = width - columns.flip(1).int().argmax(1), height - rows.flip(1).int().argmax(1)
    return torch.stack([x0, y0, x1, y1], dim=1).float(), region.flatten(1).any(1)


_FACE_PARTS = ("face", "eyes", "brows", "nose", "lips")


def _scramble(x: Tensor, box: Tensor, generator: torch.Generator) -> None:
    """Shuffle the blocks of 4 x 4 pixels inside a box, in place: a face or hand that is none."""
    x0, y0, x1, y1 = (int(value) // 4 * 4 for value in box)
    x1, y1 = x1 + 4 if x1 < x.shape[-1] else x1, y1 + 4 if y1 < x.shape[-2] else y1
    part = x[:, y0:y1, x0:x1]
    height, width = part.shape[1] // 4, part.shape[2] // 4
    blocks = part.reshape(3, height, 4, width, 4).permute(1, 3, 0, 2, 4).flatten(0, 1)
    blocks = blocks[torch.randperm(len(blocks), generator=generator)]
    x[:, y0:y1, x0:x1] = blocks.unflatten(0, (height, width)).permute(2, 0, 3, 1, 4).reshape(part.shape)


def _detector_batch(seed: int, step: int) -> tuple[Tensor, list[tuple[Tensor, Tensor]]]:
    """Images in [-1, 1] and, per kind of thing (face, left hand, right hand), boxes and presence.

    A fifth of the faces and hands is scrambled and counts as absent: the score must follow the quality.
    """
    _, drawn = _draw(seed, step * BATCH, BATCH, masks=True)
    assert drawn.masks is not None
    x = to_model(drawn.image)
    generator = torch.Generator().manual_seed(step)
    things = []
    for names in (_FACE_PARTS, ("left_hand",), ("right_hand",)):
        boxes, present = region_boxes(drawn.masks, names)
        for n in (present & (torch.rand(len(x), generator=generator) < 0.2)).nonzero()[:, 0].tolist():
            _scramble(x[n], boxes[n], generator)
            present[n] = False
        things.append((boxes, present))
    return _degrade(x, generator), things


def _detector_loss(net: nn.Module) -> Callable[[int], dict[str, Tensor]]:
    def loss(step: int) -> dict[str, Tensor]:
        x, things = _detector_batch(_TRAIN_SEED, step)
        with mixed("cpu"):
            maps = net(x)
        maps = maps.float()
        side = maps.shape[-1]
        target = torch.zeros(len(x), 2, side, side)
        size_errors = []
        grid = torch.arange(side).float() + 0.5
        for number, (boxes, present) in enumerate(things):
            kind = min(number, 1)
            centre, size = (boxes[:, :2] + boxes[:, 2:]) / 8, (boxes[:, 2:] - boxes[:, :2]) / 64
            away = (grid.view(1, 1, -1) - centre[:, 0, None, None]) ** 2 + (
                grid.view(1, -1, 1) - centre[:, 1, None, None]
            ) ** 2
            bump = torch.exp(-away / 1.5) * present[:, None, None]
            target[:, kind] = torch.maximum(target[:, kind], bump)
            column, row = centre[:, 0].long().clamp(0, side - 1), centre[:, 1].long().clamp(0, side - 1)
            n = torch.arange(len(x))
            target[n[present], kind, row[present], column[present]] = 1.0
            predicted = maps[n, 2 + 2 * kind : 4 + 2 * kind, row, column]
            size_errors.append((predicted - size).abs()[present].mean())
        probability = maps[:, :2].sigmoid().clamp(1e-4, 1 - 1e-4)
        # The focal loss of CenterNet (Zhou et al. 2019, equation 1).
        hit = target == 1
        positive = -((1 - probability) ** 2 * probability.log())[hit].sum()
        negative = -((1 - target) ** 4 * probability**2 * (1 - probability).log())[~hit].sum()
        return {"heat": (positive + negative) / hit.sum().clamp_min(1), "size": torch.stack(size_errors).mean()}

    return loss


def _geometry_loss(net: nn.Module) -> Callable[[int], dict[str, Tensor]]:
    def loss(step: int) -> dict[str, Tensor]:
        scenes, drawn = _draw(_TRAIN_SEED, step * BATCH, BATCH, others=0.0)
        x = _degrade(to_model(drawn.image), torch.Generator().manual_seed(step))
        with mixed("cpu"):
            out = net(x)
        return {
            "landmarks": F.smooth_l1_loss(out["landmarks"].float(), drawn.landmarks, beta=0.5),
            "pose": F.mse_loss(out["pose"].float() / 10, scenes.pose / 10),
            "expression": 20 * F.mse_loss(out["expression"].float(), scenes.expression_vector),
            "gaze": F.mse_loss(out["gaze"].float(), scenes.gaze),
        }

    return loss


_LOSSES = {
    "attributes": _attribute_loss,
    "attributes_b": _attribute_loss,
    "embedder_a": _embedder_loss,
    "embedder_b": _embedder_loss,
    "detector": _detector_loss,
    "geometry": _geometry_loss,
    "geometry_b": _geometry_loss,
}


# By name, so that a judge which comes later changes no weights of the others.
_SEEDS = {
    "attributes": 0,
    "embedder_a": 1,
    "embedder_b": 2,
    "detector": 3,
    "geometry": 4,
    "geometry_b": 5,
    "attributes_b": 6,
}


def train_judge(name: str, work: Path, out: Path, steps: int | None = None) -> None:
    """Train one judge and write ``out/NAME.safetensors`` in half precision.

    Args:
        name: A key of `fairanon.evaluators.tiny.NETWORKS`.
        work: Folder of unfinished work.
        out: Folder of the finished weights.
        steps: Number of steps; the shipped judges took `STEPS`.
    """
    torch.manual_seed(_SEEDS[name])
    net = NETWORKS[name]()
    train_asset(net, _LOSSES[name](net), name=name, steps=steps or STEPS[name], learning_rate=2e-3, work=work)
    with atomic_write(out / f"{name}.safetensors") as partial:
        save_file({key: value.half().contiguous() for key, value in net.state_dict().items()}, partial)


def _r2(predicted: Tensor, true: Tensor) -> list[float]:
    return [round(v, 3) for v in (1 - ((predicted - true) ** 2).mean(0) / true.var(0, unbiased=False)).tolist()]


def measure_judges(folder: Path, count: int = 2000) -> dict[str, object]:
    """Held-out quality of every judge.

    Args:
        folder: Where the weights lie; those of later judges in a folder beside it.
        count: Number of images.

    Returns:
        Accuracies, rank-1 rates, mean landmark error in pixels and R2, by name.
    """
    from fairanon.evaluators.tiny import TinyAttributes, TinyDetector, TinyEmbedder, TinyGeometry

    result: dict[str, object] = {}
    parts = [_draw(_TEST_SEED, first, BATCH, masks=True) for first in range(0, count, BATCH)]
    pixels = torch.cat([drawn.image for _, drawn in parts])
    label = {name: torch.cat([getattr(scenes, name) for scenes, _ in parts]).long() for name in
             ("subject", "occupation", "gender", "tone", "age", "expression", "glasses", "hands")}  # fmt: skip
    person = label["subject"] == 0
    plain = TinyAttributes(str(folder), faces=False)
    second = TinyAttributes(str(folder.with_name(LATER_JUDGES_FOLDER.name)), faces=False, network="attributes_b")
    for network, classifier in (("attributes", plain), ("attributes_b", second)):
        judged = classifier.classify(pixels)
        for name, probability in judged.items():
            right = probability.argmax(1) == label[name]
            result[f"{network}/accuracy/{name}"] = (right if name == "subject" else right[person]).float().mean().item()

    people = 250
    for name in ("embedder_a", "embedder_b"):
        embedder = TinyEmbedder(name, str(folder))
        for within in (False, True):
            scenes = [draw_scenes(_TEST_SEED, range(k * people, (k + 1) * people), "balanced", people) for k in (0, 1)]
            if within:
                scenes = [s.replace(gender=torch.zeros_like(s.gender), tone=torch.full_like(s.tone, 2)) for s in scenes]
            gallery, probe = (embedder.embed(render(s).image) for s in scenes)
            hit = (probe @ gallery.T).argmax(1) == torch.arange(people)
            result[f"rank1/{name}" + ("/same_gender_and_tone" if within else "")] = hit.float().mean().item()

    masks = torch.cat([drawn.masks for _, drawn in parts if drawn.masks is not None])
    detector = TinyDetector(str(folder))
    for kind, names in (("face", _FACE_PARTS), ("hand", ("left_hand", "right_hand"))):
        present = region_boxes(masks, names)[1]
        detected = detector.best_scores(pixels, kind) >= detector.threshold
        result[f"detector/{kind}/recall"] = detected[present].float().mean().item()
        result[f"detector/{kind}/false"] = detected[~present].float().mean().item()

    truth = torch.cat([drawn.landmarks for _, drawn in parts])[person]
    for judge in ("geometry", "geometry_b"):
        measured = TinyGeometry(judge, str(folder)).measure(pixels[person])
        result[f"{judge}/landmarks/pixels"] = (measured["landmarks"] - truth).norm(dim=-1).nanmean().item()
        for name, field in (("pose", "pose"), ("expression", "expression_vector"), ("gaze", "gaze")):
            true = torch.cat([getattr(scenes, field) for scenes, _ in parts])[person]
            seen = ~measured[name].isnan().any(1)
            result[f"{judge}/r2/{name}"] = _r2(measured[name][seen], true[seen])
    return result


def thresholds(folder: str | None = None, people: int = 2000, seed: int = 4450) -> dict[str, dict[str, Any]]:
    """Verification thresholds of the embedded embedders as `fairanon anonymize` uses them, for all people and each tone.

    Args:
        folder: Of the judges; None is the packaged one.
        people: Unseen ones, a portrait each.
        seed: Of them.
    """
    scenes = draw_scenes(seed, range(people), "balanced")
    portraits = torch.cat([render(scenes[first : first + 64]).image for first in range(0, people, 64)])
    names = [TONES[tone] for tone in scenes.tone.tolist()]
    finder = Finder([TinyDetector(folder)])
    judges = [TinyEmbedder(name, folder) for name in ("embedder_a", "embedder_b")]
    progress = progress_bar(
        zip(map(str, range(people)), portraits, names, strict=True), total=people, desc="thresholds", unit="person"
    )
    return thresholds_of(progress, finder, judges)
