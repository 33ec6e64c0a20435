"""ITI-GEN: a few learned tokens for each class, put behind a prompt (Zhang et al. 2023); a rival of PopAlign."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fairanon.backbones import Sampling, StableDiffusion
from fairanon.backbones.base import refuse_cut_off, tokenize
from fairanon.backbones.export import export_tokens
from fairanon.batches import PreferenceBatch, PromptRow
from fairanon.config.experiments import UserError
from fairanon.evaluators.open_clip import OpenClip
from fairanon.losses.joint_directions import consistency, joint_directions
from fairanon.methods.base import DiffusionMethod
from fairanon.networks.vocabulary import Vocabulary
from fairanon.pipelines.steering import PromptInjection
from fairanon.seeding import Key

_SAME = 0.99
"""How alike embeddings of one vocabulary are on average, in whichever precisions they were kept."""
_WORD = r"\w+(?:-\w+)*"

_OTHER_CLIP = "model.joint: its text encoder is not the backbone's; name the CLIP that the backbone was made with."


class InclusiveTokens(DiffusionMethod):
    """Learns tokens for each class from images of it, and draws every image of a prompt with the tokens of the class it is dealt.

    With ``joint``, after the official method: in a joint space of images and texts the step from one class's tokens to another's is to point
    where the step between images of the two points, and a prompt with tokens stays near the prompt alone. Without it an image of a winning set is
    drawn from its neutral prompt and the tokens of the classes that its own prompt names, by the denoising loss (textual inversion, Gal et al.
    2022): for models whose text encoder shares no space with images. Tokens of several attributes stand one behind the other (official: added up).

    Args:
        backbone: A text-to-image model with ``train_text_encoder: true``, through which the gradient goes; its own weights stay.
        attributes: For each attribute its classes, and the word by which an image's prompt names each.
        subjects: Words that name a person in a prompt; tokens stand behind the first one.
        images: Images of a prompt among which classes are dealt, see `PromptInjection`.
        named: For each attribute further words that name one of its classes: such a prompt gets no tokens of it.
        tokens: For each class.
        joint: CLIP whose text encoder is the backbone's own, ``ViT-L-14`` of ``openai`` for Stable Diffusion 1.
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
        joint: OpenClip | None = None,
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
        if joint is not None and joint.width != backbone.text_encoder.config.hidden_size:
            raise ValueError(_OTHER_CLIP)
        backbone.requires_grad_(False)
        self.joint = joint
        self.attributes = {name: dict(classes) for name, classes in attributes.items()}
        self.words = {
            (name, label): [f"<{label}>" + f"_{k}" * (k > 0) for k in range(tokens)]
            for name, classes in attributes.items()
            for label in classes
        }
        every = [word for words in self.words.values() for word in words]
        encoder: Any = backbone.text_encoder
        if backbone.tokenizer.add_tokens(every) != len(every):
            raise ValueError("model.attributes: two classes have one name, or one that is a token already.")
        encoder.set_input_embeddings(Vocabulary(encoder.get_input_embeddings(), len(every)))
        phrases = {
            name: {label: " ".join(["...", *self.words[name, label]]) for label in classes}
            for name, classes in attributes.items()
        }
        known = {
            name: list(dict.fromkeys([*classes.values(), *classes, *(named or {}).get(name, [])]))
            for name, classes in attributes.items()
        }
        self.deal = PromptInjection(phrases, subjects, images, known)

    @property
    def vocabulary(self) -> Vocabulary:
        """The text encoder's embedding, with the new tokens."""
        encoder: Any = self.backbone.text_encoder
        vocabulary: Vocabulary = encoder.get_input_embeddings()
        return vocabulary

    def on_fit_start(self) -> None:
        """The joint space is where the model is.

        Raises:
            UserError: Its CLIP was trained with another text encoder: its words have other embeddings than the backbone's.
        """
        if self.joint is not None:
            self.joint.to(self.device)
            words, own = self.joint.vocabulary.to(self.device), self.vocabulary.known.weight.float()
            if words.shape != own.shape or float(F.cosine_similarity(words, own).mean()) < _SAME:
                raise UserError(_OTHER_CLIP)

    def loss(self, batch: PreferenceBatch) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss of the winners; see `DiffusionMethod.loss`."""
        if batch.winner_prompts is None:
            raise ValueError(
                "data.folder: it does not say of which prompts the winners are; make it with `fairanon prepare`."
            )
        shown = [self._shown(prompt) for prompt in batch.winner_prompts]
        if self.joint is not None:
            return self._in_the_joint_space(self.joint, batch, shown)
        captions = list(map(self.deal.with_classes, batch.captions, shown))
        refuse_cut_off(self.backbone.tokenizer, captions, "model.tokens", "take fewer tokens or shorter prompts")
        x = self.noised(self.latents(batch.winners, batch.keys), batch.keys, captions)
        errors = (self.backbone.predict(x.noisy, x.timesteps, x.condition) - x.target).square()
        return errors.mean(), {}

    def _in_the_joint_space(
        self, joint: OpenClip, batch: PreferenceBatch, shown: Sequence[dict[str, str]]
    ) -> tuple[Tensor, dict[str, Tensor]]:
        with torch.no_grad():
            images = joint.of(batch.winners.to(self.device).float() / 255)
        bare, logs = self._embedded(joint, batch.captions), {}
        for name, classes in self.attributes.items():
            labels = torch.tensor([list(classes).index(one[name]) if name in one else -1 for one in shown])
            captions = [
                self.deal.with_classes(c, {**one, name: k})
                for c, one in zip(batch.captions, shown, strict=True)
                for k in classes
            ]
            refuse_cut_off(self.backbone.tokenizer, captions, "model.tokens", "take fewer tokens or shorter prompts")
            texts = self._embedded(joint, captions).unflatten(0, (len(shown), len(classes)))
            logs[f"directions/{name}"] = joint_directions(images, labels.to(images.device), texts)
            logs[f"consistency/{name}"] = consistency(texts, bare)
        return torch.stack(list(logs.values())).sum(), {key: value.detach() for key, value in logs.items()}

    def _embedded(self, joint: OpenClip, prompts: Sequence[str]) -> Tensor:
        """Prompts in the joint space, float32 (N, D): the backbone's own end token, projected as CLIP does."""
        tokenizer: Any = self.backbone.tokenizer
        context = self.backbone.encode_prompts(prompts).context
        ends = tokenize(tokenizer, prompts).eq(tokenizer.eos_token_id).int().argmax(1).to(context.device)
        return joint.projected(context[torch.arange(len(context)), ends])

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
        tokens = {label: row for (_, label), row in zip(self.words, rows, strict=True)}
        example = " ".join(f"<{next(iter(labels))}>" for labels in self.attributes.values())
        return export_tokens(self.backbone, folder, name, tokens, example)

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
