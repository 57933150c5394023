"""Pages of the site take sections of the README and files of examples: each text stands once.

A line `{{ README.md: Texts }}` becomes the section "Texts" of the README without its heading (the
part before the first section is the one without a name), `{{ examples/file.py }}` a listing.
"""

import re
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]


def on_page_markdown(markdown: str, **context: Any) -> str:
    """Called by MkDocs for each page."""
    del context
    return re.sub(r"^\{\{ ([\w./]+)(?:: ?(.*))? \}\}$", _taken, markdown, flags=re.MULTILINE)


def _taken(match: re.Match[str]) -> str:
    path, title = match.groups()
    text = (ROOT / path).read_text(encoding="utf-8")
    if path.endswith(".py"):
        return f"```python\n{text}```"
    return section(text, title or "").replace("](docs/", "](")


def section(text: str, title: str) -> str:
    """The text under the heading `## title`; that before the first such heading for ""."""
    parts = re.split(r"^## (.*)\n", text, flags=re.MULTILINE)
    parts[0] = re.sub(r"^# .*\n", "", parts[0])
    return dict(zip(["", *parts[1::2]], parts[0::2], strict=True))[title].strip()
