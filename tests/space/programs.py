"""Requests of programs to a demo."""

import http.client
import json
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit


@dataclass(frozen=True)
class Programs:
    """A client of the demo at an address."""

    url: str

    @property
    def port(self) -> int:
        port = urlsplit(self.url).port
        assert port is not None
        return port

    def request(
        self, method: str, path: str, body: bytes | None = None, **headers: str
    ) -> tuple[int, dict[str, str], bytes]:
        """Send a request with the path as it is: other clients would normalise it."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=240)
        connection.request(method, path, body, {name.replace("_", "-"): value for name, value in headers.items()})
        answer = connection.getresponse()
        content = answer.status, {name.lower(): value for name, value in answer.getheaders()}, answer.read()
        connection.close()
        return content

    def upload(self, name: str, content: bytes) -> tuple[int, str]:
        body = b'--x\r\nContent-Disposition: form-data; name="files"; filename="%s"\r\n\r\n%s\r\n--x--\r\n'
        status, _, content_of_answer = self.request(
            "POST",
            "/gradio_api/upload",
            body % (name.encode(), content),
            Content_Type="multipart/form-data; boundary=x",
        )
        return status, json.loads(content_of_answer)[0] if status == 200 else content_of_answer.decode()

    def ask(self, *data: Any) -> tuple[int, str]:
        """Send a request to the API, and wait for its answer."""
        status, event = self.begin(*data)
        return (status, event) if status != 200 else self.wait(event)

    def begin(self, *data: Any) -> tuple[int, str]:
        body = json.dumps({"data": data}).encode()
        status, _, answer = self.request("POST", "/gradio_api/call/classify", body, Content_Type="application/json")
        return status, json.loads(answer)["event_id"] if status == 200 else answer.decode()

    def scores(self, *data: Any) -> dict[str, float]:
        """The scores of one sample."""
        status, answer = self.ask(*data)
        assert status == 200
        assert answer.startswith("event: complete"), answer
        scores: dict[str, float] = json.loads(answer.split("data: ", 1)[1])[0]["scores"]
        return scores

    def wait(self, event: str) -> tuple[int, str]:
        status, _, answer = self.request("GET", f"/gradio_api/call/classify/{event}")
        return status, answer.decode()


def file(path: str) -> dict[str, Any]:
    return {"path": path, "meta": {"_type": "gradio.FileData"}}
