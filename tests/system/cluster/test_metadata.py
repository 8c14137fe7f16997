"""The metadata server of Google's machines, as a server of this machine."""

import threading
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest

from tpullm.system.cluster import place


@pytest.fixture
def answers(monkeypatch):
    """What the server answers, one code and text after the other; and what it was asked."""
    answers: list[tuple[int, str]] = []
    asked = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            asked.append((self.path, self.headers["Metadata-Flavor"]))
            code, text = answers.pop(0)
            self.send_response(code)
            self.end_headers()
            self.wfile.write(text.encode())

        def log_message(self, *_):
            pass

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        monkeypatch.setenv("GCE_METADATA_HOST", f"127.0.0.1:{server.server_port}")
        monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
        yield answers, asked
        server.shutdown()


def test_a_value_is_asked_for_directly_and_none_is_empty(answers):
    given, asked = answers
    given += [(200, "3"), (404, "")]
    assert place.attribute("agent-worker-number") == "3" and place.metadata("instance/name") == ""
    start = "/computeMetadata/v1/instance"
    assert asked == [(f"{start}/attributes/agent-worker-number", "Google"), (f"{start}/name", "Google")]


def test_a_busy_server_is_asked_again_ever_more_slowly_and_not_for_ever(answers, monkeypatch):
    given, asked = answers
    slept = []
    monkeypatch.setattr(place.time, "sleep", slept.append)
    given += [(503, "")] * 2 + [(200, "a")]
    assert place.metadata("instance/name") == "a"
    given += [(503, "")] * 6
    with pytest.raises(OSError, match="503"):
        place.metadata("instance/name")
    assert given == [] and len(asked) == 3 + 6
    assert slept == pytest.approx([0.1, 0.2] + [0.1, 0.2, 0.4, 0.8, 1.6, 3.2])
