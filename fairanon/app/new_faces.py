"""The tab for new faces: what a model drew before it was trained, and after, from the same noise."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import gradio as gr
import torch
from PIL import Image

from fairanon.app.messages import WORK, failed
from fairanon.backbones import Sampling
from fairanon.batches import PromptRow
from fairanon.config.runs import find_settings, is_finished, runs_root
from fairanon.config.settings import FairAnonCLI
from fairanon.imaging import to_array
from fairanon.methods.base import DiffusionMethod
from fairanon.methods.load import load_run

_SHIPPED = "popalign_tiny"
"""Comes with fairanon."""
_BAR = gr.Progress(track_tqdm=True)
_SMALLEST = 256
"""Side of an image on the page at least: the embedded world's have 64 pixels."""


def models() -> list[tuple[str, str]]:
    """Names and folders of the models that can be chosen: what comes along, and the latest runs."""
    latest = sorted(
        path for path in runs_root().glob("*/latest") if (path / "config.yaml").exists() and is_finished(path)
    )
    return [
        (f"{_SHIPPED}, as it comes with fairanon", str(runs_root() / _SHIPPED / "shipped")),
        *((f"{path.parent.name}, latest run", str(path)) for path in latest if path.parent.name != "popalign_gaussian"),
    ]


@dataclass(frozen=True)
class _Model:
    method: DiffusionMethod
    steps: int
    guidance_scale: float


@lru_cache(maxsize=1)
def _model(folder: str, made: float) -> _Model:
    """A model and how its experiment draws; ``made`` tells a new run in the same place."""
    del made
    device = "cuda" if torch.cuda.is_available() else "cpu"
    evaluate = FairAnonCLI(find_settings(Path(folder))[1], build=False).config.get("evaluate")
    settings: Any = evaluate.init_args if evaluate is not None else {}
    return _Model(
        load_run(folder, device), int(settings.get("sampling_steps", 15)), float(settings.get("guidance_scale", 7.5))
    )


def model_of(folder: str) -> _Model:
    """A model that can be chosen, loaded once."""
    config = Path(folder) / "config.yaml"
    return _model(folder, config.stat().st_mtime if config.exists() else 0.0)


def draw(folder: str, prompt: str, count: int, seed: int) -> tuple[list[Image.Image], list[Image.Image]]:
    """Images of a prompt by the model as it was, and as it was trained; image i of both begins with the same noise.

    Args:
        folder: Of a finished run.
        prompt: What is to be seen.
        count: How many.
        seed: Of the noise.

    Raises:
        ValueError: There is no prompt, or the model draws of photographs alone.
    """
    if not prompt.strip():
        raise ValueError("Say what is to be drawn, for example: a photo of a doctor.")
    model = model_of(folder)
    rows, keys = [PromptRow(prompt.strip(), "asked", {})] * count, [(seed, "app", number) for number in range(count)]
    galleries = []
    for reference in (True, False):
        sampling = Sampling(model.steps, model.guidance_scale, reference)
        model.method.check_use(rows, sampling)
        images = model.method.images(rows, keys, sampling)
        galleries.append([_large(Image.fromarray(to_array(image))) for image in images])
    return galleries[0], galleries[1]


def _large(image: Image.Image) -> Image.Image:
    times = max(1, -(-_SMALLEST // max(image.size)))
    return image.resize((image.width * times, image.height * times), Image.Resampling.NEAREST)


def tab() -> None:
    """Add the tab to the page that is being made."""
    with gr.Tab("New faces"):
        there = models()
        gr.Markdown(
            "What a model drew of the same words before it was trained, and after. Nobody in these images exists; the model that comes along draws cartoons."
        )
        with gr.Row():
            which = gr.Dropdown(there, value=there[0][1], label="model")
            prompt = gr.Textbox("a photo of a doctor", label="what is drawn")
            count = gr.Slider(1, 12, 6, step=1, label="images")
            seed = gr.Number(0, precision=0, label="number (another one gives other people)")
        start = gr.Button("Draw", variant="primary")
        message = gr.Markdown()
        with gr.Row():
            looks: dict[str, Any] = {
                "columns": 3,
                "object_fit": "contain",
                "format": "png",
                "buttons": ["fullscreen"],
                "interactive": False,
            }
            before = gr.Gallery(label="before training", **looks)
            after = gr.Gallery(label="after training", **looks)

        def show(folder: str, prompt: str, count: int, seed: int, bar: Any = _BAR) -> list[Any]:
            del bar  # gradio shows our bars
            try:
                return ["", *draw(folder, prompt, int(count), int(seed or 0))]
            except Exception as error:  # noqa: BLE001  (whatever it is, it is a sentence on the page)
                return [failed(error), None, None]

        for asked in (start.click, prompt.submit):
            asked(
                show, [which, prompt, count, seed], [message, before, after], show_progress_on=message, api_visibility="private",
                concurrency_id=WORK, concurrency_limit=1,
            )  # fmt: skip
