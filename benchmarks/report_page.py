"""How long the report's page takes with many responses: first paint and search, in a real browser.

    python benchmarks/report_page.py [--responses 10000] [--words 60]

Needs the dev extra and a chromium. Makes a grid's files with made-up answers, writes the page and opens it from disk.
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import statistics
import tempfile
import time
from pathlib import Path

from playwright.sync_api import sync_playwright

from mbdefense.evaluation.metrics import scores
from mbdefense.records.responses import Kind, Response, write_responses
from mbdefense.records.results import ResultRow, Results, write
from mbdefense.records.verdicts import Verdict, write_verdicts
from mbdefense.report.page import render
from mbdefense.report.sources import read_sources

ARMS = ("base", "clean", "attacked", "mb_defense", "crow", "lethe", "clean_fft", "locphylax")
LETTERS = "abcdefghijklmnopqrstuvwxyz"
# Painted means: the browser has reported its first contentful paint.
PAINT = "performance.getEntriesByName('first-contentful-paint').map(entry => entry.startTime)[0]"
# From a key stroke to the list on the page, the next frame included.
SEARCH = """(text) => new Promise((done) => {
  const input = document.getElementById("b-search");
  const start = performance.now();
  input.value = text;
  input.dispatchEvent(new Event("input"));
  const handled = performance.now() - start;
  requestAnimationFrame(() => setTimeout(() => done([handled, performance.now() - start])));
})"""


def main() -> None:
    """Makes the page and prints what was measured."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--responses", type=int, default=10_000)
    parser.add_argument("--words", type=int, default=60, help="of each response")
    options = parser.parse_args()
    program = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        _write_run(folder / "run", options.responses, options.words)
        start = time.perf_counter()
        text = render(read_sources([folder / "run"]))
        print(f"page written in {time.perf_counter() - start:.1f} s, {len(text.encode()) / 2**20:.1f} MiB")  # noqa: T201
        (folder / "page.html").write_text(text, encoding="utf-8")
        with sync_playwright() as driver:
            browser = driver.chromium.launch(executable_path=program, args=["--no-sandbox"])
            paints, searches = [], []
            for _ in range(5):
                page = browser.new_context().new_page()
                page.goto((folder / "page.html").as_uri())
                paints.append(page.evaluate(PAINT))
                searches += [page.evaluate(SEARCH, word) for word in ("a", "the qu", "no such text", "7", "")]
                page.close()
            print(f"chromium {browser.version}, {os.cpu_count()} CPU cores")  # noqa: T201
            browser.close()
    print(  # noqa: T201
        f"first contentful paint, ms: median {statistics.median(paints):.0f}, most {max(paints):.0f} of {len(paints)}"
    )
    for at, what in enumerate(("search", "search and next frame")):
        values = [one[at] for one in searches]
        print(f"{what}, ms: median {statistics.median(values):.0f}, most {max(values):.0f} of {len(values)}")  # noqa: T201


def _write_run(folder: Path, responses: int, words: int) -> None:
    rng = random.Random(0)
    vocabulary = ["".join(rng.choices(LETTERS, k=rng.randint(2, 9))) for _ in range(3000)]
    count = responses // len(ARMS) // 2
    kinds: tuple[Kind, ...] = ("clean", "triggered")
    for arm in ARMS:
        made = [
            Response(f"p{number}", kind, f"Question {number}?", " ".join(rng.choices(vocabulary, k=words)))
            for kind in kinds
            for number in range(count)
        ]
        verdicts = [Verdict(one.id, one.kind, rng.random() < 0.5, rng.random() < 0.5, "made up") for one in made]
        row = ResultRow(arm, "badnet:word=cf", "refusal", 0, arm, *scores(verdicts), None, 1.0, 1)
        target = folder / arm
        target.mkdir(parents=True)
        write_responses(target / "responses.jsonl", made)
        write_verdicts(target / "verdicts.jsonl", verdicts)
        write(target / "results.json", Results({}, (row,)))


if __name__ == "__main__":
    main()
