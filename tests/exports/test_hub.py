"""Uploading to the Hugging Face Hub, against a stub of its interface on this machine."""

import base64
import hashlib
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from transfer_learning.errors import UserError
from transfer_learning.exports import hub

LFS_BYTES = 100_000


class Stub(BaseHTTPRequestHandler):
    """Creates repositories, and takes commits; keeps what it received in `server.received`.

    As the Hub does, it takes what is larger than LFS_BYTES by the LFS batch API, outside the commit.
    """

    def do_POST(self):
        size = int(self.headers.get("Content-Length", 0))
        body = self.rfile.read(size) if size else self._chunks()
        received = self.server.received
        if self.headers.get("Authorization") != "Bearer hf_test":
            return self._answer({"error": "Invalid username or password."}, 401)
        if self.path == "/api/repos/create":
            received["repository"] = json.loads(body)
            return self._answer({"url": "https://huggingface.co/me/birds", "id": "me/birds"})
        if self.path == "/api/validate-yaml":
            received["card"] = json.loads(body)["content"]
            return self._answer({"errors": [], "warnings": []})
        if "/preupload/" in self.path:
            files = json.loads(body)["files"]
            modes = {file["path"]: "lfs" if file["size"] > LFS_BYTES else "regular" for file in files}
            files = [{"path": path, "uploadMode": mode, "shouldIgnore": False} for path, mode in modes.items()]
            return self._answer({"files": files})
        if self.path == "/me/birds.git/info/lfs/objects/batch":
            asked = json.loads(body)
            assert (asked["operation"], asked["hash_algo"]) == ("upload", "sha256")
            address = f"http://127.0.0.1:{self.server.server_port}/lfs/"
            objects = [one | {"actions": {"upload": {"href": address + one["oid"]}}} for one in asked["objects"]]
            return self._answer({"transfer": "basic", "objects": objects})
        if "/commit/" in self.path:
            lines = [json.loads(line) for line in body.splitlines()]
            received["large"] = {
                line["value"]["path"]: line["value"]["oid"] for line in lines if line["key"] == "lfsFile"
            }
            received["files"] = {
                line["value"]["path"]: base64.b64decode(line["value"]["content"])
                for line in lines
                if line["key"] == "file"
            }
            return self._answer(
                {"commitUrl": "https://huggingface.co/me/birds/commit/1", "commitOid": "1", "success": True}
            )
        return self._answer({"error": self.path}, 404)

    def do_PUT(self):
        body = (
            self.rfile.read(int(self.headers["Content-Length"])) if "Content-Length" in self.headers else self._chunks()
        )
        assert "Authorization" not in self.headers  # storage is another host
        self.server.received.setdefault("objects", {})[self.path.removeprefix("/lfs/")] = body
        self._answer({})

    def do_GET(self):
        self._answer({"id": "me/birds", "siblings": [], "sha": "0", "private": True, "tags": []})

    def _chunks(self):
        body = b""
        while length := int(self.rfile.readline(), 16) if self.headers.get("Transfer-Encoding") == "chunked" else 0:
            body += self.rfile.read(length)
            self.rfile.readline()
        return body

    def _answer(self, values, code=200):
        content = json.dumps(values).encode()
        self.send_response(code)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_):
        pass


@pytest.fixture
def stub(monkeypatch):
    from huggingface_hub import constants

    with ThreadingHTTPServer(("127.0.0.1", 0), Stub) as server:
        server.received = {}
        threading.Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{server.server_port}")
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        monkeypatch.setenv("HF_TOKEN", "hf_test")
        yield server
        server.shutdown()


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "README.md").write_text("---\nlibrary_name: keras\n---\n\n# birds\n")
    (tmp_path / "saved_model").mkdir()
    (tmp_path / "saved_model" / "saved_model.pb").write_bytes(b"model")
    (tmp_path / ".partial-x").write_bytes(b"hidden")
    return tmp_path


def test_the_folder_is_uploaded_into_a_private_repository(stub, folder):
    assert hub.push(folder, "me/birds").endswith("/commit/1")
    assert stub.received["repository"]["name"] == "birds" and stub.received["repository"]["organization"] == "me"
    assert stub.received["repository"].get("private") or stub.received["repository"].get("visibility") == "private"
    assert stub.received["files"] == {
        "README.md": (folder / "README.md").read_bytes(),
        "saved_model/saved_model.pb": b"model",
    }
    assert "# birds" in stub.received["card"]


@pytest.mark.filterwarnings("ignore:Use 'content:DeprecationWarning")  # huggingface_hub calls its client so
def test_a_large_file_is_uploaded_by_lfs_and_the_commit_names_it(stub, folder):
    content = bytes(range(256)) * 1000
    (folder / "model.onnx").write_bytes(content)
    hub.push(folder, "me/birds")
    digest = hashlib.sha256(content).hexdigest()
    assert stub.received["large"] == {"model.onnx": digest} and stub.received["objects"] == {digest: content}
    assert "README.md" in stub.received["files"]


@pytest.mark.parametrize("name", ["birds", "me/birds/x", "me/bi rds", ""])
def test_a_name_without_a_user_is_one_sentence(name, folder):
    with pytest.raises(UserError, match="is not USER/NAME"):
        hub.push(folder, name)


@pytest.mark.filterwarnings("ignore:Use 'content:DeprecationWarning")
def test_a_refused_token_a_refused_file_and_a_hub_out_of_reach_are_one_sentence(stub, folder, monkeypatch):
    from huggingface_hub import constants

    monkeypatch.setenv("HF_TOKEN", "hf_wrong")
    with pytest.raises(UserError, match="could not be uploaded to me/birds"):
        hub.push(folder, "me/birds")
    monkeypatch.setenv("HF_TOKEN", "hf_test")
    (folder / "model.onnx").write_bytes(bytes(LFS_BYTES + 1))
    monkeypatch.setattr(Stub, "do_PUT", lambda self: self._answer({"error": "full"}, 403))
    with pytest.raises(UserError, match="could not be uploaded to me/birds .*model.onnx"):
        hub.push(folder, "me/birds")
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(UserError, match="could not be uploaded to me/birds"):
        hub.push(folder, "me/birds")
