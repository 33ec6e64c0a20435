"""MkDocs' hook: pages that lie outside of docs/ join the site, and links lead where they do in the repository."""

import posixpath
import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File

ROOT = Path(__file__).parent.parent
PAGES = {
    "README.md": "index.md",
    "experiments/README.md": "results.md",
    "RESPONSIBLE_USE.md": "responsible-use.md",
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
}
"""Pages outside of docs/, and what they are called on the site."""
_LINK = re.compile(r"`[^`\n]*`|\[([^\]]*)\]\((?!https?:|mailto:)([^)#\s]*)(#[^)\s]*)?\)")


def on_files(files: Any, config: Any) -> Any:
    """Add the pages."""
    for source, page in PAGES.items():
        files.append(File.generated(config, page, content=(ROOT / source).read_text(encoding="utf-8")))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Turn a link within the repository into one within the site; what is not on the site is named, not linked."""
    here = next((source for source, name in PAGES.items() if name == page.file.src_uri), f"docs/{page.file.src_uri}")

    def link(found: re.Match[str]) -> str:
        text, path, anchor = found[1], found[2], found[3] or ""
        if not path:  # code, or a place on the same page
            return found[0]
        target = posixpath.normpath(posixpath.join(posixpath.dirname(here), path))
        if not (ROOT / target).exists():
            return found[0]  # MkDocs says that it is broken
        name = PAGES.get(target) or (target.removeprefix("docs/") if target.startswith("docs/") else None)
        if name is None:
            return f"{text} (`{target}`)"
        return f"[{text}]({posixpath.relpath(name, posixpath.dirname(page.file.src_uri) or '.')}{anchor})"

    return _LINK.sub(link, markdown)
