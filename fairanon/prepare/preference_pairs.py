"""Pairs of a model's own samples, the better one by a scorer's rating, in Pick-a-Pic's schema."""

from __future__ import annotations

import io
import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor

from fairanon.backbones import Backbone, Sampling
from fairanon.batches import PromptRow
from fairanon.evaluators.judge import jsonable
from fairanon.files import atomic_write, content_key, write_json
from fairanon.prepare.base import Preparation
from fairanon.progress import progress_bar
from fairanon.prompts import read_prompts
from fairanon.protocols import Scorer
from fairanon.seeding import Key, keyed_uniform

_SCHEMA = pa.schema(
    [("are_different", pa.bool_()), ("best_image_uid", pa.string()), ("caption", pa.string()),
     ("created_at", pa.timestamp("ns")), ("has_label", pa.bool_()),
     ("image_0_uid", pa.string()), ("image_0_url", pa.string()), ("image_1_uid", pa.string()),
     ("image_1_url", pa.string()), ("jpg_0", pa.binary()), ("jpg_1", pa.binary()),
     ("label_0", pa.float64()), ("label_1", pa.float64()), ("model_0", pa.string()), ("model_1", pa.string()),
     ("ranking_id", pa.int64()), ("user_id", pa.int64()), ("num_example_per_prompt", pa.int64())]
)  # fmt: skip


class PreferencePairs(Preparation):
    """Samples each prompt several times and pairs the best with the worst.

    Args:
        folder: Result: ``train-00000.parquet``, ``validation-00000.parquet``, ``samples/`` and ``recipe.json``.
        backbone: The text-to-image model that is to be aligned.
        scorer: Rates the samples.
        prompts: Prompt table; rows of the set "heldout" make the validation file.
        samples: Samples per prompt.
        best: How many of the best are paired ...
        worst: ... with how many of the worst: ``best * worst`` pairs per prompt.
        tie: Scores that differ by less are a tie, label 0.5.
        sampling_steps: DPM-Solver++ steps.
        guidance_scale: 1 is no guidance.
        batch_size: Images sampled at once.
        quality: Of the JPEG files.
        seed: Of the images and their order in a pair.
    """

    result = "recipe.json"
    reads = ("prompts",)

    def __init__(
        self,
        folder: str,
        backbone: Backbone,
        scorer: Scorer,
        prompts: str,
        samples: int = 12,
        best: int = 5,
        worst: int = 4,
        tie: float = 0.01,
        sampling_steps: int = 15,
        guidance_scale: float = 5.0,
        batch_size: int = 32,
        quality: int = 95,
        seed: int = 0,
    ) -> None:
        super().__init__(folder)
        if min(best, worst) < 1 or best + worst > samples:
            raise ValueError(
                f"prepare: best ({best}) and worst ({worst}) must be at least 1 and at most samples ({samples}) together."
            )
        self.backbone, self.scorer, self.rows = backbone, scorer, read_prompts(Path(prompts), "prepare.prompts")
        self.samples, self.best, self.worst, self.tie = samples, best, worst, tie
        self.sampling_steps, self.guidance_scale = sampling_steps, guidance_scale
        self.batch_size, self.quality, self.seed = batch_size, quality, seed
        self.together = 500  # rows of a row group

    def shorten(self) -> None:
        """See `Preparation.shorten`; no pair is a tie."""
        held, rest = ([row for row in self.rows if (row.set == "heldout") == which] for which in (True, False))
        self.rows, self.sampling_steps, self.tie, self.together = rest[:2] + held[:2], 2, 0.0, 4

    def drawn(self) -> int:
        """See `Preparation.images`."""
        return len(self.rows) * self.samples

    def make(self) -> None:
        """Sample and rate what is missing, then write both files."""
        self.make_pieces()
        paths, counts = self._paths(), {}
        for split, held_out in (("train", False), ("validation", True)):
            chosen = [n for n, row in enumerate(self.rows) if (row.set == "heldout") == held_out]
            pairs = [pair for n in chosen for pair in self._pairs(n, self.rows[n], load_file(paths[n]))]
            counts[split] = {"pairs": len(pairs), "ties": sum(pair["label_0"] == 0.5 for pair in pairs)}
            with atomic_write(self.folder / f"{split}-00000.parquet") as partial:
                pq.write_table(pa.Table.from_pylist(pairs, _SCHEMA), partial, row_group_size=self.together)
        write_json(self.folder / "recipe.json", {"scorer": self.scorer.name, "prompts": len(self.rows), **counts})
        print(f"{self.folder}: {counts['train']['pairs']} pairs ({counts['train']['ties']} ties) to train on, "
              f"{counts['validation']['pairs']} held out")  # fmt: skip

    def _paths(self) -> list[Path]:
        """Of each prompt's samples."""
        recipe = [
            self.backbone.origin(), jsonable(self.scorer), self.samples, self.sampling_steps, self.guidance_scale,
            self.seed,
        ]  # fmt: skip
        store = self.folder / "samples"
        return [store / f"{content_key(*recipe, row.prompt, n)}.safetensors" for n, row in enumerate(self.rows)]

    def make_pieces(self, share: int = 0, of: int = 1) -> None:
        """See `Preparation.make_pieces`."""
        (self.folder / "samples").mkdir(parents=True, exist_ok=True)
        paths = self._paths()
        missing = [n for n in range(share, len(paths), of) if not paths[n].exists()]
        together = max(1, self.batch_size // self.samples)
        parts = [missing[k : k + together] for k in range(0, len(missing), together)]
        for part in progress_bar(parts, desc="sampling pairs", unit="batch", disable=not parts):
            self._sample(part, paths)

    def _sample(self, rows: list[int], paths: list[Path]) -> None:
        prompts = [self.rows[n].prompt for n in rows for _ in range(self.samples)]
        keys: list[tuple[Key, ...]] = [(self.seed, "pair", n, k) for n in rows for k in range(self.samples)]
        pixels = self.backbone.sample(prompts, keys, Sampling(self.sampling_steps, self.guidance_scale))
        scores = self.scorer.score(pixels, prompts)
        for n, images, rating in zip(rows, pixels.split(self.samples), scores.split(self.samples), strict=True):
            with atomic_write(paths[n]) as partial:
                save_file({"pixels": images.contiguous(), "scores": rating.contiguous()}, partial)

    def _pairs(self, n: int, row: PromptRow, sampled: dict[str, Tensor]) -> Iterator[dict[str, Any]]:
        scores = sampled["scores"]
        order = scores.argsort(descending=True).tolist()
        for number, (good, bad) in enumerate(itertools.product(order[: self.best], order[-self.worst :])):
            tied = bool(scores[good] - scores[bad] < self.tie)
            swap = bool(keyed_uniform([(self.seed, "order", n, number)]) < 0.5)
            label = 0.5 if tied else float(not swap)
            first, second = (bad, good) if swap else (good, bad)
            uids = [f"{n}-{k}" for k in (first, second)]
            yield {
                "are_different": True, "best_image_uid": "" if tied else f"{n}-{good}", "caption": row.prompt,
                "created_at": 0, "has_label": True, "image_0_uid": uids[0], "image_0_url": "", "image_1_uid": uids[1],
                "image_1_url": "", "jpg_0": self._jpeg(sampled["pixels"][first]),
                "jpg_1": self._jpeg(sampled["pixels"][second]), "label_0": label, "label_1": 1 - label,
                "model_0": self.backbone.fingerprint(), "model_1": self.backbone.fingerprint(),
                "ranking_id": number, "user_id": 0, "num_example_per_prompt": self.best * self.worst,
            }  # fmt: skip

    def _jpeg(self, pixels: torch.Tensor) -> bytes:
        buffer = io.BytesIO()
        Image.fromarray(pixels.permute(1, 2, 0).numpy()).save(buffer, "JPEG", quality=self.quality)
        return buffer.getvalue()
