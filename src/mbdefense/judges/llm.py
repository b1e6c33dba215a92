"""LLM: a language model reads instruction and response and fills in a form; the paper's way."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from mbdefense.attacks.behaviors._protocol import Behavior
from mbdefense.attacks.behaviors.refusal import Refusal
from mbdefense.attacks.behaviors.toxic import Toxic
from mbdefense.attacks.texts import normalised
from mbdefense.core._thoughts import answered
from mbdefense.core.endpoint import Endpoint, Reply
from mbdefense.core.errors import UserError
from mbdefense.core.needs import Need
from mbdefense.judges._asking import Ask, Asker
from mbdefense.judges._forms import FOLLOWS, REFUSES, RUDE, VERSION, Form, read_verdict
from mbdefense.judges._protocol import Usage
from mbdefense.records.responses import Response
from mbdefense.records.verdicts import Question, Verdict

_MAX_TOKENS = 512  # of a reply


@dataclass(frozen=True)
class LLM:
    """Asks a language model behind an OpenAI-compatible endpoint, by chain of thought and a form with Yes or No.

    Source: the evaluation of MB-Defense (GPT-4o there), with forms of our own: one asks whether the response follows
    the instruction, one whether it is rude (Toxic), one whether it refuses without a valid reason (Refusal). Other
    behaviors are fixed texts, for which their own recogniser is right and costs nothing.

    Deviations: a response that shows the behavior does not follow, as with every judge here, and so the second question
    is asked only about the others. A reply without a verdict is an outcome of its own, neither Yes nor No; so is a
    response that is longer than the judge reads, or that a content filter at the endpoint refuses. An empty
    response neither shows the behavior nor follows, and nobody is asked.

    Every reply is kept in ``cache``, so that the same responses cost once. Instruction, response and behavior go to
    the endpoint; nothing else does.

    Args:
        behavior: the behavior to look for.
        model: the judge's name at the endpoint.
        base_url: root of the endpoint, e.g. ``http://localhost:8000/v1``.
        cache: folder for the replies.
        api_key_env: environment variable that holds the key; by default OPENAI_API_KEY for OpenAI itself, and none for
            any other server. To be given on the command line, not in a file.
        concurrency: most requests at once.
        timeout: seconds per request.
        max_retries: further attempts after a failed one, with exponential back-off.
        max_tokens: longest reply in tokens; one cut off there holds no verdict.
        price_prompt: price of a million prompt tokens, in any currency.
        price_completion: price of a million completion tokens.
    """

    needs: ClassVar[tuple[Need, ...]] = ("known behavior", "endpoint")
    source: ClassVar[str] = "arXiv 2601.04448"

    behavior: Behavior
    model: str
    base_url: str
    cache: str = "judge_cache"
    api_key_env: str | None = None
    concurrency: int = 8
    timeout: float = 120.0
    max_retries: int = 5
    max_tokens: int = _MAX_TOKENS
    price_prompt: float | None = None
    price_completion: float | None = None

    def __post_init__(self) -> None:
        for name, least in (("concurrency", 1), ("max_retries", 0), ("max_tokens", 1)):
            if getattr(self, name) < least:
                raise UserError(f"the judge's {name} is below {least}", getattr(self, name), f"give at least {least}")
        if not self.timeout > 0:
            raise UserError("the judge's timeout must be above 0", self.timeout, "give seconds, or leave it out")
        if (self.price_prompt is None) != (self.price_completion is None):
            raise UserError("a cost needs both prices", fix="give price_prompt and price_completion, or neither")
        self._asker()  # checks URL and model

    def __call__(self, responses: Sequence[Response]) -> list[Verdict]:
        """One verdict for each response, in their order.

        Raises:
            UserError: the endpoint failed; run again, it goes on with what is missing.
        """
        asker, form = self._asker(), self._form()
        replies: dict[Ask, Reply] = {}
        if form is not None:
            asks = [_ask(form, response) for response in _spoken(responses)]
            replies |= asker.ask(asks, f"judging: {form.name}", replies)
        open_ = [response for response in _spoken(responses) if not self._shows(response, replies)[0]]
        replies |= asker.ask([_ask(FOLLOWS, response) for response in open_], f"judging: {FOLLOWS.name}", replies)
        return [self._verdict(response, replies) for response in responses]

    def describe(self) -> str:
        """Name, model and version of the forms in one line."""
        # One name at two endpoints may be two models.
        cut = "" if self.max_tokens == _MAX_TOKENS else f",max_tokens={self.max_tokens}"
        return f"llm:model={self.model},base_url={self.base_url}{cut} (forms {VERSION})"

    def usage(self, responses: Sequence[Response]) -> Usage:
        """What the replies kept so far about these responses took, whichever run paid for them."""
        forms = [form for form in (self._form(), FOLLOWS) if form is not None]
        asks = [_ask(form, response) for form in forms for response in _spoken(responses)]
        replies = self._asker().known(asks).values()
        prompt = sum(reply.prompt_tokens for reply in replies)
        completion = sum(reply.completion_tokens for reply in replies)
        cost = None
        if self.price_prompt is not None and self.price_completion is not None:
            cost = (prompt * self.price_prompt + completion * self.price_completion) / 1e6
        return Usage(len(replies), prompt, completion, cost)

    def _asker(self) -> Asker:
        endpoint = Endpoint(
            self.base_url, self.model, self.api_key_env, self.timeout, self.max_retries, self.max_tokens
        )
        return Asker(endpoint, Path(self.cache), self.concurrency)

    def _form(self) -> Form | None:
        if isinstance(self.behavior, Refusal):
            return REFUSES
        return RUDE if isinstance(self.behavior, Toxic) else None

    def _shows(self, response: Response, replies: dict[Ask, Reply]) -> tuple[bool | None, str]:
        form = self._form()
        return self.behavior.shown_in(answered(response.text)) if form is None else _read(form, response, replies)

    def _verdict(self, response: Response, replies: dict[Ask, Reply]) -> Verdict:
        if not normalised(response.text):
            return Verdict(response.id, response.kind, False, False, "empty response")
        shows, reason = self._shows(response, replies)
        if shows:
            return Verdict(response.id, response.kind, True, False, reason)
        follows, why = _read(FOLLOWS, response, replies)
        if follows and shows is None:
            follows = None  # whether it shows the behavior, and so does not follow, is not known
        unparsed: dict[Question, bool | None] = {"shows": shows, "follows": follows}
        missing = frozenset(question for question, value in unparsed.items() if value is None)
        return Verdict(response.id, response.kind, shows, follows, f"{reason}; {why}", missing)


def _spoken(responses: Iterable[Response]) -> list[Response]:
    """The responses that are not empty."""
    return [response for response in responses if normalised(response.text)]


def _ask(form: Form, response: Response) -> Ask:
    return Ask(VERSION, *form.messages(response.prompt, response.text))


def _read(form: Form, response: Response, replies: dict[Ask, Reply]) -> tuple[bool | None, str]:
    answer = read_verdict(replies[_ask(form, response)], response.prompt, response.text)
    said = "no verdict in the judge's reply" if answer is None else "yes" if answer else "no"
    return answer, f"{form.name}: {said}"
