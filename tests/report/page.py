"""Reading a report in tests: its tags, texts, scripts and charts."""

from __future__ import annotations

import json
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

from preftune.report import write_report

HOSTILE = [
    "</script><script>alert(1)</script>",
    '<img src=x onerror="alert(1)">',
    "\"'><svg/onload=alert(1)>",
    "{{ 7*7 }}{% raw %}",
    "<!--",
    "]]></style><style>body{display:none}",
    "\u202e\u2028\x00\x1b[31m &lt;b&gt;",
    "javascript:alert(1)",
]


class Page(HTMLParser):
    """Collects tags with attributes, the text of each <pre>, and the raw content of scripts."""

    def __init__(self, html: str) -> None:
        super().__init__(convert_charrefs=True)
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.scripts: list[tuple[dict[str, str | None], str]] = []
        self.pres: list[str] = []
        self.text = ""
        self._open: list[str] = []
        self.feed(html)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag == "script":
            self.scripts.append((dict(attrs), ""))
        if tag == "pre":
            self.pres.append("")
        if tag not in ("meta", "link", "br", "img", "wbr"):
            self._open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self._open and self._open[-1] == tag, f"</{tag}> closes {self._open[-3:]}"
        self._open.pop()

    def handle_data(self, data: str) -> None:
        inside = self._open[-1] if self._open else ""
        if inside == "script":
            attrs, text = self.scripts[-1]
            self.scripts[-1] = (attrs, text + data)
        elif inside == "pre":
            self.pres[-1] += data
        elif inside != "style":
            self.text += data

    @property
    def charts(self) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = json.loads(next(t for a, t in self.scripts if a.get("id") == "charts"))
        return found

    @property
    def words(self) -> str:
        return " ".join(self.text.split())


def read(folder: Path) -> Page:
    return Page(write_report(folder).read_text(encoding="utf-8"))


def rewrite(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
