"""What a model makes of prompts, or of images that come with them."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from fairanon.backbones import Backbone, Sampling
from fairanon.batches import PromptRow, stacked
from fairanon.pipelines.inpaint import inpaint
from fairanon.seeding import Key


def sample_rows(
    backbone: Backbone,
    rows: Sequence[PromptRow],
    keys: Sequence[Sequence[Key]],
    sampling: Sampling,
) -> Tensor:
    """Sample images of prompts, or inpaint those that come with them.

    Args:
        backbone: The model.
        rows: B prompts; each has an image and a mask, or none has.
        keys: B keys of the starting noise.
        sampling: How.

    Returns:
        uint8 (B, 3, H, W) on the CPU.
    """
    rows = [row.loaded() for row in rows]
    prompts = [row.prompt for row in rows]
    images, masks = stacked(row.image for row in rows), stacked(row.mask for row in rows)
    if images is None or masks is None:
        return backbone.sample(prompts, keys, sampling, controls=stacked(row.control for row in rows))
    return inpaint(backbone, prompts, keys, images, masks, sampling)
