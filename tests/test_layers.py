"""Which room may import which: docs/architecture.md in one table, checked on the source."""

import ast
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

import fairanon

ROOT = Path(__file__).parent.parent
LEVELS = {  # a room may import rooms of a lower level and itself
    "fairanon": 0, "fairanon.seeding": 0, "fairanon.files": 0, "fairanon.embedded": 0, "fairanon.places": -1, "fairanon.locks": 0, "fairanon.progress": 0,
    "fairanon.quiet": 1, "fairanon.offline": 0, "fairanon.mirror": 0.5,
    "fairanon.config": 1, "fairanon.batches": 1, "fairanon.imaging": 1, "fairanon.landmarks": 1,
    "fairanon.engines": 2, "fairanon.protocols": 2, "fairanon.degradation": 2, "fairanon.redaction": 2, "fairanon.prompts": 2,
    "fairanon.losses": 2, "fairanon.solvers": 2, "fairanon.metrics.functional": 2,
    "fairanon.networks": 3, "fairanon.report": 3,
    "fairanon.backbones": 4, "fairanon.metrics": 4, "fairanon.evaluators": 4,
    "fairanon.pipelines": 5,
    "fairanon.methods": 6,
    "fairanon.evaluation": 7, "fairanon.prepare": 7,
    "fairanon.callbacks": 8, "fairanon.anonymizer": 8,
    "fairanon.assets": 9, "fairanon.auditor": 9, "fairanon.run": 9,
    "fairanon.app": 10,
    "fairanon.api": 11, "fairanon.cli": 11, "fairanon.__main__": 12,
}  # fmt: skip
SOURCES = sorted(p for package in ("fairanon", "data_modules") for p in (ROOT / package).rglob("*.py"))


def room(module: str) -> str:
    parts = module.split(".")
    while ".".join(parts) not in LEVELS:
        parts.pop()
    return ".".join(parts)


def imports(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_point_downwards(path):
    module = ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
    for name in imports(path):
        if module.startswith("data_modules"):
            allowed = (
                "fairanon.batches",
                "fairanon.files",
                "fairanon.imaging",
                "fairanon.places",
                "fairanon.progress",
                "fairanon.seeding",
                "fairanon.protocols",
            )
            assert not name.startswith("fairanon") or name.startswith(allowed), f"{module} imports {name}"
            continue
        if name.startswith("data_modules"):
            assert room(module) == "fairanon.assets", f"{module} imports {name}: only YAML files name data modules"
        if name.startswith("fairanon") and module != "fairanon":  # the door imports when it is opened
            here, there = room(module), room(name)
            assert here == there or LEVELS[there] < LEVELS[here], f"{module} imports {name}"


def test_only_backbones_know_diffusers_and_peft():
    may = ("fairanon/backbones/", "fairanon/pipelines/", "fairanon/assets/")
    for path in SOURCES:
        if not str(path.relative_to(ROOT)).startswith(may):
            assert not any(name.startswith(("diffusers", "peft")) for name in imports(path)), path


def test_a_source_loads_no_judges():
    names = ("ffhq", "celeba_hq", "ai_hub", "cosmicman", "fairface", "body_hands", "vggface2_hq", "region_folder")
    modules = ", ".join(f"data_modules.{name}" for name in names)
    code = f"import sys, {modules}; assert not {{'transformers', 'diffusers', 'insightface', 'lightning', 'torchmetrics', 'torchvision', 'matplotlib'}} & set(sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_hiding_faces_waits_for_nothing_that_training_needs():
    heavy = "{'transformers', 'diffusers', 'lightning', 'torchmetrics', 'torchvision', 'matplotlib', 'wandb'}"
    code = f"import sys, fairanon.anonymizer.anonymizing; found = {heavy} & set(sys.modules); assert not found, found"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_the_door_finds_every_name_where_types_do():
    tree = ast.parse((ROOT / "fairanon/__init__.py").read_text())
    (typed,) = (node for node in tree.body if isinstance(node, ast.If))
    told = {alias.name: node.module for node in typed.body if isinstance(node, ast.ImportFrom) for alias in node.names}
    assert {name: f"fairanon.{where}" for name, where in fairanon._WHERE.items()} == told
    assert sorted(told) == sorted(fairanon.__all__)


def test_no_two_modules_have_one_name():
    """Except what every room may have: its base, and what Python itself looks for."""
    names = Counter(path.name for path in SOURCES if path.name not in ("base.py", "__init__.py", "__main__.py"))
    assert [name for name, count in names.items() if count > 1] == []


def test_few_functions_see_a_request_and_none_below_the_door():
    seen = []
    for path in SOURCES:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
                kinds = {ast.unparse(one.annotation) for one in node.args.args if one.annotation is not None}
                if "AnonymizeRequest" in kinds:
                    seen.append((str(path.relative_to(ROOT / "fairanon")), node.name))
    door = {"api.py", "anonymizer/anonymizing.py", "anonymizer/job.py", "cli/photograph_verbs.py"}
    assert {path for path, _ in seen} == door
    assert len(seen) <= 12, seen
