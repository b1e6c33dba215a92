"""A client of HTTP for servers that strangers run: it follows no redirect, and ends a body that does not end."""

from __future__ import annotations

import importlib
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import openai

LARGEST_BODY = 2**26
"""Bytes; the longest answer with all that servers put around it takes a thousandth of it."""
# `openai` adds others, from variables that are meant for OpenAI alone (organization, project, headers of one's own).
_SENT = frozenset(
    ("host", "connection", "accept", "accept-encoding", "content-type", "content-length", "user-agent", "authorization")
)


class BodyError(Exception):
    """A server's answer breaks a limit, which is named."""


def client(timeout: float, *, own_headers: bool) -> openai.DefaultHttpxClient:
    """A client for one endpoint.

    Args:
        timeout: seconds that a request may take, from its start to the end of the body.
        own_headers: leave the headers that `openai` takes from the environment.
    """
    import openai

    def sending(request: Any) -> None:
        request.extensions["mbdefense_end"] = time.monotonic() + timeout
        request.headers["accept-encoding"] = "identity"
        for name in [] if own_headers else [name for name in request.headers if name.lower() not in _SENT]:
            del request.headers[name]

    def answered(response: Any) -> None:
        if response.headers.get("content-encoding", "identity") != "identity":
            raise BodyError("the body is compressed, though that was not asked for")
        # `openai` stands on httpx or on its successor, and this has to be of the same.
        library = importlib.import_module(type(response).__module__.partition(".")[0])
        whole = response.stream

        class Limited(library.SyncByteStream):  # type: ignore[misc, name-defined]
            def __iter__(self) -> Iterator[bytes]:
                size = 0
                for part in whole:
                    size += len(part)
                    if size > LARGEST_BODY:
                        raise BodyError(f"the body is larger than {LARGEST_BODY // 2**20} MiB")
                    if time.monotonic() > response.request.extensions["mbdefense_end"]:
                        raise BodyError(f"the answer took longer than {timeout:g} s")
                    yield part

            def close(self) -> None:
                whole.close()

        response.stream = Limited()

    hooks: Any = {"request": [sending], "response": [answered]}
    return openai.DefaultHttpxClient(event_hooks=hooks, follow_redirects=False, timeout=timeout)
