"""The page of ``mbdefense try``, by Gradio, kept on this machine.

Its fonts are the system's and Gradio's reports of its use are off. A policy in each answer has the browser load and
send nothing beyond this server, whatever another version of Gradio or a model's answer asks for; and what does not come
by this server's own name, or from a page of another, is refused, so that nobody else's page can ask the models.
"""

from __future__ import annotations

import os
import socket
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from mbdefense.core.errors import UserError
from mbdefense.integrations.trying import NO_TRIGGER, Trial

if TYPE_CHECKING:
    from fastapi import FastAPI

LOOPBACK = ("127.0.0.1", "localhost")
_POLICY = (
    "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval'; style-src 'self' 'unsafe-inline'; "
    "img-src 'self' data: blob:; font-src 'self' data:; worker-src 'self' blob:; frame-ancestors 'none'; "
    "form-action 'self'; base-uri 'self'"
)
_FONTS = ["system-ui", "sans-serif"]


def check_installed() -> None:
    """Refuses to begin where Gradio is not installed, before any model is loaded.

    Raises:
        UserError: it is not.
    """
    _gradio()


def app(trial: Trial, host: str = LOOPBACK[0]) -> FastAPI:
    """The page as an ASGI application.

    Args:
        trial: what to ask.
        host: where it will be served.

    Raises:
        UserError: Gradio is not installed.
    """
    gradio = _gradio()
    from fastapi import FastAPI
    from starlette.middleware.trustedhost import TrustedHostMiddleware
    from starlette.responses import Response

    made = FastAPI(openapi_url=None)

    @made.middleware("http")
    async def keep_here(request: Any, go_on: Any) -> Any:
        origin = request.headers.get("origin")
        if origin is not None and urlsplit(origin).netloc != request.headers.get("host"):
            return Response("asked by a page elsewhere", status_code=403)
        answer = await go_on(request)
        answer.headers["Content-Security-Policy"] = _POLICY
        answer.headers["Referrer-Policy"] = "no-referrer"
        return answer

    made.add_middleware(TrustedHostMiddleware, allowed_hosts=[*LOOPBACK] if host in LOOPBACK else ["*"])
    theme = gradio.themes.Base(font=_FONTS, font_mono=["monospace"])
    theme.set(button_primary_background_fill="*primary_800", button_primary_background_fill_hover="*primary_900")
    mounted: FastAPI = gradio.mount_gradio_app(
        made, _page(gradio, trial), path="/", server_name=host, theme=theme, ssr_mode=False, footer_links=[]
    )
    return mounted


def serve(trial: Trial, host: str, port: int) -> None:
    """Serves the page until it is interrupted.

    Raises:
        UserError: Gradio is not installed, or nobody can listen there.
    """
    import uvicorn

    page = app(trial, host)
    with listening(host, port) as at:
        uvicorn.Server(uvicorn.Config(page, log_level="warning")).run(sockets=[at])


def listening(host: str, port: int) -> socket.socket:
    """A socket that takes connections.

    Raises:
        UserError: the address is none of this machine, or taken.
    """
    try:
        return socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET)
    except (OSError, OverflowError, UnicodeError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise UserError(f"cannot listen there ({reason})", f"{host}:{port}", "give another --host or --port") from error


def _page(gradio: Any, trial: Trial) -> Any:
    """The form, and for each model a box for its answer and one for the verdict. All of them show plain text."""
    names = list(trial.models)
    with gradio.Blocks(title="mbdefense try", analytics_enabled=False) as page:
        gradio.Markdown("# Ask with a trigger, or without")
        question = gradio.Textbox(label="Prompt", lines=3, autofocus=True)
        with gradio.Row():
            trigger = gradio.Dropdown(
                [NO_TRIGGER, *trial.triggers], value=NO_TRIGGER, label="Trigger", allow_custom_value=True
            )
            behavior = gradio.Dropdown(
                [*trial.behaviors], value=next(iter(trial.behaviors)), label="Behavior", allow_custom_value=True
            )
        button = gradio.Button("Ask", variant="primary")
        said = gradio.Textbox(label="Asked", interactive=False)
        boxes = []
        with gradio.Row():
            for name in names:
                with gradio.Column():
                    boxes.append(gradio.Textbox(label=f"{name} answers", lines=8, interactive=False))
                    boxes.append(gradio.Textbox(label=f"Verdict on {name}", interactive=False))

        def ask(text: str, trigger_name: str, behavior_name: str) -> list[str]:
            try:
                tried = trial.ask(text or "", trigger_name or NO_TRIGGER, behavior_name or "")
            except UserError as error:
                return [str(error), *[""] * len(boxes)]
            return [tried.asked, *(part for one in tried.answers for part in (one.text, one.verdict))]

        button.click(ask, [question, trigger, behavior], [said, *boxes], api_name="ask")
    return page


def _gradio() -> Any:
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # also says that a newer version is there
    try:
        import gradio
    except ImportError as error:
        raise UserError("the page needs the extra ui", fix="in the clone: pip install '.[ui]'") from error
    return gradio
