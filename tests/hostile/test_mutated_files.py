"""Every form of file that the package reads back, damaged in every way: refused in one line, or read as before."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import pytest

from mbdefense import check, compare, judge
from mbdefense.analysis import relearning
from mbdefense.attacks.search import Step, _read_log
from mbdefense.cli import main
from mbdefense.core._seal import SEAL, digest
from mbdefense.core.errors import UserError
from mbdefense.core.files import _told, sha256_of, write_sealed
from mbdefense.defenses.found import Finding, meetings
from mbdefense.evaluation.agreement import read_labels
from mbdefense.evaluation.compare import read_arm
from mbdefense.evaluation.gate import pinned
from mbdefense.evaluation.responding import Asking
from mbdefense.finding.record import FOUND_FILE, read_found, write_found
from mbdefense.grid.answers import Answers
from mbdefense.grid.config import read_grid
from mbdefense.grid.plan import cell_facts
from mbdefense.grid.workspace import _keep, _read
from mbdefense.models.identity import identity
from mbdefense.recipes.measuring.card import write_card
from mbdefense.records.filtering import Suspicion, read_suspicions, write_filtering
from mbdefense.records.release import pin
from mbdefense.records.responses import Response, write_responses
from mbdefense.records.results import Results, write, write_beside
from mbdefense.records.verdicts import write_verdicts
from mbdefense.report.formats import markdown
from mbdefense.report.sources import read_sources
from mbdefense.training.job import Job, Model
from mbdefense.training.options import TrainingOptions
from mbdefense.training.store import cost_of, train_into
from mbdefense.vision.classifier import Classifier, Guard
from mbdefense.vision.learner import Learner
from mbdefense.vision.pairs.clip import load_clip, new_clip, save_clip
from mbdefense.vision.record import Training, files_of, read_training, write_training
from tests.finding.test_found_record import CANDIDATE, FOUND
from tests.hostile.mutating import mutated, resealed, tree
from tests.report.report_runs import PROVENANCE, arm, write_analyses, write_evaluation, write_federation, write_grid

NO_JOB: Any = SimpleNamespace(words=str)
ARMS = ("base", "attacked", "mb_defense")


class Form(NamedTuple):
    """A form of file.

    Attributes:
        write: makes valid ones in a folder, by the package's own writers.
        files: which of the folder's files are damaged.
        read: reads them as a command does; returns the figures.
        ours: False for files that users write, in which another figure is another wish.
    """

    write: Callable[[Path], object]
    files: str
    read: Callable[[Path], object]
    ours: bool = True


def evaluations(folder: Path) -> list[str]:
    return [str(write_evaluation(folder / name, arm(name))) for name in ARMS]


def judged(folder: Path, **options: Any) -> object:
    done = judge(folder / "attacked" / "responses.jsonl", behavior="refusal", **options)
    return done.results.rows, done.verdicts


def reported(folder: Path) -> object:
    found = read_sources([folder])
    markdown(found)
    # All figures, of whatever kind of file; the rest says where they are from.
    return {name: value for name, value in vars(found).items() if name not in ("provenance", "files", "notes")}


def write_defended(folder: Path) -> None:
    (folder / "defended").mkdir(parents=True)
    origin = {**PROVENANCE, "config": {"base": "base", "defense": "mb_defense", "lora_r": 8}}
    write(folder / "defended" / "results.json", Results(origin, (arm("mb_defense")[0],)))
    write_evaluation(folder / "measured", arm("mb_defense"))


def federation(folder: Path) -> object:
    (one,) = read_sources([folder]).federated
    return one.results, one.cells


def write_triggers(folder: Path) -> None:
    folder.mkdir()
    chance = replace(CANDIDATE, texts=("the",), verdict="chance", p_value=0.9, behavior=(), asr=None)
    write_found(folder / FOUND_FILE, replace(FOUND, candidates=(CANDIDATE, chance)))


def taken_triggers(folder: Path) -> object:
    Finding(found=str(folder / FOUND_FILE))
    found = read_found(folder / FOUND_FILE)
    meetings(found, 0)
    return found


def write_model(folder: Path) -> None:
    folder.mkdir()
    (folder / "model.safetensors").write_bytes(b"weights" * 20)
    (folder / "config.json").write_text('{"hidden_size": 32}')
    files = {name: sha256_of(folder / name) for name in ("model.safetensors", "config.json")}
    write_sealed(
        folder / "mbdefense.json", {"inputs_hash": "key", "files": files, "seconds": 3.5, "peak_bytes": 7 << 30}
    )


def taken_model(folder: Path) -> object:
    return train_into(folder, NO_JOB, "key", resume=True).name, identity(str(folder)), cost_of(folder)


def write_cell(folder: Path) -> None:
    row, responses, verdicts = arm("attacked")
    folder.mkdir()
    write_responses(folder / "responses.jsonl", responses)
    write_verdicts(folder / "verdicts.jsonl", verdicts)
    write_sealed(folder / "cell.json", {"stages": ["attacked-0"], "seconds": 90.0, "peak_bytes": 3 << 30})
    write_beside(folder, Results(PROVENANCE, (row,)), ("responses.jsonl", "verdicts.jsonl", "cell.json"))


def write_answers(folder: Path) -> None:
    place = folder / "answers" / "x"
    place.mkdir(parents=True)
    write_responses(place / "responses.jsonl", arm("attacked")[1])
    fluency = {"value": 8.5, "n": 512, "references": 4}
    digest_of = sha256_of(place / "responses.jsonl")
    write_sealed(place / "answers.json", {"perplexity": fluency, "seconds": 1.5, "responses_sha256": digest_of})


def taken_answers(folder: Path) -> object:
    workspace: Any = SimpleNamespace(out=folder)
    return Answers("x", "clean", "prompts").read(workspace)


ASKED = {"model": "m", "words": 1, "seed": 0, "prompts": [], "targets": ["no"]}


def write_log(folder: Path) -> None:
    folder.mkdir()
    steps = [asdict(Step(number, word, 3.0 - number, word, 3.0 - number)) for number, word in enumerate(("ab", "cd"))]
    lines = [{**ASKED, SEAL: digest([ASKED, steps])}, *steps]
    (folder / "search.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def write_wishes(folder: Path) -> None:
    folder.mkdir()
    grid = {
        "models": ["builtin"], "attacks": ["badnet:word=cf", "insent"], "behaviors": ["refusal"],
        "defenses": ["mb_defense:min_defensive_rows=1", "demonstrations:4"], "rates": [0.1], "seeds": [0, 1],
        "data": {"train_rows": 24, "on_bad_row": "skip"}, "training": {"max_length": 192, "learning_rate": 3e-4},
        "evaluation": {"max_new_tokens": 2, "judge": "keywords"},
    }  # fmt: skip
    (folder / "grid.yaml").write_text(json.dumps(grid))


def write_limits(folder: Path) -> None:
    write(folder.parent / "limited.json", Results(PROVENANCE, (arm("mb_defense")[0],)))
    folder.mkdir()
    (folder / "check.yaml").write_text(json.dumps({"max_asr": 0.9, "min_cacc": 0.1, "arm": "mb_defense"}))


def held(folder: Path) -> object:
    code = main(["check", str(folder.parent / "limited.json"), "--config", str(folder / "check.yaml")])
    if code == 2:
        raise UserError("usage")
    return code


def write_pins(folder: Path) -> None:
    write_defended(folder)
    (folder / "rows.jsonl").write_text('{"prompt": "a", "completion": "b"}\n')
    write_model(folder / "model")
    pin(
        folder / "pins.json", results=folder / "measured" / "results.json", data=[folder / "rows.jsonl"],
        model=folder / "model",
    )  # fmt: skip


def as_pinned(folder: Path) -> object:
    conditions = pinned(folder / "pins.json", folder / "measured" / "results.json")
    if not all(one.holds for one in conditions):
        raise UserError(conditions[0].reason)
    return conditions


def trained_beside(folder: Path) -> None:
    record = Training(1, 3, 2.5, 1 << 30, {"found": ["a"]}, PROVENANCE, "inputs", files_of(folder))
    write_training(folder, record)


def write_classifier(folder: Path) -> None:
    learner = Learner(8, 3)
    Classifier(learner, learner.initial(0), Guard(2, 2.0, 3)).save(folder)
    trained_beside(folder)


def write_clip(folder: Path) -> None:
    save_clip(new_clip(8, ("a red box", "a blue ball"), 0), folder)
    trained_beside(folder)


def weighed(folder: Path, weights: Any) -> object:
    """A model by what its weights say, and how it was made."""
    values = sorted((name, float(value.double().abs().sum()), tuple(value.shape)) for name, value in weights.items())
    return values, read_training(folder)


def taken_classifier(folder: Path) -> object:
    made = Classifier.load(folder)
    return made.learner, made.guard, weighed(folder, made.weights)


def taken_clip(folder: Path) -> object:
    made: Any = load_clip(folder)
    return made.vocabulary, made.size, weighed(folder, made.state_dict())


@pytest.fixture
def forms(fake_judge: Any, rows: Callable[..., Any]) -> dict[str, Form]:
    asked = {"judge": "llm", "judge_model": "m", "judge_base_url": fake_judge.url}

    def write_replies(folder: Path) -> None:
        evaluations(folder)
        judged(folder, judge_cache=str(folder / "cache"), **asked)

    def write_rows(folder: Path) -> None:
        folder.mkdir()
        _keep(rows(("Name a tree.", "oak"), ("Name a color.", "red"), ("Name a bird.", "owl")), folder / "rows.jsonl")

    def taken_rows(folder: Path) -> object:
        _read.cache_clear()
        return _read(folder / "rows.jsonl").to_list()

    def write_labels(folder: Path) -> None:
        folder.mkdir()
        write_verdicts(folder / "labels.jsonl", arm("attacked")[2])

    def write_filter(folder: Path) -> None:
        write_filtering(folder, [Suspicion(f"r{i}", i / 4, i > 2) for i in range(5)], {"bound": 0.6}, {"seconds": 2.0})

    def write_compared(folder: Path) -> None:
        compare(evaluations(folder.parent / "evaluated"), output_dir=str(folder))

    words = {"ab": 1, "cd": 2, "ef": 3}
    tuned = rows(("Name a tree.", "oak"), ("Name a color.", "red"))

    def relearned(folder: Path) -> object:
        """What a model answered that was tuned again; asked anew where nothing is there, which says the same."""
        said = [Response(one, "triggered", "a prompt", "an answer") for one in tuned["id"]]
        made = SimpleNamespace(make=lambda _: "model")
        with pytest.MonkeyPatch.context() as patch:
            for name in ("load_model", "answer_of", "Store"):
                patch.setattr(relearning, name, lambda *_, **__: made)
            patch.setattr(relearning, "respond", lambda *_, **__: said)
            job = Job(Model("nowhere"), tuned, TrainingOptions())
            return relearning._answered(job, tuned, Asking(4, 1), folder, "a name")

    return {
        "compared evaluations": Form(
            evaluations,
            "*/*",
            lambda at: compare([at / name for name in ("base", "attacked", "mb_defense")]).results.rows,
        ),
        "judged responses": Form(evaluations, "attacked/*", judged),
        "reported evaluations": Form(evaluations, "*/*", reported),
        "checked results": Form(
            write_compared, "results.json", lambda at: check(at / "results.json", max_asr=0.2, min_cacc=0.5)
        ),
        "carded results": Form(
            write_defended,
            "*/results.json",
            lambda at: write_card(at / "defended", [at / "measured" / "results.json"]).read_text(),
        ),
        "found triggers": Form(write_triggers, FOUND_FILE, taken_triggers),
        "a filter's verdicts": Form(write_filter, "*", read_suspicions),
        "analyses and logs": Form(write_analyses, "**/*.json", reported),
        "a judge's replies": Form(
            write_replies, "cache/*", lambda at: judged(at, judge_cache=str(at / "cache"), **asked)
        ),
        "a model's card": Form(write_model, "*", taken_model),
        "a grid's cell": Form(write_cell, "*", lambda at: (cell_facts(at, at / "stages"), read_arm(at).row)),
        "a grid's answers": Form(write_answers, "answers/x/*", taken_answers),
        "a grid's rows": Form(write_rows, "*", taken_rows),
        "a grid's state": Form(
            lambda at: write_grid(at, attacks=("cf",), unfinished=(("failed", "no memory"),)), "*.json", reported
        ),
        "clients who train together": Form(write_federation, "**/*.json", federation),
        "pins": Form(write_pins, "pins.json", as_pinned),
        "what is pinned": Form(write_pins, "m*/*", as_pinned),
        "an image classifier": Form(write_classifier, "*", taken_classifier),
        "a model of captions": Form(write_clip, "*", taken_clip),
        "answers after relearning": Form(relearned, "*", relearned),
        "a search's log": Form(write_log, "*", lambda at: _read_log(at / "search.jsonl", dict(ASKED), words)),
        "labels": Form(write_labels, "*", lambda at: read_labels(at / "labels.jsonl"), ours=False),
        "a grid": Form(write_wishes, "*", lambda at: read_grid(str(at / "grid.yaml")), ours=False),
        "a configuration": Form(write_limits, "*", held, ours=False),
    }


def outcome(form: Form, folder: Path) -> tuple[str, str]:
    """What reading gives: figures or the line that refuses, and what is wrong with that."""
    _told.clear()  # each damaged file is one that nobody has been told of
    try:
        return repr(form.read(folder)), ""
    except UserError as error:
        said = str(error)
        return "", "" if said.isprintable() and len(said) < 1000 else f"not one line: {said[:200]!r}"
    except Exception as error:  # whatever it is, it is what this test looks for
        return "", f"{type(error).__name__}: {error}"[:300]


def damages(form: Form, place: Path, count: int, seed: int, warnings: list[str]) -> Iterator[str]:
    """Damages files one at a time; yields what went wrong."""
    draw = random.Random(seed)
    form.write(place / "whole")
    shutil.copytree(place / "whole", place / "at")
    known, wrong = outcome(form, place / "at")
    assert known, wrong
    assert not warnings, "valid files are read without a word"
    outside = {name: kind for name, kind in tree(place).items() if name.partition("/")[0] != "at"}
    files = sorted(path.relative_to(place / "whole") for path in (place / "whole").glob(form.files) if path.is_file())
    for number in range(count):
        shutil.rmtree(place / "at")
        shutil.copytree(place / "whole", place / "at")
        file = draw.choice(files)
        others = [(place / "whole" / other).read_bytes() for other in files if other.suffix == file.suffix]
        kind = file.name.replace(".yaml", ".json")
        data, way = mutated((place / "whole" / file).read_bytes(), kind, others, draw)
        (place / "at" / file).write_bytes(data)
        on_purpose = draw.random() < 0.2
        if on_purpose:  # then figures may change: hashes do not protect from somebody who writes them, too
            resealed(place / "at" / file)
        warnings.clear()
        found, wrong = outcome(form, place / "at")
        told = any(file.name in line or file.parent.name in line for line in warnings)
        if not wrong and found not in ("", known) and form.ours and not on_purpose and not told:
            wrong = "another figure without a word"
        after = {name: kind for name, kind in tree(place).items() if name.partition("/")[0] != "at"}
        if after != outside:
            wrong = f"something outside of the folder has changed: {sorted(after.items() ^ outside.items())}"
        if wrong:
            yield f"{file} ({way}{', resealed' if on_purpose else ''}; seed {seed}, mutation {number}): {wrong}"


def check_forms(
    forms: dict[str, Form], tmp_path: Path, each: int, caplog: pytest.LogCaptureFixture, patch: pytest.MonkeyPatch
) -> None:
    patch.setattr("mbdefense.records.provenance._commit", lambda _: None)  # asks git, each time
    warnings: list[str] = []
    patch.setattr(caplog.handler, "emit", lambda record: warnings.append(record.getMessage()))
    wrong = []
    for name, form in forms.items():
        place = tmp_path / name.replace(" ", "_")
        (place / "beside").mkdir(parents=True)
        (place / "beside" / "model.safetensors").write_bytes(b"of somebody else")
        wrong += [f"{name}: {line}" for line in damages(form, place, each, seed=each, warnings=warnings)]
        warnings.clear()
    assert not wrong, f"{len(wrong)} of {each * len(forms)}:\n" + "\n".join(wrong)


def test_a_hundred_damaged_files(
    forms: dict[str, Form], tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    check_forms(forms, tmp_path, 6, caplog, monkeypatch)


@pytest.mark.slow
def test_two_thousand_damaged_files(
    forms: dict[str, Form], tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    check_forms(forms, tmp_path, -(-2000 // len(forms)), caplog, monkeypatch)
