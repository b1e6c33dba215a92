"""The report: what is read, what is said of it, and that nothing in a file can become markup or script."""

import base64
import csv
import hashlib
import io
import json
import re
import subprocess
import sys
from dataclasses import replace
from html.parser import HTMLParser

import pytest
from PIL import Image

from mbdefense.cli import main
from mbdefense.core.errors import UserError
from mbdefense.core.files import read_sealed, write_sealed
from mbdefense.core.statistics import rate
from mbdefense.records.results import SourceScore
from mbdefense.report._by_source import source_tables
from mbdefense.report._report import write_report
from mbdefense.report.browser import browser_data
from mbdefense.report.changes import differences
from mbdefense.report.formats import as_json, comma_separated, markdown, written
from mbdefense.report.page import render
from mbdefense.report.sources import read_sources
from mbdefense.report.summary import summarize
from mbdefense.report.tables import blocks
from tests.report.report_runs import (
    ARMS,
    HOSTILE,
    arm,
    write_analyses,
    write_evaluation,
    write_evaluations,
    write_federation,
    write_grid,
)


class Page(HTMLParser):
    """A page's elements, and its text by the element it stands in."""

    def __init__(self, text):
        super().__init__()
        self.elements, self.ids, self.texts, self.open = [], [], {}, []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        self.ids += [value for name, value in attrs if name == "id"]
        if tag in ("script", "style", "h1", "footer"):
            self.open.append(len(self.elements) - 1)

    def handle_endtag(self, tag):
        if self.open and self.elements[self.open[-1]][0] == tag:
            self.open.pop()

    def handle_data(self, data):
        for at in self.open[-1:]:
            self.texts[at] = self.texts.get(at, "") + data

    def text_of(self, tag, **attributes):
        return [
            self.texts.get(at, "")
            for at, (name, given) in enumerate(self.elements)
            if name == tag and attributes.items() <= given.items()
        ]


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    """The page of evaluations alone; drawing its charts takes most of a second."""
    return render(read_sources([write_evaluations(tmp_path_factory.mktemp("plain") / "run")]))


def whole_page(folder):
    """The page of a grid and analyses."""
    return render(read_sources([write_grid(folder / "grid"), write_analyses(folder / "made")]))


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return whole_page(tmp_path_factory.mktemp("whole"))


def test_evaluations_alone_are_paired_here(tmp_path):
    found = read_sources([write_evaluations(tmp_path / "run")])
    assert {row.arm for row in found.rows} == set(ARMS)
    change = next(row.asr_change for row in found.rows if row.arm == "mb_defense")
    assert (change.only_before, change.only_after, change.n) == (17, 0, 20)
    # Holm over all tests of the page: 4 arms, 2 figures.
    assert change.p_holm > change.p_value


def test_a_result_of_compare_stands_once_and_keeps_its_changes(tmp_path):
    run = write_evaluations(tmp_path / "run")
    assert main(["compare", *(str(run / name) for name in ARMS), "--output_dir", str(tmp_path / "compared")]) == 0
    together, alone = read_sources([run, tmp_path / "compared"]), read_sources([run])
    assert len(together.rows) == len(ARMS)
    assert {row.arm: row.asr_change for row in together.rows} == {row.arm: row.asr_change for row in alone.rows}


def test_responses_below_a_demos_result_find_their_rows(tmp_path):
    run = write_evaluations(tmp_path / "runs")
    assert main(["compare", *(str(run / name) for name in ARMS), "--output_dir", str(tmp_path / "demo")]) == 0
    run.rename(tmp_path / "demo" / "responses")
    for path in (tmp_path / "demo" / "responses").glob("*/results.json"):
        path.unlink()
    found = read_sources([tmp_path / "demo"])
    assert [one.row.arm for one in found.answers] == [row.arm for row in found.rows]


def test_responses_without_a_row_are_named_not_shown(tmp_path):
    run = write_evaluations(tmp_path / "run")
    (run / "crow" / "results.json").unlink()
    (run / "base" / "verdicts.jsonl").unlink()
    found = read_sources([run])
    assert len(found.answers) == len(ARMS) - 2
    assert "run/base are not judged" in found.notes[0]
    assert "run/crow belong to no result row" in found.notes[1]


def test_contradicting_results_are_refused(tmp_path):
    write_evaluation(tmp_path / "run" / "a", arm("mb_defense", shows=1))
    write_evaluation(tmp_path / "run" / "b", arm("mb_defense", shows=9))
    with pytest.raises(UserError, match=r"other figures: run/a/results.json and run/b/results.json.*--arm"):
        read_sources([tmp_path / "run"])


def test_verdicts_of_other_responses_are_refused(tmp_path):
    run = write_evaluations(tmp_path / "run")
    (run / "crow" / "verdicts.jsonl").write_bytes((run / "base" / "verdicts.jsonl").read_bytes())
    with pytest.raises(UserError, match=r"not the verdicts\.jsonl that results\.json"):
        read_sources([run])


@pytest.mark.parametrize(
    ("name", "damage", "said"),
    [
        (
            "grid.json",
            {"schema": 1, "config": {}, "provenance": {}, "cells": [{"id": 3}]},
            r"grid.json: cells.0.id: Input should be a ",
        ),
        ("matrix.json", {"schema": 2}, r"matrix.json: schema: "),
        ("heads.json", {"schema": 1, "alpha": "0.5"}, r"heads.json: "),
        ("triggers.json", [], r"not a JSON object: .*triggers.json"),
    ],
)
def test_damaged_files_are_named(tmp_path, name, damage, said):
    (tmp_path / name).write_text(json.dumps(damage), encoding="utf-8")
    with pytest.raises(UserError, match=said):
        read_sources([tmp_path])


def test_an_empty_or_missing_folder_is_refused(tmp_path):
    with pytest.raises(UserError, match="nothing to report"):
        read_sources([tmp_path])
    with pytest.raises(UserError, match="no such folder"):
        read_sources([tmp_path / "none"])


def test_folders_of_one_name_are_told_apart_and_none_counts_twice(tmp_path):
    first = write_analyses(tmp_path / "a" / "run")
    second = write_evaluations(tmp_path / "b" / "run")
    names = {one.path.rsplit("/", 1)[0] for one in read_sources([first, second]).files}
    assert {"a/run", "a/run/model", "b/run/crow"} <= names
    for other in (second, second / "crow"):
        with pytest.raises(UserError, match="given twice or lies in another"):
            read_sources([second, other])


def test_of_a_grid_only_its_own_cells_and_stages_are_read(tmp_path):
    run = write_grid(tmp_path / "grid")
    # What a grid of other options has left behind, and what a grid keeps for itself.
    write_evaluation(
        run / "cells" / "mb_defense-before", arm("mb_defense", base_model="tiny", poisoning_rate=0.1, shows=9)
    )
    (write_evaluation(run / "answers" / "0a", arm("crow")) / "verdicts.jsonl").unlink()
    (run / "answers" / "0a" / "results.json").unlink()
    write_analyses(run / "stages")
    found = read_sources([run])
    assert found.notes == ()
    assert found.logs == ()
    assert len(found.rows) == len(found.answers) == 2 * len(ARMS)


def test_links_are_not_followed(tmp_path):
    write_evaluations(tmp_path / "elsewhere")
    run = tmp_path / "run"
    run.mkdir()
    (run / "link").symlink_to(tmp_path / "elsewhere")
    (run / "results.json").symlink_to(tmp_path / "elsewhere" / "crow" / "results.json")
    with pytest.raises(UserError, match="nothing to report"):
        read_sources([run])


def test_the_table_has_attacks_across_and_arms_down(tmp_path):
    unfinished = (("failed", "out of memory"), ("pending", ""))
    (block,) = blocks(read_sources([write_grid(tmp_path / "grid", unfinished=unfinished[:1])]))
    assert [column.attack for column in block.columns] == ["badnet:word=cf", "insent:sentence=Hi."]
    assert [column.verdict for column in block.columns] == ["attack landed", "not discriminating"]
    assert [line.arm for line in block.lines] == [*ARMS, "lethe"]
    assert [line.role for line in block.lines][:4] == ["control", "control", "attacked", "defense"]
    by_arm = {line.arm: line.cells for line in block.lines}
    assert [cell.verdict for cell in by_arm["mb_defense"]] == ["ASR lower", "not discriminating"]
    assert by_arm["mb_defense"][0].asr.value == ".05"
    assert by_arm["mb_defense"][0].asr.interval.endswith("n=20")
    assert "p < .001" in by_arm["mb_defense"][0].asr.change
    assert (by_arm["lethe"][0].status, by_arm["lethe"][0].reason) == ("failed", "out of memory")
    assert by_arm["lethe"][1].status == "absent"
    assert by_arm["lethe"][0].asr is None


def test_models_rates_and_judges_get_tables_of_their_own(tmp_path):
    for number, more in enumerate(
        ({"base_model": "a"}, {"base_model": "b"}, {"base_model": "b", "poisoning_rate": 0.1})
    ):
        for name in ARMS:
            write_evaluation(tmp_path / "run" / f"{number}-{name}", arm(name, **more))
    titles = [block.title for block in blocks(read_sources([tmp_path / "run"]))]
    assert titles == ["a", "b", "b, poisoning rate 0.1"]


def test_seeds_have_their_lines_and_a_mean(tmp_path):
    (block,) = blocks(read_sources([write_grid(tmp_path / "grid", attacks=("cf",), seeds=(0, 1))]))
    lines = [(line.seed, line.mean) for line in block.lines if line.arm == "mb_defense"]
    assert lines == [("mean of 2", True), ("0", False), ("1", False)]
    mean = next(line for line in block.lines if line.arm == "mb_defense")
    assert mean.cells[0].asr.score.seeds == (0, 1)
    assert mean.cells[0].verdict == "ASR lower"
    assert mean.cells[0].asr.interval.endswith("n=20, 2 seeds")


def test_a_mean_says_which_seeds_failed(tmp_path):
    grid = write_grid(tmp_path / "grid", attacks=("cf",), seeds=(0, 1))
    value = read_sealed(grid / "grid.json")
    cell = next(cell for cell in value["cells"] if cell["arm"] == "crow")
    value["cells"].append({**cell, "id": "lost", "seed": 2, "status": "failed", "reason": "out of memory"})
    write_sealed(grid / "grid.json", value)
    (block,) = blocks(read_sources([grid]))
    mean, *singles = [line.cells[0] for line in block.lines if line.arm == "crow"]
    assert mean.reason == "1 of 3 seeds failed: out of memory"
    assert [cell.status for cell in singles] == ["done", "done", "failed"]


def test_a_mean_is_over_all_seeds_of_all_folders(tmp_path):
    runs = [write_grid(tmp_path / name, attacks=("cf",), seeds=seeds) for name, seeds in (("a", (0, 1)), ("b", (2, 3)))]
    found = read_sources(runs)
    (block,) = blocks(found)
    assert next(line.seed for line in block.lines if line.arm == "crow") == "mean of 4"
    assert {one.score.seeds for one in found.over_seeds} == {(0, 1, 2, 3)}
    assert len(found.over_seeds) == len(ARMS) * 2
    # What a run that was killed has made since the means were written.
    for name in ARMS:
        write_evaluation(runs[0] / "x" / name, arm(name, "cf", seed=2, base_model="tiny", poisoning_rate=0.1))
    assert {one.score.seeds for one in read_sources(runs[:1]).over_seeds} == {(0, 1, 2)}
    # Without the responses of all seeds there is no mean of them.
    for file in runs[1].glob("cells/*/verdicts.jsonl"):
        file.unlink()
    found = read_sources([*runs[1:], write_grid(tmp_path / "c", attacks=("cf",), seeds=(4, 5))])
    assert found.over_seeds == ()
    assert any("crow under cf has no mean over the seeds 2, 3, 4, 5: the responses" in note for note in found.notes)


def test_a_cell_that_has_a_result_since_is_not_told_as_failed(tmp_path):
    run = write_grid(tmp_path / "grid", attacks=("cf",), unfinished=(("failed", "out of memory"), ("pending", "")))
    assert [cell.status for cell in read_sources([run]).unfinished] == ["failed", "pending"]
    made = arm("lethe", "cf", shows=3, right=10, base_model="tiny", poisoning_rate=0.1)
    write_evaluation(run / "cells" / "lethe-failed", made)
    found = read_sources([run])
    assert found.unfinished == ()
    assert not any("grid's cells" in point for point in summarize(found).points)


def test_where_a_model_lies_is_not_told(tmp_path):
    for name in ARMS:
        write_evaluation(tmp_path / "run" / name, arm(name, base_model="/home/someone/models/tiny"))
        write_evaluation(tmp_path / "run" / f"{name}-2", arm(name, "vpi", base_model="/home/someone/models/tiny"))
    text = render(read_sources([tmp_path / "run"]))
    assert "seed 0, tiny: mb_defense: ASR from" in text
    assert "/home/someone" not in text


def test_the_headline_claims_what_the_tests_show(tmp_path):
    found = summarize(read_sources([write_grid(tmp_path / "grid")]))
    assert found.headline == (
        "mb_defense (to .05) lowers the attack success rate where the attack landed, with no loss of CACC shown."
    )
    assert "it landed in 1; it did not land in 1 (not discriminating" in found.points[0]
    assert any(point.startswith("crow lowered the ASR in 0 of 1 setting") for point in found.points)
    assert any("CACC .15, beyond chance lower in 2 of 2" in point for point in found.points)


def test_a_failed_cell_takes_everywhere_from_a_defense(tmp_path):
    run = write_evaluations(tmp_path / "run")
    for name in ("base", "clean", "attacked", "crow"):
        write_evaluation(run / f"other-{name}", arm(name, "vpi"))
    found = summarize(read_sources([run]))
    assert found.headline == "No defense lowered the ASR everywhere; mb_defense did in 1 of 2 settings."
    assert "mb_defense lowered the ASR in 1 of 2 settings where the attack landed (1 not measured)" in found.points[1]


def test_a_page_without_the_texts_has_all_figures(tmp_path):
    grid, page = write_grid(tmp_path / "grid"), tmp_path / "page.html"
    assert main(["report", str(grid), "--output", str(page)]) == 0
    whole = page.read_text()
    assert main(["report", str(grid), "--output", str(page), "--responses", "false"]) == 0
    bare = page.read_text()
    for text in ("I cannot help.", "What is 3?", "reference 3"):
        assert text in whole
        assert text not in bare
    assert "prompts and responses were left out" in bare
    assert "lowers the attack success rate" in bare


def test_where_nothing_was_right_no_loss_of_accuracy_is_ruled_out(tmp_path):
    nothing_right = {name: {"right": 0} for name in ARMS}
    found = summarize(read_sources([write_evaluations(tmp_path / "run", **nothing_right)]))
    assert found.headline == "mb_defense (to .05) lowers the attack success rate where the attack landed."
    assert not any("no loss shown" in point for point in found.points)
    assert any("In 1 of 1 setting the undefended model answered no prompt right" in point for point in found.points)


@pytest.mark.parametrize(
    ("arms", "said"),
    [
        ({"base": {}, "attacked": {"shows": 0}, "mb_defense": {}}, "Not discriminating: no attack landed"),
        ({"base": {}, "clean": {}, "attacked": {}}, "The attack landed in 1 of 1 setting; no defense was measured."),
        ({"mb_defense": {}}, "Nothing can be said about a defense"),
        ({"base": {}, "attacked": {}, "crow": {}}, "No defense is shown to lower the attack success rate."),
    ],
)
def test_what_cannot_be_claimed_is_not(tmp_path, arms, said):
    for name, more in arms.items():
        write_evaluation(tmp_path / "run" / name, arm(name, **more))
    assert summarize(read_sources([tmp_path / "run"])).headline.startswith(said)


def test_sections_without_data_are_left_out_and_named(plain):
    page = Page(plain)
    assert {"results", "tradeoff", "cost", "responses"} <= set(page.ids)
    assert not {"matrix", "heads", "triggers", "training", "comparison"} & set(page.ids)
    (footer,) = page.text_of("footer")
    assert "Not in these files: triggers found in the data (defend), accuracy on each skill" in footer
    assert "of the test prompts (bench), a comparison of two runs (--compare), " in footer


def test_what_each_source_of_prompts_shows_has_a_table_for_each_attack(tmp_path):
    """Which skills a defense keeps: an arm without a source, and a hostile name, are shown as they are."""
    for number, attack in enumerate(("badnet:word=cf", "syntactic")):
        for name, sources in (("crow", {"sums": 1, HOSTILE[0]: 2}), ("attacked", {"sums": 3})):
            by_source = tuple(SourceScore(source, rate([True] * right + [False])) for source, right in sources.items())
            write_evaluation(tmp_path / f"{name}-{number}", arm(name, attack, cacc_by_source=by_source))
    text = render(read_sources([tmp_path]))
    first, second = source_tables(read_sources([tmp_path]).rows)
    assert (first.caption, second.caption) == ("badnet:word=cf, refusal, seed 0", "syntactic, refusal, seed 0")
    assert first.header == ("Arm", HOSTILE[0], "sums")
    assert first.body == (
        ("attacked", "-", ".75 [.30, .95] n=4"), ("crow", ".67 [.21, .94] n=3", ".50 [.09, .91] n=2"),
    )  # fmt: skip
    assert ("table", "sources-2") in [(tag, given.get("id")) for tag, given in Page(text).elements]
    assert HOSTILE[0] not in text


def test_a_page_of_canaries_alone_does_not_say_that_nothing_was_measured(tmp_path):
    for name in ("attacked", "crow"):
        write_evaluation(tmp_path / name, arm(name, "canary badnet:word=cf", origin="canary"))
    (headline,) = Page(render(read_sources([tmp_path]))).text_of("h1")
    assert headline == "No attack was measured in these files, but canaries were."


def test_analyses_and_logs_are_shown(tmp_path):
    text = render(read_sources([write_analyses(tmp_path / "made")]))
    page = Page(text)
    assert {"matrix", "heads", "triggers", "traces", "relearning", "training", "pictures", "losses"} <= set(page.ids)
    assert "Layer 15: oddity" in text
    assert re.search(r"4 poisoned of 64.*<td>\.80 \[\.70, \.90\] n=10</td>", text, re.DOTALL)
    assert "results" not in page.ids
    assert page.text_of("h1") == ["No attack was measured in these files."]
    assert len(page.ids) == len(set(page.ids))
    assert "the models also differ in lora_r" in text
    # A loss that was no number is counted, not drawn.
    assert re.search(r"<td>2\.500</td><td>2\.500</td><td>2\.000</td><td>1\.500</td><td>1</td><td>-</td>", text)


def test_pictures_are_made_of_their_pixels_alone(tmp_path):
    made = write_analyses(tmp_path / "made")
    whole = read_sealed(made / "pictures.json")
    whole["rows"][0]["name"] = whole["title"] = '"><img src=x onerror=alert(1)>'
    write_sealed(made / "pictures.json", whole)
    page = Page(render(read_sources([made])))
    images = [given for tag, given in page.elements if tag == "img"]
    hostile = '"><img src=x onerror=alert(1)>'
    assert [given["alt"] for given in images] == [f"{hostile}, 1", f"{hostile}, 2", "retrieved, 1"]
    assert not [given for given in images if "onerror" in given]
    files = [base64.b64decode(given["src"].removeprefix("data:image/png;base64,"), validate=True) for given in images]
    seen = [Image.open(io.BytesIO(file)) for file in files]
    assert [image.mode for image in seen] == ["L", "L", "RGB"]
    assert [image.tobytes() for image in seen] == [bytes(range(4)), bytes(range(4)), bytes(range(12))]
    (policy,) = [given["content"] for _, given in page.elements if given.get("http-equiv") == "Content-Security-Policy"]
    assert "img-src data:;" in policy


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"pixels": "AAAA"}, "more or fewer pixels"),
        ({"pixels": '"><script>'}, "no Base64"),
        ({"side": 65}, "less than or equal to 64"),
        ({"channels": 4}, "1 or 3"),
        ({"src": "http://elsewhere/x.png", "pixels": None}, "valid string"),
    ],
)
def test_what_are_no_pixels_is_refused(tmp_path, change, says):
    made = write_analyses(tmp_path / "made")
    whole = read_sealed(made / "pictures.json")
    whole["rows"][0]["pictures"][0] |= change
    write_sealed(made / "pictures.json", whole)
    with pytest.raises(UserError, match=says):
        read_sources([made])


def test_a_file_has_no_more_pictures_than_a_page_can_show(tmp_path):
    made = write_analyses(tmp_path / "made")
    whole = read_sealed(made / "pictures.json")
    whole["rows"] *= 100
    write_sealed(made / "pictures.json", whole)
    with pytest.raises(UserError, match="more than 240 pictures"):
        read_sources([made])


def test_clients_who_train_together_are_shown(tmp_path):
    sources = read_sources([write_federation(tmp_path / "run")])
    text = render(sources)
    page = Page(text)
    assert page.text_of("h1") == ["Clients who train together: 2 rules of aggregation, 1 attack by clients, 2 seeds."]
    assert "scaling: backdoor accuracy mean .88, mars .12." in text
    assert "clients" in page.ids
    assert "mean .00 .88 .88; mars .00 .12 .12. Accuracy after each round: mean .50 .50; mars" in text  # in words
    assert re.search(
        r"scaling</[^>]*>\s*<td[^>]*>mars</td>\s*<td[^>]*>1</td>\s*<td[^>]*>0</td>\s*<td[^>]*>0; 0\*<", text
    )
    assert len(page.ids) == len(set(page.ids))
    assert "run/cells/cell-mars-1------.json" in {one.path for one in sources.files}
    assert "| scaling | mars |" in markdown(sources)
    assert json.loads(as_json(sources))["federated"]["run"]["figures"][1]["rule"] == "mars"
    both = Page(render(read_sources([write_evaluations(tmp_path / "other"), tmp_path / "run"])))
    assert {"results", "clients"} <= set(both.ids)
    assert "Clients who train together" not in both.text_of("h1")[0]


def test_hostile_clients_files_are_text_or_refused(tmp_path):
    page = Page(render(read_sources([write_federation(tmp_path / "run", attack=HOSTILE[1])])))
    assert not [tag for tag, _ in page.elements if tag == "img"]
    write_federation(tmp_path / "other", names=["../../run/federated.json"])
    with pytest.raises(UserError, match="outside of its folder"):
        read_sources([tmp_path / "other"])
    write_federation(tmp_path / "third", names=["gone.json"])
    with pytest.raises(UserError, match=r"gone\.json"):
        read_sources([tmp_path / "third"])


def test_trainings_of_unlike_precision_are_told_apart(tmp_path):
    logs = {}
    for name, bf16 in (("one", True), ("other", False)):
        made = write_analyses(tmp_path / name / "made")
        log = next(made.rglob("training_log.json"))
        write_sealed(log, {**read_sealed(log), "bf16": bf16})
        logs[name] = made
    text = render(read_sources(list(logs.values())))
    assert "<td>bfloat16</td>" in text
    assert "<td>float32</td>" in text
    warning = "Some computed in bfloat16 and some in float32"
    assert warning in text
    assert warning not in render(read_sources([logs["one"]]))


def test_the_page_names_processor_and_gpus(whole):
    assert "x86_64, Some CPU 9000, Some GPU 5, Some GPU 5, 2 CPU cores, Python 3.12" in whole


def test_charts_are_text_with_titles_and_no_style_of_their_own(whole):
    page = Page(whole)
    assert not [tag for tag, given in page.elements if "style" in given]
    assert [tag for tag, _ in page.elements].count("style") == 1
    pictures = [given for tag, given in page.elements if tag == "svg" and given.get("role") == "img"]
    assert len(pictures) >= 6
    for given in pictures:
        assert all(name in page.ids for name in given["aria-labelledby"].split())
    assert not [tag for tag, _ in page.elements if tag == "image"]
    assert ">CACC (higher is better)</text>" in whole


def test_the_policy_allows_only_what_stands_in_the_page(plain):
    page = Page(plain)
    (policy,) = [
        given["content"] for tag, given in page.elements if given.get("http-equiv") == "Content-Security-Policy"
    ]
    parts = dict(part.strip().split(" ", 1) for part in policy.split(";"))
    assert parts["default-src"] == "'none'"
    assert "unsafe" not in policy
    data = page.text_of("script", type="application/json")
    scripts = [text for text in page.text_of("script") if text not in data]
    for name, texts in (("script-src", scripts), ("style-src", page.text_of("style"))):
        hashes = [f"'sha256-{base64.b64encode(hashlib.sha256(t.encode()).digest()).decode()}'" for t in texts]
        assert parts[name].split() == hashes
    assert not [given for _, given in page.elements if given.get("src") or given.get("href", "#")[0] != "#"]


def test_nothing_hostile_becomes_an_element(tmp_path, plain):
    evil = '"><img src=x onerror=alert(1)></td></table><script>alert(2)</script>{{ 7 * 7 }}\u202e\x1b[31m'
    run = tmp_path / "run"
    for name in ARMS:
        attacked = arm(name, evil, evil, texts=HOSTILE, base_model=evil)
        row = replace(attacked[0], arm=evil if name == "crow" else name, model=evil)
        write_evaluation(run / name, (row, *attacked[1:]))
    grid = read_sealed(write_grid(tmp_path / "g", unfinished=(("failed", evil),)) / "grid.json")
    grid["cells"] = [{**cell, "model": evil, "attack": evil} for cell in grid["cells"] if cell["status"] == "failed"]
    grid["config"] = {evil: evil}
    write_sealed(run / "grid.json", grid)
    text = render(read_sources([run]))
    page = Page(text)
    kinds = {tag for tag, _ in page.elements}
    assert kinds - {tag for tag, _ in Page(plain).elements} <= {"h3"}
    assert "img" not in kinds
    assert len(page.text_of("script")) == 3
    assert "{{ 7 * 7 }}" in text
    assert "49" not in page.text_of("h1")[0]
    assert not set("\u202e\x1b") & set(re.sub(r"<script.*?</script>", "", text, flags=re.DOTALL))
    (data,) = page.text_of("script", type="application/json")
    assert not set("<>&\u2028\u2029") & set(data)
    assert set(HOSTILE) <= set(json.loads(data)["texts"])


def test_the_browser_holds_each_text_once(tmp_path):
    found = read_sources([write_grid(tmp_path / "grid")])
    data = browser_data(found.answers)
    assert len(data["texts"]) == len(set(data["texts"]))
    assert data["arms"] == list(ARMS)
    assert data["settings"] == ["badnet:word=cf, refusal", "insent:sentence=Hi., refusal"]
    assert len(data["prompts"]) == 2 * 40
    setting, kind, prompt, _, answers = data["prompts"][0]
    assert (setting, kind, data["texts"][prompt]) == (0, 0, "What is 0? cf")
    shown = {data["arms"][one[0]]: (data["texts"][one[1]], one[2], one[3]) for one in answers}
    assert shown["attacked"] == ("I cannot help.", 1, 0)
    assert shown["base"] == ("answer 0", 0, 1)


def test_equal_files_give_equal_pages(tmp_path, whole):
    assert whole_page(tmp_path) == whole


def test_a_grids_page_is_small(tmp_path):
    assert len(render(read_sources([write_grid(tmp_path / "grid")])).encode()) < 500_000


def test_two_runs_are_paired_on_the_same_prompts(tmp_path):
    first = write_evaluations(tmp_path / "first")
    second = write_evaluations(tmp_path / "second", mb_defense={"shows": 9})
    found = differences(first, second)
    assert (found.first, found.second) == ("first", "second")
    by_arm = {one.first.arm: one for one in found.cells}
    assert by_arm["mb_defense"].asr.difference == pytest.approx(0.4)
    assert by_arm["mb_defense"].asr.p_value == pytest.approx(2 * 0.5**8)
    assert by_arm["mb_defense"].asr.p_holm == pytest.approx(10 * 2 * 0.5**8)
    assert by_arm["crow"].asr.p_value == 1
    text = render(read_sources([second]), found)
    assert "first against second" in text
    assert "first against second" in markdown(read_sources([second]), found)


def test_a_control_with_options_has_its_look_and_what_could_not_be_paired_is_said(tmp_path):
    write_evaluations(tmp_path)
    write_evaluation(tmp_path / "discard", arm("discard:discard_num_train_epochs=2"))
    assert "discard:discard_num_train_epochs=2" in render(read_sources([tmp_path]))
    row, responses, verdicts = arm("lethe")
    others = [replace(one, prompt=f"{one.prompt} now") for one in responses]
    write_evaluation(tmp_path / "lethe", (row, others, verdicts))
    sources = read_sources([tmp_path])
    for page in (render(sources), markdown(sources)):
        assert "could not be compared prompt by prompt" in page
        assert "the arms do not belong together." in page
    verdicts = {row["arm"]: row["verdict"] for row in json.loads(as_json(sources))["rows"]}
    assert (verdicts["lethe"], verdicts["crow"]) == ("not compared", "not compared")
    assert verdicts["attacked"] == "attack landed"


def test_one_folder_given_alone_is_a_path_and_not_letters(tmp_path):
    run = write_evaluations(tmp_path / "run")
    alone, listed = (
        write_report(given, output=str(tmp_path / "page.html"), format="json") for given in (run, [str(run)])
    )
    assert alone == listed
    with pytest.raises(UserError, match="compare takes two folders"):
        write_report(run, output=str(tmp_path / "page.html"), compare="ab")


def test_cells_that_cannot_be_paired_say_why(tmp_path):
    first, second = write_evaluations(tmp_path / "first"), write_evaluations(tmp_path / "second")
    for path in (second / "base").glob("*.jsonl"):
        path.unlink()
    write_evaluation(second / "more", arm("lethe"))
    for folder, length in ((first, 9), (second, 10)):  # what is cut off shows no behavior
        made = arm("long")
        write_evaluation(folder / "long", (replace(made[0], max_new_tokens=length), *made[1:]))
    found = differences(first, second)
    assert "answers of at most" in next(one for one in found.cells if one.first.arm == "long").note
    assert next(one for one in found.cells if one.first.arm == "base").note == "no responses of both to pair"
    assert [row.arm for row in found.only_second] == ["lethe"]
    with pytest.raises(UserError, match="no result in common"):
        differences(first, second / "more")


def test_csv_has_the_figures_and_no_formulas(tmp_path):
    run = write_grid(tmp_path / "grid", unfinished=(("failed", "=HYPERLINK(1)"),))
    lines = list(csv.DictReader(io.StringIO(comma_separated(read_sources([run])))))
    assert len(lines) == 2 * len(ARMS) + 1
    line = next(line for line in lines if line["arm"] == "mb_defense")
    assert (line["asr"], line["asr_n"], line["verdict"], line["status"]) == ("0.05", "20", "ASR lower", "done")
    assert (lines[-1]["status"], lines[-1]["reason"], lines[-1]["asr"]) == ("failed", "'=HYPERLINK(1)", "")
    with pytest.raises(UserError, match="one table"):
        written("csv", read_sources([run]), differences(run, run))


def test_markdown_and_json_have_the_same_figures(tmp_path):
    found = read_sources([write_grid(tmp_path / "grid", unfinished=(("failed", "no | space"),))])
    text, value = markdown(found), json.loads(as_json(found))
    assert value["headline"] in text
    assert r"failed: no \| space" in text
    assert r".05 \[.01, .24\] n=20" in text
    row = next(row for row in value["rows"] if row["arm"] == "mb_defense")
    assert (row["asr"]["value"], row["verdict"]) == (0.05, "ASR lower")
    assert value["unfinished"][0]["reason"] == "no | space"
    assert all(re.fullmatch("[0-9a-f]{64}", one["sha256"]) for one in value["files"])


def test_the_command_writes_every_form(tmp_path, capsys):
    run = str(write_evaluations(tmp_path / "run"))
    for form in ("html", "md", "csv", "json"):
        assert main(["report", run, "--output", str(tmp_path / f"out.{form}"), "--format", form]) == 0
        assert (tmp_path / f"out.{form}").stat().st_size > 500
    assert "mb_defense (to .05) lowers the attack success rate" in capsys.readouterr().out
    assert main(["report", run, "--output", str(tmp_path / "x.html"), "--compare", run]) == 1
    assert "compare takes two folders" in capsys.readouterr().err
    assert main(["report", run, "--output", str(tmp_path / "c.html"), "--compare", run, run]) == 0


@pytest.mark.slow
def test_the_report_needs_no_torch(tmp_path):
    run = write_evaluations(tmp_path / "run")
    code = (
        "import sys; from mbdefense.cli import main; "
        f"assert main(['report', {str(run)!r}, '--output', {str(tmp_path / 'page.html')!r}]) == 0; "
        "print(*{'torch', 'transformers', 'datasets'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == ""
