"""Pages in a real Chromium (Debian's packages `chromium` and `chromium-driver`): what a person sees and does."""

from __future__ import annotations

import html
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from tests.conftest import REPOSITORY

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
DRIVER = shutil.which("chromedriver")
_FLAGS = [
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync", "--hide-scrollbars", "--virtual-time-budget=3000",
]  # fmt: skip
_SEEN = """
<script>addEventListener("load", () => {
  const seen = [], walk = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  for (let node = walk.nextNode(); node; node = walk.nextNode()) {
    const range = document.createRange(); range.selectNodeContents(node);
    const box = range.getBoundingClientRect();
    if (box.width && box.height && box.bottom <= HEIGHT && !node.parentElement.closest("script,style")) seen.push(node.data);
  }
  const wide = document.documentElement.scrollWidth > innerWidth + 1 ? "WIDER THAN THE SCREEN" : "";
  const found = document.createElement("pre"); found.id = "seen"; found.textContent = seen.join(" ") + " " + wide;
  document.body.replaceChildren(found);
})</script>"""


def first_screen(page: Path, width: int = 1280, height: int = 900) -> str:
    """The text that stands above ``height`` pixels, white space folded; ends with a warning if the page scrolls sideways."""
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / "page.html"
        copy.write_text(page.read_text().replace("</body>", _SEEN.replace("HEIGHT", str(height)) + "</body>"))
        words = [
            str(CHROMIUM),
            *_FLAGS,
            f"--user-data-dir={folder}/user",
            f"--window-size={width},{height}",
            "--dump-dom",
        ]
        done = subprocess.run([*words, copy.as_uri()], capture_output=True, text=True, timeout=120, check=True)
    found = re.search(r'(?s)<pre id="seen">(.*?)</pre>', done.stdout)
    assert found, done.stdout[-500:]
    return re.sub(r"\s+", " ", html.unescape(found[1]))


def driven(profile: Path, width: int = 1280, height: int = 900) -> Any:
    """A browser that selenium drives, and that notes what it asks for."""
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    for flag in (*_FLAGS[1:-1], "--headless=new", f"--user-data-dir={profile}", f"--window-size={width},{height}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"performance": "ALL"})
    return webdriver.Chrome(options=options, service=webdriver.ChromeService(DRIVER))


def hosts_asked(driver: Any) -> set[str]:
    """Every host that a driven browser's pages have asked for something since the last time."""
    events = [json.loads(entry["message"])["message"] for entry in driver.get_log("performance")]
    urls = [one["params"]["request"]["url"] for one in events if one["method"] == "Network.requestWillBeSent"]
    return {str(urlsplit(url).hostname) for url in urls if url.startswith(("http", "ws"))}


_START = """
import sys
from pathlib import Path
from fairanon.app import private
place = Path(sys.argv.pop(1))
private._roots = lambda: [place]
from fairanon.cli.main import entry
entry()
"""


def start(root: Path, *words: str) -> tuple[Any, str]:
    """The page in a process of its own, and its address."""
    process = subprocess.Popen(
        [sys.executable, "-c", _START, str(root), "app", "--no-browser", "--port", "0", "--detector", "tiny_detector",
         "--recognizer", "tiny_embedder_b", *words],
        env={**os.environ, "PYTHONPATH": str(REPOSITORY), "MPLCONFIGDIR": str(root / "matplotlib")}, cwd=REPOSITORY,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    line = process.stdout.readline()
    assert line.startswith("http://"), line + process.communicate()[1][-3000:]
    return process, line.split()[0]


class Page:
    """What a person does with the page."""

    def __init__(self, driver, address):
        self.driver = driver
        driver.get(address)
        self.until(lambda: self.find("input[type=file]"))

    def until(self, done, seconds=120):
        from selenium.common.exceptions import WebDriverException

        begin = time.monotonic()
        while time.monotonic() < begin + seconds:
            with suppress(WebDriverException, StopIteration):  # what is drawn anew meanwhile
                if found := done():
                    return found
            time.sleep(0.1)
        raise AssertionError(self.text())

    def find(self, selector):
        return self.driver.find_elements("css selector", selector)

    def text(self):
        return self.driver.find_element("css selector", "body").text

    def button(self, name):
        return next(one for one in self.find("button") if one.text == name and one.is_displayed())

    def bring(self, *paths):
        self.find("input[type=file]")[0].send_keys("\n".join(map(str, paths)))
        self.until(lambda: all(path.stem in self.text() for path in paths))

    def press(self, name):
        self.driver.execute_script("arguments[0].scrollIntoView({block: 'center'})", self.button(name))
        self.button(name).click()

    def click_on(self, image, x, y):
        """Click on an image at these shares of its sides."""
        from selenium.webdriver import ActionChains

        self.driver.execute_script("arguments[0].scrollIntoView({block: 'center'})", image)
        time.sleep(0.5)
        size = image.size
        right, down = round((x - 0.5) * size["width"]), round((y - 0.5) * size["height"])
        ActionChains(self.driver).move_to_element_with_offset(image, right, down).click().perform()
