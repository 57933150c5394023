"""A page as a browser has it: what it says, and what is wrong with it."""

import html
import json
import re
import shutil
import subprocess
from html.parser import HTMLParser

NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")
BROWSER = next(filter(None, map(shutil.which, NAMES)), None)
WHY_SKIPPED = f"no headless Chromium here ({', '.join(NAMES)})"
_VOID = {"meta", "link", "img", "br", "hr"}

# Runs in the page once it is loaded; what is wrong comes back in the title.
_LOOK = """
<script>
window.wrong = [];
window.addEventListener("error", event => window.wrong.push("error: " + event.message));
console.error = (...texts) => window.wrong.push("console: " + texts.join(" "));
window.addEventListener("load", () => {
  for (const each of document.querySelectorAll("details")) each.open = true;
  const root = document.documentElement, sorted = [];
  if (root.scrollWidth > root.clientWidth) wrong.push("the page is wider than the window");
  for (const image of document.images) {
    if (!image.naturalWidth) wrong.push("no image: " + image.alt);
    if (image.getBoundingClientRect().right > root.clientWidth) wrong.push("cut: " + image.alt);
  }
  for (const link of document.querySelectorAll('a[href^="#"]')) {
    if (!document.getElementById(link.hash.slice(1))) wrong.push("leads nowhere: " + link.hash);
  }
  const table = document.querySelectorAll("table")[TABLE];
  for (let click = 0; click < 2; click++) {
    table.querySelectorAll("th button")[COLUMN].click();
    sorted.push([...table.tBodies[0].rows].map(row => row.cells[COLUMN].textContent));
  }
  document.title = JSON.stringify({wrong, sorted});
});
</script>
"""


class _Page(HTMLParser):
    def __init__(self):
        super().__init__()
        self.open, self.links, self.text = [], [], []

    def handle_starttag(self, tag, attributes):
        if tag not in _VOID:
            self.open.append(tag)
        self.links += [v for k, v in attributes if k in ("src", "href") and tag != "a"]

    def handle_endtag(self, tag):
        if tag in _VOID:
            return
        assert self.open and self.open[-1] == tag, (tag, self.open)
        self.open.pop()

    def handle_data(self, data):
        if "script" not in self.open and "style" not in self.open:
            self.text.append(data)


def parsed(path):
    """The text of a page whose tags are closed and that loads nothing from outside."""
    page = _Page()
    page.feed(path.read_text(encoding="utf-8"))
    assert page.open == []
    assert all(link.startswith("data:") for link in page.links), page.links
    return " ".join(page.text)


def seen(path, folder, table, column):
    """What is wrong with a page in a window, and a column of a table after each of two clicks."""
    copy = folder / "seen.html"
    look = _LOOK.replace("TABLE", str(table)).replace("COLUMN", str(column))
    text = path.read_text(encoding="utf-8")
    copy.write_text(text.replace("</head>", f"{look}</head>", 1), encoding="utf-8")
    flags = ["--headless", "--no-sandbox", "--disable-gpu", "--window-size=1280,900"]
    command = [BROWSER, *flags, f"--user-data-dir={folder / 'profile'}", "--dump-dom"]
    done = subprocess.run(
        [*command, copy.as_uri()], capture_output=True, text=True, check=True, timeout=120
    )
    return json.loads(html.unescape(re.search(r"<title>(.*?)</title>", done.stdout, re.S)[1]))
