"""What is installed is what was tested together; ``python -m tests.test_constraints`` prints the file anew."""

import re
import sys
import tomllib
from importlib.metadata import distributions, requires
from pathlib import Path

import pytest

from tests.conftest import REPOSITORY

FILE = REPOSITORY / "constraints.txt"
# A machine may bring its own torch, and one without libGL has OpenCV's headless build.
OWN = re.compile(r"torch|torchvision|triton|nvidia-.*|cuda-.*|opencv-python(-headless)?")
HEAD = "# Everything that was tested together. `make install` takes these versions, `make upgrade` writes newer ones.\n"


def normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def installed() -> dict[str, str]:
    return {normal(found.name): found.version.partition("+")[0] for found in distributions()}


def pinned() -> dict[str, str]:
    lines = [line for line in FILE.read_text().splitlines() if not line.startswith("#")]
    return dict(line.split("==") for line in lines)


DONE = Path(sys.prefix) / ".done"
"""Written by `make install`: which versions it was asked for."""


@pytest.mark.skipif(
    not DONE.exists() or FILE.name not in DONE.read_text(), reason="other versions than constraints.txt were asked for"
)
def test_installed_versions_are_those_that_were_tested():
    here = installed()
    for name, version in pinned().items():
        found = here.get(name, version)  # what this platform does not need is not installed
        assert found == version or OWN.fullmatch(name), (
            f"{name} is {found} here, constraints.txt has {version}; `rm .venv/.done && make install` brings it back."
        )


def test_what_is_read_at_run_time_is_packaged():
    settings = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["tool"]["setuptools"]["package-data"]
    for package, globs in settings.items():
        packaged = {path for pattern in globs for path in (REPOSITORY / package).glob(pattern)}
        needed = [
            path
            for path in (REPOSITORY / package).rglob("*")
            if path.is_file() and path.suffix not in (".py", ".pyc", ".md") and "id2face_tiny" not in path.parts[-2:-1]
        ]
        needed += list((REPOSITORY / package / "assets" / "id2face_tiny").glob("*"))
        assert not set(needed) - packaged, sorted(set(needed) - packaged)


def test_the_file_names_whatever_the_package_asks_for():
    asked = {normal(re.match(r"[\w.-]+", line)[0]) for line in requires("fairanon") if "extra ==" not in line}
    missing = sorted(asked - set(pinned()))
    assert not missing, f"constraints.txt does not name {', '.join(missing)}; `make upgrade` writes it anew."
    assert FILE.read_text().startswith(HEAD) and "://" not in FILE.read_text()


if __name__ == "__main__":
    versions = installed()
    for name in ("fairanon", "pip"):
        versions.pop(name)
    # Both builds of OpenCV have the same numbers; either is right.
    found = versions.get("opencv-python") or versions["opencv-python-headless"]
    versions |= {"opencv-python": found, "opencv-python-headless": found}
    print(HEAD + "\n".join(f"{name}=={version}" for name, version in sorted(versions.items())))
