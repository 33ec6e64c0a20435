"""Draws docs/audit.png: the page of an audit of the embedded model beside PopAlign's adapters that come along, in Chromium.

.venv/bin/python -m docs.audit_picture [--out docs/audit.png] [--width 1280] [--images 20]
"""

from __future__ import annotations

import argparse
import subprocess
import tempfile
from pathlib import Path

from fairanon.cli.main import main as fairanon
from tests.browser import CHROMIUM

ROOT = Path(__file__).resolve().parent.parent


def main() -> None:
    """Draw the picture."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "audit.png")
    parser.add_argument("--width", type=int, default=1280)
    parser.add_argument("--images", type=int, default=20)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        words = [
            "--images",
            str(given.images),
            "--specific-images",
            "1",
            "--attributes",
            "gender,tone",
            "--out",
            f"{folder}/audit",
        ]
        assert fairanon(["audit", "tiny", "--compare", "runs/popalign_tiny/shipped", *words]) == 0
        page = Path(folder, "audit", "report.html")
        flags = [
            "--headless",
            "--no-sandbox",
            "--hide-scrollbars",
            f"--user-data-dir={folder}/profile",
            f"--window-size={given.width},1180",
        ]
        subprocess.run(
            [str(CHROMIUM), *flags, f"--screenshot={given.out.resolve()}", page.as_uri()],
            check=True,
            capture_output=True,
        )


if __name__ == "__main__":
    main()
