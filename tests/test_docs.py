"""The documentation's site: built without a network, and a broken link is an error."""

import os
import shutil
import subprocess
import sys

import pytest

from tests.conftest import REPOSITORY


def build(folder):
    return subprocess.run(
        [sys.executable, "-m", "mkdocs", "build"], cwd=folder, capture_output=True, text=True, timeout=300, check=False,
        env={**os.environ, "NO_MKDOCS_2_WARNING": "1"},
    )  # fmt: skip


@pytest.mark.slow
def test_the_site_has_every_page_and_refuses_a_broken_link(tmp_path):
    for name in ("docs", "fairanon", "data_modules", "experiments", "examples", "mkdocs.yml",
                 *(path.name for path in REPOSITORY.glob("*.md"))):  # fmt: skip
        source = REPOSITORY / name
        if source.is_dir():
            shutil.copytree(source, tmp_path / name, ignore=lambda d, names: [n for n in names if n == "__pycache__"])
        else:
            shutil.copy(source, tmp_path / name)
    done = build(tmp_path)
    assert done.returncode == 0, done.stderr
    index = (tmp_path / "build/site/index.html").read_text()
    assert 'href="methods.html#popalign"' in index and 'href="results.html"' in index and "fonts.g" not in index
    assert "fairanon.methods.popalign.PopAlign" in (tmp_path / "build/site/api/methods.html").read_text()
    page = tmp_path / "docs/data.md"
    page.write_text(page.read_text() + "\n[gone](nowhere.md) [lost](methods.md#nowhere)\n")
    done = build(tmp_path)
    assert done.returncode != 0 and "nowhere.md" in done.stderr and "#nowhere" in done.stderr
