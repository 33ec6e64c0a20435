"""What people wear and what stands where nobody is: one small painter per class."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from data_modules.synthetic_faces.head import Head
from data_modules.synthetic_faces.shapes import (
    Canvas,
    along,
    box,
    capsule,
    colour,
    column,
    ellipse,
    mix,
    rgb,
    rounded,
    triangle,
)
from data_modules.synthetic_faces.world import Scenes


@dataclass
class Outfit:
    """What a painter of clothes or hats sees: the scenes of one class."""

    canvas: Canvas
    head: Head
    x: Tensor  # image coordinates centred under the head
    y: Tensor
    u: Tensor  # head coordinates
    v: Tensor
    body: Tensor  # distance to the torso
    shade: Tensor  # (B, 3, 1, 1), light on the cloth

    def cloth(self, colour: Tensor, distance: Tensor | None = None) -> None:
        """Paint where the torso is, or where it meets ``distance``."""
        where = self.body if distance is None else torch.maximum(self.body, distance)
        self.canvas.paint(where, colour.view(1, 3, 1, 1) * self.shade)

    def v_neck(self, depth: float, width: float) -> Tensor:
        """A neckline under the chin."""
        return triangle(self.x, self.y - 0.44, width, depth)

    def brim(self, level: float, width: float, thick: float) -> Tensor:
        """The brim of a hat, ``level`` as in `crown`."""
        return ellipse(
            self.u - 0.12 * self.head.yaw.sin(), self.v + self.head.height * level, self.head.width * width, thick
        )

    def crown(self, level: float, width: float, height: float, corner: float = 0.08) -> Tensor:
        """A hat's body standing on ``level`` (share of the head's half-height above the centre)."""
        base = -self.head.height * level
        return rounded(self.u.abs() - self.head.width * width, (self.v - base + height / 2).abs() - height / 2, corner)

    def dome(self, level: float, width: float, height: float) -> Tensor:
        """A round hat standing on ``level``."""
        base = -self.head.height * level
        return torch.maximum(ellipse(self.u, self.v - base, self.head.width * width, height), self.v - base - 0.02)


def _doctor(o: Outfit) -> None:
    o.cloth(rgb(238, 242, 246))
    o.cloth(rgb(120, 170, 214), o.v_neck(0.36, 0.22))
    o.canvas.paint(capsule(o.x, o.y, -0.20, 0.50, -0.13, 0.82, 0.022), rgb(48, 52, 70))
    o.canvas.paint(capsule(o.x, o.y, 0.20, 0.50, 0.13, 0.78, 0.022), rgb(48, 52, 70))
    o.canvas.paint(ellipse(o.x - 0.13, o.y - 0.83, 0.055, 0.055), rgb(150, 156, 170))


def _nurse(o: Outfit) -> None:
    o.cloth(rgb(64, 178, 172))
    o.cloth(rgb(46, 140, 138), o.v_neck(0.30, 0.20).abs() - 0.025)


def _nurse_cap(o: Outfit) -> None:
    o.canvas.paint(o.crown(0.86, 0.62, 0.24, 0.05), rgb(248, 250, 252))
    cross = torch.minimum(
        box(o.u, o.v + o.head.height * 0.86 + 0.12, 0.075, torch.tensor(0.026)),
        box(o.u, o.v + o.head.height * 0.86 + 0.12, 0.026, torch.tensor(0.075)),
    )
    o.canvas.paint(cross, rgb(216, 48, 58))


def _builder(o: Outfit) -> None:
    o.cloth(rgb(240, 122, 40))
    o.cloth(rgb(248, 232, 90), (o.x.abs() - 0.34).abs() - 0.055)
    o.cloth(rgb(248, 232, 90), (o.y - 0.82).abs() - 0.045)


def _builder_hat(o: Outfit) -> None:
    o.canvas.paint(o.dome(0.56, 1.12, 0.46), rgb(250, 206, 40))
    o.canvas.paint(torch.maximum(o.dome(0.56, 1.12, 0.46), o.u.abs() - 0.05), rgb(255, 228, 110))
    o.canvas.paint(o.brim(0.54, 1.30, 0.055), rgb(232, 178, 22))


def _chef(o: Outfit) -> None:
    o.cloth(rgb(246, 244, 238))
    o.cloth(rgb(214, 210, 200), (o.x + 0.02).abs() - 0.014)
    for row in (0.66, 0.80, 0.94):
        for side in (-0.11, 0.11):
            o.canvas.paint(ellipse(o.x - side, o.y - row, 0.032, 0.032), rgb(60, 60, 70))
    o.cloth(rgb(206, 54, 60), triangle(o.x, o.y - 0.46, 0.19, 0.14))


def _chef_hat(o: Outfit) -> None:
    base = o.v + o.head.height * 0.70
    for shift in (-0.26, 0.0, 0.26):
        o.canvas.paint(ellipse(o.u - shift, base + 0.36 + 0.03 * (shift == 0), 0.20, 0.16), rgb(252, 252, 250))
    o.canvas.paint(box(o.u, base + 0.18, 0.31, torch.tensor(0.19), 0.02), rgb(250, 250, 248))
    o.canvas.paint(box(o.u, base + 0.02, 0.33, torch.tensor(0.05), 0.02), rgb(214, 216, 222))


def _farmer(o: Outfit) -> None:
    o.cloth(rgb(196, 62, 56))
    o.cloth(rgb(66, 104, 170), torch.minimum((o.x.abs() - 0.30).abs() - 0.075, 0.74 - o.y))


def _farmer_hat(o: Outfit) -> None:
    o.canvas.paint(o.dome(0.58, 0.86, 0.42), rgb(226, 188, 108))
    o.canvas.paint(torch.maximum(o.dome(0.58, 0.88, 0.42), -0.09 - (o.v + o.head.height * 0.58)), rgb(150, 60, 46))
    o.canvas.paint(o.brim(0.54, 1.75, 0.075), rgb(214, 172, 90))


def _officer(o: Outfit) -> None:
    o.cloth(rgb(44, 62, 122))
    o.cloth(rgb(30, 42, 88), box(o.x, o.y - 0.75, 0.055, torch.tensor(0.28)))
    o.canvas.paint(ellipse(o.x - 0.30, o.y - 0.72, 0.075, 0.085), rgb(246, 204, 74))


def _officer_cap(o: Outfit) -> None:
    o.canvas.paint(o.crown(0.74, 1.16, 0.26, 0.10), rgb(40, 56, 112))
    o.canvas.paint(o.crown(0.60, 1.02, 0.12, 0.02), rgb(24, 30, 54))
    o.canvas.paint(ellipse(o.u, o.v + o.head.height * 0.74 + 0.11, 0.07, 0.075), rgb(246, 204, 74))
    o.canvas.paint(o.brim(0.57, 0.86, 0.06), rgb(18, 18, 26))


def _firefighter(o: Outfit) -> None:
    o.cloth(rgb(70, 66, 60))
    o.cloth(rgb(236, 226, 84), (o.y - 0.80).abs() - 0.05)
    o.cloth(rgb(200, 204, 208), (o.y - 0.80).abs() - 0.018)
    o.cloth(rgb(236, 226, 84), o.x.abs() - 0.035)


def _firefighter_hat(o: Outfit) -> None:
    o.canvas.paint(o.dome(0.56, 1.10, 0.48), rgb(204, 40, 40))
    o.canvas.paint(o.brim(0.55, 1.36, 0.06), rgb(168, 26, 30))
    o.canvas.paint(triangle(o.u, o.v + o.head.height * 0.56 + 0.34, 0.13, 0.30), rgb(248, 214, 92))


def _pilot(o: Outfit) -> None:
    o.cloth(rgb(36, 38, 52))
    o.cloth(rgb(246, 246, 250), o.v_neck(0.40, 0.22))
    o.cloth(rgb(20, 20, 28), box(o.x, o.y - 0.75, 0.045, torch.tensor(0.28)))
    o.cloth(
        rgb(230, 190, 80), torch.maximum(o.x.abs() * -1 + 0.42, (o.y - 0.66 - 0.25 * (o.x.abs() - 0.5)).abs() - 0.035)
    )


def _pilot_cap(o: Outfit) -> None:
    o.canvas.paint(o.crown(0.74, 1.18, 0.25, 0.10), rgb(250, 250, 252))
    o.canvas.paint(o.crown(0.60, 1.02, 0.13, 0.02), rgb(30, 32, 44))
    o.canvas.paint(o.crown(0.70, 0.34, 0.06, 0.03), rgb(236, 196, 84))
    o.canvas.paint(o.brim(0.57, 0.86, 0.06), rgb(18, 18, 26))


def _judge(o: Outfit) -> None:
    o.cloth(rgb(28, 26, 32))
    o.cloth(rgb(150, 28, 44), (o.x.abs() - 0.32).abs() - 0.06)
    for row, half in ((0.56, 0.12), (0.68, 0.10), (0.80, 0.08)):
        o.cloth(rgb(250, 250, 250), ellipse(o.x, o.y - row, half, 0.085))


def _teacher(o: Outfit) -> None:
    o.cloth(rgb(112, 60, 128))
    o.cloth(rgb(250, 248, 240), capsule(o.x.abs(), o.y, 0.05, 0.58, 0.20, 0.50, 0.055))
    o.cloth(rgb(236, 200, 90), (o.x).abs() - 0.02)


def _painter(o: Outfit) -> None:
    o.cloth(rgb(248, 246, 242))
    o.cloth(rgb(34, 44, 84), ((o.y / 0.13) % 1.0 - 0.5).abs() * 0.13 - 0.033)


def _painter_hat(o: Outfit) -> None:
    beret = ellipse(o.u - 0.08, o.v + o.head.height * 0.86, o.head.width * 1.14, 0.17)
    o.canvas.paint(beret, rgb(190, 36, 54))
    o.canvas.paint(capsule(o.u, o.v + o.head.height * 0.86, 0.09, -0.15, 0.11, -0.21, 0.024), rgb(150, 24, 40))


def _astronaut(o: Outfit) -> None:
    o.cloth(rgb(236, 238, 242))
    o.cloth(rgb(238, 130, 50), (o.x.abs() - 0.46).abs() - 0.05)
    o.canvas.paint(ellipse(o.x, o.y - 0.54, 0.42, 0.11), rgb(150, 158, 172))
    o.canvas.paint(ellipse(o.x, o.y - 0.52, 0.34, 0.07), rgb(92, 98, 116))
    o.cloth(rgb(60, 100, 190), box(o.x - 0.22, o.y - 0.84, 0.09, torch.tensor(0.07)))


def _astronaut_helmet(o: Outfit) -> None:
    ring = ellipse(o.u, o.v + 0.02, 0.66, 0.70)
    o.canvas.paint(ring.abs() - 0.035, rgb(226, 232, 240), 0.96)
    o.canvas.paint(torch.maximum(ring.abs() - 0.018, (o.u - 0.40).abs() - 0.14), rgb(150, 196, 236), 0.9)


def _athlete(o: Outfit) -> None:
    o.cloth(rgb(244, 214, 54))
    o.cloth(rgb(38, 150, 84), torch.maximum((o.x.abs() - 0.40).abs() - 0.04, o.body))
    o.cloth(rgb(38, 150, 84), box(o.x, o.y - 0.84, 0.05, torch.tensor(0.12)))


def _athlete_band(o: Outfit) -> None:
    band = torch.maximum(
        (o.v + o.head.height * 0.60).abs() - 0.058, ellipse(o.u, o.v, o.head.width + 0.06, o.head.height + 0.06)
    )
    o.canvas.paint(band, rgb(226, 52, 62))
    o.canvas.paint(torch.maximum(band, (o.v + o.head.height * 0.60).abs() - 0.018), rgb(252, 250, 250))


def _sailor(o: Outfit) -> None:
    o.cloth(rgb(246, 248, 252))
    collar = triangle(o.x, o.y - 0.46, 0.50, 0.34)
    o.cloth(rgb(50, 110, 196), collar)
    o.cloth(rgb(250, 250, 252), (collar + 0.055).abs() - 0.016)
    o.cloth(rgb(216, 46, 58), ellipse(o.x, o.y - 0.82, 0.10, 0.06))


def _sailor_hat(o: Outfit) -> None:
    o.canvas.paint(o.dome(0.72, 0.86, 0.30), rgb(244, 248, 252))
    o.canvas.paint(o.crown(0.62, 0.98, 0.13, 0.03), rgb(50, 110, 196))


def _person(o: Outfit) -> None:
    o.cloth(rgb(132, 160, 128))
    o.cloth(rgb(108, 134, 106), ellipse(o.x, o.y - 0.46, 0.20, 0.13).abs() - 0.022)


CLOTHES: dict[str, Callable[[Outfit], None]] = {
    "doctor": _doctor, "nurse": _nurse, "builder": _builder, "chef": _chef, "farmer": _farmer, "officer": _officer,
    "firefighter": _firefighter, "pilot": _pilot, "judge": _judge, "teacher": _teacher, "painter": _painter,
    "astronaut": _astronaut, "athlete": _athlete, "sailor": _sailor, "person": _person,
}  # fmt: skip
HATS: dict[str, Callable[[Outfit], None]] = {
    "nurse": _nurse_cap, "builder": _builder_hat, "chef": _chef_hat, "farmer": _farmer_hat, "officer": _officer_cap,
    "firefighter": _firefighter_hat, "pilot": _pilot_cap, "painter": _painter_hat, "astronaut": _astronaut_helmet,
    "athlete": _athlete_band, "sailor": _sailor_hat,
}  # fmt: skip


def _tree(canvas: Canvas, scenes: Scenes, x: Tensor, y: Tensor) -> None:
    j = [column(value) for value in scenes.jitter.unbind(1)]
    x = x - mix(-0.12, 0.12, j[0])
    canvas.paint(0.62 + 0.04 * (3 * x).sin() - y, rgb(120, 172, 96))
    canvas.paint(box(x, y - 0.45, 0.075, mix(0.34, 0.42, j[1]), 0.03), rgb(122, 82, 54))
    green = rgb(58, 132, 70).view(1, 3, 1, 1) * (0.85 + 0.3 * scenes.jitter[:, 6, None, None, None])
    for dx, dy, r in ((-0.24, -0.02, 0.27), (0.25, -0.05, 0.27), (0.0, -0.34, 0.32), (0.0, -0.02, 0.28)):
        canvas.paint(ellipse(x - dx, y - dy, r * mix(0.9, 1.15, j[7]), r * mix(0.9, 1.15, j[8])), green)
    canvas.paint(ellipse(x + 0.10, y + 0.40, 0.12, 0.10), green * 1.18)


def _house(canvas: Canvas, scenes: Scenes, x: Tensor, y: Tensor) -> None:
    j = [column(value) for value in scenes.jitter.unbind(1)]
    x = x - mix(-0.12, 0.12, j[0])
    canvas.paint(0.62 - y, rgb(130, 178, 104))
    wall = rgb(238, 220, 190).view(1, 3, 1, 1) * (0.85 + 0.18 * scenes.jitter[:, 6, None, None, None])
    half = mix(0.44, 0.54, j[7])
    canvas.paint(box(x, y - 0.32, half, torch.tensor(0.34)), wall)
    roof = torch.maximum((x.abs() * 0.62 - (y + mix(0.56, 0.70, j[8])) * 0.78), y - 0.0)
    canvas.paint(roof, rgb(178, 72, 58))
    canvas.paint(box(x, y - 0.44, 0.10, torch.tensor(0.22)), rgb(112, 70, 46))
    for side in (-1.0, 1.0):
        canvas.paint(box(x - side * 0.29, y - 0.26, 0.10, torch.tensor(0.10)), rgb(248, 248, 248))
        canvas.paint(box(x - side * 0.29, y - 0.26, 0.075, torch.tensor(0.075)), rgb(116, 176, 214))


def _car(canvas: Canvas, scenes: Scenes, x: Tensor, y: Tensor) -> None:
    j = [column(value) for value in scenes.jitter.unbind(1)]
    x = x - mix(-0.12, 0.12, j[0])
    y = y - mix(-0.06, 0.06, j[1])
    canvas.paint(0.46 - y, rgb(128, 130, 138))
    paint = along(torch.tensor([[0.84, 0.22, 0.20], [0.95, 0.76, 0.22], [0.22, 0.44, 0.80]]), scenes.jitter[:, 6])
    cabin = torch.maximum(ellipse(x + 0.04, y - 0.12, mix(0.44, 0.52, j[7]), 0.42), y - 0.14)
    canvas.paint(cabin, colour(paint) * 0.9)
    canvas.paint(torch.maximum(cabin + 0.07, ((x + 0.04).abs() - 0.03) * -1), rgb(186, 222, 240))
    canvas.paint(box(x, y - 0.26, 0.76, torch.tensor(0.17), 0.12), colour(paint))
    for side in (-1.0, 1.0):
        canvas.paint(ellipse(x - side * 0.42, y - 0.44, 0.165, 0.165), rgb(34, 34, 40))
        canvas.paint(ellipse(x - side * 0.42, y - 0.44, 0.075, 0.075), rgb(190, 194, 202))
    canvas.paint(ellipse(x - 0.70, y - 0.24, 0.05, 0.05), rgb(255, 244, 190))


SUBJECTS_WITHOUT_PEOPLE: dict[str, Callable[[Canvas, Scenes, Tensor, Tensor], None]] = {
    "tree": _tree,
    "house": _house,
    "car": _car,
}
