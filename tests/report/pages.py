"""What every page is held to: texts of strangers are text, nothing runs or is fetched, and everybody can use it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest


class _Elements(HTMLParser):
    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, Any]]) -> None:
        self.tags.append(tag)
        self.attributes += [name for name, _ in attrs]


def assert_elements_are_ours(page: str, scripts: int) -> None:
    """A page full of `HOSTILE` texts has so many scripts, which are ours, and no element that a text has made."""
    elements = _Elements(page)
    assert elements.tags.count("script") == scripts
    assert "img" not in elements.tags
    assert not [name for name in elements.attributes if name.startswith("on")]
    assert "default-src &#39;none&#39;" in page


def assert_text_alone(page: str) -> None:
    """The same of a page without data for a script, whose texts are visible, too."""
    assert_elements_are_ours(page, 2)
    assert "\u202e" not in page
    assert "U+202E" in page


@contextmanager
def undisturbed(browser: Any, path: Path) -> Iterator[Any]:
    """The page in a browser; it may neither run what it holds, nor fetch, nor complain."""
    trouble: list[str] = []
    page = browser.new_page()
    page.on("console", lambda message: trouble.append(message.text))
    page.on("pageerror", lambda error: trouble.append(str(error)))
    page.on("request", lambda request: trouble.append(request.url) if ".html" not in request.url else None)
    page.goto(path.as_uri())
    yield page
    assert page.evaluate("window.hacked") is None
    page.close()
    assert trouble == []


def serious_violations(browser: Any, path: Path, scheme: str = "light", only: tuple[str, ...] = ()) -> list[Any]:
    """Rules of accessibility that a page breaks badly, all of it unfolded; `only` some of the rules where given."""
    axe = pytest.importorskip("axe_playwright_python.sync_playwright")
    # The checker is a script of its own, which the page's policy would refuse.
    context = browser.new_context(color_scheme=scheme, bypass_csp=True)
    page = context.new_page()
    page.goto(path.as_uri())
    for details in page.locator("details").all():
        details.evaluate("node => node.open = true")
    options = {"options": {"runOnly": list(only)}} if only else {}
    found = axe.Axe().run(page, **options).response["violations"]
    context.close()
    return [(one["id"], one["nodes"][0]["html"][:200]) for one in found if one["impact"] in ("serious", "critical")]
