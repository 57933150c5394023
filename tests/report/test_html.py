"""The page of a report."""

import browser
import pytest
from test_report import make_inputs

from sdjax.report import html, report


def test_markdown_becomes_a_page(tmp_path):
    (tmp_path / "a b.svg").write_text("<svg xmlns='http://www.w3.org/2000/svg'/>")
    path = tmp_path / "report.md"
    path.write_text(
        "# Of *a* &lt;b>\n\n![alt](a%20b.svg)\n\n| a |\n|---|\n| 1 |\n\n"
        "<details><summary>more</summary>\n\n- [x](../run.json)\n\n</details>\n\n{ }\n"
    )
    written = html.write_page(path)
    text, source = browser.parsed(written), written.read_text()
    assert "Of a <b>" in text and "{ }" in text
    assert "<title>Of a &lt;b&gt;</title>" in source
    assert 'src="data:image/svg+xml;base64,' in source and 'href="../run.json"' in source


@pytest.mark.skipif(browser.BROWSER is None, reason=browser.WHY_SKIPPED)
def test_the_report_of_a_run_in_a_browser(tmp_path):
    inputs = make_inputs(label_names=["<script>alert(1)</script>", *"abcd"])
    path = report.write_report(tmp_path, inputs).with_suffix(".html")
    assert "<script>alert(1)</script>" in browser.parsed(path)
    found = browser.seen(path, tmp_path, table=0, column=1)
    assert found["wrong"] == []
    down, up = ([float(text) for text in each] for each in found["sorted"])
    assert down == sorted(down, reverse=True) and up == sorted(up)
