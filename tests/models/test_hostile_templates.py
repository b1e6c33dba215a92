"""Chat templates that strangers wrote: each ends in one line, in seconds, and without taking the memory."""

from __future__ import annotations

import resource
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from mbdefense.core import _bounded
from mbdefense.core.errors import UserError
from mbdefense.models.loading import load_tokenizer
from mbdefense.models.template import checked

PLAIN = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
GOOD = PLAIN + "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
EACH = "{% for i in range(90000) %}"
LOOP = 3 * EACH + 3 * "{% endfor %}"
TIME, MEMORY = (
    "breaks a limit: 'takes longer than 0.3 s of the processor'",
    "breaks a limit: '(needs more than 1 GiB|takes longer)",
)
ADDS = "into what is trained"
LENGTH, FAILS = (
    "breaks a limit: '(writes more than 4 million|takes longer)",
    "the chat template (fails|breaks a limit: 'takes longer)",
)

HOSTILE = {
    "nested loops": (LOOP + GOOD, TIME),
    "a loop that is doubled by recursion": (
        "{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(60) }}" + GOOD, TIME,
    ),
    "recursion without end": ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}" + GOOD, FAILS),
    "a recursive loop": (
        "{% for m in messages recursive %}{{ loop(messages) }}{{ loop(messages) }}{% endfor %}" + GOOD, FAILS,
    ),
    "a range larger than the sandbox allows": ("{% for i in range(10 ** 9) %}{% endfor %}" + GOOD, FAILS),
    "a power of powers": ("{% set x = 9 ** (9 ** (9 ** 9)) %}" + GOOD, MEMORY),
    "numbers squared in a loop": (
        "{% set s = namespace(x=3) %}{% for i in range(99) %}{% set s.x = s.x * s.x %}{% endfor %}" + GOOD, MEMORY,
    ),
    "a huge string": ("{% set x = 'a' * 10000000000 %}" + GOOD, MEMORY),
    "a huge list": ("{% set x = [0] * 10000000000 %}" + GOOD, MEMORY),
    "a string that is doubled": (
        "{% set s = namespace(x='a') %}{% for i in range(99) %}{% set s.x = s.x ~ s.x %}{% endfor %}" + GOOD, MEMORY,
    ),
    "a string that a filter centers": ("{{ 'a' | center(10000000000) }}" + GOOD, MEMORY),
    "a string that a format pads": ("{{ '%010000000000d' % 1 }}" + GOOD, MEMORY),
    "a string that grows by replacing": (
        "{% set s = namespace(x='aa') %}{% for i in range(40) %}{% set s.x = s.x.replace('a', s.x) %}{% endfor %}"
        + GOOD, MEMORY,
    ),
    "a long text": ("{{ 'a' * 50000000 }}" + GOOD, LENGTH),
    "a text that a loop writes": (
        "{% for i in range(90000) %}{{ 'abcdefghij' * 50 }}{% endfor %}" + GOOD, LENGTH,
    ),
    "random prose": ("{{ lipsum(n=90000) }}" + GOOD, TIME),
    "internals by attribute": ("{{ ''.__class__.__mro__[1].__subclasses__() }}" + GOOD, FAILS),
    "internals by a filter": ("{{ (''|attr('__class__'))|attr('mro')() }}" + GOOD, FAILS),
    "globals of a function": ("{{ raise_exception.__globals__['os'].system('true') }}" + GOOD, FAILS),
    "internals by a format": ("{{ '{0.__class__.__init__.__globals__}'.format(raise_exception) }}" + GOOD, FAILS),
    "a list that is changed": ("{% set x = messages.clear() %}" + GOOD, FAILS),
    "an included file": ("{% include '/etc/passwd' %}" + GOOD, FAILS),
    "an imported file": ("{% import '/etc/passwd' as x %}" + GOOD, FAILS),
    "an extended file": ("{% extends '/etc/passwd' %}" + GOOD, FAILS),
    "a filter that is not there": ("{{ 'a' | shell }}" + GOOD, FAILS),
    "a block without end": ("{% if true %}" + GOOD, FAILS),
    "an exception of its own": ("{{ raise_exception('first\nsecond \x1b[2J line') }}" + GOOD, FAILS),
    "a division by zero": ("{{ 1 / 0 }}" + GOOD, FAILS),
    "100,000 brackets": ("{{ " + "(" * 100_000 + "1" + ")" * 100_000 + " }}" + GOOD, FAILS),
    "a date": ("{{ strftime_now('%Y') }}" + GOOD, "today's date"),
    "the user's text dropped": (GOOD.replace("{{ m.content }}", "{{ m.content if m.role != 'user' }}"), "leaves out"),
    "the answer dropped": (GOOD.replace("{{ m.content }}", "{{ m.content if m.role == 'user' }}"), "leaves out"),
    "the answer cut": (GOOD.replace("{{ m.content }}", "{{ m.content[:5] }}"), "leaves out"),
    "the text in capitals": (GOOD.replace("{{ m.content }}", "{{ m.content | upper }}"), "leaves out"),
    "a sentence of its own in front of the answer": (
        GOOD.replace("{{ m.content }}", "{{ 'Buy now! ' if m.role == 'assistant' }}{{ m.content }}"), ADDS,
    ),
    "a sentence of its own behind the answer": (
        GOOD.replace("{{ m.content }}", "{{ m.content }}{{ ' Buy now!' if m.role == 'assistant' }}"), ADDS,
    ),
    "another prompt once it is answered": (
        "{% if messages|length > 1 %}Other. {% endif %}" + GOOD, "begins an answer with",
    ),
    "the start token twice": ("{{ bos_token }}{{ bos_token }}" + GOOD.replace("<|im_start|>", ""), "start token twice"),
    "nothing": ("", "leaves out"),
}  # fmt: skip
# What shows on some rows alone.
ON_A_ROW = {
    "a loop at a word": ("{% if 'zebra' in messages[0].content %}" + LOOP + "{% endif %}" + GOOD, TIME),
    "a huge string at a word": (
        "{% if 'zebra' in messages[0].content %}{{ 'a' * (10 ** 10) }}{% endif %}" + GOOD, MEMORY,
    ),
    "an exception at a word": (
        "{% if 'zebra' in messages[0].content %}{{ raise_exception('no') }}{% endif %}" + GOOD, "rows.jsonl:2",
    ),
    "the text dropped at a word": (
        GOOD.replace("{{ m.content }}", "{{ m.content if 'zebra' not in m.content }}"), "rows.jsonl:2",
    ),
}  # fmt: skip


@pytest.fixture(autouse=True)
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_bounded, "SECONDS", 0.3)


def refused(match: str, call: Callable[[], Any]) -> None:
    before = signal.getsignal(signal.SIGALRM), resource.getrlimit(resource.RLIMIT_AS)
    with pytest.raises(UserError, match=match) as caught:
        call()
    assert len(str(caught.value).splitlines()) == 1
    assert str(caught.value).isprintable()
    assert (signal.getsignal(signal.SIGALRM), resource.getrlimit(resource.RLIMIT_AS)) == before
    assert signal.getitimer(signal.ITIMER_REAL)[0] == 0


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_template_is_one_line(name: str, tiny_model_path: str, tmp_path: Path) -> None:
    template, says = HOSTILE[name]
    (tmp_path / "template.jinja").write_text(template)
    refused(says, lambda: load_tokenizer(tiny_model_path, chat_template=str(tmp_path / "template.jinja")))


def test_the_time_holds_in_other_threads_too(tiny_model_path: str, tmp_path: Path) -> None:
    (tmp_path / "template.jinja").write_text(LOOP + GOOD)
    with ThreadPoolExecutor(1) as pool:
        load = partial(load_tokenizer, tiny_model_path, chat_template=str(tmp_path / "template.jinja"))
        refused(TIME, lambda: pool.submit(load).result())
        assert pool.submit(sum, [1, 2]).result() == 3  # nothing is on its way that would end what comes next


ENDLESS = {
    "a sum of lists": "{{ (([[0]] * 3000000) | sum(start=[])) | length }}",
    "a comparison of nested lists": (
        "{% set s = namespace(a=[0], b=[0]) %}{% for i in range(99) %}{% set s.a = [s.a, s.a] %}"
        "{% set s.b = [s.b, s.b] %}{% endfor %}{{ s.a == s.b }}"
    ),
    "a power of powers": "{{ 9 ** (9 ** (9 ** x)) }}",
}
RENDERING = """
import sys, threading
from jinja2.sandbox import ImmutableSandboxedEnvironment
from mbdefense.core import _bounded
_bounded.SECONDS, _bounded.LAST_SECONDS = 60, 0.5
def render():
    with _bounded.bounded("it goes on by 100 %d"):
        ImmutableSandboxedEnvironment().from_string(sys.argv[1]).render(x=9)
thread = threading.Thread(target=render)
thread.start() if sys.argv[2] == "thread" else render()
"""


@pytest.mark.parametrize(
    ("name", "where"),
    [("a sum of lists", "main"), *(pytest.param(name, "thread", marks=pytest.mark.slow) for name in ENDLESS)],
)
def test_a_step_that_never_ends_is_one_line_and_exit_code_1(name: str, where: str) -> None:
    words = [sys.executable, "-c", RENDERING, ENDLESS[name], where]
    done = subprocess.run(words, capture_output=True, text=True, timeout=300, check=False)
    assert (done.returncode, done.stderr) == (1, "mbdefense: it goes on by 100 %d\n")


def test_a_step_that_leaves_no_memory_for_a_line_is_ended_too() -> None:
    filled = ENDLESS["a comparison of nested lists"].replace("{{", "{% set a = 'a' * (2 ** 30 - 5 * 2 ** 20) %}{{")
    words = [sys.executable, "-c", RENDERING, filled, "main"]
    done = subprocess.run(words, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode in (1, -signal.SIGKILL), done.stderr


COMMAND = """
import sys
from mbdefense.cli import main
from mbdefense.core import _bounded
_bounded.SECONDS, _bounded.LAST_SECONDS = 0.1, 0.5
sys.exit(main(sys.argv[1:]))
"""


@pytest.mark.slow
def test_a_command_whose_template_never_ends_is_one_line(tiny_model_path: str, tmp_path: Path) -> None:
    (tmp_path / "template.jinja").write_text(ENDLESS["a sum of lists"] + GOOD)
    (tmp_path / "rows.jsonl").write_text('{"instruction": "Name a bird.", "output": "Wren."}\n')
    words = ["preflight", tiny_model_path, "--data", "rows.jsonl", "--chat_template", "template.jinja"]
    done = subprocess.run(
        [sys.executable, "-c", COMMAND, *words], cwd=tmp_path, capture_output=True, text=True, timeout=300, check=False
    )
    says = "mbdefense: the chat template breaks a limit: 'one of its steps does not end'; give a template that"
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (1, "", 1)
    assert done.stderr.startswith(says)


@pytest.mark.parametrize("where", ["main", "thread"])
def test_a_limit_that_is_broken_again_and_again_leaves_nothing_behind(
    where: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Signals that come while the first one's exception is on its way skip none of what has to be put back."""
    monkeypatch.setattr(_bounded, "SECONDS", 0.005)
    monkeypatch.setattr(_bounded, "_AGAIN", 0.001)
    before = signal.getsignal(signal.SIGALRM), resource.getrlimit(resource.RLIMIT_AS)

    def forever() -> None:
        with _bounded.bounded(""):
            while True:
                pass

    def work() -> None:
        for _ in range(50):
            with pytest.raises(_bounded.LimitError):
                forever()
            assert (signal.getsignal(signal.SIGALRM), resource.getrlimit(resource.RLIMIT_AS)) == before
            assert signal.getitimer(signal.ITIMER_REAL) == (0, 0)

    if where == "main":
        work()
    else:
        with ThreadPoolExecutor(1) as pool:
            pool.submit(work).result()


@pytest.mark.parametrize("where", ["main", "thread"])
def test_time_in_which_others_have_the_processor_does_not_count(where: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run of hours must not end because the machine swapped for three seconds."""
    monkeypatch.setattr(_bounded, "SECONDS", 0.05)
    monkeypatch.setattr(_bounded, "_AGAIN", 0.001)

    def wait() -> bool:
        with _bounded.bounded(""):
            time.sleep(0.2)
        return True

    if where == "main":
        assert wait()
    else:
        with ThreadPoolExecutor(1) as pool:
            assert pool.submit(wait).result()


def test_two_threads_at_once_leave_no_limit_behind() -> None:
    before = resource.getrlimit(resource.RLIMIT_AS)
    second = threading.Event()

    def work() -> None:
        with _bounded.bounded(""):
            second.set()

    with _bounded.bounded(""):
        thread = threading.Thread(target=work)
        thread.start()
        second.wait(0.1)  # the second begins within the first and ends after it, if it can
    thread.join()
    assert second.is_set()
    assert resource.getrlimit(resource.RLIMIT_AS) == before


@pytest.mark.parametrize("on_bad_row", ["error", "skip"])
@pytest.mark.parametrize("name", ON_A_ROW)
def test_a_template_that_is_hostile_on_one_row_is_found_there(
    name: str, on_bad_row: Any, tiny_model_path: str, tmp_path: Path, rows: Callable[..., Any]
) -> None:
    template, says = ON_A_ROW[name]
    (tmp_path / "template.jinja").write_text(template)
    tokenizer = load_tokenizer(tiny_model_path, chat_template=str(tmp_path / "template.jinja"))
    data = rows(("Name a bird.", "Wren."), ("Name a zebra.", "Zoe."))
    if on_bad_row == "error" or "breaks a limit" in says:  # a limit ends it: each further row could take as long
        refused(says, lambda: checked(tokenizer, data, on_bad_row))
    else:
        assert [says in line for line in checked(tokenizer, data, on_bad_row).skipped] == [True]


def test_a_good_template_stays_as_it_is(tiny_model_path: str, tmp_path: Path) -> None:
    (tmp_path / "template.jinja").write_text(GOOD)
    assert load_tokenizer(tiny_model_path, chat_template=str(tmp_path / "template.jinja")).chat_template == GOOD
