"""The page on which proposed rows are accepted or rejected: what it saves, and that no row's text runs."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from mbdefense import load_rows, pick_clean
from tests.report.pages import assert_elements_are_ours
from tests.report.report_runs import HOSTILE
from tests.scanning.test_scan import honest


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, tuple[Any, ...]]:
    """A page of rows of which some are hostile, and these rows; what hides from a reader would be a suspect."""
    rows = honest(40)
    evil = [text for text in HOSTILE if text.isascii() and len(text) < 1000]
    assert len(evil) > 2
    for number, text in enumerate(evil):
        rows[number] |= {"id": text, "output": f"{text} {number} \u200b\x07</script>", "more": "\ud800"}
    folder = tmp_path_factory.mktemp("picked")
    found = pick_clean(rows, n=40, output_dir=folder)
    return folder / "pick.html", found.rows


@pytest.fixture
def page(browser: Any, made: tuple[Path, Any]) -> Iterator[Any]:
    """The page; the test fails on any console message, error or request to elsewhere."""
    trouble: list[str] = []
    context = browser.new_context(accept_downloads=True)
    opened = context.new_page()
    opened.on("console", lambda message: trouble.append(message.text))
    opened.on("pageerror", lambda error: trouble.append(str(error)))
    own = ("file:", "blob:")
    opened.on("request", lambda sent: None if sent.url.startswith(own) else trouble.append(sent.url))
    opened.goto(made[0].as_uri())
    yield opened
    context.close()
    assert trouble == []


def saved(page: Any, button: str, folder: Path) -> Path:
    with page.expect_download() as waiting:
        page.get_by_role("button", name=button).click()
    path = folder / waiting.value.suggested_filename
    waiting.value.save_as(path)
    return path


def test_the_keyboard_decides_and_the_accepted_rows_are_saved(page: Any, made: Any, tmp_path: Path) -> None:
    rows = made[1]
    assert page.get_by_role("button", name="Save clean.jsonl").is_disabled()
    for letter in "arja":  # accept the first, reject the second, pass the third, accept the fourth
        page.keyboard.press(letter)
    for letter in "ruakkka":  # the fifth rejected, taken back and accepted; back to the third, accepted
        page.keyboard.press(letter)
    assert page.locator("#count").inner_text() == f"4 of 40 accepted, 1 rejected, {len(rows) - 5} left"
    page.reload()  # decisions stay
    page.get_by_label("Your name").fill("a r j <b>")  # letters that are no commands here
    clean = saved(page, "Save clean.jsonl", tmp_path)
    assert [json.loads(line) for line in clean.read_bytes().splitlines()] == [rows[n] for n in (0, 2, 3, 4)]
    assert len(load_rows(clean)) == 4
    record = json.loads(saved(page, "Save accepted.json", tmp_path).read_text("utf-8"))
    assert record["by"] == "a r j <b>"
    assert [one["decision"] for one in record["rows"]] == ["accepted", "rejected", *["accepted"] * 3]
    lines = clean.read_bytes().splitlines()
    kept = [one["sha256"] for one in record["rows"] if one["decision"] == "accepted"]
    assert kept == [hashlib.sha256(line).hexdigest() for line in lines]


def test_hostile_rows_are_data_alone(made: tuple[Path, tuple[Any, ...]]) -> None:
    """Without a browser: what the page consists of, and that its data are the rows."""
    page = made[0].read_text("utf-8")
    assert_elements_are_ours(page, 3)
    (data,) = re.findall(r'<script type="application/json" id="data">(.*?)</script>', page, re.DOTALL)
    assert tuple(json.loads(row["text"]) for row in json.loads(data)["rows"]) == made[1]
    assert "</script>" in str(made[1])


def test_hostile_rows_are_text(page: Any, made: Any) -> None:
    seen = ""
    for _ in made[1]:
        page.locator("summary").click()
        seen += page.locator("#row").inner_text()
        page.keyboard.press("j")
    assert "U+200B" in seen
    assert "\u200b" not in seen
    assert "</script>" in seen
    assert page.locator("#row img, #row script").count() == 0
    assert page.evaluate("window.hacked") is None


@pytest.mark.slow
def test_no_serious_accessibility_violation(browser: Any, made: Any) -> None:
    axe = pytest.importorskip("axe_playwright_python.sync_playwright")
    context = browser.new_context(bypass_csp=True)
    page = context.new_page()
    page.goto(made[0].as_uri())
    page.keyboard.press("a")
    found = axe.Axe().run(page).response["violations"]
    context.close()
    assert [one["id"] for one in found if one["impact"] in ("serious", "critical")] == []
