"""UCE: cross-attention is edited in closed form until a judge sees the wanted shares (Gandikota et al. 2024); a rival of PopAlign."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fairanon.backbones import Backbone, Sampling
from fairanon.backbones.base import refuse_cut_off, tokenize
from fairanon.batches import PromptBatch
from fairanon.evaluators.judge import Judge
from fairanon.losses.concept_edit import concept_edit
from fairanon.methods.base import DiffusionMethod
from fairanon.prompts import said_of_classes, wanted_shares, with_words
from fairanon.protocols import AttributeClassifier

_READERS = ("attn2.to_k", "attn2.to_v")
"""Layers of the U-Net that read the prompt."""
_MOVES = 0.1
"""By how much of its length a token moves where a class's number is 1: as much for every attribute, however little its words do."""


class ConceptEditing(DiffusionMethod):
    """Reads some prompts otherwise: the keys and values of their last words move towards classes that are drawn too seldom.

    What trains is a number for each prompt and class. A step draws images of some prompts, a judge says who is seen, and each
    class's number grows by its wanted share less its share (an optimizer without momentum, decay and schedule does so, with a
    learning rate of 1 for one prompt a step).
    Then every key and value projection of cross-attention is the one that `concept_edit` gives for these numbers, from
    the weights of before: unlike in the official script, no edit adds up with the one before it.

    A class's direction is how the prompt's embedding differs where the prompt names the class, on average over the other
    attributes' classes, from the last token of the last word to the end. Prompts that name classes are to be read as before.

    Args:
        backbone: A text-to-image model without lora or control; only its cross-attention is edited.
        judge: Whom the images show; another judge has to measure the result.
        prompts: CSV of the prompts that are edited, column ``prompt``, and ``specific``: the prompt with a placeholder for each
            attribute. Each ends in the word that is edited, "a photo of a doctor": what stands before it stays.
        attributes: For each attribute what each class is called in ``specific``.
        shares: Wanted shares of an attribute's classes other than even ones.
        specific: The prompt with placeholders where the CSV has no such column; ``{prompt}`` is the prompt.
        tolerance: A share that is so near is near enough.
        preserve: How much everything else is to be read as before.
        keep_weight: How much the prompts that name classes count, and those of ``keep``.
        keep: CSV of further prompts that are to be read as before, column ``prompt``.
        sampling_steps: Of an image in training.
        guidance_scale: How strongly a prompt acts there.
        shared: See `DiffusionMethod`.
    """

    def __init__(
        self,
        backbone: Backbone,
        judge: AttributeClassifier,
        prompts: str,
        attributes: dict[str, dict[str, str]],
        shares: dict[str, dict[str, float]] | None = None,
        specific: str | None = None,
        tolerance: float = 0.05,
        preserve: float = 0.5,
        keep_weight: float = 1.0,
        keep: str | None = None,
        sampling_steps: int = 15,
        guidance_scale: float = 7.5,
        **shared: Any,
    ) -> None:
        super().__init__(backbone, **shared)
        trains = backbone.trains_adapters or backbone.trains_text_encoder
        if backbone.inpaints or trains or backbone.control is not None:
            raise ValueError(
                "model.backbone: UCE changes the weights of a text-to-image model; set lora and control to null, and train_text_encoder to false."
            )
        if preserve <= 0 or keep_weight < 0 or not 0 <= tolerance < 1:
            raise ValueError("model: preserve must be above 0, keep_weight at least 0, tolerance in [0, 1).")
        self.judge, self.attributes = judge, {name: dict(classes) for name, classes in attributes.items()}
        self.tolerance, self.preserve, self.keep_weight = tolerance, preserve, keep_weight
        self.sampling = Sampling(sampling_steps, guidance_scale)
        for name, classes in attributes.items():
            if list(judge.classes.get(name, ())) != list(classes):
                known = ", ".join(judge.classes.get(name, ())) or "nothing of it"
                raise ValueError(f"model.attributes: {name} must name what {judge.name} judges, in its order: {known}.")
        self._wanted = {
            name: torch.tensor(wanted_shares(judge.classes[name], (shares or {}).get(name), f"model.shares: {name}"))
            for name in attributes
        }
        self.edited = dict(said_of_classes(Path(prompts), "model", attributes, specific))
        if not self.edited:
            raise ValueError(f"model.prompts: {prompts} has no prompt; fill the column prompt.")
        self.kept = (
            [] if keep is None else [text for text, _ in said_of_classes(Path(keep), "model.keep", (), "{prompt}")]
        )
        backbone.requires_grad_(False)
        self.strengths = nn.ParameterDict(
            {name: nn.Parameter(torch.zeros(len(self.edited), len(classes))) for name, classes in attributes.items()}
        )
        self._before: list[tuple[Any, Tensor]] = []
        self._read: tuple[Tensor, dict[str, Tensor], Tensor] | None = None

    def on_fit_start(self) -> None:
        """The judge works where the model does; prompts that cannot be edited are refused now."""
        self.edit()
        if isinstance(self.judge, Judge):
            self.judge.to(self.device)

    def load_state_dict(self, *args: Any, **kwargs: Any) -> Any:
        """The weights are those of the numbers that are loaded."""
        loaded = super().load_state_dict(*args, **kwargs)
        self.edit()
        return loaded

    def loss(self, batch: PromptBatch) -> tuple[Tensor, dict[str, Tensor]]:
        """A value whose gradient is how far the shares of a batch's prompts are from the wanted ones; see `DiffusionMethod.loss`."""
        keys = [(self.noise_seed, "train", key) for key in batch.keys]
        with torch.no_grad():
            judged = self.judge.classify(self.backbone.sample(batch.prompts, keys, self.sampling))
        places = {prompt: row for row, prompt in enumerate(self.edited)}
        drawn = list(dict.fromkeys(batch.prompts))
        if unknown := [prompt for prompt in drawn if prompt not in places]:
            raise ValueError(f"data.prompts: {unknown[0]!r} is not among model.prompts; name the same file.")
        value, logs = torch.zeros((), device=self.device), {}
        for name, strengths in self.strengths.items():
            far = torch.zeros(len(drawn), strengths.shape[1])
            for k, prompt in enumerate(drawn):
                rows = judged[name][[row for row, text in enumerate(batch.prompts) if text == prompt]]
                rows = rows[~rows.isnan().any(1)]
                shown = torch.eye(rows.shape[1])[rows.argmax(1)].mean(0) if len(rows) else torch.nan
                far[k] = self._wanted[name] - shown
            if not bool(far.isnan().all()):
                logs[f"apart/{name}"] = far.abs().amax(1).nanmean()
            far[far.isnan() | (far.abs() <= self.tolerance + 1e-6)] = 0.0  # where nobody is seen nothing is known
            places_of = torch.tensor([places[prompt] for prompt in drawn], device=self.device)
            value = value - (strengths[places_of] * far.to(self.device)).sum() / len(drawn)
        return value, logs

    def on_train_batch_end(self, *_: Any) -> None:
        """What was learned is what draws next."""
        self.edit()

    def settings_of_use(self) -> tuple[Any, ...]:
        """What the weights depend on beside the numbers."""
        return (self.attributes, self.edited, self.preserve, self.keep_weight, *self.kept)

    @torch.no_grad()
    def edit(self) -> None:
        """Set the projections to what the numbers say."""
        if self._read is None:
            self._read = self._embeddings()
            layers = [layer for name, layer in self.backbone.unet.named_modules() if name.endswith(_READERS)]
            self._before = [(layer, layer.weight.detach().clone()) for layer in layers]
        rows, directions, keep = self._read
        shifts = torch.zeros_like(rows)
        for name, strengths in self.strengths.items():
            shifts += torch.einsum("pk,kpld->pld", strengths.to(rows), directions[name])
        matrix = concept_edit(rows.flatten(0, 1), shifts.flatten(0, 1), keep, self.preserve, self.keep_weight)
        for layer, before in self._before:
            layer.weight.copy_((before.double() @ matrix.to(before.device)).to(before.dtype))

    def _embeddings(self) -> tuple[Tensor, dict[str, Tensor], Tensor]:
        """From the last token of a prompt's last word on (P, L, D), each class's directions (K, P, L, D), and tokens to keep (N, D), float64, CPU."""
        groups = list(itertools.product(*(classes.values() for classes in self.attributes.values())))
        words = [dict(zip(self.attributes, group, strict=True)) for group in groups]
        named = [[with_words(specific, word) for word in words] for specific in self.edited.values()]
        texts = [*self.edited, *(text for group in named for text in group), *self.kept]
        tokenizer: Any = self.backbone.tokenizer
        refuse_cut_off(tokenizer, texts[: len(texts) - len(self.kept)], "model.prompts", "shorten it")
        refuse_cut_off(tokenizer, self.kept, "model.keep", "shorten it")
        context = torch.cat([self.backbone.encode_prompts(texts[k : k + 32]).context for k in range(0, len(texts), 32)])
        context = context.double().cpu()
        ids = tokenize(tokenizer, texts)
        last = ids.eq(tokenizer.eos_token_id).int().argmax(1) - 1
        starts = last[: len(texts) - len(self.kept)].tolist()
        length = int(ids.shape[1] - max(starts))
        tails = torch.stack([one[start : start + length] for one, start in zip(context, starts, strict=False)])
        rows, of_named = tails[: len(self.edited)], tails[len(self.edited) :]
        of_named = of_named.view(
            len(self.edited), *(len(classes) for classes in self.attributes.values()), *tails.shape[1:]
        )
        directions, axes = {}, range(1, 1 + len(self.attributes))
        for axis, name in zip(axes, self.attributes, strict=True):
            others = [other for other in axes if other != axis]
            by_class = of_named.mean(others) if others else of_named
            direction = (by_class - by_class.mean(1, keepdim=True)).transpose(0, 1)
            apart = torch.cdist(direction.flatten(1), direction.flatten(1)) + torch.eye(len(direction)).to(direction)
            if bool((apart < 1e-6).any()):
                raise ValueError(
                    f"model.attributes: the text encoder reads the classes of {name} alike; give each a word that it knows."
                )
            directions[name] = direction * (_MOVES * rows.norm(dim=-1).mean() / direction.norm(dim=-1).mean())
        keep = [one[1 : int(end) + 2] for one, end in zip(context[len(rows) :], last[len(rows) :], strict=True)]
        return rows, directions, torch.cat(keep)
