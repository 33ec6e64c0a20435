"""Images that a model draws of a class, before it is trained: prior and difference sets."""

from __future__ import annotations

import json
from collections.abc import Sequence

import torch

from fairanon.backbones import Backbone, Sampling
from fairanon.files import content_key, write_text
from fairanon.imaging import to_pixels, write_image
from fairanon.pipelines import inpaint
from fairanon.prepare.base import Preparation
from fairanon.progress import progress_bar
from fairanon.seeding import Key, keyed_randn


class ClassImages(Preparation):
    """Samples prompts in turn; an inpainting model draws the whole image, as in the official code.

    Args:
        folder: Result: ``images/`` and ``metadata.jsonl`` (image, text_english).
        backbone: The starting model.
        prompts: The class's prompts.
        count: Number of images; the paper's difference set has 300.
        sampling_steps: DPM-Solver++ steps.
        guidance_scale: 1 is no guidance.
        batch_size: Images sampled at once.
        seed: Of the images.
    """

    result = "metadata.jsonl"

    def __init__(
        self,
        folder: str,
        backbone: Backbone,
        prompts: Sequence[str],
        count: int = 300,
        sampling_steps: int = 25,
        guidance_scale: float = 7.5,
        batch_size: int = 32,
        seed: int = 0,
    ) -> None:
        super().__init__(folder)
        if not prompts or count < 1 or batch_size < 1:
            raise ValueError(
                f"prepare: give prompts, and count and batch_size of at least 1, got {count} and {batch_size}."
            )
        self.backbone, self.prompts, self.count = backbone, list(prompts), count
        self.sampling_steps, self.guidance_scale = sampling_steps, guidance_scale
        self.batch_size, self.seed = batch_size, seed

    def shorten(self) -> None:
        """See `Preparation.shorten`."""
        self.count, self.sampling_steps = min(self.count, self.batch_size), 2

    def drawn(self) -> int:
        """See `Preparation.images`."""
        return self.count

    def make(self) -> None:
        """Sample what is missing, then write the list of images."""
        self.make_pieces()
        rows = [{"image": f"images/{name}", "text_english": self._prompt(n)} for n, name in self._names().items()]
        write_text(self.folder / "metadata.jsonl", "".join(json.dumps(row) + "\n" for row in rows))

    def _names(self) -> dict[int, str]:
        recipe = [self.backbone.origin(), self.sampling_steps, self.guidance_scale, self.seed]
        return {n: f"{content_key(*recipe, self._prompt(n), n)}.png" for n in range(self.count)}

    def make_pieces(self, share: int = 0, of: int = 1) -> None:
        """See `Preparation.make_pieces`."""
        images, names = self.folder / "images", self._names()
        images.mkdir(parents=True, exist_ok=True)
        missing = [n for n in range(share, self.count, of) if not (images / names[n]).exists()]
        parts = [missing[k : k + self.batch_size] for k in range(0, len(missing), self.batch_size)]
        for part in progress_bar(parts, desc=f"sampling {self.folder.name}", unit="batch", disable=not parts):
            for n, image in zip(part, self._sample(part), strict=True):
                write_image(image, images / names[n])

    def _prompt(self, n: int) -> str:
        return self.prompts[n % len(self.prompts)]

    def _sample(self, numbers: list[int]) -> torch.Tensor:
        prompts = [self._prompt(n) for n in numbers]
        keys: list[tuple[Key, ...]] = [(self.seed, "class", n) for n in numbers]
        sampling = Sampling(self.sampling_steps, self.guidance_scale)
        if self.backbone.inpaints:  # random colours under a mask of everything
            side = int(self.backbone.unet.config.sample_size) * self.backbone.scale_factor
            images = to_pixels(keyed_randn([(*key, "picture") for key in keys], (3, side, side)) / 2)
            masks = torch.ones(len(numbers), 1, side, side, dtype=torch.bool)
            return inpaint(self.backbone, prompts, keys, images, masks, sampling)
        return self.backbone.sample(prompts, keys, sampling)
