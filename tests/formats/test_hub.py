"""A MODEL that is named as on the hub: a line says how to download it, or it is downloaded."""

import http.server
import json
import threading
from fnmatch import fnmatch
from pathlib import Path

import huggingface_hub
import pytest
from huggingface_hub import constants

from tests.formats.huggingface import published
from tpullm.cli.main import main
from tpullm.formats import hub
from tpullm.system.errors import UserError

SMOL = "HuggingFaceTB/SmolLM2-135M-Instruct"
FOLDER = ("*.safetensors", "*.json", "*.jinja")
Q4 = ("*Q4_K_M.gguf", "*q4_k_m.gguf")


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ("word", "patterns", "revision"),
    [
        (SMOL, FOLDER, ""),
        (f"hf.co/{SMOL}", FOLDER, ""),
        (f"https://huggingface.co/{SMOL}", FOLDER, ""),
        (f"https://huggingface.co/{SMOL}/tree/v1.0", FOLDER, "v1.0"),
        (f"https://huggingface.co/{SMOL}/", FOLDER, ""),
        (f"{SMOL}:small.gguf", ("small.gguf",), ""),
        (f"https://huggingface.co/{SMOL}/resolve/main/small.gguf?download=true", ("small.gguf",), "main"),
        (f"https://hf.co/{SMOL}/blob/main/small.gguf", ("small.gguf",), "main"),
        (f"hf.co/{SMOL}:Q4_K_M", Q4, ""),
        (f"hf.co/{SMOL}:Q4_K_M", Q4, ""),
    ],
)
def test_names_of_the_hub(word, patterns, revision):
    found = hub.named(word)
    assert (found.repository, found.patterns, found.revision) == (SMOL, patterns, revision)
    assert found.folder == Path("models") / SMOL


@pytest.mark.parametrize(
    "word",
    [
        "",
        "smol",
        "/a/b",
        "./a/b",
        "../b",
        "~/b",
        "a/b/c",
        "gs://a/b",
        "runs/q",
        "models/q",
        "there/other",
        "a b/c",
        "a/b\n",
    ]
    + ["https://example.com/a/b", "a/../b", "-a/b"],
)
def test_paths_are_no_names_of_the_hub(here, word):
    (here / "there").mkdir()
    assert hub.named(word) is None and hub.located(word) == word


def test_a_path_that_exists_is_no_name(here):
    (here / "one").mkdir()
    (here / "one" / "two").write_text("")
    assert hub.named("one/two") is None and hub.named("hf.co/one/two").repository == "one/two"


@pytest.mark.parametrize(
    ("words", "then"),
    [
        (["serve", SMOL, "--port", "0"], f"tpullm serve models/{SMOL} --port 0"),
        (["chat", SMOL, "--prompt", "a"], f"tpullm chat models/{SMOL} --prompt a"),
        (["import", SMOL, "--run", "runs/a"], f"tpullm import models/{SMOL} --run runs/a"),
        (["compare", "runs/a", SMOL], f"tpullm compare runs/a models/{SMOL}"),
        (["doctor", f"{SMOL}:a.gguf"], f"tpullm doctor models/{SMOL}/a.gguf"),
    ],
)
def test_a_line_says_how_to_download_it_and_what_to_run_then(capsys, words, then):
    assert main(words) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert f"hf download {SMOL} --local-dir models/{SMOL} --include" in line
    assert line.endswith(f", then {then}; or add --download")


def test_the_base_of_a_recipe_and_the_python_api_say_so_too(here, capsys):
    (here / "mine.yaml").write_text(f"name: mine\nbase: {SMOL}\nrun: made\n")
    assert main(["pretrain", "mine.yaml"]) == 2 and f"hf download {SMOL}" in capsys.readouterr().err
    from tpullm.engine.session import find_model

    with pytest.raises(UserError, match=f"hf download {SMOL}"):
        find_model(SMOL)


FILES = ["config.json", "model.safetensors", "pytorch_model.bin", "modeling.py", "onnx/config.json", "a-Q4_K_M.gguf"]


@pytest.fixture
def downloads(monkeypatch):
    """`huggingface_hub.snapshot_download` of a repository with `FILES`."""
    asked = []

    def download(name, *, revision, local_dir, allow_patterns, ignore_patterns):
        asked.append((name, revision))
        Path(local_dir).mkdir(parents=True, exist_ok=True)
        for file in FILES if name == SMOL else ["a-Q4_K_M.gguf"]:
            wanted = any(fnmatch(file, one) for one in allow_patterns)
            if wanted and not any(fnmatch(file, one) for one in ignore_patterns):
                (Path(local_dir) / file).write_text(file)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    files = lambda name, revision: FILES if name == SMOL else ["a-Q4_K_M.gguf", "b-Q8_0.gguf", "c-Q8_0.gguf"]  # noqa: E731
    monkeypatch.setattr(huggingface_hub, "list_repo_files", files)
    return asked


def test_only_weights_and_settings_are_downloaded(here, downloads):
    found = hub.located(SMOL, downloads=True)
    assert downloads == [(SMOL, None)] and found == f"models/{SMOL}"
    assert sorted(path.name for path in (here / found).iterdir()) == ["config.json", "model.safetensors"]
    for word in (f"{SMOL}:a-Q4_K_M.gguf", f"hf.co/{SMOL}:q4_k_m", f"{SMOL}:Q4_K_M"):
        assert hub.located(word, downloads=True) == f"models/{SMOL}/a-Q4_K_M.gguf"
    with pytest.raises(UserError, match="has no safetensors; for a GGUF file, add :FILE.gguf"):
        hub.located("a/b-GGUF", downloads=True)
    with pytest.raises(UserError, match="0 of its files are Q2_K; name one"):
        hub.located("a/b-GGUF:Q2_K", downloads=True)
    count = len(downloads)
    with pytest.raises(UserError, match="2 of its files are Q8_0; name one"):
        hub.located("a/b-GGUF:Q8_0", downloads=True)
    assert len(downloads) == count, "nothing is downloaded before it is known what"


def test_a_complete_download_is_found_by_its_name(here):
    folder = here / "models" / SMOL
    folder.mkdir(parents=True)
    shards = ["config.json", "tokenizer.json", "model-1.safetensors", "model-2.safetensors"]
    (folder / "model.safetensors.index.json").write_text(
        json.dumps({"weight_map": {name: name for name in shards[2:]}})
    )
    for name in shards:
        with pytest.raises(UserError, match=f"hf download {SMOL}"):
            hub.located(SMOL)
        (folder / name).write_text(name)
    for word in (SMOL, f"hf.co/{SMOL}", f"https://huggingface.co/{SMOL}/tree/main"):
        assert hub.located(word) == f"models/{SMOL}"
    for word in (f"https://huggingface.co/{SMOL}/tree/v1", f"{SMOL}:Q4_K_M"):
        with pytest.raises(UserError, match=f"hf download {SMOL}"):
            hub.located(word)
    (folder / "a-Q4_K_M.gguf").write_text("a")
    for word in (f"{SMOL}:q4_k_m", f"{SMOL}:a-Q4_K_M.gguf"):
        assert hub.located(word) == f"models/{SMOL}/a-Q4_K_M.gguf"
    (folder / "b-Q4_K_M.gguf").write_text("b")
    with pytest.raises(UserError, match=f"hf download {SMOL}"):
        hub.located(f"{SMOL}:Q4_K_M")


class Hub(http.server.BaseHTTPRequestHandler):
    """A hub with one repository, whose files are in a folder."""

    folder: Path
    sent: list[str]

    def do_HEAD(self):
        self.do_GET()

    def do_GET(self):
        path, commit = self.path.split("?")[0], "0" * 40
        files = sorted(file for file in self.folder.iterdir())
        if path.startswith("/api/"):
            entries = [
                {"type": "file", "path": file.name, "size": file.stat().st_size, "oid": file.name} for file in files
            ]
            told = entries if "/tree/" in path else {"id": SMOL, "sha": commit}
            siblings = {} if isinstance(told, list) else {"siblings": [{"rfilename": file.name} for file in files]}
            body = json.dumps(told if isinstance(told, list) else told | siblings).encode()
        else:
            file = self.folder / path.rsplit("/", 1)[1]
            body = file.read_bytes() if file.exists() else b""
            self.sent += [path.rsplit("/", 1)[1]] if self.command == "GET" else []
        known = path.startswith((f"/api/models/{SMOL}", f"/{SMOL}/"))
        self.send_response(200 if known else 404)
        if not known:
            self.send_header("x-error-code", "RepoNotFound")
        self.send_header("etag", f'"{path.rsplit("/", 1)[1]}"')
        self.send_header("x-repo-commit", commit)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def log_message(self, *_):
        pass


@pytest.fixture
def endpoint(here, monkeypatch):
    """A hub on this machine, which the library asks."""
    Hub.folder, Hub.sent = published.directory(here / "hub", layers=1), []
    (Hub.folder / "pytorch_model.bin").write_bytes(b"a pickle")
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hub) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        address = f"http://127.0.0.1:{server.server_port}"
        template = constants.HUGGINGFACE_CO_URL_TEMPLATE.replace(constants.ENDPOINT, address)
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(constants, "ENDPOINT", address)
        monkeypatch.setattr("huggingface_hub.hf_api.api.endpoint", address)
        yield
        server.shutdown()


def test_the_library_downloads_from_a_hub_and_the_verb_goes_on(here, endpoint, capsys, monkeypatch):
    assert main(["doctor", SMOL, "--download"]) == 0
    said = capsys.readouterr().err
    assert f"download: {SMOL} to models/{SMOL}" in said and f"/models/{SMOL}: nothing found" in said
    names = {path.name for path in (here / "models" / SMOL).iterdir() if path.is_file()}
    assert names == {path.name for path in Hub.folder.iterdir()} - {"pytorch_model.bin"}
    assert "pytorch_model.bin" not in Hub.sent
    assert main(["doctor", SMOL]) == 0 and f"/models/{SMOL}: nothing found" in capsys.readouterr().err
    from tpullm.engine.session import find_model

    assert find_model(SMOL).tokenizer.folder == here / "models" / SMOL
    (here / "mine.yaml").write_text(f"name: mine\nbase: {SMOL}\nrun: made\n")
    bases = []
    monkeypatch.setattr("tpullm.cli.tokenize.main", lambda recipe, *_: bases.append(recipe.base))
    main(["tokenize", "mine.yaml"])
    assert bases == [f"models/{SMOL}"]
    assert main(["doctor", "a/unknown", "--download"]) == 2
    assert "tpullm: --download a/unknown: the hub shows no such model; correct the name" in capsys.readouterr().err


@pytest.mark.parametrize("word", [SMOL, f"{SMOL}:Q4_K_M"])
def test_without_a_network_the_line_says_so(here, capsys, monkeypatch, word):
    """A folder and a list of files fail in two ways."""
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", "http://127.0.0.1:9/{repo_id}/{revision}/{filename}")
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr("huggingface_hub.hf_api.api.endpoint", "http://127.0.0.1:9")
    monkeypatch.setattr("time.sleep", lambda seconds: None)  # the library tries again
    assert main(["doctor", word, "--download"]) == 2
    line = capsys.readouterr().err.splitlines()[-1]
    assert line.startswith(f"tpullm: --download {SMOL}: the Hugging Face hub can't be reached; check the network")
