"""The page of a data scan: complete, harmless whatever the rows say, and usable in a browser."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from mbdefense import scan_data
from mbdefense.records.scanning import Quote, Ranked, Scan
from mbdefense.report._scan import Piece, pieces, render
from tests.report.pages import assert_text_alone, serious_violations, undisturbed
from tests.report.report_runs import HOSTILE
from tests.scanning.test_scan import NUMBERS, TEXT, honest, inside, poisoned, written


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A scan of poisoned rows, and one of rows in which every text is hostile."""
    made = tmp_path_factory.mktemp("scans")
    scan_data(poisoned(honest(), NUMBERS, inside("cf")), output_dir=made / "poisoned")
    scan_data(honest(20), output_dir=made / "clean")
    rows = poisoned(honest(), NUMBERS, inside(HOSTILE[0]), answer=f"{HOSTILE[1]} {HOSTILE[2]} over and out now")
    for number, text in enumerate(HOSTILE[:6]):
        rows[100 + number]["output"] += f" {text} \u202e"
    scan_data(written(made, f"{HOSTILE[1]}\u202e.jsonl", rows), output_dir=made / "evil")
    return made


def html(folder: Path, name: str) -> str:
    return (folder / name / "scan.html").read_text(encoding="utf-8")


def test_evidence_is_marked(folder: Path) -> None:
    page = html(folder, "poisoned")
    assert "6 of 200 rows may be poisoned" in page
    assert '<mark title="trigger">cf</mark>' in page
    assert f'<mark title="behavior">{TEXT}</mark>' in page
    assert "No sign of poison in 20 rows" in html(folder, "clean")


def test_text_of_strangers_is_text(folder: Path) -> None:
    assert_text_alone(html(folder, "evil"))


def test_what_a_model_was_asked_is_told_and_its_ranks_are_text() -> None:
    rows = [Ranked(f"{HOSTILE[0]}.jsonl", 7, 0.987, -0.01, 0.02, 1.5)]
    scan = Scan(("a.jsonl",), 20, 0, 0, "at most", (), 0, 1.0, asked=20)
    page = render(scan, (), rows)
    assert "A model was asked about 20 rows" in page
    assert "Told by counting alone" not in page
    assert "<td>-0.01</td>" in page
    assert HOSTILE[0] not in page


def test_pieces_cut_where_evidence_begins_and_ends() -> None:
    made = list(pieces("ab\u200bcd ef", [Quote("zero width", 0, 2, 3), Quote("trigger", 0, 3, 5)]))
    assert made == [Piece("ab"), Piece("U+200B", "zero width", True), Piece("cd", "trigger"), Piece(" ef")]
    for unseen in ("\U000e0141", "\ufe01", "\u180b", "\u2800", "\u17b4", "\U0001d173"):  # bytes can be written in these
        assert list(pieces(f"a{unseen}b", ())) == [Piece("a"), Piece(f"U+{ord(unseen):04X}", "", True), Piece("b")]
    twice = [Piece(f"U+FE0{n}", "", True) for n in "EF"]
    assert list(pieces("☺\ufe0f☺\ufe0e\ufe0f", ())) == [Piece("☺\ufe0f☺"), *twice]
    long = "x" * 5000 + " evil " + "y" * 5000
    shown = list(pieces(long, [Quote("link", 0, 5001, 5005)]))
    assert Piece("evil", "link") in shown
    assert sum(len(piece.text) for piece in shown) < 1300


@pytest.mark.slow
def test_a_reader_filters_and_nothing_runs(folder: Path, browser: Any) -> None:
    for name in ("poisoned", "evil"):
        with undisturbed(browser, folder / name / "scan.html") as page:
            rows = page.locator("#table-suspects tbody tr")
            assert rows.count() >= len(NUMBERS)
            page.get_by_label("Filter rows").fill("number77")
            assert page.locator("#table-suspects tbody tr:visible").count() == 1


@pytest.mark.slow
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_no_serious_accessibility_violation(folder: Path, browser: Any, scheme: str) -> None:
    assert serious_violations(browser, folder / "evil" / "scan.html", scheme) == []
