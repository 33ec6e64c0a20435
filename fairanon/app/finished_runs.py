"""The tab for finished runs: two or more side by side."""

from __future__ import annotations

import html
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import gradio as gr

from fairanon.app.messages import failed
from fairanon.config.runs import is_finished, runs_root
from fairanon.report.beside import page_of_runs


def finished() -> list[tuple[str, str]]:
    """Names and folders of the runs that have numbers, the newest first."""
    folders = [path.parent for path in runs_root().glob("*/*/metrics.json") if not path.parent.is_symlink()]
    folders = [folder for folder in folders if is_finished(folder)]
    folders.sort(key=lambda folder: folder.name, reverse=True)
    return [(f"{folder.parent.name} {folder.name}", str(folder)) for folder in folders]


def side_by_side(folders: Sequence[str]) -> str:
    """The page of some runs, in a frame of its own.

    Raises:
        ValueError: They are fewer than two.
    """
    if len(folders) < 2:
        raise ValueError("Tick two runs or more.")
    return (
        f'<iframe title="runs side by side" srcdoc="{html.escape(page_of_runs([Path(folder) for folder in folders]))}" '
        'style="width:100%;height:80vh;border:0"></iframe>'
    )


def tab() -> None:
    """Add the tab to the page that is being made."""
    with gr.Tab("Runs") as here:
        introduction = gr.Markdown()
        chosen = gr.CheckboxGroup([], label="runs")
        show = gr.Button("Put side by side", variant="primary")
        message, page = gr.Markdown(), gr.HTML()

        def look() -> list[Any]:
            there = finished()
            enough = len(there) > 1
            return [
                "Finished runs side by side: numbers, pictures of the same noise, settings that differ." if enough else
                f"Finished runs in `{runs_root().resolve()}`: {len(there)}. Two are needed here; `fairanon train popalign_tiny` makes one.",
                gr.CheckboxGroup(choices=there, visible=enough), gr.Button(visible=enough),
            ]  # fmt: skip

        def compare(folders: list[str]) -> list[str]:
            try:
                return ["", side_by_side(folders)]
            except Exception as error:  # noqa: BLE001  (whatever it is, it is a sentence on the page)
                return [failed(error), ""]

        here.select(look, None, [introduction, chosen, show], api_visibility="private")
        show.click(compare, chosen, [message, page], api_visibility="private")
