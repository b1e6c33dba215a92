"""Servers that strangers run: they get nothing that is not theirs, give nothing away, and do not hold a command up."""

from __future__ import annotations

import json
import logging
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from mbdefense.core import _http, _secrets
from mbdefense.core.endpoint import Endpoint, EndpointFault, served_models
from mbdefense.core.errors import UserError
from mbdefense.core.files import write_json

KEY = 'sk-live-0123456789"ä'
Serve = Callable[[Callable[[BaseHTTPRequestHandler], None]], str]


@pytest.fixture(autouse=True)
def no_secrets_of_other_tests(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_secrets, "_used", set())
    monkeypatch.setattr("mbdefense.core.endpoint._TOLD", set())
    for name in ("OPENAI_API_KEY", "OPENAI_ORG_ID", "OPENAI_PROJECT_ID", "OPENAI_CUSTOM_HEADERS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("MY_KEY", KEY[:-2])


@pytest.fixture
def serve() -> Iterator[Serve]:
    """Starts a server whose every request is answered by a function; returns the root of its interface."""
    with ExitStack() as running:

        def start(answer: Callable[[BaseHTTPRequestHandler], None]) -> str:
            class Handler(BaseHTTPRequestHandler):
                def do_POST(self) -> None:
                    self.rfile.read(int(self.headers.get("Content-Length", 0)))
                    answer(self)

                do_GET = do_POST  # noqa: N815

                def log_message(self, *_: object) -> None: ...

            server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
            threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
            running.callback(server.server_close)
            running.callback(server.shutdown)
            return f"http://127.0.0.1:{server.server_port}/v1"

        yield start


def send(handler: BaseHTTPRequestHandler, status: int, body: bytes, **headers: str) -> None:
    handler.send_response(status)
    for name, value in {"Content-Type": "application/json", **headers}.items():
        handler.send_header(name.replace("_", "-"), value)
    handler.end_headers()
    handler.wfile.write(body)


def completion(text: str | None, finish: str | None = "stop") -> bytes:
    choice = {"index": 0, "text": text, "finish_reason": finish, "message": {"role": "assistant", "content": text}}
    return json.dumps({"id": "1", "object": "x", "created": 0, "model": "m", "choices": [choice]}).encode()


def ask(url: str, *, key: str | None = None, timeout: float = 20.0) -> str:
    endpoint = Endpoint(url, "m", key, max_retries=0, timeout=timeout)
    with endpoint.client() as client:
        return endpoint.complete(client, "a prompt", stop=[]).text


@pytest.mark.parametrize("status", [400, 401, 404, 422, 500])
def test_a_server_that_echoes_the_key_puts_it_into_no_text(
    serve: Serve, status: int, tmp_path, caplog: pytest.LogCaptureFixture
) -> None:
    def echo(handler: BaseHTTPRequestHandler) -> None:
        said = {"error": {"message": f"{'x' * 150} not allowed: {handler.headers['Authorization']}"}}
        send(handler, status, json.dumps(said).encode())

    with pytest.raises((UserError, EndpointFault)) as caught:
        ask(serve(echo), key="MY_KEY")
    write_json(tmp_path / "failure.json", {"error": str(caught.value), "header": f"Bearer {KEY[:-2]}"})
    for text in (str(caught.value), (tmp_path / "failure.json").read_text(), caplog.text):
        assert "0123456789" not in text
    assert "[key]" in (tmp_path / "failure.json").read_text()


def test_a_key_in_an_answer_or_in_a_models_name_is_left_out(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    def echo(handler: BaseHTTPRequestHandler) -> None:
        key = handler.headers["Authorization"]
        models = {"object": "list", "data": [{"id": key, "object": "model"}]}
        send(handler, 200, json.dumps(models).encode() if handler.command == "GET" else completion(key))

    url = serve(echo)
    assert ask(url, key="MY_KEY") == "Bearer [key]"
    assert served_models(Endpoint(url, "m", "MY_KEY")) == ["Bearer [key]"]


def test_a_key_with_signs_that_json_escapes_is_left_out_too(tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_KEY", KEY)
    assert _secrets.key_in("MY_KEY") == KEY
    write_json(tmp_path / "x.json", {"echo": KEY})
    assert json.loads((tmp_path / "x.json").read_text()) == {"echo": "[key]"}


def test_a_short_or_plain_key_damages_no_text(monkeypatch: pytest.MonkeyPatch) -> None:
    for key in ("EMPTY", "none", "password"):
        monkeypatch.setenv("MY_KEY", key)
        assert _secrets.key_in("MY_KEY") == key
        assert _secrets.scrubbed(f"an {key} line") == f"an {key} line"


def test_a_key_given_in_place_of_its_variables_name_is_not_repeated() -> None:
    for given in (KEY, "gsk_0123456789abcdef"):
        with pytest.raises(UserError, match="is not set") as caught:
            Endpoint("http://localhost:1/v1", "m", given)
        assert "0123456789" not in str(caught.value)


def test_openais_key_and_headers_go_to_openai_alone(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    got: list[str] = []

    def note(handler: BaseHTTPRequestHandler) -> None:
        got.append(str(handler.headers))
        send(handler, 200, completion("fine"))

    monkeypatch.setenv("OPENAI_API_KEY", "sk-openai-9876")
    monkeypatch.setenv("OPENAI_ORG_ID", "org-9876")
    monkeypatch.setenv("OPENAI_PROJECT_ID", "proj-9876")
    monkeypatch.setenv("OPENAI_CUSTOM_HEADERS", "X-Gateway: secret-9876")
    url = serve(note)
    assert ask(url) == "fine"
    assert ask(url, key="MY_KEY") == "fine"
    assert "9876" not in "".join(got).replace("0123456789", "")
    with Endpoint("https://api.openai.com/v1", "m").client() as client:
        assert client.api_key == "sk-openai-9876"
    for url in ("http://api.openai.com/v1", "https://api.openai.com.evil.example/v1"):
        with Endpoint(url, "m").client() as client:
            assert client.api_key == "none"


def test_where_a_key_goes_is_told_before_the_first_request(serve: Serve, caplog: pytest.LogCaptureFixture) -> None:
    told: list[str] = []

    def note(handler: BaseHTTPRequestHandler) -> None:
        told.append(caplog.text)
        send(handler, 200, completion("fine"))

    url = serve(note)
    with caplog.at_level(logging.WARNING):
        ask(url)
        assert told == [""]
        ask(url, key="MY_KEY")
    assert f"the key in MY_KEY goes to {url}" in told[1]


@pytest.mark.parametrize("status", [301, 302, 307, 308])
def test_a_redirect_is_not_followed(serve: Serve, status: int) -> None:
    got: list[str] = []

    def note(handler: BaseHTTPRequestHandler) -> None:
        got.append(str(handler.headers))
        send(handler, 200, completion("a verdict of somebody else"))

    other = serve(note)
    first = serve(lambda handler: send(handler, status, b"", Location=f"{other}/completions", Content_Length="0"))
    with pytest.raises(UserError, match="redirects to another place"):
        ask(first, key="MY_KEY")
    assert got == []


def test_a_body_without_end_is_cut_off_at_a_limit_that_is_named(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_http, "LARGEST_BODY", 2**20)

    def endless(handler: BaseHTTPRequestHandler) -> None:
        send(handler, 200, b'{"text": "')
        try:
            while True:
                handler.wfile.write(b"x" * 2**16)
        except OSError:
            pass

    with pytest.raises(EndpointFault, match="larger than 1 MiB"):
        ask(serve(endless))


def test_a_byte_now_and_then_does_not_hold_a_command_up(serve: Serve) -> None:
    def dripping(handler: BaseHTTPRequestHandler) -> None:
        send(handler, 200, b"{")
        try:
            for _ in range(200):
                handler.wfile.write(b" ")
                time.sleep(0.1)
        except OSError:
            pass

    started = time.monotonic()
    with pytest.raises(EndpointFault, match="took longer than 1 s"):
        ask(serve(dripping), timeout=1.0)
    assert time.monotonic() - started < 10


def test_a_compressed_body_that_nobody_asked_for_is_refused(serve: Serve) -> None:
    import gzip

    def bomb(handler: BaseHTTPRequestHandler) -> None:
        send(handler, 200, gzip.compress(b" " * 2**24), Content_Encoding="gzip")

    with pytest.raises(EndpointFault, match="compressed"):
        ask(serve(bomb))


@pytest.mark.parametrize(("text", "finish"), [(None, "stop"), (None, None), ("", "abort"), ("half", "error")])
def test_an_answer_without_text_is_no_empty_answer(serve: Serve, text: str | None, finish: str | None) -> None:
    with pytest.raises(EndpointFault, match="no completions"):
        ask(serve(lambda handler: send(handler, 200, completion(text, finish))))


@pytest.mark.parametrize(
    ("text", "said", "finish", "made"),
    [
        ("A text.", "<think>Rude?</think>\n\nA rude text.", "stop", "A rude text."),
        ("A text.", "Rude?</think>A rude text.", "stop", "A rude text."),
        ("<think>So.</think>A text.", "<think>So.</think>A rude text.", "stop", "<think>So.</think>A rude text."),
        ("A text.", "A rude", "content_filter", None),
    ],
)
def test_a_rewriting_is_whole_and_without_the_thoughts_behind_it(
    serve: Serve, text: str, said: str, finish: str, made: str | None
) -> None:
    url = serve(lambda handler: send(handler, 200, completion(said, finish)))
    assert Endpoint(url, "m", max_retries=0).rewrite("Be rude.", text) == made


@pytest.mark.parametrize(
    ("status", "error"),
    [
        (400, {"message": "no", "code": "context_length_exceeded"}),
        (400, {"message": "This model's maximum context length is 4096 tokens.", "code": 400}),
        (422, {"message": "Input validation error: `inputs` must have less than 1024 tokens"}),
    ],
)
def test_one_text_that_is_too_long_is_not_rewritten_and_stops_nothing(
    serve: Serve, status: int, error: dict[str, object]
) -> None:
    url = serve(lambda handler: send(handler, status, json.dumps({"error": error}).encode()))
    assert Endpoint(url, "m", max_retries=0).rewrite("Be rude.", "long") is None
    with pytest.raises(UserError, match="refused the request"):
        ask(url)


def test_another_request_that_is_refused_stops_a_rewriting(serve: Serve) -> None:
    url = serve(lambda handler: send(handler, 400, b'{"error": {"message": "no such option"}}'))
    with pytest.raises(UserError, match="refused the request"):
        Endpoint(url, "m", max_retries=0).rewrite("Be rude.", "a text")


def test_an_empty_text_is_an_answer(serve: Serve) -> None:
    assert ask(serve(lambda handler: send(handler, 200, completion("")))) == ""
