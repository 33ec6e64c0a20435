"""Settings that do not exist, found by reading source files: nothing is imported, so that a "no" takes no time.

What cannot be told this way is left to the parser.
"""

from __future__ import annotations

import ast
import difflib
import functools
import importlib.util
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fairanon.config.experiments import Experiment, UserError, names, read_yaml

_TOP = (
    "extends", "prepare", "evaluate", "seed", "ckpt_path", "start_from", "checkpoint_minutes", "checkpoint_every",
    "seed_everything", "model", "data", "trainer", "config", "print_config",
)  # fmt: skip


def check_spelling(experiment: Experiment) -> None:
    """Refuse settings whose keys do not exist.

    Raises:
        UserError: Names the key, and the one that was probably meant.
    """
    merged: dict[str, Any] = {}
    for file in experiment.files:
        merged = _merged(merged, read_yaml(file))
    keys = [word.removeprefix("--").partition("=")[0] for word in experiment.settings]
    named = [_parts(key) for key in keys]
    if ["config"] in named:
        return  # another file has a say
    for key, parts in zip(keys, named, strict=True):
        if not parts:
            raise UserError(f"--{key}: a setting has a name, for example --model.beta.")
        other = any(
            parts[: len(prefix)] == prefix and len(prefix) < len(parts) for prefix in named
        )  # perhaps another class there
        if other or {"help", "class_path", "dict_kwargs"} & set(key.split(".")):
            continue
        wrong = _unknown(parts, merged)
        if wrong is not None:
            owner, name, known = wrong
            alike = difflib.get_close_matches(name, known, 1)
            hint = f" (did you mean {alike[0]}?)" if alike else ""
            of = (
                f"`fairanon config {experiment.name}` prints"
                if experiment.name in names()
                else "`fairanon fit -c FILE --print_config` prints"
            )
            raise UserError(f"--{key}: {owner} has no setting {name!r}{hint}; {of} all of them.")


def _parts(key: str) -> list[str]:
    """A key's names; ``class_path`` names what stands before it."""
    return [part for part in key.removesuffix("+").split(".") if part not in ("init_args", "class_path")]


def _unknown(parts: list[str], merged: Mapping[str, Any]) -> tuple[str, str, list[str]] | None:
    """Whose setting does not exist, what it is called, and what there is; None if it exists, or nobody can tell."""
    first, *rest = parts
    if first not in _TOP:
        return "an experiment", first, list(_TOP)
    node: Any = merged.get(first)
    owner: str | None = "lightning.pytorch.Trainer" if first == "trainer" else None
    for name in rest:
        if isinstance(node, list):
            node = node[-1] if node else None
        if isinstance(node, Mapping) and set(node) - {"class_path", "init_args"} and "class_path" in node:
            return None  # the short form, beside the long one perhaps
        if isinstance(node, str) and "." in node:
            owner, node = node, None
        if isinstance(node, Mapping) and "class_path" in node:
            owner, node = str(node["class_path"]), node.get("init_args")
        if owner is None:
            return None
        known = parameters(owner)
        if known is None:
            return None
        if name not in known:
            return owner.rpartition(".")[2], name, sorted(known)
        owner, node = None, node.get(name) if isinstance(node, Mapping) else None
    return None


def _merged(old: Any, new: Any) -> Any:
    """A later file's keys over an earlier one's; another class begins anew."""
    if not (isinstance(old, dict) and isinstance(new, dict)):
        return new
    if "class_path" in new and new["class_path"] != old.get("class_path"):
        return new
    return {
        key: _merged(old[key], new[key]) if key in old and key in new else new.get(key, old.get(key))
        for key in {**old, **new}
    }


@functools.cache
def parameters(class_path: str) -> frozenset[str] | None:
    """What a class takes, with what it forwards to the classes that it extends; None where the source does not tell."""
    definition = _definition(class_path)
    if definition is None:
        return None
    file, node = definition
    for line in node.body:
        if isinstance(line, ast.FunctionDef) and line.name == "__init__":
            arguments = line.args
            names = frozenset(
                child.arg for child in (*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs)
            ) - {"self"}
            return names if arguments.kwarg is None else _of_bases(file, node, names)
    decorated = any("dataclass" in ast.unparse(child) for child in node.decorator_list)
    return None if decorated else _of_bases(file, node, frozenset())


def _of_bases(file: Path, node: ast.ClassDef, names: frozenset[str]) -> frozenset[str] | None:
    """With what the classes take that this one extends; None where one of them cannot be read."""
    for base in node.bases:
        name = base.value if isinstance(base, ast.Subscript) else base
        if ast.unparse(name) in ("ABC", "Generic", "Protocol", "nn.Module", "torch.nn.Module"):
            continue  # they take nothing
        path = _imported(file, name.id) if isinstance(name, ast.Name) else None
        more = None if path is None else parameters(path)
        if more is None:
            return None
        names |= more
    return names


def _imported(file: Path, name: str) -> str | None:
    """The full name of what a file calls ``name``; what it defines itself is found in it."""
    for line in ast.walk(_tree(file)):
        if isinstance(line, ast.ImportFrom) and line.module and not line.level:
            for alias in line.names:
                if (alias.asname or alias.name) == name:
                    return f"{line.module}.{alias.name}"
        if isinstance(line, ast.ClassDef) and line.name == name:
            return f"{file}:{name}"
    return None


@functools.cache
def _tree(file: Path) -> ast.Module:
    try:
        return ast.parse(file.read_text(encoding="utf-8"))
    except (SyntaxError, OSError, UnicodeDecodeError):
        return ast.Module([], [])  # the parser will say what is wrong with it


def _definition(class_path: str) -> tuple[Path, ast.ClassDef] | None:
    """Where a class is defined, through the packages that pass it on."""
    if ":" in class_path:
        path, _, name = class_path.rpartition(":")
        file: Path | None = Path(path)
    else:
        module, _, name = class_path.rpartition(".")
        file = _file_of(module)
    if file is None:
        return None
    for line in _tree(file).body:
        if isinstance(line, ast.ClassDef) and line.name == name:
            return file, line
    onward = _imported(file, name)
    return None if onward in (None, class_path) else _definition(str(onward))


def _file_of(module: str) -> Path | None:
    """A module's source file; none of it is imported."""
    first, *rest = module.split(".")
    try:
        spec = importlib.util.find_spec(first)
    except (ImportError, ValueError):
        return None
    if spec is None or not spec.submodule_search_locations:
        return None
    place = Path(next(iter(spec.submodule_search_locations)), *rest)
    return next(
        (candidate for candidate in (place / "__init__.py", place.with_suffix(".py")) if candidate.is_file()), None
    )
