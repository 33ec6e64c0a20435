"""A section for a model card, as diffusers' and the hub's cards take it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import yaml


def as_card(result: Mapping[str, Any], sentences: Sequence[str]) -> str:
    """Markdown with a ``model-index`` above it.

    Args:
        result: What audit.json says.
        sentences: What it comes to.
    """
    metrics = [
        {
            "type": "fairness-discrepancy", "name": f"distance from {'even shares' if findings['even'] else 'the target'}, {name}",
            "value": round(findings["numbers"]["distance"]["value"], 4),
            "args": {"prompts": result["prompts"], "images": result["images"], "judge": result["judge"], "interval": [
                None if findings["numbers"]["distance"][end] is None else round(findings["numbers"]["distance"][end], 4) for end in ("low", "high")
            ]},
        }
        for name, findings in result["attributes"].items()
        if findings["numbers"]["distance"] is not None
    ]  # fmt: skip
    dataset = {"name": f"{result['prompts']} prompts that name no group", "type": "prompts"}
    entry = {"task": {"type": "text-to-image"}, "dataset": dataset, "metrics": metrics}
    head = yaml.safe_dump({"model-index": [{"name": result["model"], "results": [entry]}]}, sort_keys=False)
    lines = "\n".join(f"- {sentence}" for sentence in sentences)
    return f"""---
{head}---

## How people are portrayed
{result["images"]} images, appearance as judged by {result["judge"]}; 95 % intervals. Made by `fairanon audit` ({result["fairanon"]}).

{lines}

A judge sees appearance, not who somebody is.
"""
