"""The geometry of a head: where every feature of a face stands, and its 68 landmarks."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from data_modules.synthetic_faces.shapes import column, mix
from data_modules.synthetic_faces.world import Scenes


@dataclass
class Head:
    """Geometry of the heads of a batch in head coordinates; all (B, 1, 1) unless said."""

    x: Tensor  # centre in image coordinates
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
        """Image coordinates to head coordinates."""
        dx, dy = x - self.x, y - self.y
        return dx * self.cos + dy * self.sin, dy * self.cos - dx * self.sin

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


def pose_heads(scenes: Scenes) -> Head:
    """The heads of a batch: identity gives the proportions, expression and pose move them."""
    i = [column(value) for value in scenes.identity.unbind(1)]
    e = [column(value) for value in scenes.expression_vector.unbind(1)]
    j = [column(value) for value in scenes.jitter.unbind(1)]
    yaw, pitch, roll = (column(value) * (math.pi / 180) for value in scenes.pose.unbind(1))
    male = column((scenes.gender == 1).float())
    height = mix(0.42, 0.50, i[1])
    return Head(
        x=mix(-0.05, 0.05, j[0]),
        y=mix(-0.13, -0.08, j[1]),
        cos=roll.cos(),
        sin=roll.sin(),
        yaw=yaw,
        pitch=pitch,
        width=mix(0.33, 0.42, i[0]),
        height=height,
        jaw=mix(0.30, 0.04, i[2]) * (1 - 0.35 * male),
        eye_x=mix(0.140, 0.185, i[3]),
        eye_y=mix(-0.09, -0.01, i[4]),
        eye_w=mix(0.092, 0.118, i[5]),
        eye_h=mix(0.060, 0.088, i[6]) * (1 + 2.5 * e[3]),
        brow_y=mix(0.125, 0.165, i[7]) + e[3] * 0.6,
        brow_w=mix(0.10, 0.14, i[5]),
        brow_slant=mix(-0.05, 0.05, i[8]),
        brow_thick=mix(0.016, 0.028, i[9]) + 0.010 * male,
        nose_w=mix(0.045, 0.090, i[10]),
        nose_y=mix(0.09, 0.16, i[11]),
        mouth_y=mix(0.25, 0.30, i[12]),
        mouth_w=mix(0.115, 0.160, i[13]) * e[2],
        mouth_curve=e[0] * 0.42,
        mouth_open=e[1] * 0.42,
        lip=mix(0.020, 0.036, i[14]) - 0.004 * male,
    )


def landmarks(head: Head) -> Tensor:
    """The 68 points in the usual order (jaw, brows, nose, eyes, lips; left is the image's left)."""
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


def select(head: Head, index: Tensor) -> Head:
    """The heads of some scenes."""
    return Head(**{name: value[index] for name, value in vars(head).items()})
