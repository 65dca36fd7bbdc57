"""Checks requests before gradio sees them: the server fetches nothing for visitors, and browsers fetch nothing else."""

from typing import Any

import gradio as gr
from starlette.datastructures import MutableHeaders
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

# Whatever a model's card or name brings into the page, browsers load nothing from other machines.
POLICY = "; ".join(
    (
        "default-src 'self'",
        "script-src 'self' 'unsafe-inline' 'unsafe-eval' blob:",
        "style-src 'self' 'unsafe-inline'",
        "img-src 'self' data: blob:",
        "media-src 'self' data: blob:",
        "font-src 'self' data:",
        "worker-src 'self' blob:",
        "object-src 'none'",
        "base-uri 'self'",
        "form-action 'self'",
    )
)
HEADERS = {
    "content-security-policy": POLICY,
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
}
# gradio would fetch addresses in these paths, decode videos, and accept files for other components.
REFUSED = (
    "file=http",
    "file/http",
    "proxy=",
    "process_recording",
    "component_server",
    "deep_link",
    "custom_component",
    "vibe",
    "undo-vibe",
    "dev/",
)
LONGEST_BODY = 100_000_000


class Guard:
    """Refuses some requests, and adds headers to every response.

    Args:
        app: gradio's application.
    """

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(HEADERS)
            await send(message)

        path = scope["path"].lower().removeprefix("/gradio_api").lstrip("/")
        length = dict(scope["headers"]).get(b"content-length", b"0")
        if path.startswith(REFUSED):
            await PlainTextResponse("Not served here.", 403)(scope, receive, send_with_headers)
        elif not length.isdigit() or int(length) > LONGEST_BODY:
            await PlainTextResponse("Too much at once.", 413)(scope, receive, send_with_headers)
        else:
            await self.app(scope, receive, send_with_headers)


def refuse_addresses(component: Any) -> None:
    """Make a component accept uploaded files only, and not decode them.

    gradio would fetch a web address, and decode a picture with all of Pillow's formats and its own messages.
    """
    move = component.async_move_resource_to_block_cache

    async def uploaded_only(path: Any) -> Any:
        if path is not None and "://" in str(path)[:12]:
            raise gr.Error("Upload the file itself: this demo fetches nothing.", print_exception=False)
        return await move(path)

    component.async_move_resource_to_block_cache = uploaded_only
    if isinstance(component, gr.Image):
        setattr(component, "preprocess", lambda payload: payload.path if payload else None)  # noqa: B010
