"""Pages in a real Chromium (Debian's packages `chromium` and `chromium-driver`): what a person sees and does."""

from __future__ import annotations

import html
import json
import re
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

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
