"""How programs talk to a demo, and what they can get out of it."""

import http.client
import json
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit


@dataclass(frozen=True)
class Programs:
    """Those that know where a demo is."""

    url: str

    @property
    def port(self) -> int:
        port = urlsplit(self.url).port
        assert port is not None
        return port

    def request(
        self, method: str, path: str, body: bytes | None = None, **headers: str
    ) -> tuple[int, dict[str, str], bytes]:
        """As it is written: nothing in the path is made shorter or safer on the way."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        connection.request(method, path, body, {name.replace("_", "-"): value for name, value in headers.items()})
        answer = connection.getresponse()
        found = answer.status, {name.lower(): value for name, value in answer.getheaders()}, answer.read()
        connection.close()
        return found

    def upload(self, name: str, content: bytes) -> tuple[int, str]:
        body = b'--x\r\nContent-Disposition: form-data; name="files"; filename="%s"\r\n\r\n%s\r\n--x--\r\n'
        status, _, said = self.request(
            "POST",
            "/gradio_api/upload",
            body % (name.encode(), content),
            Content_Type="multipart/form-data; boundary=x",
        )
        return status, json.loads(said)[0] if status == 200 else said.decode()

    def ask(self, *data: Any) -> tuple[int, str]:
        """Ask the API, and wait for its answer."""
        status, said = self.begin(*data)
        return (status, said) if status != 200 else self.wait(said)

    def begin(self, *data: Any) -> tuple[int, str]:
        body = json.dumps({"data": data}).encode()
        status, _, said = self.request("POST", "/gradio_api/call/classify", body, Content_Type="application/json")
        return status, json.loads(said)["event_id"] if status == 200 else said.decode()

    def scores(self, *data: Any) -> dict[str, float]:
        """What it says of one sample."""
        status, said = self.ask(*data)
        assert status == 200
        assert said.startswith("event: complete"), said
        found: dict[str, float] = json.loads(said.split("data: ", 1)[1])[0]["scores"]
        return found

    def wait(self, event: str) -> tuple[int, str]:
        status, _, said = self.request("GET", f"/gradio_api/call/classify/{event}")
        return status, said.decode()


def file(path: str) -> dict[str, Any]:
    return {"path": path, "meta": {"_type": "gradio.FileData"}}
