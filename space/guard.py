"""Between the network and gradio: nothing is fetched for visitors, and their browsers fetch nothing either."""

from typing import Any

import gradio as gr
from starlette.types import ASGIApp, Message, Receive, Scope, Send

# Whatever a model's card or name should smuggle into the page, a browser asks no other machine for it.
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
HEADERS = [
    (b"content-security-policy", POLICY.encode()),
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
]
# gradio would fetch what an address in the path names, decode videos, and take files for other parts of itself.
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
    """Refuses some requests, and adds headers to every answer.

    Args:
        app: gradio's.
    """

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message.get("headers", []), *HEADERS]
            await send(message)

        path = scope["path"].lower().removeprefix("/gradio_api").lstrip("/")
        length = dict(scope["headers"]).get(b"content-length", b"0")
        if path.startswith(REFUSED):
            await _refuse(send_with_headers, 403, b"Not served here.")
        elif not length.isdigit() or int(length) > LONGEST_BODY:
            await _refuse(send_with_headers, 413, b"Too much at once.")
        else:
            await self.app(scope, receive, send_with_headers)


async def _refuse(send: Send, status: int, words: bytes) -> None:
    await send({"type": "http.response.start", "status": status, "headers": [(b"content-type", b"text/plain")]})
    await send({"type": "http.response.body", "body": words})


def refuse_addresses(component: Any) -> None:
    """Take files that were uploaded, as they are: no web addresses, and no decoding that we do not see.

    gradio would fetch an address, and open a picture by itself, with all of Pillow's formats and in its own words.
    """
    keep = component.async_move_resource_to_block_cache

    async def uploaded_only(path: Any) -> Any:
        if path is not None and "://" in str(path)[:12]:
            raise gr.Error("Upload the file itself: this demo fetches nothing.", print_exception=False)
        return await keep(path)

    component.async_move_resource_to_block_cache = uploaded_only
    if isinstance(component, gr.Image):
        setattr(component, "preprocess", lambda payload: payload.path if payload else None)  # noqa: B010
