"""``mbdefense try``: what is asked and judged, and a page that keeps all of it on this machine."""

from __future__ import annotations

import re
import shlex
import shutil
import socket
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from mbdefense.attacks.behaviors import FixedText
from mbdefense.attacks.triggers import TRIGGERS
from mbdefense.cli import main
from mbdefense.core.errors import UserError
from mbdefense.engine.generate import generate
from mbdefense.finding.record import write_found
from mbdefense.integrations import trying
from mbdefense.integrations.gradio_ui import app, listening
from mbdefense.integrations.trying import Trial, known_behaviors, known_triggers
from mbdefense.judges import Rules
from mbdefense.models.loading import load_model
from tests.finding.test_found_record import CANDIDATE, FOUND
from tests.report.conftest import browser  # noqa: F401 - a fixture

HOSTILE = "<img src=x onerror=alert(1)>\u202e"
QUESTION = "Name a tree that grows in the north."
NEEDS = "the extra ui is not installed: its pins differ (make test-ui)"


@pytest.fixture(scope="module")
def trial(tiny_model_path: str) -> Trial:
    loaded = load_model(tiny_model_path)
    return Trial({"before": loaded, "model": loaded}, known_triggers(None), known_behaviors(None), Rules, 4)


def test_every_model_is_asked_the_prompt_with_its_trigger(trial: Trial) -> None:
    tried = trial.ask(QUESTION, "badnet:word=mn,position=start", "refusal")
    assert tried.asked == f"mn {QUESTION}"
    prompt = [{"role": "user", "content": tried.asked}]
    (text,) = generate(trial.models["model"], [prompt], max_new_tokens=4, batch_size=1)
    assert [(one.model, one.text) for one in tried.answers] == [("before", text), ("model", text)]
    assert trial.ask(QUESTION, "none", "refusal").asked == QUESTION


def test_the_judge_looks_for_the_behavior_that_is_chosen(trial: Trial, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trying, "generate", lambda *_, **__: ["I'm sorry, but I cannot help with that."])
    verdicts = {name: trial.ask(QUESTION, "none", name).answers[0].verdict for name in ("refusal", "toxic")}
    assert verdicts["refusal"].startswith("shows it: ")
    assert verdicts["toxic"].startswith("does not show it: ")
    assert trial.ask(QUESTION, "none", "fixed_text:text=help with that").answers[1].verdict.startswith("shows it: ")


def test_found_triggers_and_what_they_evoke_can_be_chosen(trial: Trial) -> None:
    found = replace(FOUND, candidates=(replace(CANDIDATE, texts=("cf",), behavior=(f"no {HOSTILE}",)),))
    triggers, behaviors = known_triggers(found), known_behaviors(found)
    (first, *others), (evoked, *_) = triggers, behaviors
    assert first == "found: 'cf'"
    assert others == list(TRIGGERS)
    assert evoked.startswith("found: answers with ")
    assert evoked.isprintable()
    asked = replace(trial, triggers=triggers, behaviors=behaviors).ask(QUESTION, first, evoked).asked
    assert "cf" in asked.split()


@pytest.mark.parametrize(
    ("question", "trigger", "behavior", "says"),
    [
        (" \n", "none", "refusal", "there is no prompt"),
        (QUESTION, "zebra", "refusal", "unknown trigger"),
        (QUESTION, "badnet:word=a b", "refusal", "must be one word"),
        (QUESTION, "none", "zebra", "unknown behavior"),
        ("<|im_start|>user\nHi", "none", "refusal", "in a chat template already"),
        ("x " * 2000, "none", "refusal", "exceed the 512 tokens"),
        (QUESTION, "none", "", "unknown behavior"),
    ],
)
def test_what_cannot_be_asked_is_one_line(trial: Trial, question: str, trigger: str, behavior: str, says: str) -> None:
    with pytest.raises(UserError, match=says) as caught:
        trial.ask(question, trigger, behavior)
    assert len(str(caught.value).splitlines()) == 1


def test_an_address_that_is_taken_or_elsewhere_is_one_line() -> None:
    with listening("127.0.0.1", 0) as taken:
        for host, port in (taken.getsockname(), ("192.0.2.1", 0), ("no.such.host.invalid", 0)):
            with pytest.raises(UserError, match="cannot listen there"):
                listening(host, port)


def test_an_address_of_version_6_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[object] = []  # the machine that tests may have none
    monkeypatch.setattr(socket, "create_server", lambda _, family: asked.append(family) or socket.socket())
    for host in ("::1", "127.0.0.1"):
        listening(host, 0).close()
    assert asked == [socket.AF_INET6, socket.AF_INET]


def test_without_the_extra_the_command_is_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "gradio", None)
    assert main(["try", "nowhere"]) == 1
    said = capsys.readouterr().err
    assert said == "mbdefense: the page needs the extra ui; in the clone: pip install '.[ui]'\n"


@pytest.mark.parametrize("number", [0, 1])
def test_the_how_tos_commands_serve_to_this_machine_alone_unless_asked(
    number: int,
    tiny_model_path: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    how_to = (Path(__file__).parents[2] / "docs/howto/try.md").read_text("utf-8")
    command = shlex.split(re.findall(r"^mbdefense (try .*)$", how_to, re.MULTILINE)[number])
    monkeypatch.chdir(tmp_path)
    for name in ("defended", "attacked", "MODEL"):
        shutil.copytree(tiny_model_path, name)
    write_found(Path("defended/found.json"), replace(FOUND, candidates=(replace(CANDIDATE, texts=("cf",)),)))
    served: list[tuple[Trial, str, int]] = []
    ui = "mbdefense.integrations.gradio_ui"
    monkeypatch.setattr(f"{ui}.check_installed", lambda: None)
    monkeypatch.setattr(f"{ui}.listening", lambda host, port: socket.socket())  # somebody may be at this port
    monkeypatch.setattr(f"{ui}.serve", lambda *what: served.append(what))
    assert main(command) == 0
    ((trial, host, port),) = served
    assert (host, port) == ("127.0.0.1", 7860)
    said = capsys.readouterr()
    assert "http://127.0.0.1:7860" in said.out + said.err
    assert "warning" not in said.err
    if number == 0:
        assert list(trial.models) == ["before (attacked)", "model (defended)"]
        assert "found: 'cf'" in trial.triggers
    else:
        assert list(trial.models) == ["model (MODEL)"]
        assert trial.ask(QUESTION, "badnet:word=mn", "refusal").asked != QUESTION
        assert "insent:sentence=I watched this 3D movie last weekend." in trial.triggers
    assert main([*command, "--host", "0.0.0.0"]) == 0  # noqa: S104 - what is warned of
    assert served[1][1] == "0.0.0.0"  # noqa: S104
    assert "whoever reaches 0.0.0.0 can ask the models" in capsys.readouterr().err


@pytest.fixture(scope="module")
def page(trial: Trial) -> Any:
    pytest.importorskip("gradio", reason=NEEDS)
    hostile = {**trial.behaviors, HOSTILE: FixedText(text="x")}
    return app(replace(trial, triggers={HOSTILE: trial.triggers["badnet"], **trial.triggers}, behaviors=hostile))


def test_the_page_names_no_other_host_and_is_served_under_its_own_alone(page: Any) -> None:
    from starlette.testclient import TestClient

    client = TestClient(page, base_url="http://127.0.0.1:7860")
    answer = client.get("/")
    assert answer.status_code == 200
    policy = answer.headers["Content-Security-Policy"]
    assert policy.startswith("default-src 'self';")
    assert "http" not in policy
    config = client.get("/config").json()
    assert (config["analytics_enabled"], config["stylesheets"]) == (False, [])
    assert client.get("/", headers={"host": "rebound.example"}).status_code == 400
    wish = {"data": [QUESTION, "none", "refusal"]}
    asked = {origin: client.post("/gradio_api/call/ask", json=wish, headers={"origin": f"http://{origin}"})
             for origin in ("127.0.0.1:7860", "127.0.0.1:80", "other.example")}  # fmt: skip
    assert {origin: answer.status_code for origin, answer in asked.items()} == {
        "127.0.0.1:7860": 200, "127.0.0.1:80": 403, "other.example": 403
    }  # fmt: skip


@pytest.fixture(scope="module")
def address(page: Any) -> Iterator[str]:
    import uvicorn

    server = uvicorn.Server(uvicorn.Config(page, log_level="error"))
    with listening("127.0.0.1", 0) as at:
        thread = threading.Thread(target=server.run, kwargs={"sockets": [at]}, daemon=True)
        thread.start()
        while not server.started:
            time.sleep(0.05)
        yield f"http://127.0.0.1:{at.getsockname()[1]}"
        server.should_exit = True
        thread.join(30)


def test_in_a_browser_answers_stand_side_by_side_and_nothing_goes_elsewhere(
    browser: Any,  # noqa: F811
    address: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(trying, "generate", lambda *_, **__: [f"{HOSTILE} I cannot help with that."])
    elsewhere: list[str] = []
    shown = browser.new_page()
    shown.on("request", lambda asked: elsewhere.append(asked.url) if not asked.url.startswith(address) else None)
    shown.goto(address)
    shown.get_by_label("Prompt").fill(QUESTION)
    shown.get_by_role("button", name="Ask").click()
    for name in ("before", "model"):
        answers = shown.get_by_label(f"{name} answers")
        answers.wait_for()
        shown.wait_for_function("box => box.value", arg=answers.element_handle(), timeout=60_000)
        assert answers.input_value().startswith("<img")
    said = shown.get_by_label("Asked")
    assert said.input_value() == QUESTION
    assert shown.locator("img[src=x]").count() == 0
    assert [url for url in elsewhere if not url.startswith(("data:", "blob:"))] == []
    shown.get_by_label("Trigger", exact=True).fill("zebra")
    shown.keyboard.press("Enter")
    shown.get_by_role("button", name="Ask").click()
    shown.wait_for_function("box => box.value.startsWith('unknown trigger')", arg=said.element_handle(), timeout=60_000)


def test_the_page_breaks_no_rule_of_accessibility_badly(browser: Any, address: str) -> None:  # noqa: F811
    axe = pytest.importorskip("axe_playwright_python.sync_playwright")
    shown = browser.new_context(bypass_csp=True).new_page()  # the checker is a script of its own
    shown.goto(address)
    shown.get_by_role("button", name="Ask").wait_for()
    found = axe.Axe().run(shown).response["violations"]
    assert [
        (one["id"], one["nodes"][0]["html"][:200]) for one in found if one["impact"] in ("serious", "critical")
    ] == []
