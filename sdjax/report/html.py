"""`report.html`: a report in Markdown as one page that needs nothing beside it.

Figures are in the page, tables are sorted by a click on a column's head.
"""

import base64
import html
import mimetypes
import re
from pathlib import Path
from urllib.parse import unquote

from markdown_it import MarkdownIt

from sdjax.writing import whole

STYLE = """
:root { color-scheme: light; }
body { font: 16px/1.5 system-ui, sans-serif; color: #202020; background: #fff;
  max-width: 1200px; margin: 2rem auto; padding: 0 1rem; overflow-wrap: break-word; }
h1, h2, h3 { line-height: 1.25; margin: 2em 0 .6em; }
h1 { margin-top: 0; }
h2 { border-bottom: 1px solid #ddd; padding-bottom: .2em; }
img { max-width: 100%; height: auto; }
.table { overflow-x: auto; margin: 1em 0; }
table { border-collapse: collapse; font-size: .9em; font-variant-numeric: tabular-nums; }
th, td { padding: .25em .5em; border-bottom: 1px solid #e6e6e6; vertical-align: top; }
th { border-bottom: 2px solid #999; white-space: nowrap; text-align: left; }
th button { font: inherit; font-weight: 600; color: inherit; background: none; border: 0;
  padding: 0; cursor: pointer; }
th button::after { content: "\\2195"; color: #767676; padding-left: .3em; }
th[aria-sort=ascending] button::after { content: "\\2191"; color: #202020; }
th[aria-sort=descending] button::after { content: "\\2193"; color: #202020; }
td[style*=right] { white-space: nowrap; }
tbody tr:hover { background: #f5f7fa; }
code { font-size: .9em; background: #f3f3f3; padding: .1em .25em; overflow-wrap: anywhere; }
pre { overflow-x: auto; background: #f3f3f3; padding: .7em; }
pre code { padding: 0; overflow-wrap: normal; }
summary { cursor: pointer; }
a { color: #0b5cad; }
"""

# A number is what a cell begins with; "<" and ">" before it, and "," in it, are looked through.
SCRIPT = """
for (const head of document.querySelectorAll("th")) {
  const button = document.createElement("button");
  button.type = "button";
  button.append(...head.childNodes);
  head.append(button);
  button.addEventListener("click", () => {
    const table = head.closest("table"), body = table.tBodies[0], column = head.cellIndex;
    const down = head.getAttribute("aria-sort") !== "descending";
    const text = row => row.cells[column].textContent.trim();
    const number = row => parseFloat(text(row).replace(/[<>,\\s]/g, "").replace("\\u2212", "-"));
    const rows = [...body.rows], numeric = rows.some(row => !isNaN(number(row)));
    const compare = (a, b) => {
      if (!numeric) return text(a).localeCompare(text(b)) * (down ? 1 : -1);
      const x = number(a), y = number(b);
      if (isNaN(x) || isNaN(y)) return isNaN(x) - isNaN(y);
      return down ? y - x : x - y;
    };
    for (const other of table.tHead.rows[0].cells) other.removeAttribute("aria-sort");
    head.setAttribute("aria-sort", down ? "descending" : "ascending");
    body.append(...rows.sort(compare));
  });
}
"""

_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<link rel="icon" href="data:,">
<title>{title}</title>
<style>{style}</style>
</head>
<body>
{body}
<script>{script}</script>
</body>
</html>
"""


def write_page(markdown: Path) -> Path:
    """Writes the Markdown file as a page beside it, and returns the page's path.

    Images that it shows from its folder are put into the page; other links stay as they are.

    Args:
      markdown: its text may hold HTML, which is taken as it is.
    """
    text = markdown.read_text(encoding="utf-8")
    body = MarkdownIt("commonmark", {"html": True}).enable("table").render(text)
    body = body.replace("<table>", '<div class="table"><table>')
    body = body.replace("</table>", "</table></div>")
    body = re.sub(
        r'<img src="([^":]+)"', lambda m: f'<img src="{_inlined(markdown.parent, m[1])}"', body
    )
    title = re.search(r"<h1>(.*?)</h1>", body)
    page = _PAGE.format(
        title=re.sub(r"<.*?>", "", title[1]) if title else html.escape(markdown.stem),
        style=STYLE,
        body=body,
        script=SCRIPT,
    )
    path = markdown.with_suffix(".html")
    with whole(path) as temporary:
        temporary.write_text(page, encoding="utf-8")
    return path


def _inlined(folder: Path, source: str) -> str:
    """The file as a data URI."""
    path = folder / unquote(html.unescape(source))
    kind = mimetypes.guess_type(path.name)[0] or "application/octet-stream"
    return f"data:{kind};base64,{base64.b64encode(path.read_bytes()).decode()}"
