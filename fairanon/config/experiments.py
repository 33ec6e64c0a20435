"""Names to configuration files: experiments, what they extend, overlays, the runs they build on. Imports nothing heavy."""

from __future__ import annotations

import difflib
import hashlib
import json
import math
import re
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from fairanon.files import TextError, read_text


class UserError(Exception):
    """A mistake that the user can mend; the message is one sentence that says how."""


class Stopped(KeyboardInterrupt):
    """Somebody or something asked the program to stop; the message says how far it came."""


def experiments_folder() -> Path:
    """Where experiments lie: the folder of the checkout that one is in, or the one that was installed with fairanon."""
    here, name = Path.cwd(), "experiments"
    for root in (here, *here.parents):
        if (root / name / "_base.yaml").is_file():
            return Path(name) if root == here else root / name
    return Path(__file__).parent.parent.parent / name


def locate(path: str | Path) -> Path:
    """A file that settings name; one below ``experiments/`` that is not here is the one in `experiments_folder`."""
    path = Path(path)
    if not path.exists() and path.parts[:1] == ("experiments",):
        return experiments_folder().joinpath(*path.parts[1:])
    return path


@dataclass(frozen=True)
class Experiment:
    """What an experiment is made of.

    Attributes:
        name: What its runs are called.
        files: Configuration files, the later ones win; the first is what every experiment shares.
        overlays: Names of those of them that are overlays.
        settings: Further settings, ``--KEY=VALUE`` each.
    """

    name: str
    files: tuple[Path, ...]
    overlays: tuple[str, ...] = ()
    settings: tuple[str, ...] = ()

    def words(self) -> list[str]:
        """Files and settings as LightningCLI's command line."""
        return [*(word for file in self.files for word in ("--config", str(file))), *self.settings]

    def with_settings(self, *settings: str) -> Experiment:
        """The same with further settings, ``--KEY=VALUE`` each."""
        return replace(self, settings=(*self.settings, *settings))

    @property
    def first_line(self) -> str:
        """What the first comment line of its own file says, not of an overlay's."""
        return first_line([file for file in self.files if file.parent.name != "overlays"][-1])

    def stages(self) -> list[str]:
        """Names of the experiments whose runs it builds on, as ``${run:NAME}`` in its files."""
        return self._named("run")

    def _named(self, kind: str) -> list[str]:
        """What ``${KIND:NAME}`` and ``${KINDs:NAME,NAME}`` in its files name."""
        texts = [read_text(file, "-c") for file in self.files]
        mentions = [
            name
            for text in texts
            for names in re.findall(rf"\$\{{{kind}s?:([\w,]+)\}}", text)
            for name in names.split(",")
        ]
        return list(dict.fromkeys(mentions))

    def stage(self, name: str) -> Experiment:
        """One of these experiments, as this one wants it.

        Overlays and the seed go to all of them, every other setting to those of the same family (an ancestor in common).
        """
        own = resolve(name, self.overlays)
        family = own.files[1] in self.files
        inherited = self.settings if family else [word for word in self.settings if word.startswith("--seed=")]
        settings = tuple(word for word in inherited if not word.startswith("--ckpt_path="))
        return Experiment(name, own.files, own.overlays, settings)

    def recipe(self) -> str:
        """Names what a training does wherever it runs: what its files, judges and stages say, and its settings."""
        judges = [experiments_folder() / "judges" / f"{name}.yaml" for name in self._named("judge")]
        contents = [read_yaml(file) for file in (*self.files, *judges)]
        hasher = hashlib.sha256(json.dumps([contents, self.settings]).encode())
        for name in self.stages():
            hasher.update(resolve(name).recipe().encode())
        return hasher.hexdigest()[:16]


def resolve(
    name: str, overlays: Sequence[str] = (), files: Sequence[str] = (), settings: Sequence[str] = ()
) -> Experiment:
    """An experiment of ours.

    Args:
        name: Its name.
        overlays: Names of overlays.
        files: Further configuration files.
        settings: Further settings, ``--KEY=VALUE`` each.

    Raises:
        UserError: One of them does not exist or cannot be read.
    """
    folder = experiments_folder()
    path = folder / f"{name}.yaml"
    if name.startswith("_") or "/" in name or not path.exists():
        raise UserError(no_experiment(name))
    return _experiment(name, [path, *map(Path, files)], overlays, settings)


def own(files: Sequence[str], overlays: Sequence[str] = (), settings: Sequence[str] = ()) -> Experiment:
    """An experiment of one's own configuration files, named after the last; arguments and errors as `resolve`."""
    named = [Path(file).stem for file in files if Path(file).parent.name != "overlays"]
    return _experiment(named[-1] if named else "run", [Path(file) for file in files], overlays, settings)


def _experiment(name: str, paths: Sequence[Path], overlays: Sequence[str], settings: Sequence[str]) -> Experiment:
    folder = experiments_folder()
    files = [folder / "_base.yaml", *(file for path in paths for file in lineage(path))]
    as_files = [file.stem for file in files if file.resolve().parent == (folder / "overlays").resolve()]
    for overlay in overlays:
        path = folder / "overlays" / f"{overlay}.yaml"
        if not path.exists():
            known = ", ".join(sorted(file.stem for file in path.parent.glob("*.yaml")))
            raise UserError(f"--overlay: there is no overlay {overlay!r}; choose one of {known}.")
        files.append(path)
    return Experiment(name, tuple(dict.fromkeys(files)), (*as_files, *overlays), tuple(settings))


def lineage(path: Path) -> list[Path]:
    """A configuration file after those that it extends (its key ``extends``), the oldest first.

    Raises:
        UserError: One of them cannot be read, extends an experiment that does not exist, or itself.
    """
    files = [path]
    while (name := read_yaml(files[0]).get("extends")) is not None:
        parent = experiments_folder() / f"{name}.yaml"
        if parent in files:
            raise UserError(f"{files[0]}: extends names {name!r}, which it is made of itself.")
        if not parent.exists():
            raise UserError(
                f"{files[0]}: extends names {name!r}; there is no such experiment (`fairanon experiments` lists all)."
            )
        files.insert(0, parent)
    return files


def read_yaml(path: Path) -> dict[str, Any]:
    """The keys of a configuration file.

    Raises:
        UserError: It is missing, no text, no YAML or no mapping.
    """
    import yaml

    try:
        content = yaml.safe_load(read_text(path, "-c"))
    except (FileNotFoundError, TextError) as error:
        raise UserError(str(error)) from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f"{path}, line {mark.line + 1}" if mark is not None else str(path)
        raise UserError(f"{where} is no YAML ({getattr(error, 'problem', None) or 'unreadable'}).") from None
    if not isinstance(content, dict) or not content:
        raise UserError(f"{path} is no configuration: it holds no keys; begin with `extends: NAME`.")
    return content


def no_experiment(name: str) -> str:
    """What is said of a name that is no experiment's."""
    path = Path(name)
    if path.suffix == ".yaml" and path.stem in names() and path.resolve().parent == experiments_folder().resolve():
        return f"{name} is one of ours: give its name, {path.stem}."
    if path.is_file():
        return f"{name} is a file of your own, not the name of an experiment; `fairanon fit -c {name}` trains it."
    alike = " or ".join(difflib.get_close_matches(name, names(), 2))
    return f"there is no experiment {name!r}{f' (did you mean {alike}?)' if alike else ''}; `fairanon experiments` lists them."


def names(kind: str = "") -> list[str]:
    """Names of all experiments, or of what a folder beside them has: "judges", "overlays", "prepare"."""
    return sorted(path.stem for path in (experiments_folder() / kind).glob("[!_]*.yaml"))


def described() -> str:
    """Every experiment by method: where it runs, how long it took, and the first comment line of its file."""
    methods: dict[str, list[str]] = {}
    for name in names():
        path = experiments_folder() / f"{name}.yaml"
        chosen = [read_yaml(file).get("model") for file in lineage(path)]
        method = next(
            str(model["class_path"]).rpartition(".")[2] for model in reversed(chosen) if model and "class_path" in model
        )
        place = "here" if runs_here(name) else "GPU "
        took = minutes(name)
        length = "" if took is None else f"{took} min"
        methods.setdefault(method, []).append(f"  {name:<36} {place} {length:>7}  {first_line(path)}")
    lines = [
        "here: on the embedded world, with two processor cores; GPU: real models and data, `fairanon rehearse NAME` says which",
        "min: minutes of your newest run here, otherwise the median of the kept results (two cores); what was made before is not counted again",
    ]
    for method, rows in methods.items():
        lines += ["", method, *rows]
    return "\n".join([*lines, "", "train one: fairanon train NAME (in a checkout: make train EXP=NAME)"])


def minutes(name: str) -> int | None:
    """How long an experiment took, measuring included: the newest run here, or the median of those that are kept; None if nobody knows."""
    here = sorted(file for file in (Path("runs") / name).glob("*/metrics.json") if not file.parent.is_symlink())
    files = here[-1:] or sorted((experiments_folder() / "results").glob(f"*/{name}-*.json"))
    durations = []
    for file in files:
        with suppress(OSError, ValueError, TypeError, AttributeError):
            content = json.loads(file.read_text(encoding="utf-8"))
            seconds = content.get("metrics", content).get("seconds") or {}
            took = sum(map(float, seconds.values()))
            trained = seconds.get("train", 0) > 1  # one that only measured what was trained before says nothing
            durations += [took] if trained and math.isfinite(took) else []
    return max(1, round(sorted(durations)[len(durations) // 2] / 60)) if durations else None


def first_line(file: Path) -> str:
    """What the first line of a configuration file says, if it is a comment."""
    first = file.read_text(encoding="utf-8").partition("\n")[0]
    return first.lstrip("# ") if first.startswith("#") else ""


def runs_here(name: str) -> bool:
    """Whether an experiment needs neither a GPU nor anything that does not come with fairanon."""
    return name in names() and ("_tiny" in name or name == "popalign_gaussian")


def preparation_file(name_or_path: str) -> Path:
    """The file of a preparation, by its name, or a file of one's own.

    Raises:
        UserError: There is neither.
    """
    folder = experiments_folder() / "prepare"
    for path in (folder / f"{name_or_path}.yaml", Path(name_or_path)):
        if name_or_path and path.is_file():
            return path
    known = sorted(file.stem for file in folder.glob("*.yaml"))
    near = difflib.get_close_matches(name_or_path, known, 3, cutoff=0.75)
    if near:
        raise UserError(f"there is no preparation {name_or_path!r}; did you mean {' or '.join(near)}?")
    raise UserError(
        f"`fairanon prepare` needs a preparation ({', '.join(known)}) or a file, got {name_or_path or 'nothing'}."
    )
