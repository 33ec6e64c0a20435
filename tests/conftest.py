"""Shared fixtures: no network, no W&B, tiny data drawn by the embedded world's renderer."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator

os.environ.update(
    HF_HUB_OFFLINE="1", WANDB_MODE="disabled", CUDA_VISIBLE_DEVICES=os.environ.get("CUDA_VISIBLE_DEVICES", "")
)

if "PYTEST_XDIST_WORKER" in os.environ:  # workers and what they start share the cores
    os.environ["OMP_NUM_THREADS"] = "1"

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from data_modules.synthetic_faces.captions import prompt
from data_modules.synthetic_faces.renderer import render
from data_modules.synthetic_faces.world import OCCUPATIONS, draw_scenes
from fairanon.imaging import write_image

REPOSITORY = Path(__file__).parent.parent
torch.set_num_threads(1 if "PYTEST_XDIST_WORKER" in os.environ else 2)


def write_preferences(folder: Path, pairs: int = 24) -> Path:
    """A preference folder in the layout of ``fairanon prepare``: balanced against biased renderings."""
    images = folder / "images"
    images.mkdir(parents=True)
    rows = []
    for side, population in enumerate(("balanced", "biased")):
        scenes = draw_scenes(7, range(pairs), population)  # type: ignore[arg-type]
        scenes = scenes.replace(occupation=torch.arange(pairs) % 3, subject=torch.zeros(pairs, dtype=torch.long))
        for n, image in enumerate(render(scenes).image):
            write_image(image, images / f"{side}-{n}.png")
    for n in range(pairs):
        rows.append(
            {
                "jpg_0": f"images/0-{n}.png",
                "jpg_1": f"images/1-{n}.png",
                "prompt_0": f"a photo of a female {OCCUPATIONS[n % 3]}",
                "prompt_1": prompt(OCCUPATIONS[n % 3]),
                "caption": prompt(OCCUPATIONS[n % 3]),
                "label_0": 1.0,
                "label_1": 0.0,
                "split": "val" if n >= pairs - 4 else "train",
            }
        )
    pq.write_table(pa.Table.from_pylist(rows), folder / "pairs.parquet")
    return folder


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("data_modules.folders.CACHE", tmp_path / ".cache")


@pytest.fixture(autouse=True)
def _no_logger_lives_on() -> Iterator[None]:
    yield
    wandb = sys.modules.get("wandb")
    if wandb is not None and wandb.run is not None:
        wandb.finish()  # it would go on writing, below whatever folder the next test is in


@pytest.fixture
def preferences(tmp_path: Path) -> Path:
    return write_preferences(tmp_path / "preferences")
