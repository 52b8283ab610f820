import re
import sys
from html.parser import HTMLParser

import numpy as np
import pytest

from facevae.errors import UsageError
from facevae.reports.page import Section, Table, drawing, photo, render, require_pages, table

pytest.importorskip("jinja2")
pytest.importorskip("matplotlib")

VOID = {"meta", "link", "img", "br", "hr", "input"}


class Reader(HTMLParser):
    """Collects the content of a page and checks that its elements are properly nested."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.addresses: list[str] = []
        self.attributes: dict[str, list[str]] = {}
        self.tags: set[str] = set()
        self.words = ""
        self.feed(page)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        if tag not in VOID:
            self.open.append(tag)
        for name, value in attrs:
            self.attributes.setdefault(name, []).append(value)
            if name in ("src", "href", "srcset", "data", "action"):
                self.addresses.append(value)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] != "style":
            self.words += data


def check_page(page: str) -> Reader:
    """Parse a page and check that it is well-formed and self-contained."""
    assert page.startswith("<!DOCTYPE html>\n<html lang=")
    reader = Reader(page)
    ids = reader.attributes.get("id", [])
    assert len(ids) == len(set(ids))
    for address in reader.addresses:
        assert address.startswith("data:") or address.removeprefix("#") in ids, address[:80]
    assert not reader.tags & {"script", "iframe", "object", "embed", "base", "form"}
    assert not any(name.startswith("on") for name in reader.attributes)
    styles = re.findall(r"<style>(.*?)</style>", page, re.DOTALL)
    assert not re.search(r"url\(|@import", "".join(styles))
    assert len(reader.attributes["alt"] if "img" in reader.tags else []) == page.count("<img ")
    return reader


NASTY = "</td><script>alert('1')</script> & \"quoted\" {{ 7 * 7 }} <img src=x onerror=y>"


def test_text_of_any_kind_is_escaped():
    section = Section(
        f"Part {NASTY}",
        NASTY,
        [photo(np.zeros((2, 3, 3), np.uint8), NASTY)],
        [Table((NASTY, "b"), [(NASTY, NASTY)]), table(NASTY, {NASTY: [NASTY, None]})],
        command=NASTY,
    )
    reader = check_page(render(NASTY, NASTY, [(NASTY, NASTY)], [section], NASTY))
    assert reader.words.count(NASTY) == 17
    assert "onerror" not in reader.attributes


def test_a_page_without_sections_is_well_formed():
    assert "a model" in check_page(render("a model", "", [], [])).words


def test_links_lead_to_the_sections():
    reader = check_page(render("", "", [], [Section("One"), Section("Two words")]))
    assert [a for a in reader.addresses if a.startswith("#")] == ["#one", "#two-words"]


def test_a_drawing_is_svg_for_light_and_dark_pages():
    from base64 import b64decode

    from matplotlib.figure import Figure

    figure = Figure(figsize=(2, 1))
    figure.subplots().set_title("Title")
    shown = drawing(figure, "An empty one.")
    kind, _, content = shown.address.partition(",")
    assert kind == "data:image/svg+xml;base64"
    svg = b64decode(content).decode()
    assert "prefers-color-scheme:dark" in svg
    assert "currentColor" in svg
    assert "#000000" not in svg
    assert "<dc:date>" not in svg


def test_the_error_names_the_missing_extra(monkeypatch):
    for module in ("matplotlib", "jinja2"):
        with monkeypatch.context() as patch:
            patch.setitem(sys.modules, module, None)
            with pytest.raises(UsageError, match=r"pip install 'facevae\[plot\]'"):
                require_pages()
