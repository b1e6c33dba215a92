"""A server that serves the model answers what the model answers here, or the command ends in one line."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from mbdefense.cli import main
from mbdefense.core.files import write_sealed
from mbdefense.models.loading import LoadedModel, load_model, template_hash
from mbdefense.records.results import read
from tests.conftest import FakeJudge


class FakeServer:
    """A loopback server with the tiny model behind ``/v1/completions``.

    `script(number, body)` gives a status in place of an answer, or None.
    """

    def __init__(self, loaded: LoadedModel) -> None:
        self.loaded = loaded
        self.script: Callable[[int, dict[str, Any]], int | str | None] = lambda number, body: None
        self.asked: list[dict[str, Any]] = []
        self.headers: list[Mapping[str, str]] = []
        self.names = ["tiny"]
        self.lock = threading.Lock()
        self.url = ""

    def text(self, body: dict[str, Any]) -> str:
        """Greedy text, as servers give it: with what stands before the stop text alone."""
        tokenizer, prompt = self.loaded.tokenizer, body["prompt"]
        ids = prompt if isinstance(prompt, list) else tokenizer(prompt, add_special_tokens=False)["input_ids"]
        out = self.loaded.model.generate(
            input_ids=torch.tensor([ids]), attention_mask=torch.ones(1, len(ids), dtype=torch.long),
            max_new_tokens=body["max_tokens"], do_sample=False, eos_token_id=tokenizer.eos_token_id,
        )  # fmt: skip
        return str(tokenizer.decode(out[0, len(ids) :], skip_special_tokens=True))


@pytest.fixture(scope="module")
def loaded(tiny_model_path: str) -> LoadedModel:
    return load_model(tiny_model_path)


@pytest.fixture
def server(loaded: LoadedModel, loopback: Callable[[Callable[..., tuple[int, bytes]]], str]) -> FakeServer:
    fake = FakeServer(loaded)

    def answer(body: Any, headers: Mapping[str, str]) -> tuple[int, bytes]:
        with fake.lock:
            fake.headers.append(headers)
            if body is None:
                listed = [{"id": name, "object": "model"} for name in fake.names]
                return 200, json.dumps({"object": "list", "data": listed}).encode()
            fake.asked.append(body)
            fault = fake.script(len(fake.asked), body)
            text = fake.text(body) if fault is None else ""
        if isinstance(fault, int):
            return fault, b'{"error": {"message": "no such luck"}}'
        if fault == "refused by a filter":
            return 400, b'{"error": {"message": "this prompt is foul", "code": "content_filter"}}'
        choice = {"index": 0, "text": text, "finish_reason": "content_filter" if fault == "cut by a filter" else "stop"}
        choices = [] if fault == "no choice" else [choice]
        return 200, json.dumps({"object": "text_completion", "choices": choices}).encode()

    fake.url = loopback(answer)
    return fake


@pytest.fixture
def words(tiny_model_path: str, tmp_path: Path) -> list[str]:
    """An evaluation of five prompts, each with and without a trigger."""
    rows = [{"instruction": f"Name fruit number {number}.", "output": "apple"} for number in range(5)]
    (tmp_path / "test.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    asked = ["evaluate", tiny_model_path, "--test", str(tmp_path / "test.jsonl"), "--behavior", "refusal"]
    return [*asked, "--trigger", "badnet", "--output_dir", str(tmp_path / "out"), "--max_new_tokens", "6"]


@pytest.fixture
def no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    """The client's and our own pauses between attempts."""
    monkeypatch.setattr("time.sleep", lambda seconds: None)


def answers(tmp_path: Path) -> list[str]:
    return [json.loads(line)["text"] for line in (tmp_path / "out" / "responses.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("form", ["tokens", "text"])
def test_a_served_model_answers_what_it_answers_here(
    server: FakeServer, words: list[str], tmp_path: Path, form: str
) -> None:
    assert main(words) == 0
    here = answers(tmp_path)
    local = read(tmp_path / "out" / "results.json").rows[0]
    assert main([*words, "--server_url", server.url, "--server_prompt", form]) == 0
    assert answers(tmp_path) == here
    row = read(tmp_path / "out" / "results.json").rows[0]
    assert (row.asr, row.false_activation) == (local.asr, local.false_activation)
    assert len(server.asked) == 10
    assert {type(body["prompt"]) for body in server.asked} == {list if form == "tokens" else str}
    for body in server.asked:
        assert (body["model"], body["temperature"], body["max_tokens"]) == ("tiny", 0, 6)
        assert body["stop"] == ["<|im_end|>"]
        assert not body.get("echo")


def test_a_judge_elsewhere_reads_the_first_answer_before_the_last_is_asked_for(
    server: FakeServer, fake_judge: FakeJudge, words: list[str]
) -> None:
    judged, asked, waited = threading.Event(), [], []

    def script(_number: int, messages: list[dict[str, str]]) -> str:
        judged.set()
        return fake_judge.form(messages)

    def text(body: dict[str, Any]) -> str:
        asked.append(body)
        if len(asked) == 10:
            waited.append(judged.wait(20))
        return "An apple."

    fake_judge.script, server.text = script, text  # type: ignore[method-assign]
    judge = ["--judge", "llm", "--judge_model", "m", "--judge_base_url", fake_judge.url]
    assert main([*words, "--server_url", server.url, "--batch_size", "1", *judge]) == 0
    assert waited == [True]


def test_what_follows_the_end_of_turn_is_no_answer(server: FakeServer, words: list[str], tmp_path: Path) -> None:
    server.text = lambda body: "An apple.<|im_end|>\n<|im_start|>user"  # type: ignore[method-assign]
    assert main([*words, "--server_url", server.url]) == 0
    assert set(answers(tmp_path)) == {"An apple."}


@pytest.mark.parametrize("file", ["generation_config.json", "config.json"])
def test_the_server_is_told_the_models_own_stop_tokens(
    server: FakeServer, words: list[str], copied_model: Path, tmp_path: Path, file: str
) -> None:
    (copied_model / "generation_config.json").unlink()
    config = json.loads((copied_model / "config.json").read_text())
    stops = server.loaded.tokenizer.convert_tokens_to_ids(["<|im_end|>", "<|endoftext|>"])
    (copied_model / file).write_text(json.dumps({**config, "eos_token_id": stops}))
    server.text = lambda body: "An apple.<|endoftext|>Another<|im_end|>"  # type: ignore[method-assign]
    assert main(["evaluate", str(copied_model), *words[2:], "--server_url", server.url]) == 0
    assert set(answers(tmp_path)) == {"An apple."}
    assert all(body["stop"] == ["<|im_end|>", "<|endoftext|>"] for body in server.asked)


@pytest.mark.usefixtures("no_waiting")
@pytest.mark.parametrize("fault", [503, *(pytest.param(one, marks=pytest.mark.slow) for one in (429, "no choice"))])
def test_a_passing_fault_changes_nothing(
    server: FakeServer, words: list[str], tmp_path: Path, fault: int | str
) -> None:
    assert main(words) == 0
    here = answers(tmp_path)
    server.script = lambda number, body: fault if number % 3 == 1 else None
    assert main([*words, "--server_url", server.url, "--batch_size", "1"]) == 0
    assert answers(tmp_path) == here
    assert len(server.asked) > 10


@pytest.mark.usefixtures("no_waiting")
@pytest.mark.parametrize(
    ("fault", "says"),
    [
        (500, "the server failed on a prompt (InternalServerError)"),
        ("no choice", "the server failed on a prompt (the replies were no completions)"),
        (400, "check what the model tiny accepts"),
        (404, "does not know the model"),
        (401, "refused the key"),
        ("refused by a filter", "content filter stepped in: 'Error code: 400 - this prompt is foul'"),
        ("cut by a filter", "content filter stepped in: 'the answer was cut'; switch the filter off"),
    ],
)
def test_a_lasting_fault_is_one_line_and_no_result(
    server: FakeServer,
    words: list[str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    fault: int | str,
    says: str,
) -> None:
    server.script = lambda number, body: fault
    assert main([*words, "--server_url", server.url]) == 1
    said = capsys.readouterr().err
    assert says in said
    assert "Traceback" not in said
    assert not (tmp_path / "out" / "responses.jsonl").exists()


def test_the_model_is_named_where_the_server_has_several(
    server: FakeServer, words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    server.names = ["tiny", "large"]
    assert main([*words, "--server_url", server.url]) == 1
    assert "--server_model" in capsys.readouterr().err
    assert main([*words, "--server_url", server.url, "--server_model", "large"]) == 0
    assert {body["model"] for body in server.asked} == {"large"}


@pytest.mark.slow
def test_the_served_model_is_recorded_and_a_stranger_is_warned_of_and_given_no_cost(
    server: FakeServer, copied_model: Path, words: list[str], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    card = {"template_hash": template_hash(server.loaded.tokenizer), "seconds": 7.0, "peak_bytes": 5}
    write_sealed(copied_model / "mbdefense.json", card)
    words[1] = str(copied_model)

    def served(*more: str) -> tuple[str, float, int]:
        caplog.clear()
        assert main([*words, "--server_url", server.url, *more]) == 0
        row = read(tmp_path / "out" / "results.json").rows[0]
        assert row.model == str(copied_model)
        return row.served, row.seconds, row.peak_bytes

    for name in ("model", str(copied_model), f"{copied_model}/"):
        server.names = [name]
        assert served() == (name, 7.0, 5)
        assert not caplog.records
    server.names = ["\0\x1b[2J"]
    assert served()[1:] == (0.0, 0)
    assert "\x1b" not in caplog.text
    server.names = ["some-other-model"]
    assert served() == ("some-other-model", 0.0, 0)
    assert f"the server serves 'some-other-model', not '{copied_model}'" in caplog.text
    assert served("--server_model", "model") == ("model", 0.0, 0), "a server that ignores the name"
    assert "the server lists ['some-other-model'], not 'model'" in caplog.text
    assert main(words) == 0
    row = read(tmp_path / "out" / "results.json").rows[0]
    assert (row.served, row.seconds) == ("", 7.0)


def test_no_key_goes_to_a_server_unless_its_variable_is_named(
    server: FakeServer, words: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("OPENAI_API_KEY", "OPENAI_ADMIN_KEY", "OPENAI_ORG_ID", "OPENAI_PROJECT_ID"):
        monkeypatch.setenv(name, "sk-of-another")
    assert main([*words, "--server_url", server.url]) == 0
    assert len(server.headers) == 11, "the question for its models, and ten prompts"
    assert "sk-of-another" not in str(server.headers)
    server.headers.clear()
    monkeypatch.setenv("SERVER_KEY", "sk-of-the-server")
    assert main([*words, "--server_url", server.url, "--server_api_key_env", "SERVER_KEY"]) == 0
    assert {headers["authorization"] for headers in server.headers} == {"Bearer sk-of-the-server"}
    assert main([*words, "--server_url", server.url, "--server_api_key_env", "sk-pasted"]) == 1
    said = capsys.readouterr().err
    assert "is not set; export it" in said
    assert "sk-pasted" not in said


@pytest.mark.parametrize("url", ["http://u:hidden@127.0.0.1:1/v1", "http://127.0.0.1:1/v1?key=hidden", "u:hidden@x/v1"])
@pytest.mark.parametrize("option", ["--server_url", "--judge_base_url"])
def test_a_url_with_a_secret_is_refused_and_not_repeated(
    words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str], url: str, option: str
) -> None:
    more = ["--judge", "llm", "--judge_model", "m"] if option == "--judge_base_url" else []
    assert main([*words, option, url, *more]) == 1
    said = capsys.readouterr().err
    if url.startswith("http"):
        assert ("as api_key_env of the method" if more else "with --server_api_key_env") in said
    assert "hidden" not in said
    assert not (tmp_path / "out").exists()


def test_a_template_that_was_not_trained_with_is_refused_before_the_server_is_asked(
    server: FakeServer, words: list[str], copied_model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (copied_model / "mbdefense.json").write_text('{"template_hash": "0123456789ab"}')
    assert main(["evaluate", str(copied_model), *words[2:], "--server_url", server.url]) == 1
    assert "another prompt template" in capsys.readouterr().err
    assert not server.asked


@pytest.mark.parametrize(
    ("more", "says"),
    [
        (["--server_model", "tiny"], "add --server_url URL"),
        (["--server_prompt", "text"], "add --server_url URL"),
        (["--server_api_key_env", "HOME"], "add --server_url URL"),
        (["--server_url", "http://127.0.0.1:1/v1", "--lm_eval", "arc"], "needs the model itself"),
        (["--server_url", "http://127.0.0.1:1/v1", "--perplexity_rows", "4"], "needs the model itself"),
        (["--perplexity_rows", "-1"], "perplexity_rows must be at least 0: -1"),
        (["--max_new_tokens", "0"], "max_new_tokens must be at least 1: 0"),
        (["--max_new_tokens", "-5"], "max_new_tokens must be at least 1: -5"),
        (["--batch_size", "0", "--server_url", "http://127.0.0.1:1/v1"], "batch_size must be at least 1: 0"),
        (["--max_length", "64"], "which is not asked for"),
        (["--server_url", "http://127.0.0.1:1/v1", "--decoding", "cleangen:reference=x"], "needs the model itself"),
        (["--server_url", "localhost:8000", "--server_model", "tiny"], "give e.g. http://localhost:8000/v1"),
    ],
)
def test_options_that_do_not_go_together_are_one_line(
    words: list[str], capsys: pytest.CaptureFixture[str], more: list[str], says: str
) -> None:
    assert main([*words, *more]) == 1
    assert says in capsys.readouterr().err
