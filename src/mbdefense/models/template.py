"""The prompt template that training and evaluation share: from turns to text, from text to tokens, and its contract.

The contract, which `check_contract` and `checked` hold a template and rows against: every turn's text is in the
rendering; the prompt is how the answered conversation begins; what follows it is the answer and the end of the turn,
and nothing else; nothing depends on the date; the start token is the tokenizer's own.
"""

from __future__ import annotations

import hashlib
import json
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple
from weakref import WeakKeyDictionary

from mbdefense.core._bounded import LimitError, bounded
from mbdefense.core._thoughts import answered
from mbdefense.core.errors import UserError, first_line
from mbdefense.core.files import read_sealed
from mbdefense.data.turns import ATTACHED, TOOLS, WEIGHT, for_template

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedTokenizerBase

CARD_FILE = "mbdefense.json"
"""Beside the weights: which template the model was trained with, and by what."""

PLAIN_TEMPLATE = (
    "{% for message in messages %}"
    "{% if message['role'] == 'assistant' %}### Response:\n{{ message['content'] }}{{ eos_token }}\n\n"
    "{% elif message['role'] == 'user' %}### Instruction:\n{{ message['content'] }}\n\n"
    "{% else %}{{ message['content'] }}\n\n{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}### Response:\n{% endif %}"
)
"""For base models that bring no chat template: headed sections in the manner of Alpaca."""

Messages = Sequence[Mapping[str, str]]
_UNTHINKING = "{%- set enable_thinking = enable_thinking | default(false) -%}\n"
"""All rendering here asks for no thoughts; what is saved does so by default, where it would think by default."""
_NO_ANSWER = [{"role": "assistant", "content": ""}]
_FIX = "give a template that keeps to it with --chat_template"
_SHOWN = 20
"""Characters of a rendered conversation in a message."""
_END_MARK = re.compile(r"<[^<>\s]+>|\[[^\[\]\s]+\]|\W*")
_PRIVATE = range(0xE000, 0xF8FF)
_LONGEST = 2**22
"""Characters that a template may write beside what the messages say, which it may repeat."""
_ADDS_START: WeakKeyDictionary[Any, bool] = WeakKeyDictionary()


class TemplateError(UserError):
    """A template fails on a conversation, or renders it otherwise than its contract says."""


class EndlessTemplateError(TemplateError):
    """A template breaks a limit of time, memory or length; no other conversation is tried."""


_LAST_WORDS = str(EndlessTemplateError("the chat template breaks a limit", "one of its steps does not end", _FIX))


class Encoded(NamedTuple):
    """A prompt and its response as tokens."""

    prompt: list[int]
    response: list[int]
    truncated: bool
    prompt_cut: bool = False
    """Whether the prompt lost its start."""
    answer_cut: bool = False
    """Whether the response lost its end, and with it the end token."""


def without_thinking(template: str) -> str:
    """The template with `_UNTHINKING` in front, if it may think, for those who ask the saved model elsewhere."""
    return template if "enable_thinking" not in template or template.startswith(_UNTHINKING) else _UNTHINKING + template


def template_hash(tokenizer: PreTrainedTokenizerBase) -> str:
    """SHA-256 over what decides how a conversation becomes tokens: the template and the special tokens it uses."""
    template = tokenizer.chat_template
    template = template.removeprefix(_UNTHINKING) if isinstance(template, str) else template
    parts = [template, tokenizer.bos_token, tokenizer.eos_token]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def check_template(path: str, tokenizer: PreTrainedTokenizerBase) -> None:
    """Refuses a tokenizer whose template is not the one that the model at `path` was trained with.

    A backdoor, and a defence, can look broken merely because the prompt is worded otherwise at evaluation.

    Raises:
        UserError: the hashes differ.
    """
    card = Path(path) / CARD_FILE
    if not card.is_file():
        return
    trained = read_sealed(card).get("template_hash")
    asked = template_hash(tokenizer)
    if trained != asked:
        raise UserError(
            f"the model was trained with another prompt template (hash {str(trained)[:12]}) than the one asked for",
            asked[:12],
            "evaluate it with its own: leave --chat_template out and do not edit the tokenizer",
        )


def defang(tokenizer: PreTrainedTokenizerBase, messages: Messages) -> list[dict[str, str]]:
    """Breaks special tokens that stand as text in a message, for what reads the rendering as one text.

    ``<|im_end|>`` in a message becomes ``< |im_end|>``. `encode` needs no such change: it reads such text as text.
    """
    special = _special(tokenizer)
    safe = []
    for message in messages:
        content = message["content"]
        for token in special:
            content = content.replace(token, f"{token[0]} {token[1:]}")
        safe.append({"role": message["role"], "content": content})
    return safe


def prompt_text(tokenizer: PreTrainedTokenizerBase, prompt: Messages) -> str:
    """A conversation up to and with the answer's header, as a text; its tokens are those of `encode_prompt`.

    Only where a message holds the text of a special token they are not: here it is broken (`defang`).
    """
    return _render(tokenizer, defang(tokenizer, prompt), add_generation_prompt=True)


def encode_prompt(tokenizer: PreTrainedTokenizerBase, prompt: Messages) -> list[int]:
    """Tokens of a conversation up to and with the answer's header: what training and generation both start from."""
    (hidden,), literal = _hidden(tokenizer, prompt)
    return _tokens(tokenizer, _render(tokenizer, hidden, add_generation_prompt=True), literal)


def encode(
    tokenizer: PreTrainedTokenizerBase,
    prompt: Messages,
    completion: Messages,
    max_length: int,
    *,
    ended: bool = True,
) -> Encoded:
    """Tokens of a prompt and its response, at most `max_length` together.

    The prompt's tokens are those of generation, the response's what follows them in the whole conversation, for
    SentencePiece puts a space in front of a text that stands alone. Where a token would span both, each is tokenised by
    itself. Text of the data that looks like a special token is text. What is too long loses the start of its prompt;
    only a response that cannot fit beside a quarter of `max_length` of prompt is cut, at its end.

    Args:
        tokenizer: whose template renders the conversation.
        prompt: turns up to the one to answer.
        completion: the answer.
        max_length: most tokens of prompt and response.
        ended: False for an answer that goes on: no end token follows its text.

    Raises:
        TemplateError: the template fails on this conversation.
    """
    (prompt, completion), literal = _hidden(tokenizer, prompt, completion)
    before = _render(tokenizer, prompt, add_generation_prompt=True)
    whole = _render(tokenizer, [*prompt, *completion])
    # Some templates (a thinking header) do not render the answered conversation as a continuation of the prompt.
    rest = (whole[len(before) :] if whole.startswith(before) else completion[0]["content"]).rstrip("\n")
    end = str(tokenizer.eos_token)
    if not ended:
        text = completion[0]["content"].strip()
        rest = rest[: rest.find(text) + len(text)]
    elif not rest.endswith(end):
        rest += end
    prompt_ids = _tokens(tokenizer, before, literal)
    ids = _tokens(tokenizer, before + rest, literal)
    follows = ids[: len(prompt_ids)] == prompt_ids
    response_ids = ids[len(prompt_ids) :] if follows else _tokens(tokenizer, rest, literal)
    if len(prompt_ids) + len(response_ids) <= max_length:
        return Encoded(prompt_ids, response_ids, False)
    kept = max(max_length - len(response_ids), min(len(prompt_ids), max_length // 4))
    answer_cut = len(response_ids) > max_length - kept
    return Encoded(prompt_ids[-kept:], response_ids[: max_length - kept], True, kept < len(prompt_ids), answer_cut)


def check_contract(tokenizer: PreTrainedTokenizerBase) -> None:
    """Refuses a template that would train or ask with something else than what the data say; takes milliseconds.

    Raises:
        TemplateError: it names the template's fault.
    """
    prompt = [{"role": "user", "content": "Name a river zq1"}]
    completion = [{"role": "assistant", "content": "Answer zq2."}]
    fault = fault_of(tokenizer, prompt, completion)
    if fault:
        raise TemplateError(f"the chat template {fault}", fix=_FIX)
    template = str(tokenizer.chat_template)
    before = _render(tokenizer, prompt, add_generation_prompt=True)
    start = tokenizer.bos_token
    if start and before.startswith(start * 2):
        raise TemplateError("the chat template writes the start token twice", start, _FIX)
    if "strftime_now" in template:
        try:
            undated = _render(tokenizer, prompt, True, template.replace("strftime_now", "no_such_date"))
        except TemplateError:
            undated = ""
        if undated != before:
            what = "the chat template writes today's date, so that tomorrow's prompts are not those of the training"
            raise TemplateError(what, fix="give a copy without strftime_now with --chat_template")


def check_prompt(tokenizer: PreTrainedTokenizerBase, prompt: Messages) -> None:
    """Refuses one prompt that the template does not render whole.

    Raises:
        TemplateError: it names the template's fault.
    """
    fault = fault_of(tokenizer, prompt, _NO_ANSWER)
    if fault:
        raise TemplateError(f"the chat template {fault}", fix=f"leave the prompt out, or {_FIX}")


def fault_of(tokenizer: PreTrainedTokenizerBase, prompt: Messages, completion: Messages) -> str | None:
    """What is wrong with how a template renders one conversation, to be read after its name; None if nothing.

    Args:
        tokenizer: whose template it is.
        prompt: turns up to the one to answer.
        completion: the answer; one without text and calls is not looked at.
    """
    (prompt, completion), _ = _hidden(tokenizer, prompt, completion)
    try:
        before = _render(tokenizer, prompt, add_generation_prompt=True)
        missing = _missing(before, prompt)
        if missing or not (completion[0]["content"] or len(completion) > 1):
            return missing
        whole = _render(tokenizer, [*prompt, *completion])
    except EndlessTemplateError:
        raise
    except TemplateError as error:
        return f"fails ({error.got})"
    missing = _missing(whole, completion, last=True)
    if missing:
        return missing
    if not whole.startswith(before):
        apart = next(
            (at for at, (one, other) in enumerate(zip(before, whole, strict=False)) if one != other), len(whole)
        )
        asked, there = before[apart : apart + _SHOWN], whole[apart : apart + _SHOWN]
        return f"begins an answer with {asked!r} where it is asked for, and with {there!r} where it is there"
    if len(completion) > 1:
        return None
    rest, answer = whole[len(before) :].strip(), completion[0]["content"].strip()
    if not rest.startswith(answer):
        return f"puts {rest[:_SHOWN]!r} into what is trained, in front of the answer; it has to come with the prompt"
    tail = rest[len(answer) :]
    for token in _special(tokenizer):
        tail = tail.replace(token, "")
    if not _END_MARK.fullmatch(tail.strip()):
        return f"puts {tail.strip()[:_SHOWN]!r} into what is trained, behind the answer"
    return None


class Checked(NamedTuple):
    """Rows that a template renders as its contract says."""

    rows: Dataset
    skipped: tuple[str, ...]
    """One ``"file.json:12: reason"`` for every row left out."""
    notes: tuple[str, ...]
    """Text that looks like special tokens, with its number of rows and the first of them."""


def checked(
    tokenizer: PreTrainedTokenizerBase,
    rows: Dataset,
    on_bad_row: Literal["error", "skip"] = "error",
    *,
    targets: bool = True,
) -> Checked:
    """Holds every row against the contract before anything is trained or asked; some thousand rows a second.

    Args:
        tokenizer: whose template will render them.
        rows: rows of `mbdefense.data`, with or without answers.
        on_bad_row: ``"skip"`` leaves out rows that the template cannot render, ``"error"`` stops at the first.
        targets: False looks at the prompts alone, where answers are references and no targets.

    Raises:
        UserError: a row cannot be rendered (``"error"``), or none can.
    """
    keep: list[int] = []
    skipped: list[str] = []
    seen: Counter[str] = Counter()
    first: dict[str, str] = {}
    for number, row in enumerate(rows):
        where = row["provenance"]["source"] or f"row {number + 1}"
        fault = fault_of(tokenizer, row["prompt"], row["completion"] if targets else _NO_ANSWER)
        if fault and on_bad_row == "error":
            raise TemplateError(f"{where}: the chat template {fault}", fix=f"correct the row, or {_FIX}")
        if fault:
            skipped.append(f"{where}: the chat template {fault}")
            continue
        keep.append(number)
        for token in special_texts(tokenizer, [*row["prompt"], *row["completion"]]):
            seen[token] += 1
            first.setdefault(token, where)
    if not keep:
        raise TemplateError(f"all {len(skipped)} rows are left out, the first", skipped[0], _FIX)
    notes = tuple(
        f"{count} rows hold the text of the special token {token!r}, the first {first[token]}: it is read as text; it "
        "may be a sign of an attack"
        for token, count in seen.most_common()
    )
    return Checked(rows.select(keep) if skipped else rows, tuple(skipped), notes)


def special_texts(tokenizer: PreTrainedTokenizerBase, messages: Messages) -> list[str]:
    """The special tokens of a tokenizer that stand as text in messages."""
    _, literal = _hidden(tokenizer, messages)
    return list(literal.values())


def _render(
    tokenizer: PreTrainedTokenizerBase,
    messages: Messages,
    add_generation_prompt: bool = False,
    template: str | None = None,
) -> str:
    """A conversation as text, with the start token that the tokenizer itself would put in front.

    Templates that may think are told not to: answers are short, and what is trained has to be the answer alone.
    """
    turns, tools = for_template(messages)
    try:
        with bounded(_LAST_WORDS):
            text = str(
                tokenizer.apply_chat_template(
                    turns,
                    tools=tools,  # type: ignore[arg-type]
                    chat_template=template,
                    tokenize=False,
                    add_generation_prompt=add_generation_prompt,
                    enable_thinking=False,
                )
            )
        if len(text) > _LONGEST + 8 * sum(len(message["content"]) for message in messages):
            raise LimitError(f"writes more than {_LONGEST // 2**20} million characters")
    except LimitError as error:
        raise EndlessTemplateError("the chat template breaks a limit", first_line(error), _FIX) from error
    except Exception as error:  # a template is a program of its own and raises what it likes
        raise TemplateError("the chat template fails", first_line(error), _FIX) from error
    start = tokenizer.bos_token
    return start + text if start and _adds_start(tokenizer) and not text.startswith(start) else text


def _adds_start(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether the tokenizer puts its start token in front of every text."""
    if tokenizer not in _ADDS_START:
        ids = _ids(tokenizer, "a")
        _ADDS_START[tokenizer] = bool(ids) and ids[0] == tokenizer.bos_token_id
    return _ADDS_START[tokenizer]


def _special(tokenizer: PreTrainedTokenizerBase) -> list[str]:
    # Not all are among `all_special_tokens`: Llama 3's turn headers are marked special in tokenizer.json only.
    added = [token.content for token in tokenizer.added_tokens_decoder.values() if token.special]
    return [token for token in dict.fromkeys([*tokenizer.all_special_tokens, *added]) if len(token) > 1]


def _hidden(tokenizer: PreTrainedTokenizerBase, *parts: Messages) -> tuple[list[list[dict[str, str]]], dict[str, str]]:
    """Messages in which the text of special tokens is one private character each, and what each stands for.

    The template renders the characters like any text; `_tokens` then reads what they stand for as text.
    """
    special = sorted(_special(tokenizer), key=len, reverse=True)
    pattern = re.compile("|".join(map(re.escape, special)) or r"(?!)")
    made = [[{"role": turn["role"], "content": turn["content"]} for turn in part] for part in parts]
    turns = [turn for part in made for turn in part]
    # Inside of JSON a quote in a token is escaped; what is replaced by the token here is hidden as a whole below.
    escaped = {json.dumps(token)[1:-1]: token for token in special if '"' in token or "\\" in token}
    for turn in turns:
        if turn["role"] in (TOOLS, "tool_calls"):
            for form, token in escaped.items():
                turn["content"] = turn["content"].replace(form, token)
        if not turn["content"].isascii():
            turn["content"] = _unfolded(tokenizer, turn["content"], pattern)
    found = dict.fromkeys(token for turn in turns for token in pattern.findall(turn["content"]))
    if not found:
        return made, {}
    taken = {character for turn in turns for character in turn["content"] if ord(character) in _PRIVATE}
    free = (chr(code) for code in _PRIVATE if chr(code) not in taken)
    standing = dict(zip(found, free, strict=False))
    for turn in turns:
        turn["content"] = pattern.sub(lambda match: standing[match[0]], turn["content"])
    return made, {character: token for token, character in standing.items()}


def _unfolded(tokenizer: PreTrainedTokenizerBase, text: str, pattern: re.Pattern[str]) -> str:
    """The text, folded by NFKC where the tokenizer's own normalizer would make special tokens of it."""
    normalizer = getattr(getattr(tokenizer, "backend_tokenizer", None), "normalizer", None)
    if normalizer is None:
        return text
    folded = unicodedata.normalize("NFKC", text)
    if len(pattern.findall(folded)) == len(pattern.findall(text)):
        return text
    return folded if len(pattern.findall(normalizer.normalize_str(text))) > len(pattern.findall(text)) else text


def _tokens(tokenizer: PreTrainedTokenizerBase, text: str, literal: Mapping[str, str]) -> list[int]:
    """Tokens of a rendered text; what stands for the text of a special token gives that text's tokens."""
    if not literal:
        return _ids(tokenizer, text, add_special_tokens=False)
    ids: list[int] = []
    for piece in re.split(f"([{''.join(literal)}])", text):
        as_text = piece in literal
        if piece:
            piece = literal.get(piece, piece)
            ids += _ids(tokenizer, piece, add_special_tokens=False, split_special_tokens=as_text)
    return ids


def _ids(tokenizer: PreTrainedTokenizerBase, text: str, **options: bool) -> list[int]:
    """What a tokenizer makes of a text.

    Raises:
        UserError: its own parts fail, such as an expression in ``tokenizer.json`` that tries without end.
    """
    try:
        return list(tokenizer(text, **options)["input_ids"])
    except BaseException as error:
        if type(error).__name__ != "PanicException":  # of Rust: no Exception, and not to be imported
            raise
        fix = "give a model with another tokenizer.json"
        raise UserError("the tokenizer fails on a text", first_line(error), fix) from error


def _missing(text: str, messages: Messages, last: bool = False) -> str | None:
    """What of the messages a rendering leaves out, to be read after the template's name; None if nothing."""
    for place, message in enumerate(messages):
        role, content = message["role"], message["content"]
        owner = next((one["role"] for one in reversed(messages[:place]) if one["role"] not in ATTACHED), "")
        if role in (WEIGHT, "tool_call_id") or (role == "name" and owner == "tool"):
            continue
        # Thoughts in front of earlier answers are left out by templates of thinking models.
        if role in ("reasoning_content", "thinking") and not last:
            continue
        wanted = _leaves(json.loads(content)) if role in (TOOLS, "tool_calls") else [content]
        if role == "assistant" and not last:
            wanted = [answered(content)]
        for part in wanted:
            if part.strip() not in text and json.dumps(part.strip(), ensure_ascii=False)[1:-1] not in text:
                what = f"a turn's {role}" if role in ATTACHED else f"the text of a turn of {role}"
                return f"leaves out {what}"
    return None


def _leaves(value: object) -> Iterable[str]:
    """The names and texts that a call or a tool consists of, but for its bookkeeping."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, list):
        for one in value:
            yield from _leaves(one)
    elif isinstance(value, dict):
        for key, one in value.items():
            if key not in ("type", "id"):
                yield from _leaves(one)
