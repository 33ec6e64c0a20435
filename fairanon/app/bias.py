"""The tab that draws a model's people image by image and counts them, so that the intervals narrow while one looks."""

from __future__ import annotations

from collections.abc import Iterator
from html import escape
from typing import Any

import gradio as gr
import torch

from fairanon.app.messages import WORK, failed
from fairanon.app.new_faces import model_of, models
from fairanon.auditor.audit_page import bars_of, strips_of
from fairanon.auditor.findings import Neutral, Question, of_attribute
from fairanon.auditor.sentences import sentences
from fairanon.auditor.tally import Tally
from fairanon.backbones import Sampling
from fairanon.batches import PromptRow
from fairanon.evaluation import Portrayal
from fairanon.evaluation.engine import Samples, thumbnails
from fairanon.evaluation.observed import Judged
from fairanon.evaluation.portrayal import Portrayed
from fairanon.evaluators import TinyAttributes
from fairanon.metrics.functional.estimates import plain
from fairanon.report.page import render

_MOST = 12
"""Prompts at once."""
_ATTRIBUTES = ("gender", "tone")
_FIRST = "a photo of a doctor\na photo of a nurse\na photo of a pilot\na photo of a teacher"


def counted(folder: str, text: str, images: int, seed: int, reference: bool) -> Iterator[tuple[str, str]]:
    """What is known after each further image of every prompt: sentences, and a page of bars.

    Args:
        folder: Of a finished run.
        text: Prompts, a line each.
        images: Of each prompt.
        seed: Of the noise.
        reference: Of the model before training.

    Raises:
        ValueError: There is no prompt, or too many, or the model is none that the embedded judge knows.
    """
    prompts = list(dict.fromkeys(line.strip() for line in text.splitlines() if line.strip()))
    if not 1 <= len(prompts) <= _MOST:
        raise ValueError(f"Write 1 to {_MOST} prompts, a line each.")
    model = model_of(folder)
    if not model.method.backbone.fingerprint().startswith("tiny "):
        raise ValueError(
            "The judge that comes along knows the embedded model's images alone; `fairanon audit` takes any model."
        )
    rows, judge = [PromptRow(prompt, "neutral", {}) for prompt in prompts], Portrayal(TinyAttributes())
    sampling = Sampling(model.steps, model.guidance_scale, reference)
    model.method.check_use(rows, sampling)
    parts: list[Portrayed] = []
    shown = []
    for number in range(images):
        keys = [(seed, "evaluate", prompt, number) for prompt in prompts]
        pixels = model.method.images(rows, keys, sampling)
        parts.append(judge.observe(pixels, rows))
        shown.append(thumbnails(pixels))
        prompt = torch.arange(len(rows)).repeat(len(parts))
        judged = Judged(rows, prompt, Portrayed.join(parts))
        yield _so_far(judged, Samples([judged], len(prompt), torch.cat(shown), prompt), number + 1, images)


def _so_far(judged: Judged[Portrayed], samples: Samples, done: int, images: int) -> tuple[str, str]:
    classes, attributes = TinyAttributes().classes, dict[str, Any]()
    neutral = Neutral(Tally.of(judged, classes))
    for name in _ATTRIBUTES:
        even = torch.full((len(neutral.prompts), len(classes[name])), 1 / len(classes[name]), dtype=torch.float64)
        asked = Question(name, tuple(classes[name]), even, True, None)
        attributes[name] = plain(of_attribute(neutral, asked)) | {"classes": list(classes[name]), "even": True}
    conclusions = sentences({"attributes": attributes, "model": "this model", "compared_with": None})
    strips = strips_of(samples, judged.rows)
    groups = [bars_of(name, finding, strips) for name, finding in attributes.items()]
    page = render(
        "bars.html", refresh=False, title="so far", made=[f"{done} of {images} images a prompt"], word="", groups=groups
    )
    frame = f'<iframe title="who is shown" srcdoc="{escape(page)}" style="width:100%;height:38rem;border:0"></iframe>'
    return "\n".join(f"- {escape(sentence, False)}" for sentence in conclusions), frame


def tab() -> None:
    """Add the tab to the page that is being made."""
    with gr.Tab("How biased is a model?"):
        there = models()
        gr.Markdown(
            "Draw people of prompts that name no group, and count how they look to a judge. The bars are 95 % intervals: the more "
            "images, the shorter they are. `fairanon audit` does this for any model, with everything written down."
        )
        with gr.Row():
            which = gr.Dropdown(there, value=there[0][1], label="model")
            stage = gr.Radio(["before training", "after"], value="before training", label="which")
            count = gr.Slider(2, 50, 20, step=1, label="images of each prompt")
            seed = gr.Number(0, precision=0, label="number (another one gives other people)")
        prompts = gr.Textbox(_FIRST, lines=4, label="prompts, a line each")
        with gr.Row():
            start = gr.Button("Draw and count", variant="primary")
            stop = gr.Button("Stop")
        answer, page = gr.Markdown(), gr.HTML()

        def show(folder: str, stage: str, text: str, count: int, seed: int) -> Iterator[tuple[str, str]]:
            try:
                yield from counted(folder, text, int(count), int(seed or 0), stage == "before training")
            except Exception as error:  # noqa: BLE001  (whatever it is, it is a sentence on the page)
                yield failed(error), ""

        running = start.click(
            show, [which, stage, prompts, count, seed], [answer, page], api_visibility="private", concurrency_id=WORK,
            concurrency_limit=1, show_progress="hidden",
        )  # fmt: skip
        stop.click(None, None, None, cancels=[running], api_visibility="private")
