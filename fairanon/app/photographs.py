"""The tab for photographs: hide faces, look at each, let some stay, hide more, take the result and its protocol away."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gradio as gr

from fairanon.anonymizer.photos import PHOTOS
from fairanon.app.app_request import AppRequest
from fairanon.app.desk import (
    Desk,
    Wishes,
    add_box,
    after_of,
    answer_of,
    before_of,
    box_of,
    clicked,
    faces_of,
    hide,
    leave,
    let_stay,
    new_desk,
    packed,
    said_of,
    stays,
)  # fmt: skip
from fairanon.app.messages import WORK, failed, in_a_toast
from fairanon.app.private import forget

_BAR = gr.Progress(track_tqdm=True)
_LOOK = "() => { document.getElementById('answer').scrollIntoView({block: 'center'}); }"
"""What the page says next is where somebody looks."""


def tab(place: Path, request: AppRequest) -> None:
    """Add the tab to the page that is being made.

    Args:
        place: The private folder.
        request: Which judges are asked.
    """
    with gr.Tab("Photographs"):
        desk = gr.State(None, time_to_live=3600, delete_callback=leave)
        with gr.Row():
            with gr.Column(scale=2, min_width=280):
                files = gr.File(
                    label="photographs, or a zip of them",
                    file_count="multiple",
                    file_types=[*sorted(PHOTOS), ".zip"],
                    height=190,
                )
                with gr.Accordion("or take one with the camera", open=False):
                    camera = gr.Image(sources=["webcam"], type="filepath", label="camera", show_label=False)
                method = gr.Radio(
                    [("mask: the face is covered whole", "mask"), ("pixelate: only obscured", "pixelate"), ("blur: only obscured", "blur")],
                    value="mask", label="how faces are hidden",
                )  # fmt: skip
                shape = gr.Radio(
                    [("usual", "auto"), ("box", "box"), ("ellipse", "ellipse")], value="auto", label="shape"
                )
                strength = gr.Slider(0.01, 1, 0.5, step=0.01, label="strength", visible=False)
                colour = gr.ColorPicker("#7f7f7f", label="colour of the mask")
                who = gr.Radio(
                    [("everybody", "all"), ("everybody but these people", "keep"), ("these people alone", "only")],
                    value="all", label="who is hidden",
                )  # fmt: skip
                people = gr.File(
                    label="photographs of these people, one person in each", file_count="multiple",
                    file_types=sorted(PHOTOS), height=110, visible=False,
                )  # fmt: skip
                start = gr.Button("Hide and test", variant="primary")
                away = gr.Button("Forget everything now", variant="stop")
            with gr.Column(scale=5, min_width=320):
                answer = gr.Markdown(
                    "Faces are hidden on this machine, and nothing of the photographs is kept. Up to 200 photographs, of 200 MB a file.",
                    elem_id="answer",
                )
                with gr.Column(visible=False) as shown:
                    which = gr.Dropdown([], label="photograph", interactive=True)
                    with gr.Row():
                        with gr.Column(min_width=300):
                            gr.Markdown("before")
                            before = gr.Image(
                                show_label=False, interactive=False, format="png", buttons=["fullscreen"],
                                alt_text="the original with a box round each face",
                            )  # fmt: skip
                        with gr.Column(min_width=300):
                            gr.Markdown("after")
                            after = gr.Image(
                                show_label=False, interactive=False, format="png", buttons=["fullscreen"], alt_text="the result"
                            )  # fmt: skip
                    gr.Markdown(
                        "Click a face on the left to let it stay, or two corners of a box to hide that too. Green is hidden, orange "
                        "stays, red is not hidden, blue is a box of yours."
                    )
                    verdict = gr.Markdown()
                    stay = gr.CheckboxGroup([], label="faces that may stay")
                    with gr.Row():
                        corners = gr.Textbox(
                            label="hide this too: two corners in pixels", placeholder="120, 80, 190, 170"
                        )
                        add = gr.Button("Add this box")
                        undo = gr.Button("Remove boxes that were drawn")
                    with gr.Row():
                        anew = gr.Button("Hide and test again", variant="primary")
                        take = gr.DownloadButton("Download results and protocol")
        wishes = [method, shape, strength, colour, who, people]
        view = [before, after, verdict, stay]
        everything = [answer, shown, which, *view, take, desk]

        def show(desk: Desk | None, name: str | None) -> list[Any]:
            if desk is None or not desk.there() or name is None:
                return [None, None, "", gr.CheckboxGroup(choices=[], value=[])]
            return [
                before_of(desk, name), after_of(desk, name), said_of(desk, name),
                gr.CheckboxGroup(choices=faces_of(desk, name), value=stays(desk, name)),
            ]  # fmt: skip

        def all_of(desk: Desk, chosen: str | None = None) -> list[Any]:
            names = desk.names()
            known = [name for _, name in names]
            name = chosen if chosen in known else next(iter(known), None)
            return [
                answer_of(desk), gr.Column(visible=bool(names)), gr.Dropdown(choices=names, value=name), *show(desk, name),
                packed(desk), desk,
            ]  # fmt: skip

        def not_done(error: Exception, desk: Desk | None) -> list[Any]:
            rest = " What is shown below is the earlier result." if desk is not None and desk.there() else ""
            return [failed(error) + rest, *[gr.skip()] * 7, desk]

        def begin(
            files: Any, camera: Any, old: Desk | None, method: str, shape: str, strength: float, colour: str, who: str,
            people: Any, bar: Any = _BAR,
        ) -> list[Any]:  # fmt: skip
            del bar  # gradio shows our bars
            new = None
            try:
                new = new_desk(place, files, camera)
                hide(new, Wishes(method, shape, strength, colour, who, people), request)
                updates = all_of(new)
            except Exception as error:  # noqa: BLE001  (whatever it is, it is a sentence on the page)
                leave(new)
                return not_done(error, old)
            leave(old)
            return updates

        def go_on(
            desk: Desk | None, name: str, method: str, shape: str, strength: float, colour: str, who: str, people: Any,
            bar: Any = _BAR,
        ) -> list[Any]:  # fmt: skip
            del bar
            try:
                hide(_there(desk), Wishes(method, shape, strength, colour, who, people), request)
                return all_of(_there(desk), name)
            except Exception as error:  # noqa: BLE001  (whatever it is, it is a sentence on the page)
                return not_done(error, desk)

        @in_a_toast
        def choose_photograph(desk: Desk | None, name: str) -> list[Any]:
            _there(desk).corner = None
            return [*show(desk, name), desk]

        @in_a_toast
        def click(desk: Desk | None, name: str, event: gr.SelectData) -> list[Any]:
            clicked(_there(desk), name, *event.index)
            return [*show(desk, name), desk]

        @in_a_toast
        def choose(desk: Desk | None, name: str, numbers: list[int]) -> list[Any]:
            let_stay(_there(desk), name, numbers)
            return [*show(desk, name), desk]

        @in_a_toast
        def type_box(desk: Desk | None, name: str, text: str) -> list[Any]:
            add_box(_there(desk), name, box_of(text))
            return [*show(desk, name), desk, ""]

        @in_a_toast
        def remove(desk: Desk | None, name: str) -> list[Any]:
            _there(desk).drawn.pop(name, None)
            _there(desk).corner = None
            return [*show(desk, name), desk]

        @in_a_toast
        def forget_all() -> list[Any]:
            forget(place)
            return [
                "Everything is forgotten.", gr.Column(visible=False), gr.Dropdown(choices=[], value=None), None, None, "",
                gr.CheckboxGroup(choices=[], value=[]), None, None, None, None, None,
            ]  # fmt: skip

        hidden: dict[str, Any] = {"api_visibility": "private"}
        one_at_a_time: dict[str, Any] = {"concurrency_id": WORK, "concurrency_limit": 1}
        method.change(
            lambda m: [gr.Slider(visible=m != "mask"), gr.ColorPicker(visible=m == "mask")],
            method,
            [strength, colour],
            **hidden,
        )
        who.change(lambda w: gr.File(visible=w != "all"), who, people, **hidden)
        buttons = [start, anew]
        for button, work, inputs in (
            (start, begin, [files, camera, desk, *wishes]),
            (anew, go_on, [desk, which, *wishes]),
        ):
            begun = button.click(_wait, None, [answer, *buttons], js=_LOOK, queue=False, **hidden)
            done = begun.then(work, inputs, everything, show_progress_on=answer, **one_at_a_time, **hidden)
            done.then(lambda: [gr.Button(interactive=True)] * 2, None, buttons, queue=False, **hidden)
        which.input(choose_photograph, [desk, which], [*view, desk], **hidden)
        before.select(click, [desk, which], [*view, desk], **hidden)
        stay.input(choose, [desk, which, stay], [*view, desk], **hidden)
        for typed in (corners.submit, add.click):
            typed(type_box, [desk, which, corners], [*view, desk, corners], **hidden)
        undo.click(remove, [desk, which], [*view, desk], **hidden)
        away.click(forget_all, None, [*everything, files, camera, people], **hidden)


def _wait() -> list[Any]:
    """What the page shows while it works."""
    return ["Faces are looked for, hidden and tested ...", *[gr.Button(interactive=False)] * 2]


def _there(desk: Desk | None) -> Desk:
    """The desk, unless everything was forgotten."""
    if desk is None or not desk.there():
        raise ValueError("Everything was forgotten: drop the photographs again.")
    return desk
