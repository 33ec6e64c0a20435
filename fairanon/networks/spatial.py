"""What leads ID2Face's U-Net beside the tokens: two paths that begin as nothing (`conditioning: tokens+spatial`).

Not in the paper. Shapes: B samples, C channels of the U-Net's first convolution, E width of its time embedding.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from fairanon.landmarks import GROUPS, HeadFrame, raster

_POINTS = 68


class SpatialConditioning(nn.Module):
    """The degraded image and rastered landmarks onto the first convolution's output, geometry onto the time embedding.

    Both end in a layer of zeros (as ControlNet's do), so that training starts from the U-Net as it is.

    Args:
        channels: C.
        time: E.
        factor: Image side divided by latent side, a power of two.
        description: Numbers that say what a face does and wears, besides its landmarks.
    """

    def __init__(self, channels: int, time: int, factor: int, description: int) -> None:
        super().__init__()
        width = 32
        layers: list[nn.Module] = [nn.Conv2d(3 + 1 + len(GROUPS), width, 3, 1, 1), nn.SiLU()]
        for _ in range(factor.bit_length() - 1):
            layers += [nn.Conv2d(width, 2 * width, 3, 2, 1), nn.SiLU()]
            width *= 2
        layers += [nn.Conv2d(width, width, 3, 1, 1), nn.SiLU()]
        self.picture = nn.Sequential(*layers)  # the name is in the weights that come with fairanon
        self.onto_first = nn.Conv2d(width, channels, 1)
        numbers = 2 * _POINTS + 4 + description
        self.geometry = nn.Sequential(nn.Linear(numbers, time), nn.SiLU(), nn.Linear(time, time), nn.SiLU())
        self.onto_time = nn.Linear(time, time)
        for parameter in (*self.onto_first.parameters(), *self.onto_time.parameters()):
            nn.init.zeros_(parameter)
        self._now: tuple[Tensor, Tensor] | None = None

    def install(self, unet: Any) -> None:
        """Let a UNet2DConditionModel of diffusers hear both paths; outside `steering` it stays as it is."""
        unet.conv_in.register_forward_hook(lambda *call: self._added(0, call[2]))
        unet.time_embedding.register_forward_hook(lambda *call: self._added(1, call[2]))

    def _added(self, path: int, output: Tensor) -> Tensor:
        return output if self._now is None else output + self._now[path].to(output.dtype)

    @contextmanager
    def steering(self, degraded: Tensor, hidden: Tensor, landmarks: Tensor, description: Tensor) -> Iterator[None]:
        """Inside, the U-Net is led by these; its backward pass may come later.

        Args:
            degraded: float (B, 3, H, W) in [-1, 1].
            hidden: bool (B, 1, H, W), what the degradation covers.
            landmarks: float (B, 68, 2), shares of the sides, of the face that is to be drawn.
            description: float (B, G).
        """
        maps = raster(landmarks, *degraded.shape[-2:])
        frame = HeadFrame.of(landmarks)
        shape = 5 * frame.to_head(landmarks).flatten(1)  # about unit deviation
        numbers = torch.cat([shape, 4 * (frame.origin - 0.5), 4 * frame.direction, description], 1)
        self._now = (
            self.onto_first(self.picture(torch.cat([degraded, hidden.to(degraded), maps], 1))),
            self.onto_time(self.geometry(numbers)),
        )
        try:
            yield
        finally:
            self._now = None
