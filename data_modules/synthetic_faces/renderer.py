"""The embedded world's renderer: 64x64 portraits from signed distances, vectorised over the batch.

Shapes: B batch, S image side; see `data_modules.synthetic_faces.shapes` for coordinates.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from data_modules.synthetic_faces.head import Head, landmarks, pose_heads, select
from data_modules.synthetic_faces.shapes import (
    MASKS,
    SIZE,
    Canvas,
    along,
    box,
    capsule,
    colour,
    column,
    ellipse,
    mix,
    rounded,
)
from data_modules.synthetic_faces.wardrobe import CLOTHES, HATS, SUBJECTS_WITHOUT_PEOPLE, Outfit
from data_modules.synthetic_faces.world import OCCUPATIONS, SUBJECTS, Scenes

__all__ = ["MASKS", "SIZE", "Rendering", "render"]

# Colours in sRGB, [0, 1].
_SKIN = torch.tensor(
    [
        [0.98, 0.88, 0.82],  # pale
        [0.95, 0.76, 0.62],  # light
        [0.80, 0.68, 0.43],  # olive
        [0.76, 0.51, 0.33],  # tan
        [0.54, 0.34, 0.22],  # brown
        [0.31, 0.20, 0.15],  # dark
    ]
)
_HAIR_AXIS = torch.tensor(
    [[0.08, 0.07, 0.08], [0.26, 0.15, 0.09], [0.46, 0.26, 0.12], [0.66, 0.33, 0.14], [0.88, 0.70, 0.34]]
)  # black, dark brown, chestnut, auburn, blond
_HAIR_RANGE = torch.tensor([[0.35, 1.0], [0.25, 0.95], [0.0, 0.62], [0.0, 0.55], [0.0, 0.45], [0.0, 0.4]])  # by tone
_GREY = torch.tensor([0.80, 0.79, 0.80])
_IRIS_AXIS = torch.tensor([[0.22, 0.12, 0.06], [0.42, 0.26, 0.10], [0.25, 0.45, 0.25], [0.22, 0.45, 0.72]])
_IRIS_RANGE = torch.tensor([[0.3, 1.0], [0.2, 1.0], [0.0, 0.6], [0.0, 0.5], [0.0, 0.4], [0.0, 0.4]])  # by tone
_BACKGROUND = torch.tensor([[0.56, 0.72, 0.88], [0.62, 0.80, 0.62], [0.92, 0.70, 0.76], [0.90, 0.82, 0.62]])
_WHITE, _INK = torch.tensor([0.97, 0.97, 0.97]), torch.tensor([0.13, 0.11, 0.13])


@dataclass
class Rendering:
    """What `render` returns.

    Attributes:
        image: uint8 (B, 3, 64, 64), RGB.
        masks: uint8 (B, 11, 64, 64), 0 or 1, in the order of `MASKS`, visible parts only; None if not asked.
        landmarks: float32 (B, 68, 2), x and y in pixels (0 is the left or upper border), the usual order of 68.
    """

    image: Tensor
    masks: Tensor | None
    landmarks: Tensor


def _paint_background(canvas: Canvas, scenes: Scenes, y: Tensor) -> None:
    base = _BACKGROUND[scenes.background] + (scenes.jitter[:, 2:3] - 0.5) * 0.16
    base = base + (scenes.jitter[:, 3:6] - 0.5) * 0.05
    shade = 1.08 - 0.16 * (0.5 + 0.5 * y)
    canvas.image.copy_((colour(base) * shade[:, None]).clamp_(0, 1).expand_as(canvas.image))


def _paint_hair_back(canvas: Canvas, head: Head, scenes: Scenes, u: Tensor, v: Tensor, hair: Tensor) -> None:
    """Long hair falls behind face and shoulders (female gender appearance)."""
    female = column(scenes.gender == 0)
    i = scenes.identity
    length = column(mix(0.34, 0.62, i[:, 15]))
    wave = column(mix(0.0, 0.03, i[:, 16])) * (v * column(mix(14.0, 22.0, i[:, 16]))).sin()
    spread = head.width + column(mix(0.06, 0.13, i[:, 17])) + wave
    top = ellipse(u, v + 0.10, spread, head.height + 0.02)
    fall = rounded(u.abs() - spread - 0.05 * v, (v - length / 2).abs() - length / 2, 0.12)
    canvas.paint(torch.minimum(top, fall) + (~female) * 9.0, hair * 0.86, mask="hair")


def _paint_neck(canvas: Canvas, head: Head, x: Tensor, y: Tensor, skin: Tensor, male: Tensor) -> None:
    neck = box(x - head.x, y - 0.42, 0.125 + 0.035 * male, torch.tensor(0.26), 0.04)
    canvas.paint(neck, skin * 0.84, mask="neck")


def _paint_face(canvas: Canvas, head: Head, scenes: Scenes, u: Tensor, v: Tensor, skin: Tensor) -> Tensor:
    """Ears, face, shading; returns the distance to the face."""
    i = scenes.identity
    ear = column(mix(0.055, 0.085, i[:, 15]))
    for side in (-1.0, 1.0):
        centre = side * (head.width - 0.01) * head.yaw.cos() - 0.10 * head.yaw.sin()
        canvas.paint(ellipse(u - centre, v - 0.02, ear, ear * 1.45), skin * 0.88, mask="ears")
    taper = 1 - head.jaw * (v / head.height).clamp(0, 1.2) ** 2
    face = ellipse(u / taper, v, head.width, head.height)
    light = (1.03 - 0.10 * (u / head.width + 0.25 * head.yaw.sin() * 4) ** 2 - 0.05 * v)[:, None]
    canvas.paint(face, (skin * light).clamp(0, 1), mask="face")
    blush = colour(torch.tensor([[0.95, 0.45, 0.42]]))
    for side in (-1.0, 1.0):
        cu, cv, _ = head.turn(side * head.eye_x * 1.25, 0.14)
        canvas.paint(ellipse(u - cu, v - cv, 0.085, 0.055), blush, opacity=0.16)
    return face


def _paint_age(canvas: Canvas, head: Head, scenes: Scenes, u: Tensor, v: Tensor, skin: Tensor) -> None:
    """Wrinkles on brow, under the eyes and beside the mouth."""
    old = column(scenes.age == 1)
    hide = (~old) * 9.0
    crease = skin * 0.66
    for lift in (0.17, 0.245):
        cu, cv, _ = head.turn(0.0, head.eye_y - head.brow_y - lift + 0.07)
        q = (u - cu) / 0.2
        canvas.paint(torch.maximum((v - cv - 0.015 * q * q).abs() - 0.011, q.abs() * 0.2 - 0.2) + hide, crease, 0.75)
    for side in (-1.0, 1.0):
        cu, cv, _ = head.turn(side * head.eye_x, head.eye_y + 0.115)
        q = (u - cu) / 0.075
        canvas.paint(torch.maximum((v - cv + 0.02 * q * q).abs() - 0.010, q.abs() * 0.075 - 0.075) + hide, crease, 0.75)
        au, av, _ = head.turn(side * (head.nose_w + 0.035), head.nose_y + 0.01)
        bu, bv, _ = head.turn(side * (head.mouth_w + 0.05), head.mouth_y)
        canvas.paint(capsule(u, v, au, av, bu, bv, 0.011) + hide, crease, 0.75)


def _paint_beard(canvas: Canvas, head: Head, scenes: Scenes, u: Tensor, v: Tensor, face: Tensor, hair: Tensor) -> None:
    """Half of the male faces wear a beard; its edge is part of the identity."""
    bearded = column((scenes.gender == 1) & (scenes.identity[:, 17] > 0.5))
    _, mouth_v, _ = head.turn(0.0, head.mouth_y)
    cheek = column(mix(-0.02, 0.10, scenes.identity[:, 16]))
    line = mouth_v - 0.055 - 1.6 * (u - head.turn(0.0, 0.3)[0]) ** 2 + cheek
    canvas.paint(torch.maximum(face, line - v) + (~bearded) * 9.0, hair * 0.92, 0.92)


def _paint_eyes(canvas: Canvas, head: Head, scenes: Scenes, u: Tensor, v: Tensor, iris: Tensor, lashes: Tensor) -> None:
    gaze = scenes.gaze
    for side in (-1.0, 1.0):
        cu, cv, shrink = head.turn(side * head.eye_x, head.eye_y)
        w, h = head.eye_w * shrink, head.eye_h
        white = ellipse(u - cu, v - cv, w, h)
        canvas.paint(white, _WHITE, mask="eyes")
        pu = cu + column(gaze[:, 0]) * w * 0.42
        pv = cv + column(gaze[:, 1]) * h * 0.34
        ball = ((u - pu) ** 2 + (v - pv) ** 2).sqrt_()
        r = 0.060
        canvas.paint(torch.maximum(ball - r, white + 0.004), iris, mask="eyes")
        canvas.paint(torch.maximum(ball - 0.031, white + 0.004), _INK, mask="eyes")
        lid = torch.maximum(white.abs() - lashes, (v - cv) + h * 0.15)
        canvas.paint(lid, _INK, mask="eyes")


def _paint_brows(canvas: Canvas, head: Head, u: Tensor, v: Tensor, hair: Tensor) -> None:
    for side in (-1.0, 1.0):
        iu, iv, _ = head.turn(
            side * (head.eye_x - head.brow_w * 0.75), head.eye_y - head.brow_y + head.brow_slant * 0.5
        )
        ou, ov, _ = head.turn(
            side * (head.eye_x + head.brow_w * 0.75), head.eye_y - head.brow_y - head.brow_slant * 0.5
        )
        canvas.paint(capsule(u, v, iu, iv, ou, ov, head.brow_thick), hair * 0.75, mask="brows")


def _paint_nose(canvas: Canvas, head: Head, u: Tensor, v: Tensor, skin: Tensor) -> None:
    tu, tv, _ = head.turn(0.0, head.nose_y, out=0.09)
    bu, bv, _ = head.turn(0.0, head.eye_y + 0.03, out=0.03)
    bridge = capsule(u, v, bu, bv, tu, tv - 0.01, 0.026)
    tip = ellipse(u - tu, v - tv, head.nose_w, 0.042)
    canvas.paint(torch.minimum(bridge, tip), skin * 0.90, mask="nose")
    under = torch.maximum(ellipse(u - tu, v - tv, head.nose_w, 0.042), tv + 0.012 - v)
    canvas.paint(under, skin * 0.68, mask="nose")


def _paint_mouth(canvas: Canvas, head: Head, u: Tensor, v: Tensor, lips: Tensor) -> None:
    mu, mv, shrink = head.turn(0.0, head.mouth_y)
    w = head.mouth_w * shrink
    q = ((u - mu) / w) ** 2
    middle = mv + head.mouth_curve * (0.5 - q)
    arch = 1 - q
    off = (v - middle).abs()
    canvas.paint(off - (head.mouth_open + head.lip) * arch, lips, mask="lips")
    canvas.paint(off - (head.mouth_open + 0.007) * arch, torch.tensor([0.30, 0.07, 0.08]), mask="lips")
    # Teeth: the upper part of an open, smiling mouth.
    teeth = torch.maximum(off - head.mouth_open * arch, v - middle - 0.012)
    canvas.paint(teeth + (head.mouth_curve < 0.03) * 9.0, _WHITE, mask="lips")


def _paint_hair_front(canvas: Canvas, head: Head, scenes: Scenes, u: Tensor, v: Tensor, hair: Tensor) -> None:
    i = scenes.identity
    male = column(scenes.gender == 1)
    volume = column(mix(0.03, 0.09, i[:, 17])) * torch.where(male, 0.6, 1.0)
    cap = ellipse(u, v + 0.02, head.width + volume, head.height + volume)
    _, line, _ = head.turn(0.0, head.eye_y - head.brow_y - 0.115)
    part = column(mix(-0.13, 0.13, i[:, 16]))
    fringe = line - column(mix(-0.02, 0.05, i[:, 15])) + (u - part) ** 2 * torch.where(male, 1.4, 2.1)
    sides = torch.where(male, head.eye_y + 0.06, head.eye_y + 0.9)
    inner = ellipse(u, v - 0.04, head.width * torch.where(male, 0.93, 0.90), head.height * 0.99)
    shape = torch.maximum(cap, torch.minimum(torch.maximum(v - fringe, v - sides), torch.maximum(-inner, v - sides)))
    sheen = (1 + 0.14 * (9 * (v + 0.3 * (u - part).abs()) + 2).sin())[:, None]
    canvas.paint(shape, (hair * sheen).clamp(0, 1), mask="hair")


def _paint_glasses(canvas: Canvas, head: Head, scenes: Scenes, u: Tensor, v: Tensor) -> None:
    hide = column(~scenes.glasses) * 9.0
    frame = torch.tensor([0.16, 0.13, 0.20])
    centres = []
    for side in (-1.0, 1.0):
        cu, cv, shrink = head.turn(side * head.eye_x, head.eye_y + 0.01, out=0.05)
        ring = ellipse(u - cu, v - cv, 0.140 * shrink, 0.122)
        canvas.paint(ring.abs() - 0.017 + hide, frame, 0.999, "glasses")
        centres.append((cu, cv, shrink))
    (lu, lv, ls), (ru, rv, rs) = centres
    canvas.paint(capsule(u, v, lu + 0.135 * ls, lv, ru - 0.135 * rs, rv, 0.015) + hide, frame, 0.999, "glasses")
    canvas.paint(capsule(u, v, lu - 0.14 * ls, lv, -head.width - 0.01, lv, 0.014) + hide, frame, 0.999, "glasses")
    canvas.paint(capsule(u, v, ru + 0.14 * rs, rv, head.width + 0.01, rv, 0.014) + hide, frame, 0.999, "glasses")


FINGERS = ((-0.100, -0.165), (-0.040, -0.215), (0.025, -0.210), (0.085, -0.160))
THUMB = ((-0.06, 0.03), (-0.165, -0.055))


def hand_place(scenes: Scenes, side: float) -> tuple[Tensor, Tensor, Tensor]:
    """Centre (x and y) and angle of a raised hand, (B, 1, 1) each; ``side`` -1 is the image's left."""
    j = scenes.jitter
    angle = column(mix(-0.16, 0.16, j[:, 6] if side < 0 else j[:, 7]))
    return side * column(mix(0.72, 0.76, j[:, 8])), column(mix(0.66, 0.72, j[:, 9])), angle


def _paint_hand(canvas: Canvas, scenes: Scenes, x: Tensor, y: Tensor, skin: Tensor, side: float) -> None:
    """A raised open hand; the thumb points to the face."""
    hide = column(~scenes.hands) * 9.0
    middle_x, middle_y, angle = hand_place(scenes, side)
    px, py = (x - middle_x) * side, y - middle_y
    hx, hy = px * angle.cos() + py * angle.sin(), py * angle.cos() - px * angle.sin()
    shape = box(hx, hy - 0.01, 0.105, torch.tensor(0.105), 0.07)
    for tip_x, tip_y in FINGERS:
        shape = torch.minimum(shape, capsule(hx, hy, tip_x * 0.75, -0.05, tip_x * 1.08, tip_y, 0.030))
    shape = torch.minimum(shape, capsule(hx, hy, *THUMB[0], *THUMB[1], 0.034))
    wrist = box(hx, hy - 0.22, 0.068, torch.tensor(0.16), 0.03)
    name = "left_hand" if side < 0 else "right_hand"
    canvas.paint(torch.minimum(shape, wrist) - 0.018 + hide, skin * 0.55)
    canvas.paint(wrist + hide, skin * 0.93, mask=name)
    canvas.paint(shape + hide, skin, mask=name)


def _render_people(scenes: Scenes, masks: bool) -> tuple[Tensor, Tensor | None, Tensor]:
    count, side = len(scenes), SIZE
    axis = (torch.arange(side) + 0.5) * (2 / side) - 1
    x, y = axis.view(1, 1, side), axis.view(1, side, 1)
    head = pose_heads(scenes)
    u, v = head.to_head(x, y)
    canvas = Canvas(torch.empty(count, 3, side, side), torch.zeros(count, len(MASKS), side, side) if masks else None)

    i = scenes.identity
    skin = colour(_SKIN[scenes.tone] * (0.975 + 0.05 * i[:, 2:3]))
    low, high = _HAIR_RANGE[scenes.tone].unbind(1)
    hair_rgb = along(_HAIR_AXIS, low + (high - low) * i[:, 8])
    hair = colour(torch.lerp(hair_rgb, _GREY * (0.9 + 0.2 * i[:, 8:9]), 0.92 * (scenes.age == 1).float()[:, None]))
    low, high = _IRIS_RANGE[scenes.tone].unbind(1)
    iris = colour(along(_IRIS_AXIS, low + (high - low) * i[:, 10]))
    male = column((scenes.gender == 1).float())
    rouge = torch.tensor([[0.80, 0.16, 0.24]])
    lips = colour(
        torch.lerp(
            _SKIN[scenes.tone] * torch.tensor([0.78, 0.52, 0.50]), rouge, 0.7 * (scenes.gender == 0).float()[:, None]
        )
    )

    _paint_background(canvas, scenes, y)
    _paint_hair_back(canvas, head, scenes, u, v, hair)
    _paint_neck(canvas, head, x, y, skin, male)

    body = ellipse(x - head.x * 0.5, y - 1.12, 0.78 + 0.06 * male, 0.68)
    shade = colour(0.94 + 0.12 * scenes.jitter[:, 2:3].expand(-1, 3))
    groups = [(k, (scenes.occupation == k).nonzero()[:, 0]) for k in scenes.occupation.unique().tolist()]

    def dress(painters: dict[str, Callable[[Outfit], None]], first: int, last: int) -> None:
        """Paint rows ``first`` to ``last`` of each occupation's scenes."""
        for k, index in groups:
            painter = painters.get(OCCUPATIONS[k])
            if painter is None:
                continue
            rows = slice(first, last)
            part = Canvas(canvas.image[index, :, rows], None if canvas.masks is None else canvas.masks[index, :, rows])
            chosen = select(head, index)
            painter(
                Outfit(
                    part,
                    chosen,
                    x - chosen.x * 0.5,
                    y[:, rows],
                    u[index, rows],
                    v[index, rows],
                    body[index, rows],
                    shade[index],
                )
            )
            canvas.image[index, :, rows] = part.image
            if canvas.masks is not None and part.masks is not None:
                canvas.masks[index, :, rows] = part.masks

    dress(CLOTHES, 40, side)
    top, middle = slice(8, 52), slice(14, 48)
    face = _paint_face(canvas.rows(top), head, scenes, u[:, top], v[:, top], skin)
    inner, iu, iv = canvas.rows(middle), u[:, middle], v[:, middle]
    _paint_age(inner, head, scenes, iu, iv, skin)
    _paint_beard(canvas.rows(slice(24, 52)), head, scenes, u[:, 24:52], v[:, 24:52], face[:, 16:44], hair)
    _paint_nose(inner, head, iu, iv, skin)
    _paint_mouth(inner, head, iu, iv, lips)
    _paint_eyes(inner, head, scenes, iu, iv, iris, 0.013 + 0.009 * (1 - male))
    _paint_brows(inner, head, iu, iv, hair)
    _paint_hair_front(canvas.rows(slice(0, 56)), head, scenes, u[:, :56], v[:, :56], hair)
    _paint_glasses(inner, head, scenes, iu, iv)
    dress(HATS, 0, 56)
    low_rows = slice(36, side)
    for hand_side in (-1.0, 1.0):
        _paint_hand(canvas.rows(low_rows), scenes, x, y[:, low_rows], skin, hand_side)
    return canvas.image, canvas.masks, landmarks(head)


def render(scenes: Scenes, masks: bool = False) -> Rendering:
    """Draw scenes.

    Args:
        scenes: What to draw; batches of 16 to 64 are fastest (they stay in the cache).
        masks: Also return the region masks.

    Returns:
        The images, with masks if asked and landmarks (zeros where there is no person).
    """
    count = len(scenes)
    image = torch.empty(count, 3, SIZE, SIZE)
    regions = torch.zeros(count, len(MASKS), SIZE, SIZE) if masks else None
    landmarks = torch.zeros(count, 68, 2)
    people = (scenes.subject == 0).nonzero()[:, 0]
    if len(people):
        drawn, drawn_masks, points = _render_people(scenes[people], masks)
        image[people] = drawn
        landmarks[people] = (points + 1) * (SIZE / 2)
        if regions is not None and drawn_masks is not None:
            regions[people] = drawn_masks
    axis = (torch.arange(SIZE) + 0.5) * (2 / SIZE) - 1
    x, y = axis.view(1, 1, SIZE), axis.view(1, SIZE, 1)
    for kind in (1, 2, 3):
        index = (scenes.subject == kind).nonzero()[:, 0]
        if len(index):
            canvas = Canvas(torch.empty(len(index), 3, SIZE, SIZE), None)
            _paint_background(canvas, scenes[index], y)
            SUBJECTS_WITHOUT_PEOPLE[SUBJECTS[kind]](canvas, scenes[index], x, y)
            image[index] = canvas.image
    pixels = (image.clamp_(0, 1) * 255).round_().to(torch.uint8)
    return Rendering(pixels, None if regions is None else (regions > 0.5).to(torch.uint8), landmarks)
