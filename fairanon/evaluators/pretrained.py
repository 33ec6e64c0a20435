"""Loads judges of transformers."""

from __future__ import annotations

from typing import Any

from fairanon.offline import without_retries


def from_hub(key: str, model: str, *kinds: Any) -> list[Any]:
    """Load parts of a model, each by its class's ``from_pretrained``.

    Args:
        key: What the error message calls the setting.
        model: A hub id or a local folder.
        kinds: Classes of transformers.

    Returns:
        One object for each class.

    Raises:
        FileNotFoundError: It is neither here nor to be reached.
    """
    try:
        with without_retries():
            return [kind.from_pretrained(model) for kind in kinds]
    except OSError:
        raise FileNotFoundError(
            f"{key}: {model} is neither in the cache nor to be reached; download it with `hf download {model}` "
            "or give a local folder."
        ) from None
