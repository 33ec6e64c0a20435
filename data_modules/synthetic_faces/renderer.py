"""The embedded world's renderer: 64x64 portraits from signed distances, vectorised over the batch.

Coordinates: x to the right, y down, the picture spans [-1, 1] in both. The head has its own coordinates
(u, v), rolled with it, the origin between the eyes and the nose. Every shape is a signed distance (negative
inside); a pixel's coverage is ``0.5 - distance / pixel`` clamped to [0, 1], which anti-aliases.

Shapes: B batch, S picture side. A quantity of a scene is (B, 1, 1), a field over the picture (B, S, S).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from data_modules.synthetic_faces.world import OCCUPATIONS, SUBJECTS, Scenes

SIZE = 64
MASKS = ("face", "eyes", "brows", "nose", "lips", "hair", "left_hand", "right_hand")
"""Left and right are the picture's."""

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
        masks: uint8 (B, 8, 64, 64), 0 or 1, in the order of `MASKS`, visible parts only; None if not asked.
        landmarks: float32 (B, 68, 2), x and y in pixels (0 is the left or upper border), the usual order of 68.
    """

    image: Tensor
    masks: Tensor | None
    landmarks: Tensor


def _ellipse(x: Tensor, y: Tensor, rx: Tensor | float, ry: Tensor | float) -> Tensor:
    """First-order distance to an ellipse round the origin."""
    nx, ny = x / rx, y / ry
    radius = (nx * nx + ny * ny).sqrt_().clamp_min_(1e-4)
    gradient = ((nx / rx) ** 2 + (ny / ry) ** 2).sqrt_().clamp_min_(1e-4)
    return radius * (radius - 1) / gradient


def _box(x: Tensor, y: Tensor, hx: Tensor | float, hy: Tensor | float, corner: float = 0.0) -> Tensor:
    """Distance to a box round the origin with rounded corners (exact along the sides)."""
    return torch.maximum(x.abs() - hx, y.abs() - hy) if not corner else _rounded(x.abs() - hx, y.abs() - hy, corner)


def _rounded(dx: Tensor, dy: Tensor, corner: float) -> Tensor:
    dx, dy = dx + corner, dy + corner
    outside = (dx.clamp_min(0) ** 2 + dy.clamp_min(0) ** 2).sqrt_()
    return outside + torch.maximum(dx, dy).clamp_max(0) - corner


def _capsule(
    x: Tensor,
    y: Tensor,
    ax: Tensor | float,
    ay: Tensor | float,
    bx: Tensor | float,
    by: Tensor | float,
    r: Tensor | float,
) -> Tensor:
    """Distance to a thick line from a to b."""
    px, py = x - ax, y - ay
    dx, dy = bx - ax, by - ay
    along = ((px * dx + py * dy) / (dx * dx + dy * dy + 1e-6)).clamp_(0, 1)
    return ((px - along * dx) ** 2 + (py - along * dy) ** 2).sqrt_() - r


class _Canvas:
    """Paints colours through distances, back to front, over a window of the picture's rows.

    ``covered`` holds the visible part of each mask: what is painted later hides what was painted before.
    """

    def __init__(self, image: Tensor, masks: Tensor | None) -> None:
        self.image, self.masks = image, masks
        self.pixel = 2 / image.shape[-1]

    def rows(self, rows: slice) -> _Canvas:
        return _Canvas(self.image[:, :, rows], None if self.masks is None else self.masks[:, :, rows])

    def paint(self, distance: Tensor, colour: Tensor, opacity: float = 1.0, mask: str | None = None) -> Tensor:
        """Blend ``colour`` ((3,), (B, 3, 1, 1) or (B, 3, S, S)) where ``distance`` is negative; return the coverage."""
        cover = (0.5 - distance / self.pixel).clamp_(0, 1) * opacity
        if colour.dim() == 1:
            colour = colour.view(1, 3, 1, 1)
        self.image.lerp_(colour.expand_as(self.image), cover[:, None].expand_as(self.image))
        if self.masks is not None and opacity == 1.0:
            self.masks *= 1 - cover[:, None]
            if mask is not None:
                self.masks[:, MASKS.index(mask)] += cover
        return cover


def _column(values: Tensor) -> Tensor:
    return values[:, None, None]


def _mix(low: float, high: float, share: Tensor) -> Tensor:
    return low + (high - low) * share


def _along(axis: Tensor, position: Tensor) -> Tensor:
    """Colour at ``position`` in [0, 1] on a piecewise linear ``axis`` (K, 3): (B, 3)."""
    scaled = position.clamp(0, 1) * (len(axis) - 1)
    low = scaled.floor().clamp_max(len(axis) - 2)
    return torch.lerp(axis[low.long()], axis[low.long() + 1], (scaled - low)[:, None])


def _colour(rgb: Tensor) -> Tensor:
    return rgb[:, :, None, None]


@dataclass
class _Head:
    """Geometry of the heads of a batch in head coordinates; all (B, 1, 1) unless said."""

    x: Tensor  # centre in picture coordinates
    y: Tensor
    cos: Tensor  # of the roll
    sin: Tensor
    yaw: Tensor  # radians
    pitch: Tensor
    width: Tensor  # half-axes of the face
    height: Tensor
    jaw: Tensor  # how much the chin tapers
    eye_x: Tensor
    eye_y: Tensor
    eye_w: Tensor
    eye_h: Tensor
    brow_y: Tensor  # above the eye
    brow_w: Tensor
    brow_slant: Tensor
    brow_thick: Tensor
    nose_w: Tensor
    nose_y: Tensor
    mouth_y: Tensor
    mouth_w: Tensor
    mouth_curve: Tensor
    mouth_open: Tensor
    lip: Tensor

    def to_head(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """Picture coordinates to head coordinates."""
        dx, dy = x - self.x, y - self.y
        return dx * self.cos + dy * self.sin, dy * self.cos - dx * self.sin

    def to_picture(self, u: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        return self.x + u * self.cos - v * self.sin, self.y + u * self.sin + v * self.cos

    def turn(self, fx: Tensor | float, fy: Tensor | float, out: float = 0.0) -> tuple[Tensor, Tensor, Tensor]:
        """A point on the face after yaw and pitch: its u and v, and how much its width shrinks."""
        fx, fy = torch.as_tensor(fx), torch.as_tensor(fy)
        depth = 0.36
        bulge = (1 - (fx / self.width) ** 2 - (fy / self.height) ** 2).clamp_min(0.12).sqrt()
        z = depth * bulge + out
        u = fx * self.yaw.cos() + z * self.yaw.sin()
        v = fy * self.pitch.cos() + z * self.pitch.sin()
        shrink = self.yaw.cos() - depth * fx / (self.width**2 * bulge) * self.yaw.sin()
        return u, v, shrink.clamp(0.6, 1.15)


def _head(scenes: Scenes) -> _Head:
    i = [_column(column) for column in scenes.identity.unbind(1)]
    e = [_column(column) for column in scenes.expression_vector.unbind(1)]
    j = [_column(column) for column in scenes.jitter.unbind(1)]
    yaw, pitch, roll = (_column(column) * (math.pi / 180) for column in scenes.pose.unbind(1))
    male = _column((scenes.gender == 1).float())
    height = _mix(0.42, 0.50, i[1])
    return _Head(
        x=_mix(-0.05, 0.05, j[0]),
        y=_mix(-0.13, -0.08, j[1]),
        cos=roll.cos(),
        sin=roll.sin(),
        yaw=yaw,
        pitch=pitch,
        width=_mix(0.33, 0.42, i[0]),
        height=height,
        jaw=_mix(0.30, 0.04, i[2]) * (1 - 0.35 * male),
        eye_x=_mix(0.140, 0.185, i[3]),
        eye_y=_mix(-0.09, -0.01, i[4]),
        eye_w=_mix(0.092, 0.118, i[5]),
        eye_h=_mix(0.060, 0.088, i[6]) * (1 + 2.5 * e[3]),
        brow_y=_mix(0.125, 0.165, i[7]) + e[3] * 0.6,
        brow_w=_mix(0.10, 0.14, i[5]),
        brow_slant=_mix(-0.05, 0.05, i[8]),
        brow_thick=_mix(0.016, 0.028, i[9]) + 0.010 * male,
        nose_w=_mix(0.045, 0.090, i[10]),
        nose_y=_mix(0.09, 0.16, i[11]),
        mouth_y=_mix(0.25, 0.30, i[12]),
        mouth_w=_mix(0.115, 0.160, i[13]) * e[2],
        mouth_curve=e[0] * 0.42,
        mouth_open=e[1] * 0.42,
        lip=_mix(0.020, 0.036, i[14]) - 0.004 * male,
    )


def _paint_background(canvas: _Canvas, scenes: Scenes, y: Tensor) -> None:
    base = _BACKGROUND[scenes.background] + (scenes.jitter[:, 2:3] - 0.5) * 0.16
    base = base + (scenes.jitter[:, 3:6] - 0.5) * 0.05
    shade = 1.08 - 0.16 * (0.5 + 0.5 * y)
    canvas.image.copy_((_colour(base) * shade[:, None]).clamp_(0, 1).expand_as(canvas.image))


def _paint_hair_back(canvas: _Canvas, head: _Head, scenes: Scenes, u: Tensor, v: Tensor, hair: Tensor) -> None:
    """Long hair falls behind face and shoulders (female gender appearance)."""
    female = _column(scenes.gender == 0)
    i = scenes.identity
    length = _column(_mix(0.34, 0.62, i[:, 15]))
    wave = _column(_mix(0.0, 0.03, i[:, 16])) * (v * _column(_mix(14.0, 22.0, i[:, 16]))).sin()
    spread = head.width + _column(_mix(0.06, 0.13, i[:, 17])) + wave
    top = _ellipse(u, v + 0.10, spread, head.height + 0.02)
    fall = _rounded(u.abs() - spread - 0.05 * v, (v - length / 2).abs() - length / 2, 0.12)
    canvas.paint(torch.minimum(top, fall) + (~female) * 9.0, hair * 0.86, mask="hair")


def _paint_neck(canvas: _Canvas, head: _Head, x: Tensor, y: Tensor, skin: Tensor, male: Tensor) -> None:
    neck = _box(x - head.x, y - 0.42, 0.125 + 0.035 * male, torch.tensor(0.26), 0.04)
    canvas.paint(neck, skin * 0.84)


def _paint_face(canvas: _Canvas, head: _Head, scenes: Scenes, u: Tensor, v: Tensor, skin: Tensor) -> Tensor:
    """Ears, face, shading; returns the distance to the face."""
    i = scenes.identity
    ear = _column(_mix(0.055, 0.085, i[:, 15]))
    for side in (-1.0, 1.0):
        centre = side * (head.width - 0.01) * head.yaw.cos() - 0.10 * head.yaw.sin()
        canvas.paint(_ellipse(u - centre, v - 0.02, ear, ear * 1.45), skin * 0.88)
    taper = 1 - head.jaw * (v / head.height).clamp(0, 1.2) ** 2
    face = _ellipse(u / taper, v, head.width, head.height)
    light = (1.03 - 0.10 * (u / head.width + 0.25 * head.yaw.sin() * 4) ** 2 - 0.05 * v)[:, None]
    canvas.paint(face, (skin * light).clamp(0, 1), mask="face")
    blush = _colour(torch.tensor([[0.95, 0.45, 0.42]]))
    for side in (-1.0, 1.0):
        cu, cv, _ = head.turn(side * head.eye_x * 1.25, 0.14)
        canvas.paint(_ellipse(u - cu, v - cv, 0.085, 0.055), blush, opacity=0.16)
    return face


def _paint_age(canvas: _Canvas, head: _Head, scenes: Scenes, u: Tensor, v: Tensor, skin: Tensor) -> None:
    """Wrinkles on brow, under the eyes and beside the mouth."""
    old = _column(scenes.age == 1)
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
        canvas.paint(_capsule(u, v, au, av, bu, bv, 0.011) + hide, crease, 0.75)


def _paint_beard(
    canvas: _Canvas, head: _Head, scenes: Scenes, u: Tensor, v: Tensor, face: Tensor, hair: Tensor
) -> None:
    """Half of the male faces wear a beard; its edge is part of the identity."""
    bearded = _column((scenes.gender == 1) & (scenes.identity[:, 17] > 0.5))
    _, mouth_v, _ = head.turn(0.0, head.mouth_y)
    cheek = _column(_mix(-0.02, 0.10, scenes.identity[:, 16]))
    line = mouth_v - 0.055 - 1.6 * (u - head.turn(0.0, 0.3)[0]) ** 2 + cheek
    canvas.paint(torch.maximum(face, line - v) + (~bearded) * 9.0, hair * 0.92, 0.92)


def _paint_eyes(
    canvas: _Canvas, head: _Head, scenes: Scenes, u: Tensor, v: Tensor, iris: Tensor, lashes: Tensor
) -> None:
    gaze = scenes.gaze
    for side in (-1.0, 1.0):
        cu, cv, shrink = head.turn(side * head.eye_x, head.eye_y)
        w, h = head.eye_w * shrink, head.eye_h
        white = _ellipse(u - cu, v - cv, w, h)
        canvas.paint(white, _WHITE, mask="eyes")
        pu = cu + _column(gaze[:, 0]) * w * 0.42
        pv = cv + _column(gaze[:, 1]) * h * 0.34
        ball = ((u - pu) ** 2 + (v - pv) ** 2).sqrt_()
        r = 0.060
        canvas.paint(torch.maximum(ball - r, white + 0.004), iris, mask="eyes")
        canvas.paint(torch.maximum(ball - 0.031, white + 0.004), _INK, mask="eyes")
        lid = torch.maximum(white.abs() - lashes, (v - cv) + h * 0.15)
        canvas.paint(lid, _INK, mask="eyes")


def _paint_brows(canvas: _Canvas, head: _Head, u: Tensor, v: Tensor, hair: Tensor) -> None:
    for side in (-1.0, 1.0):
        iu, iv, _ = head.turn(
            side * (head.eye_x - head.brow_w * 0.75), head.eye_y - head.brow_y + head.brow_slant * 0.5
        )
        ou, ov, _ = head.turn(
            side * (head.eye_x + head.brow_w * 0.75), head.eye_y - head.brow_y - head.brow_slant * 0.5
        )
        canvas.paint(_capsule(u, v, iu, iv, ou, ov, head.brow_thick), hair * 0.75, mask="brows")


def _paint_nose(canvas: _Canvas, head: _Head, u: Tensor, v: Tensor, skin: Tensor) -> None:
    tu, tv, _ = head.turn(0.0, head.nose_y, out=0.09)
    bu, bv, _ = head.turn(0.0, head.eye_y + 0.03, out=0.03)
    bridge = _capsule(u, v, bu, bv, tu, tv - 0.01, 0.026)
    tip = _ellipse(u - tu, v - tv, head.nose_w, 0.042)
    canvas.paint(torch.minimum(bridge, tip), skin * 0.90, mask="nose")
    under = torch.maximum(_ellipse(u - tu, v - tv, head.nose_w, 0.042), tv + 0.012 - v)
    canvas.paint(under, skin * 0.68, mask="nose")


def _paint_mouth(canvas: _Canvas, head: _Head, u: Tensor, v: Tensor, lips: Tensor) -> None:
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


def _paint_hair_front(canvas: _Canvas, head: _Head, scenes: Scenes, u: Tensor, v: Tensor, hair: Tensor) -> None:
    i = scenes.identity
    male = _column(scenes.gender == 1)
    volume = _column(_mix(0.03, 0.09, i[:, 17])) * torch.where(male, 0.6, 1.0)
    cap = _ellipse(u, v + 0.02, head.width + volume, head.height + volume)
    _, line, _ = head.turn(0.0, head.eye_y - head.brow_y - 0.115)
    part = _column(_mix(-0.13, 0.13, i[:, 16]))
    fringe = line - _column(_mix(-0.02, 0.05, i[:, 15])) + (u - part) ** 2 * torch.where(male, 1.4, 2.1)
    sides = torch.where(male, head.eye_y + 0.06, head.eye_y + 0.9)
    inner = _ellipse(u, v - 0.04, head.width * torch.where(male, 0.93, 0.90), head.height * 0.99)
    shape = torch.maximum(cap, torch.minimum(torch.maximum(v - fringe, v - sides), torch.maximum(-inner, v - sides)))
    sheen = (1 + 0.14 * (9 * (v + 0.3 * (u - part).abs()) + 2).sin())[:, None]
    canvas.paint(shape, (hair * sheen).clamp(0, 1), mask="hair")


def _paint_glasses(canvas: _Canvas, head: _Head, scenes: Scenes, u: Tensor, v: Tensor) -> None:
    hide = _column(~scenes.glasses) * 9.0
    frame = torch.tensor([0.16, 0.13, 0.20])
    centres = []
    for side in (-1.0, 1.0):
        cu, cv, shrink = head.turn(side * head.eye_x, head.eye_y + 0.01, out=0.05)
        ring = _ellipse(u - cu, v - cv, 0.140 * shrink, 0.122)
        canvas.paint(ring.abs() - 0.017 + hide, frame, 0.999)
        centres.append((cu, cv, shrink))
    (lu, lv, ls), (ru, rv, rs) = centres
    canvas.paint(_capsule(u, v, lu + 0.135 * ls, lv, ru - 0.135 * rs, rv, 0.015) + hide, frame, 0.999)
    canvas.paint(_capsule(u, v, lu - 0.14 * ls, lv, -head.width - 0.01, lv, 0.014) + hide, frame, 0.999)
    canvas.paint(_capsule(u, v, ru + 0.14 * rs, rv, head.width + 0.01, rv, 0.014) + hide, frame, 0.999)


_FINGERS = ((-0.100, -0.165), (-0.040, -0.215), (0.025, -0.210), (0.085, -0.160))


def _paint_hand(canvas: _Canvas, scenes: Scenes, x: Tensor, y: Tensor, skin: Tensor, side: float) -> None:
    """A raised open hand; ``side`` -1 is the picture's left, the thumb points to the face."""
    hide = _column(~scenes.hands) * 9.0
    j = scenes.jitter
    angle = _column(_mix(-0.16, 0.16, j[:, 6] if side < 0 else j[:, 7]))
    px = (x - side * _column(_mix(0.72, 0.76, j[:, 8]))) * side
    py = y - _column(_mix(0.66, 0.72, j[:, 9]))
    hx, hy = px * angle.cos() + py * angle.sin(), py * angle.cos() - px * angle.sin()
    shape = _box(hx, hy - 0.01, 0.105, torch.tensor(0.105), 0.07)
    for tip_x, tip_y in _FINGERS:
        shape = torch.minimum(shape, _capsule(hx, hy, tip_x * 0.75, -0.05, tip_x * 1.08, tip_y, 0.030))
    shape = torch.minimum(shape, _capsule(hx, hy, -0.06, 0.03, -0.165, -0.055, 0.034))
    wrist = _box(hx, hy - 0.22, 0.068, torch.tensor(0.16), 0.03)
    name = "left_hand" if side < 0 else "right_hand"
    canvas.paint(torch.minimum(shape, wrist) - 0.018 + hide, skin * 0.55)
    canvas.paint(wrist + hide, skin * 0.93, mask=name)
    canvas.paint(shape + hide, skin, mask=name)


# --- clothes, hats and subjects: one small painter per class, called on the scenes of that class -------------


def _rgb(red: int, green: int, blue: int) -> Tensor:
    return torch.tensor([red, green, blue]) / 255


@dataclass
class _Outfit:
    """What a painter of clothes or hats sees: the scenes of one class."""

    canvas: _Canvas
    head: _Head
    x: Tensor  # picture coordinates centred under the head
    y: Tensor
    u: Tensor  # head coordinates
    v: Tensor
    body: Tensor  # distance to the torso
    shade: Tensor  # (B, 3, 1, 1), light on the cloth

    def cloth(self, colour: Tensor, distance: Tensor | None = None) -> None:
        where = self.body if distance is None else torch.maximum(self.body, distance)
        self.canvas.paint(where, colour.view(1, 3, 1, 1) * self.shade)

    def v_neck(self, depth: float, width: float) -> Tensor:
        return _triangle(self.x, self.y - 0.44, width, depth)

    def brim(self, level: float, width: float, thick: float) -> Tensor:
        return _ellipse(
            self.u - 0.12 * self.head.yaw.sin(), self.v + self.head.height * level, self.head.width * width, thick
        )

    def crown(self, level: float, width: float, height: float, corner: float = 0.08) -> Tensor:
        """A hat's body standing on ``level`` (share of the head's half-height above the centre)."""
        base = -self.head.height * level
        return _rounded(self.u.abs() - self.head.width * width, (self.v - base + height / 2).abs() - height / 2, corner)

    def dome(self, level: float, width: float, height: float) -> Tensor:
        base = -self.head.height * level
        return torch.maximum(_ellipse(self.u, self.v - base, self.head.width * width, height), self.v - base - 0.02)


def _triangle(x: Tensor, y: Tensor, width: float, depth: float) -> Tensor:
    """A triangle pointing down from y = 0."""
    slope = math.hypot(width, depth)
    return torch.maximum((x.abs() * depth + y * width - width * depth) / slope, -y)


def _doctor(o: _Outfit) -> None:
    o.cloth(_rgb(238, 242, 246))
    o.cloth(_rgb(120, 170, 214), o.v_neck(0.36, 0.22))
    o.canvas.paint(_capsule(o.x, o.y, -0.20, 0.50, -0.13, 0.82, 0.022), _rgb(48, 52, 70))
    o.canvas.paint(_capsule(o.x, o.y, 0.20, 0.50, 0.13, 0.78, 0.022), _rgb(48, 52, 70))
    o.canvas.paint(_ellipse(o.x - 0.13, o.y - 0.83, 0.055, 0.055), _rgb(150, 156, 170))


def _nurse(o: _Outfit) -> None:
    o.cloth(_rgb(64, 178, 172))
    o.cloth(_rgb(46, 140, 138), o.v_neck(0.30, 0.20).abs() - 0.025)


def _nurse_cap(o: _Outfit) -> None:
    o.canvas.paint(o.crown(0.86, 0.62, 0.24, 0.05), _rgb(248, 250, 252))
    cross = torch.minimum(
        _box(o.u, o.v + o.head.height * 0.86 + 0.12, 0.075, torch.tensor(0.026)),
        _box(o.u, o.v + o.head.height * 0.86 + 0.12, 0.026, torch.tensor(0.075)),
    )
    o.canvas.paint(cross, _rgb(216, 48, 58))


def _builder(o: _Outfit) -> None:
    o.cloth(_rgb(240, 122, 40))
    o.cloth(_rgb(248, 232, 90), (o.x.abs() - 0.34).abs() - 0.055)
    o.cloth(_rgb(248, 232, 90), (o.y - 0.82).abs() - 0.045)


def _builder_hat(o: _Outfit) -> None:
    o.canvas.paint(o.dome(0.56, 1.12, 0.46), _rgb(250, 206, 40))
    o.canvas.paint(torch.maximum(o.dome(0.56, 1.12, 0.46), o.u.abs() - 0.05), _rgb(255, 228, 110))
    o.canvas.paint(o.brim(0.54, 1.30, 0.055), _rgb(232, 178, 22))


def _chef(o: _Outfit) -> None:
    o.cloth(_rgb(246, 244, 238))
    o.cloth(_rgb(214, 210, 200), (o.x + 0.02).abs() - 0.014)
    for row in (0.66, 0.80, 0.94):
        for side in (-0.11, 0.11):
            o.canvas.paint(_ellipse(o.x - side, o.y - row, 0.032, 0.032), _rgb(60, 60, 70))
    o.cloth(_rgb(206, 54, 60), _triangle(o.x, o.y - 0.46, 0.19, 0.14))


def _chef_hat(o: _Outfit) -> None:
    base = o.v + o.head.height * 0.70
    for shift in (-0.26, 0.0, 0.26):
        o.canvas.paint(_ellipse(o.u - shift, base + 0.36 + 0.03 * (shift == 0), 0.20, 0.16), _rgb(252, 252, 250))
    o.canvas.paint(_box(o.u, base + 0.18, 0.31, torch.tensor(0.19), 0.02), _rgb(250, 250, 248))
    o.canvas.paint(_box(o.u, base + 0.02, 0.33, torch.tensor(0.05), 0.02), _rgb(214, 216, 222))


def _farmer(o: _Outfit) -> None:
    o.cloth(_rgb(196, 62, 56))
    o.cloth(_rgb(66, 104, 170), torch.minimum((o.x.abs() - 0.30).abs() - 0.075, 0.74 - o.y))


def _farmer_hat(o: _Outfit) -> None:
    o.canvas.paint(o.dome(0.58, 0.86, 0.42), _rgb(226, 188, 108))
    o.canvas.paint(torch.maximum(o.dome(0.58, 0.88, 0.42), -0.09 - (o.v + o.head.height * 0.58)), _rgb(150, 60, 46))
    o.canvas.paint(o.brim(0.54, 1.75, 0.075), _rgb(214, 172, 90))


def _officer(o: _Outfit) -> None:
    o.cloth(_rgb(44, 62, 122))
    o.cloth(_rgb(30, 42, 88), _box(o.x, o.y - 0.75, 0.055, torch.tensor(0.28)))
    o.canvas.paint(_ellipse(o.x - 0.30, o.y - 0.72, 0.075, 0.085), _rgb(246, 204, 74))


def _officer_cap(o: _Outfit) -> None:
    o.canvas.paint(o.crown(0.74, 1.16, 0.26, 0.10), _rgb(40, 56, 112))
    o.canvas.paint(o.crown(0.60, 1.02, 0.12, 0.02), _rgb(24, 30, 54))
    o.canvas.paint(_ellipse(o.u, o.v + o.head.height * 0.74 + 0.11, 0.07, 0.075), _rgb(246, 204, 74))
    o.canvas.paint(o.brim(0.57, 0.86, 0.06), _rgb(18, 18, 26))


def _firefighter(o: _Outfit) -> None:
    o.cloth(_rgb(70, 66, 60))
    o.cloth(_rgb(236, 226, 84), (o.y - 0.80).abs() - 0.05)
    o.cloth(_rgb(200, 204, 208), (o.y - 0.80).abs() - 0.018)
    o.cloth(_rgb(236, 226, 84), o.x.abs() - 0.035)


def _firefighter_hat(o: _Outfit) -> None:
    o.canvas.paint(o.dome(0.56, 1.10, 0.48), _rgb(204, 40, 40))
    o.canvas.paint(o.brim(0.55, 1.36, 0.06), _rgb(168, 26, 30))
    o.canvas.paint(_triangle(o.u, o.v + o.head.height * 0.56 + 0.34, 0.13, 0.30), _rgb(248, 214, 92))


def _pilot(o: _Outfit) -> None:
    o.cloth(_rgb(36, 38, 52))
    o.cloth(_rgb(246, 246, 250), o.v_neck(0.40, 0.22))
    o.cloth(_rgb(20, 20, 28), _box(o.x, o.y - 0.75, 0.045, torch.tensor(0.28)))
    o.cloth(
        _rgb(230, 190, 80), torch.maximum(o.x.abs() * -1 + 0.42, (o.y - 0.66 - 0.25 * (o.x.abs() - 0.5)).abs() - 0.035)
    )


def _pilot_cap(o: _Outfit) -> None:
    o.canvas.paint(o.crown(0.74, 1.18, 0.25, 0.10), _rgb(250, 250, 252))
    o.canvas.paint(o.crown(0.60, 1.02, 0.13, 0.02), _rgb(30, 32, 44))
    o.canvas.paint(o.crown(0.70, 0.34, 0.06, 0.03), _rgb(236, 196, 84))
    o.canvas.paint(o.brim(0.57, 0.86, 0.06), _rgb(18, 18, 26))


def _judge(o: _Outfit) -> None:
    o.cloth(_rgb(28, 26, 32))
    o.cloth(_rgb(150, 28, 44), (o.x.abs() - 0.32).abs() - 0.06)
    for row, half in ((0.56, 0.12), (0.68, 0.10), (0.80, 0.08)):
        o.cloth(_rgb(250, 250, 250), _ellipse(o.x, o.y - row, half, 0.085))


def _teacher(o: _Outfit) -> None:
    o.cloth(_rgb(112, 60, 128))
    o.cloth(_rgb(250, 248, 240), _capsule(o.x.abs(), o.y, 0.05, 0.58, 0.20, 0.50, 0.055))
    o.cloth(_rgb(236, 200, 90), (o.x).abs() - 0.02)


def _painter(o: _Outfit) -> None:
    o.cloth(_rgb(248, 246, 242))
    o.cloth(_rgb(34, 44, 84), ((o.y / 0.13) % 1.0 - 0.5).abs() * 0.13 - 0.033)


def _painter_hat(o: _Outfit) -> None:
    beret = _ellipse(o.u - 0.08, o.v + o.head.height * 0.86, o.head.width * 1.14, 0.17)
    o.canvas.paint(beret, _rgb(190, 36, 54))
    o.canvas.paint(_capsule(o.u, o.v + o.head.height * 0.86, 0.09, -0.15, 0.11, -0.21, 0.024), _rgb(150, 24, 40))


def _astronaut(o: _Outfit) -> None:
    o.cloth(_rgb(236, 238, 242))
    o.cloth(_rgb(238, 130, 50), (o.x.abs() - 0.46).abs() - 0.05)
    o.canvas.paint(_ellipse(o.x, o.y - 0.54, 0.42, 0.11), _rgb(150, 158, 172))
    o.canvas.paint(_ellipse(o.x, o.y - 0.52, 0.34, 0.07), _rgb(92, 98, 116))
    o.cloth(_rgb(60, 100, 190), _box(o.x - 0.22, o.y - 0.84, 0.09, torch.tensor(0.07)))


def _astronaut_helmet(o: _Outfit) -> None:
    ring = _ellipse(o.u, o.v + 0.02, 0.66, 0.70)
    o.canvas.paint(ring.abs() - 0.035, _rgb(226, 232, 240), 0.96)
    o.canvas.paint(torch.maximum(ring.abs() - 0.018, (o.u - 0.40).abs() - 0.14), _rgb(150, 196, 236), 0.9)


def _athlete(o: _Outfit) -> None:
    o.cloth(_rgb(244, 214, 54))
    o.cloth(_rgb(38, 150, 84), torch.maximum((o.x.abs() - 0.40).abs() - 0.04, o.body))
    o.cloth(_rgb(38, 150, 84), _box(o.x, o.y - 0.84, 0.05, torch.tensor(0.12)))


def _athlete_band(o: _Outfit) -> None:
    band = torch.maximum(
        (o.v + o.head.height * 0.60).abs() - 0.058, _ellipse(o.u, o.v, o.head.width + 0.06, o.head.height + 0.06)
    )
    o.canvas.paint(band, _rgb(226, 52, 62))
    o.canvas.paint(torch.maximum(band, (o.v + o.head.height * 0.60).abs() - 0.018), _rgb(252, 250, 250))


def _sailor(o: _Outfit) -> None:
    o.cloth(_rgb(246, 248, 252))
    collar = _triangle(o.x, o.y - 0.46, 0.50, 0.34)
    o.cloth(_rgb(50, 110, 196), collar)
    o.cloth(_rgb(250, 250, 252), (collar + 0.055).abs() - 0.016)
    o.cloth(_rgb(216, 46, 58), _ellipse(o.x, o.y - 0.82, 0.10, 0.06))


def _sailor_hat(o: _Outfit) -> None:
    o.canvas.paint(o.dome(0.72, 0.86, 0.30), _rgb(244, 248, 252))
    o.canvas.paint(o.crown(0.62, 0.98, 0.13, 0.03), _rgb(50, 110, 196))


def _person(o: _Outfit) -> None:
    o.cloth(_rgb(132, 160, 128))
    o.cloth(_rgb(108, 134, 106), _ellipse(o.x, o.y - 0.46, 0.20, 0.13).abs() - 0.022)


_CLOTHES: dict[str, Callable[[_Outfit], None]] = {
    "doctor": _doctor, "nurse": _nurse, "builder": _builder, "chef": _chef, "farmer": _farmer, "officer": _officer,
    "firefighter": _firefighter, "pilot": _pilot, "judge": _judge, "teacher": _teacher, "painter": _painter,
    "astronaut": _astronaut, "athlete": _athlete, "sailor": _sailor, "person": _person,
}  # fmt: skip
_HATS: dict[str, Callable[[_Outfit], None]] = {
    "nurse": _nurse_cap, "builder": _builder_hat, "chef": _chef_hat, "farmer": _farmer_hat, "officer": _officer_cap,
    "firefighter": _firefighter_hat, "pilot": _pilot_cap, "painter": _painter_hat, "astronaut": _astronaut_helmet,
    "athlete": _athlete_band, "sailor": _sailor_hat,
}  # fmt: skip


def _tree(canvas: _Canvas, scenes: Scenes, x: Tensor, y: Tensor) -> None:
    j = [_column(column) for column in scenes.jitter.unbind(1)]
    x = x - _mix(-0.12, 0.12, j[0])
    canvas.paint(0.62 + 0.04 * (3 * x).sin() - y, _rgb(120, 172, 96))
    canvas.paint(_box(x, y - 0.45, 0.075, _mix(0.34, 0.42, j[1]), 0.03), _rgb(122, 82, 54))
    green = _rgb(58, 132, 70).view(1, 3, 1, 1) * (0.85 + 0.3 * scenes.jitter[:, 6, None, None, None])
    for dx, dy, r in ((-0.24, -0.02, 0.27), (0.25, -0.05, 0.27), (0.0, -0.34, 0.32), (0.0, -0.02, 0.28)):
        canvas.paint(_ellipse(x - dx, y - dy, r * _mix(0.9, 1.15, j[7]), r * _mix(0.9, 1.15, j[8])), green)
    canvas.paint(_ellipse(x + 0.10, y + 0.40, 0.12, 0.10), green * 1.18)


def _house(canvas: _Canvas, scenes: Scenes, x: Tensor, y: Tensor) -> None:
    j = [_column(column) for column in scenes.jitter.unbind(1)]
    x = x - _mix(-0.12, 0.12, j[0])
    canvas.paint(0.62 - y, _rgb(130, 178, 104))
    wall = _rgb(238, 220, 190).view(1, 3, 1, 1) * (0.85 + 0.18 * scenes.jitter[:, 6, None, None, None])
    half = _mix(0.44, 0.54, j[7])
    canvas.paint(_box(x, y - 0.32, half, torch.tensor(0.34)), wall)
    roof = torch.maximum((x.abs() * 0.62 - (y + _mix(0.56, 0.70, j[8])) * 0.78), y - 0.0)
    canvas.paint(roof, _rgb(178, 72, 58))
    canvas.paint(_box(x, y - 0.44, 0.10, torch.tensor(0.22)), _rgb(112, 70, 46))
    for side in (-1.0, 1.0):
        canvas.paint(_box(x - side * 0.29, y - 0.26, 0.10, torch.tensor(0.10)), _rgb(248, 248, 248))
        canvas.paint(_box(x - side * 0.29, y - 0.26, 0.075, torch.tensor(0.075)), _rgb(116, 176, 214))


def _car(canvas: _Canvas, scenes: Scenes, x: Tensor, y: Tensor) -> None:
    j = [_column(column) for column in scenes.jitter.unbind(1)]
    x = x - _mix(-0.12, 0.12, j[0])
    y = y - _mix(-0.06, 0.06, j[1])
    canvas.paint(0.46 - y, _rgb(128, 130, 138))
    paint = _along(torch.tensor([[0.84, 0.22, 0.20], [0.95, 0.76, 0.22], [0.22, 0.44, 0.80]]), scenes.jitter[:, 6])
    cabin = torch.maximum(_ellipse(x + 0.04, y - 0.12, _mix(0.44, 0.52, j[7]), 0.42), y - 0.14)
    canvas.paint(cabin, _colour(paint) * 0.9)
    canvas.paint(torch.maximum(cabin + 0.07, ((x + 0.04).abs() - 0.03) * -1), _rgb(186, 222, 240))
    canvas.paint(_box(x, y - 0.26, 0.76, torch.tensor(0.17), 0.12), _colour(paint))
    for side in (-1.0, 1.0):
        canvas.paint(_ellipse(x - side * 0.42, y - 0.44, 0.165, 0.165), _rgb(34, 34, 40))
        canvas.paint(_ellipse(x - side * 0.42, y - 0.44, 0.075, 0.075), _rgb(190, 194, 202))
    canvas.paint(_ellipse(x - 0.70, y - 0.24, 0.05, 0.05), _rgb(255, 244, 190))


_SUBJECTS: dict[str, Callable[[_Canvas, Scenes, Tensor, Tensor], None]] = {"tree": _tree, "house": _house, "car": _car}


def _landmarks(head: _Head) -> Tensor:
    """The 68 points in the usual order (jaw, brows, nose, eyes, lips; left is the picture's left)."""
    points: list[tuple[Tensor, Tensor]] = []

    def add(fx: Tensor | float, fy: Tensor | float, out: float = 0.0) -> None:
        u, v, _ = head.turn(fx, fy, out)
        points.append((u + 0 * head.x, v + 0 * head.x))

    for step in range(17):  # the face's outline does not turn
        angle = math.pi * (1 - step / 16)
        v = head.height * math.sin(angle) * 0.999
        u = head.width * math.cos(angle) * (1 - head.jaw * (v / head.height) ** 2)
        points.append((u, v))
    for side in (-1.0, 1.0):
        for step in range(5):
            share = (step - 2) / 2 * side  # -1 inner end, +1 outer end
            add(
                side * (head.eye_x + 0.75 * share * head.brow_w),
                head.eye_y - head.brow_y - 0.5 * share * head.brow_slant,
            )
    for step in range(4):
        add(0.0, head.eye_y + 0.03 + (head.nose_y - head.eye_y - 0.03) * step / 3, 0.03 + 0.02 * step)
    tip_u, tip_v, _ = head.turn(0.0, head.nose_y, 0.09)
    for step in range(5):
        share = (step - 2) / 2
        points.append((tip_u + head.nose_w * share * 0.9, tip_v + 0.042 * (1 - share * share) ** 0.5))
    for side in (-1.0, 1.0):
        cu, cv, shrink = head.turn(side * head.eye_x, head.eye_y)
        for degrees in (180, 235, 305, 0, 55, 125):
            angle = math.radians(degrees)
            points.append((cu + head.eye_w * shrink * math.cos(angle), cv + head.eye_h * math.sin(angle)))
    mu, mv, shrink = head.turn(0.0, head.mouth_y)
    w = head.mouth_w * shrink

    def lip(share: float, sign: float, thick: Tensor) -> None:
        middle = mv + head.mouth_curve * (0.5 - share * share)
        points.append((mu + w * share, middle + sign * thick * (1 - share * share)))

    outer, inner = head.mouth_open + head.lip, head.mouth_open + 0.007
    for share in (-1.0, -0.66, -0.33, 0.0, 0.33, 0.66, 1.0):
        lip(share, -1.0, outer)
    for share in (0.66, 0.33, 0.0, -0.33, -0.66):
        lip(share, 1.0, outer)
    for share in (-0.9, -0.45, 0.0, 0.45, 0.9):
        lip(share, -1.0, inner)
    for share in (0.45, 0.0, -0.45):
        lip(share, 1.0, inner)
    u, v = torch.cat([p[0] for p in points], 1)[..., 0], torch.cat([p[1] for p in points], 1)[..., 0]
    x = head.x[..., 0] + u * head.cos[..., 0] - v * head.sin[..., 0]
    y = head.y[..., 0] + u * head.sin[..., 0] + v * head.cos[..., 0]
    return torch.stack([x, y], dim=-1)


def _select(head: _Head, index: Tensor) -> _Head:
    return _Head(**{name: value[index] for name, value in vars(head).items()})


def _render_people(scenes: Scenes, masks: bool) -> tuple[Tensor, Tensor | None, Tensor]:
    count, side = len(scenes), SIZE
    axis = (torch.arange(side) + 0.5) * (2 / side) - 1
    x, y = axis.view(1, 1, side), axis.view(1, side, 1)
    head = _head(scenes)
    u, v = head.to_head(x, y)
    canvas = _Canvas(torch.empty(count, 3, side, side), torch.zeros(count, len(MASKS), side, side) if masks else None)

    i = scenes.identity
    skin = _colour(_SKIN[scenes.tone] * (0.975 + 0.05 * i[:, 2:3]))
    low, high = _HAIR_RANGE[scenes.tone].unbind(1)
    hair_rgb = _along(_HAIR_AXIS, low + (high - low) * i[:, 8])
    hair = _colour(torch.lerp(hair_rgb, _GREY * (0.9 + 0.2 * i[:, 8:9]), 0.92 * (scenes.age == 1).float()[:, None]))
    low, high = _IRIS_RANGE[scenes.tone].unbind(1)
    iris = _colour(_along(_IRIS_AXIS, low + (high - low) * i[:, 10]))
    male = _column((scenes.gender == 1).float())
    rouge = torch.tensor([[0.80, 0.16, 0.24]])
    lips = _colour(
        torch.lerp(
            _SKIN[scenes.tone] * torch.tensor([0.78, 0.52, 0.50]), rouge, 0.7 * (scenes.gender == 0).float()[:, None]
        )
    )

    _paint_background(canvas, scenes, y)
    _paint_hair_back(canvas, head, scenes, u, v, hair)
    _paint_neck(canvas, head, x, y, skin, male)

    body = _ellipse(x - head.x * 0.5, y - 1.12, 0.78 + 0.06 * male, 0.68)
    shade = _colour(0.94 + 0.12 * scenes.jitter[:, 2:3].expand(-1, 3))
    groups = [(k, (scenes.occupation == k).nonzero()[:, 0]) for k in scenes.occupation.unique().tolist()]

    def dress(painters: dict[str, Callable[[_Outfit], None]], first: int, last: int) -> None:
        """Paint rows ``first`` to ``last`` of each occupation's scenes."""
        for k, index in groups:
            painter = painters.get(OCCUPATIONS[k])
            if painter is None:
                continue
            rows = slice(first, last)
            part = _Canvas(canvas.image[index, :, rows], None if canvas.masks is None else canvas.masks[index, :, rows])
            chosen = _select(head, index)
            painter(
                _Outfit(
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

    dress(_CLOTHES, 40, side)
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
    dress(_HATS, 0, 56)
    low_rows = slice(36, side)
    for hand_side in (-1.0, 1.0):
        _paint_hand(canvas.rows(low_rows), scenes, x, y[:, low_rows], skin, hand_side)
    return canvas.image, canvas.masks, _landmarks(head)


def render(scenes: Scenes, masks: bool = False) -> Rendering:
    """Draw scenes.

    Args:
        scenes: What to draw; batches of 16 to 64 are fastest (they stay in the cache).
        masks: Also return the region masks.

    Returns:
        The pictures, with masks if asked and landmarks (zeros where there is no person).
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
            canvas = _Canvas(torch.empty(len(index), 3, SIZE, SIZE), None)
            _paint_background(canvas, scenes[index], y)
            _SUBJECTS[SUBJECTS[kind]](canvas, scenes[index], x, y)
            image[index] = canvas.image
    pixels = (image.clamp_(0, 1) * 255).round_().to(torch.uint8)
    return Rendering(pixels, None if regions is None else (regions > 0.5).to(torch.uint8), landmarks)
