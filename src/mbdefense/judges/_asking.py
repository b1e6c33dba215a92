"""Asking an endpoint many questions: several at once, each paid for once, resumed after a failure."""

from __future__ import annotations

import hashlib
import json
import logging
import threading
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import asdict, dataclass
from pathlib import Path

from mbdefense.core.endpoint import Endpoint, EndpointFault, Reply, TooLongFault
from mbdefense.core.errors import UserError
from mbdefense.core.files import write_sealed
from mbdefense.core.forms import Form, read_form
from mbdefense.core.progress import Bar

logger = logging.getLogger(__name__)

_NOTHING = Reply("", False, 0, 0)


@dataclass(frozen=True)
class _Kept(Form):
    """The file of a reply, which names the file for which it was written."""

    model: str
    reply: Reply
    file: str | None = None


@dataclass(frozen=True)
class Ask:
    """One question to a chat model.

    Attributes:
        version: of the texts that the messages are made of.
        system: the system message.
        user: the user message.
    """

    version: int
    system: str
    user: str


@dataclass(frozen=True)
class Asker:
    """An endpoint with a memory: a folder with one JSON file for each reply.

    A file is named by a hash of all that the reply depends on: endpoint, model, options and messages. It appears
    whole, as soon as the reply is there. So a run that was interrupted or failed goes on where it stopped, and the
    same questions asked again cost nothing.

    Args:
        endpoint: who is asked.
        directory: where replies are kept.
        concurrency: most requests at once.
    """

    endpoint: Endpoint
    directory: Path
    concurrency: int

    def ask(self, asks: Sequence[Ask], what: str, earlier: Mapping[Ask, Reply]) -> dict[Ask, Reply]:
        """Asks what has no reply yet, each question once however often it occurs.

        A question that is longer than the model reads gets an empty reply, which is not kept.

        Args:
            asks: the questions.
            what: label of the progress bar.
            earlier: replies to other questions of the same run.

        Raises:
            UserError: some question got no reply after all retries. No further one was begun then; what was under way
                was finished and kept. Also if all questions of the run are too long.
        """
        replies = self.known(asks)
        missing = list(dict.fromkeys(ask for ask in asks if ask not in replies))
        if not missing:
            return replies
        self.directory.mkdir(parents=True, exist_ok=True)
        try:
            replies.update(self._ask_all(missing, what))
            unread = [ask for ask in missing if replies.get(ask) is _NOTHING]
            if unread:
                if not any(reply is not _NOTHING for reply in (*replies.values(), *earlier.values())):
                    raise self.endpoint.refused("each question is longer than the model reads")
                logger.warning("%d questions are longer than the judge reads, and have no verdict", len(unread))
        except EndpointFault as error:
            fix = "see that it is up and within its limits, then run the same command again: no reply is paid for twice"
            raise UserError(f"the judge's endpoint failed ({error})", self.endpoint.base_url, fix) from error
        return replies

    def known(self, asks: Iterable[Ask]) -> dict[Ask, Reply]:
        """The replies that are there already.

        Raises:
            UserError: a file in the folder is damaged, or was changed since.
        """
        found = {}
        for ask in dict.fromkeys(asks):
            path = self._path(ask)
            if path.is_file():
                fix = "delete the file; its question is asked again"
                kept = read_form(_Kept, path, f"the kept reply {path}", fix)
                if kept.file not in (None, path.name):
                    raise UserError("a kept reply is to another question", str(path), fix)
                found[ask] = kept.reply
        return found

    def _ask_all(self, asks: Sequence[Ask], what: str) -> dict[Ask, Reply]:
        stop = threading.Event()
        with self.endpoint.client() as client, Bar(what, len(asks)) as bar:

            def ask_one(ask: Ask) -> Reply | None:
                # After a failure or an interrupt nothing more is begun; what is under way is paid for anyway.
                if stop.is_set():
                    return None
                try:
                    reply = self.endpoint.chat(client, ask.system, ask.user)
                    path = self._path(ask)
                    write_sealed(path, {"model": self.endpoint.model, "reply": asdict(reply), "file": path.name})
                except TooLongFault:
                    reply = _NOTHING
                except BaseException:
                    stop.set()
                    raise
                bar.advance()
                return reply

            with ThreadPoolExecutor(self.concurrency) as pool:
                try:
                    futures = [pool.submit(ask_one, ask) for ask in asks]
                    wait(futures)
                finally:
                    stop.set()
        for error in filter(None, (future.exception() for future in futures)):
            raise error
        return {ask: reply for ask, future in zip(asks, futures, strict=True) if (reply := future.result()) is not None}

    def _path(self, ask: Ask) -> Path:
        endpoint = self.endpoint
        key = [endpoint.base_url, endpoint.model, endpoint.max_tokens, endpoint.temperature, *asdict(ask).values()]
        return self.directory / f"{hashlib.sha256(json.dumps(key).encode()).hexdigest()}.json"
