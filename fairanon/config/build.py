"""How one node of a configuration becomes an object."""

from __future__ import annotations

from typing import Any

import jsonargparse


def build(node: Any, base: type) -> Any:
    """Instantiate one node (``class_path``, ``init_args``) of a configuration.

    Args:
        node: A mapping as YAML has it, or what was parsed before.
        base: Of which it must be.
    """
    parser = jsonargparse.ArgumentParser(exit_on_error=False)
    parser.add_subclass_arguments(base, "it", required=True)
    if isinstance(node, jsonargparse.Namespace):
        whole = jsonargparse.Namespace()  # type: ignore[no-untyped-call]  # jsonargparse gives no types here
        whole["it"] = node
    else:
        whole = parser.parse_object({"it": node})
    return parser.instantiate_classes(whole).it
