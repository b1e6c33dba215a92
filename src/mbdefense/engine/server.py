"""Answers from a server that holds the model, with the prompt template still ours."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

from mbdefense.core.endpoint import Endpoint, EndpointFault, goes_by, served_models
from mbdefense.core.errors import UserError
from mbdefense.core.progress import track
from mbdefense.models.loading import encode_prompt, prompt_text

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

logger = logging.getLogger(__name__)

_REQUESTS = 32  # in flight at most: what a server cannot batch waits there, and its time-out runs
_TIMEOUT = 600.0  # seconds; a server may queue what it is asked


@dataclass(frozen=True)
class Server:
    """The completions interface of vLLM, SGLang, ``transformers serve``, llama.cpp and their like.

    The conversation is rendered here, so that the server's own chat template has no part in it.

    Args:
        url: root of the interface, e.g. ``http://localhost:8000/v1``.
        model: the name that the server knows the model by; by default the only one it serves.
        prompt: send prompts as token ids, which leave nothing to the server, or as text, for servers that take no ids;
            many of those put a start token before a text.
        api_key_env: environment variable that holds the server's key; by default none is sent (to OpenAI itself, that
            in OPENAI_API_KEY), for keys that lie in the environment are for others.
    """

    url: str
    model: str | None = None
    prompt: Literal["tokens", "text"] = "tokens"
    api_key_env: str | None = None

    def __post_init__(self) -> None:
        if self.api_key_env is not None and not os.environ.get(self.api_key_env):
            # Without what was given: it may be the key itself.
            fix = "export it, or leave the option out for a server without a key"
            raise UserError("the environment variable that --server_api_key_env names is not set", fix=fix)
        self._endpoint("any")  # checks the URL

    def __call__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        prompts: Sequence[list[dict[str, str]]],
        *,
        max_new_tokens: int,
        batch_size: int,
        stops: Sequence[str],
        what: str = "asking",
    ) -> Iterator[tuple[int, str]]:
        """Answers prompts greedily.

        Args:
            tokenizer: the model's, with its prompt template.
            prompts: conversations that end in a user turn.
            max_new_tokens: longest answer, in tokens.
            batch_size: requests in flight, at most 32.
            stops: texts that end an answer, as `mbdefense.models.limits.stop_texts` gives them.
            what: label of the progress bar.

        Yields:
            A prompt's index and its text, in the order of the prompts.

        Raises:
            UserError: the server cannot be reached, refuses, or fails on a prompt again and again. Answers to some of
                the prompts would be no evaluation.
        """
        endpoint = self._endpoint(self._model(), max_new_tokens)
        asked = [
            encode_prompt(tokenizer, prompt) if self.prompt == "tokens" else prompt_text(tokenizer, prompt)
            for prompt in prompts
        ]
        with endpoint.client() as client, ThreadPoolExecutor(min(batch_size, _REQUESTS)) as pool:
            replies = pool.map(lambda one: endpoint.complete(client, one, stop=list(stops)), asked)
            try:
                for index, reply in enumerate(track(replies, what, len(asked))):
                    yield index, min((reply.text.partition(stop)[0] for stop in stops), key=len)
            except EndpointFault as error:
                pool.shutdown(cancel_futures=True)
                raise UserError(f"the server failed on a prompt ({error})", self.url, "look at its log") from error
            except (UserError, GeneratorExit):
                pool.shutdown(cancel_futures=True)
                raise

    def serving(self, model: str) -> tuple[Server, bool]:
        """This server with what it serves named, and whether that is `model` as far as its names tell.

        A warning says where it is not, also where the server does not list the name that it is asked for: some servers
        answer with what they have, whatever the name.

        Args:
            model: directory or Hub id of the model that is to answer.

        Raises:
            UserError: no model is named, and the server cannot be asked for one or does not serve exactly one.
        """
        served = self._model()
        listed = [served] if self.model is None else self._listed()
        if served not in listed:
            logger.warning("the server lists %s, not %r: which model answers is not known", listed[:9], served)
        elif not goes_by(served, model):
            logger.warning("the server serves %r, not %r: the answers and figures are that model's", served, model)
        return replace(self, model=served), served in listed and goes_by(served, model)

    def _listed(self) -> list[str]:
        try:
            return served_models(self._endpoint("any"))
        except UserError:  # not every server has a list, and the first prompt will show whether this one works
            return []

    def _endpoint(self, model: str, max_tokens: int = 1) -> Endpoint:
        return Endpoint(self.url, model, self.api_key_env, timeout=_TIMEOUT, max_tokens=max_tokens)

    def _model(self) -> str:
        if self.model is not None:
            return self.model
        served = served_models(self._endpoint("any"))
        if len(served) != 1:
            raise UserError("the server does not serve exactly one model", served, "name it with --server_model")
        return served[0]
