"""Draws docs/app.png: the page in Chromium, with scenes of the embedded world.

.venv/bin/python -m docs.app_picture [--out docs/app.png] [--width 1280] [--dark]
"""

from __future__ import annotations

import argparse
import signal
import tempfile
import time
from pathlib import Path

from fairanon.imaging import write_image
from tests.anonymizer.scenes import scene
from tests.browser import Page, driven, start

ROOT = Path(__file__).resolve().parent.parent


def main() -> None:
    """Draw the picture."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "app.png")
    parser.add_argument("--width", type=int, default=1280)
    parser.add_argument("--dark", action="store_true")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        for number, faces in enumerate((3, 2, 1)):
            write_image(scene(number, faces), root / "in" / f"scene {number}.png")
        process, address = start(root)
        driver = driven(root / "profile", given.width)
        try:
            page = Page(driver, address + ("/?__theme=dark" if given.dark else "/?__theme=light"))
            page.bring(*sorted((root / "in").iterdir()))
            page.press("Hide and test")
            page.until(lambda: "READY" in page.text())
            page.until(lambda: page.find("input[type=checkbox]"))[0].click()
            page.press("Hide and test again")
            page.until(lambda: "kept as asked" in page.text())
            time.sleep(1)
            height = driver.execute_script("return document.documentElement.scrollHeight")
            driver.set_window_size(given.width, height + 150)
            time.sleep(1)
            driver.save_screenshot(str(given.out))
        finally:
            driver.quit()
            process.send_signal(signal.SIGTERM)
            process.wait(timeout=60)
    print(given.out)


if __name__ == "__main__":
    main()
