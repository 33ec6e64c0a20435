"""docs/python.md as it stands: its code runs, and the notebook in examples/ is the same. Writes it: ``python -m tests.test_python_page``."""

import json
import os
import re
import subprocess
import sys

import pytest

from tests.anonymizer import photographs
from tests.conftest import REPOSITORY

NOTEBOOK = REPOSITORY / "examples/python.ipynb"


def pieces():
    """Text and code of the page, in turn."""
    text = (REPOSITORY / "docs/python.md").read_text()
    return [part.strip() for part in re.split(r"```(?:python)?\n", text)]


def notebook():
    cells = []
    for number, part in enumerate(pieces()):
        lines = part.splitlines(keepends=True)
        if number % 2:
            cells.append(
                {
                    "cell_type": "code",
                    "execution_count": None,
                    "id": f"cell{number}",
                    "metadata": {},
                    "outputs": [],
                    "source": lines,
                }
            )
        elif part:
            cells.append({"cell_type": "markdown", "id": f"cell{number}", "metadata": {}, "source": lines})
    kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
    return {"cells": cells, "metadata": {"kernelspec": kernel}, "nbformat": 4, "nbformat_minor": 5}


def test_the_notebook_is_the_page():
    assert json.loads(NOTEBOOK.read_text()) == notebook(), "python -m tests.test_python_page writes it anew"


@pytest.mark.slow
def test_the_page_runs(tmp_path):
    (tmp_path / "experiments").symlink_to(REPOSITORY / "experiments")
    photographs.write("group", tmp_path / "photographs")
    code = [
        "".join(cell["source"]) for cell in json.loads(NOTEBOOK.read_text())["cells"] if cell["cell_type"] == "code"
    ]
    done = subprocess.run(
        [sys.executable, "-c", "\n\n".join(code)], cwd=tmp_path, capture_output=True, text=True, check=False,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY), "WANDB_MODE": "disabled"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    assert "hand loss" in done.stdout and "may be published" in done.stdout and "anonymization/accuracy" in done.stdout
    assert (tmp_path / "doctor.png").stat().st_size > 500


if __name__ == "__main__":
    NOTEBOOK.write_text(json.dumps(notebook(), indent=1) + "\n")
