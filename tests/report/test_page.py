"""Pages about data: everything on them is text, whatever it holds, and numbers are those that were given."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

from preftune.errors import PreftuneError
from preftune.report.page import (
    Cell,
    Charts,
    Example,
    Examples,
    Page,
    Prose,
    Section,
    Table,
    Tokens,
    as_cell,
    bar_chart,
    dot_chart,
    line_chart,
    write_page,
)

HOSTILE = "</script><script>alert(1)</script><img src=x onerror=alert(1)>\x1b[31m\ud800`code`"


class _Tags(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        assert not any(name.startswith("on") for name, _ in attrs)


def _page(text: str) -> Page:
    chart = line_chart(text, text, [(text, [1, 2, 3], [0.1, 0.2, 0.3])], xlabel=text, ylabel=text, marks=[(2, text)])
    return Page(
        text, kicker=text, verdict="worse", sentence=text, why=text, big=[(text, text)], problems=[text], footer=text,
        sections=[
            Section("one", text, [Prose(text, "warn"), Table([text], [[text], [Cell(text, hint=text)]], text)]),
            Section("two", text, [Charts([chart]), Examples([Example(text, [(text, text, "bad")], [(text, text)])])]),
            Section("three", text, [Tokens([(text, [(text, "trained")])], {"trained": text})]),
            Section("four", text, [Table([text], [[Cell(text * 40, fold=True)], [Cell(text, mono=True, meter=7.0)]])]),
        ],
    )  # fmt: skip


def test_hostile_texts_stay_texts(tmp_path: Path) -> None:
    page = write_page(tmp_path / "x.html", _page(HOSTILE)).read_text(encoding="utf-8")
    tags = _Tags()
    tags.feed(page)
    assert "img" not in tags.tags
    assert tags.tags.count("script") == 3, "the charts' data, plotly and our own script, and no other"
    assert "\x1b" not in page and "default-src 'none'" in page
    assert page.count("&lt;/script&gt;&lt;script&gt;alert(1)") > 10


def test_numbers_are_those_that_were_given(tmp_path: Path) -> None:
    chart = dot_chart("map", "", [("a", [1.25, 2.0], [3.5, 4.0]), ("b", [0.0], [1.0])], xlabel="x", ylabel="y")
    bars = bar_chart("sizes", "", [("s", [1, 2], [0.25, 0.75], 1.0)], xlabel="x", ylabel="y")
    page = Page(
        "t", sections=[Section("s", "S", [Charts([chart, bars]), Table(["n"], [[12_345], [0.123456], [None], [True]])])]
    )
    text = write_page(tmp_path / "x.html", page).read_text(encoding="utf-8")
    block = re.search(r'<script type="application/json" id="charts">(.*?)</script>', text, re.DOTALL)
    assert block is not None
    drawn = json.loads(block[1])
    assert [c["id"] for c in drawn] == ["chart-0", "chart-1"] and all(f'id="{c["id"]}"' in text for c in drawn)
    assert [(s["name"], s["x"], s["y"]) for s in drawn[0]["series"]] == [
        ("a", [1.25, 2.0], [3.5, 4.0]),
        ("b", [0.0], [1.0]),
    ]
    assert drawn[1]["percent"] and drawn[1]["series"][0]["width"] == 1.0
    for shown in ("12,345", "0.1235", "–", "yes"):
        assert f">{shown}" in text or f"{shown}\n" in text


def test_a_page_without_charts_has_no_script(tmp_path: Path) -> None:
    text = write_page(tmp_path / "x.html", Page("t", sentence="fine")).read_text(encoding="utf-8")
    assert "<script" not in text and "fine" in text


@pytest.mark.parametrize(
    ("meter", "width"), [(0.0, "0.0%"), (0.5, "50.0%"), (1.0, "100.0%"), (7.0, "100.0%"), (-1.0, "0.0%")]
)
def test_meters_stay_in_their_cell(tmp_path: Path, meter: float, width: str) -> None:
    page = Page("t", sections=[Section("s", "S", [Table(["n"], [[Cell("x", meter=meter)]])])])
    assert f'style="width:{width}"' in write_page(tmp_path / "x.html", page).read_text(encoding="utf-8")


def test_cells() -> None:
    assert as_cell(1_234_567).text == "1,234,567" and as_cell(False).text == "no" and as_cell("a").text == "a"
    assert as_cell(None) == Cell("–", "quiet")
    assert as_cell(Cell("x", "bad")) == Cell("x", "bad")


def test_a_place_that_can_t_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(PreftuneError, match="can't write"):
        write_page(tmp_path / "file" / "x.html", Page("t"))
    assert list(tmp_path.iterdir()) == [tmp_path / "file"]
