"""A file from the web is there whole or not at all."""

import hashlib
import http.server
import threading

import pytest

from tpullm.corpus.files import source_files
from tpullm.system.errors import UserError

BODY = "今日はいい天気ですね。\n".encode() * 1000


class _Server(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        if self.path.startswith("/missing"):
            self.send_error(404)
            return
        self.send_response(200)
        self.send_header("Content-Length", str(len(BODY)))
        self.end_headers()
        self.wfile.write(BODY[:100] if self.server.breaks_off else BODY)

    def log_message(self, *_):
        pass


@pytest.fixture
def server():
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Server) as found:
        found.breaks_off = False
        found.url = f"http://127.0.0.1:{found.server_port}"
        threading.Thread(target=found.serve_forever, daemon=True).start()
        yield found
        found.shutdown()


def test_a_file_is_fetched_once(server, tmp_path):
    path = source_files.fetch(f"{server.url}/a.txt?x=1", tmp_path / "downloads")
    assert path.read_bytes() == BODY and path.name.endswith("-a.txt")
    server.shutdown()
    assert source_files.fetch(f"{server.url}/a.txt?x=1", tmp_path / "downloads") == path


def test_an_interrupted_download_leaves_nothing_and_is_made_again(server, tmp_path):
    server.breaks_off = True
    with pytest.raises(UserError, match=f"broke off after 100 of {len(BODY)} bytes; run the same command again"):
        source_files.fetch(f"{server.url}/a.txt", tmp_path)
    assert list(tmp_path.iterdir()) == []
    server.breaks_off = False
    assert source_files.fetch(f"{server.url}/a.txt", tmp_path).read_bytes() == BODY


def test_what_cannot_be_reached_is_told_in_one_line(server, tmp_path):
    with pytest.raises(UserError, match="the server answers 404"):
        source_files.fetch(f"{server.url}/missing", tmp_path)
    port = server.server_port
    server.shutdown()
    server.server_close()
    with pytest.raises(UserError, match="cannot be downloaded .*check the address and the network") as error:
        source_files.fetch(f"http://127.0.0.1:{port}/a.txt", tmp_path)
    assert "\n" not in str(error.value)


def test_a_file_is_kept_under_its_name_and_the_hash_of_its_address(tmp_path):
    digest = hashlib.sha256(b"https://example.com/a/b.txt?x=1").hexdigest()
    assert source_files.place("https://example.com/a/b.txt?x=1", tmp_path) == tmp_path / f"{digest[:8]}-b.txt"
    assert source_files.place("https://example.com/", tmp_path).name.endswith("-index.html")
    found = [source_files.is_url(path) for path in ("http://a", "https://a", "ftp://a", "a/http://b")]
    assert found == [True, True, False, False]
