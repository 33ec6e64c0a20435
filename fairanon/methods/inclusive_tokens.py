"""ITI-GEN: a few learned tokens for each class, put behind a prompt (Zhang et al. 2023); a rival of PopAlign."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from fairanon.backbones import Sampling, StableDiffusion
from fairanon.backbones.base import cut_off
from fairanon.batches import PreferenceBatch, PromptRow
from fairanon.files import atomic_write, write_text
from fairanon.methods.base import DiffusionMethod
from fairanon.pipelines.steering import PromptInjection
from fairanon.seeding import Key

_WORD = r"\w+(?:-\w+)*"
_CARD = """# {name}
Tokens of {base} for the classes {classes}. Use: `pipeline.load_textual_inversion("FOLDER/tokens/CLASS.safetensors", token="<CLASS>")`
for each, and a prompt such as `a photo of a doctor {example}`.
"""


class _Vocabulary(nn.Module):
    """An embedding of tokens that stays, and one of new tokens that trains."""

    def __init__(self, known: nn.Embedding, count: int) -> None:
        super().__init__()
        self.known = known
        self.new = nn.Parameter(torch.zeros(count, known.embedding_dim))

    def forward(self, ids: Tensor) -> Tensor:
        """Embeddings (..., D) of token ids (...); the first new id is the one behind the known ones."""
        first = self.known.num_embeddings
        old = self.known(ids.clamp(max=first - 1))
        new = self.new[(ids - first).clamp(min=0)].to(old.dtype)
        return torch.where((ids < first)[..., None], old, new)


class InclusiveTokens(DiffusionMethod):
    """Learns tokens for each class from images of it, and draws every image of a prompt with the tokens of the class it is dealt.

    An image of a winning set is drawn from its neutral prompt and the tokens of the classes that its own prompt names; the loss
    is the denoising loss, and the tokens are all that trains (textual inversion, Gal et al. 2022). The official method aligns
    directions in CLIP's joint space of texts and images, which the embedded world does not have. Tokens of several attributes
    stand one behind the other (official: they are added up).

    Args:
        backbone: A text-to-image model with ``train_text_encoder: true``, through which the gradient goes; its own weights stay.
        attributes: For each attribute its classes, and the word by which an image's prompt names each.
        subjects: Words that name a person in a prompt; tokens stand behind the first one.
        images: Images of a prompt among which classes are dealt, see `PromptInjection`.
        named: For each attribute further words that name one of its classes: such a prompt gets no tokens of it.
        tokens: For each class.
        shared: See `DiffusionMethod`.
    """

    def __init__(
        self,
        backbone: StableDiffusion,
        attributes: dict[str, dict[str, str]],
        subjects: list[str],
        images: int,
        named: dict[str, list[str]] | None = None,
        tokens: int = 3,
        **shared: Any,
    ) -> None:
        super().__init__(backbone, **shared)
        if not backbone.trains_text_encoder or backbone.trains_adapters or backbone.inpaints:
            raise ValueError(
                "model.backbone: tokens are learned through the text encoder of a text-to-image model; set train_text_encoder to "
                "true, and lora to null."
            )
        for name, classes in attributes.items():
            for label, word in classes.items():
                if not re.fullmatch(_WORD, word):
                    raise ValueError(f"model.attributes: {name}: {label} must be named by one word, got {word!r}.")
        if tokens < 1:
            raise ValueError(f"model.tokens must be at least 1, got {tokens}.")
        backbone.requires_grad_(False)
        self.attributes = {name: dict(classes) for name, classes in attributes.items()}
        self.words = {
            (name, label): [f"<{label}>" + f"_{k}" * (k > 0) for k in range(tokens)]
            for name, classes in attributes.items()
            for label in classes
        }
        every = [word for words in self.words.values() for word in words]
        known_words: Any = backbone.tokenizer
        encoder: Any = backbone.text_encoder
        if known_words.add_tokens(every) != len(every):
            raise ValueError("model.attributes: two classes have one name, or one that is a token already.")
        encoder.set_input_embeddings(_Vocabulary(encoder.get_input_embeddings(), len(every)))
        phrases = {
            name: {label: " ".join(["...", *self.words[name, label]]) for label in classes}
            for name, classes in attributes.items()
        }
        known = {name: [*classes.values(), *(named or {}).get(name, [])] for name, classes in attributes.items()}
        self.deal = PromptInjection(phrases, subjects, images, known)

    @property
    def vocabulary(self) -> _Vocabulary:
        """The text encoder's embedding, with the new tokens."""
        encoder: Any = self.backbone.text_encoder
        vocabulary: _Vocabulary = encoder.get_input_embeddings()
        return vocabulary

    def loss(self, batch: PreferenceBatch) -> tuple[Tensor, dict[str, Tensor]]:
        """The denoising loss of the winners; see `DiffusionMethod.loss`."""
        if batch.winner_prompts is None:
            raise ValueError(
                "data.folder: it does not say of which prompts the winners are; make it with `fairanon prepare`."
            )
        captions = [
            self.deal.with_classes(caption, self._shown(prompt))
            for caption, prompt in zip(batch.captions, batch.winner_prompts, strict=True)
        ]
        tokenizer: Any = self.backbone.tokenizer
        for caption, lost in zip(captions, cut_off(tokenizer, captions), strict=True):
            if lost:
                raise ValueError(
                    f"model.tokens: {caption!r} is too long for the text encoder; take fewer tokens or shorter prompts."
                )
        x = self.noised(self.latents(batch.winners, batch.keys), batch.keys, captions)
        errors = (self.backbone.predict(x.noisy, x.timesteps, x.condition) - x.target).square()
        return errors.mean(), {}

    def _shown(self, prompt: str) -> dict[str, str]:
        """The class of each attribute that a prompt names by its word; none where it names several."""
        words = {word.lower() for word in re.findall(_WORD, prompt)}
        named = {
            name: [label for label, word in classes.items() if word.lower() in words]
            for name, classes in self.attributes.items()
        }
        return {name: labels[0] for name, labels in named.items() if len(labels) == 1}

    def images(self, rows: Sequence[PromptRow], keys: Sequence[Sequence[Key]], sampling: Sampling) -> Tensor:
        """Every image with the tokens of the classes that it is dealt; the reference without."""
        if not sampling.reference:
            prompts = self.deal.prompts([row.prompt for row in rows], keys)
            rows = [replace(row, prompt=prompt) for row, prompt in zip(rows, prompts, strict=True)]
        return super().images(rows, keys, sampling)

    def settings_of_use(self) -> tuple[Any, ...]:
        """How classes are dealt."""
        return (self.deal.origin(),)

    def export_weights(self, folder: Path, name: str) -> Path:
        """A file for each class, for diffusers' ``load_textual_inversion``."""
        rows = self.vocabulary.new.detach().cpu().float().split(len(next(iter(self.words.values()))))
        for (_, label), row in zip(self.words, rows, strict=True):
            with atomic_write(folder / "tokens" / f"{label}.safetensors") as partial:
                save_file({f"<{label}>": row.contiguous()}, partial)
        classes = [label for _, label in self.words]
        example = " ".join(f"<{next(iter(labels))}>" for labels in self.attributes.values())
        base = self.backbone.fingerprint().split()[0]
        write_text(
            folder / "README.md", _CARD.format(name=name, base=base, classes=", ".join(classes), example=example)
        )
        return folder / "tokens"

    def export_pipeline(self, folder: str | Path, name: str, lora_weight: float = 1.0) -> Path:
        """A pipeline whose tokenizer and text encoder know the tokens."""
        encoder: Any = self.backbone.text_encoder
        vocabulary, size = self.vocabulary, encoder.config.vocab_size
        whole = torch.cat([vocabulary.known.weight.detach(), vocabulary.new.detach().to(vocabulary.known.weight)])
        encoder.set_input_embeddings(nn.Embedding.from_pretrained(whole))
        encoder.config.vocab_size = len(whole)
        try:
            return super().export_pipeline(folder, name, lora_weight)
        finally:
            encoder.set_input_embeddings(vocabulary)
            encoder.config.vocab_size = size
