"""The command export: what it refuses, its exit codes, and that a file which fails is not written."""

import json
import sys

import pytest

from tests.support import run_without
from transfer_learning import export
from transfer_learning.errors import ExitCode, MissingExtra, UserError
from transfer_learning.exports import gate, hub, images
from transfer_learning.exports.formats import FORMATS
from transfer_learning.reports.run import page_content
from transfer_learning.storage.run_directory import RunDir


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--format", "tfjs"], "there is no format 'tfjs'"),
        (["--format", ""], "there is no format ''"),
        (["--int8-limit", "-1"], "not in 0..100"),
        (["--int8-limit", "nan"], "not in 0..100"),
        (["--gate-only", "model.onnx", "--output", "x"], "writes nothing"),
        (["--gate-only", "model.onnx", "--push-to-hub", "me/x"], "writes nothing"),
        (["--gate-only", "model.pt"], "is not an exported file"),
        (["--gate-only", "missing.onnx"], "There is no file missing.onnx"),
    ],
)
def test_wrong_flags_are_one_sentence(flags, words, run, here):
    with pytest.raises(UserError, match=words):
        export.main([run.name, *flags])


def test_an_unfinished_run_and_a_run_without_model_are_refused(tmp_path, small_config, run):
    tmp_path.joinpath("config.json").write_text(small_config.to_json())
    with pytest.raises(UserError, match="unfinished"):
        export.main([str(tmp_path)])


@pytest.mark.parametrize(
    ("name", "module"), [("onnx", "tf2onnx"), ("openvino", "openvino"), ("litert", "ai_edge_litert.interpreter")]
)
def test_a_missing_extra_is_one_sentence(name, module, files, monkeypatch):
    monkeypatch.setitem(sys.modules, module, None)
    format = FORMATS[name]
    use = (lambda: format.write(None, files[name])) if name != "litert" else (lambda: format.load(files[name], 1))
    with pytest.raises(MissingExtra, match=r"pip install 'transfer-learning\[export\]'"):
        use()


def test_without_the_extra_nothing_is_written(run, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(MissingExtra, match=r"pip install 'transfer-learning\[export\]'"):
        export.main([run.name, "--format", "keras", "--output", str(tmp_path)])
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["README.md", "openvino/model.xml"])
def test_files_that_no_export_wrote_are_not_replaced(name, run, tmp_path):
    file = tmp_path / name
    file.parent.mkdir(exist_ok=True)
    file.write_text("of somebody else")
    with pytest.raises(UserError, match=f"holds {name.split('/')[0]} without the export.json of an export"):
        export.main([run.name, "--format", "openvino", "--output", str(tmp_path)])
    assert file.read_text() == "of somebody else"


def test_a_file_that_fails_is_not_written_and_nothing_is_uploaded(run, tmp_path, monkeypatch):
    monkeypatch.setattr(images, "FLOAT_LIMIT", -1.0)
    monkeypatch.setattr(gate, "SECONDS", 0.01)
    monkeypatch.setattr(hub, "push", lambda *_: pytest.fail("uploaded"))
    arguments = [run.name, "--format", "litert", "--output", str(tmp_path), "--push-to-hub", "me/birds"]
    assert export.main(arguments) == ExitCode.LIMIT_EXCEEDED == 3
    assert [path.name for path in tmp_path.iterdir()] == ["export.json"]
    (row,) = json.loads((tmp_path / "export.json").read_text())["formats"]
    assert "differs from the recorded one" in row["problem"]


def test_a_format_that_is_added_keeps_the_others_of_the_same_weights(run, exported, tmp_path, monkeypatch):
    monkeypatch.setattr(gate, "SECONDS", 0.01)
    uploaded = []
    monkeypatch.setattr(hub, "push", lambda *given: uploaded.append(given) or "address")
    row = json.loads((exported / "export.json").read_text())["formats"][0]
    rows = [row, row | {"format": "openvino", "file": "openvino", "weights_sha256": "of another run"}]
    (tmp_path / "export.json").write_text(json.dumps({"formats": rows}))
    assert export.main([run.name, "--format", "litert", "--output", str(tmp_path), "--push-to-hub", "me/birds"]) == 0
    found = json.loads((tmp_path / "export.json").read_text())["formats"]
    assert [row["format"] for row in found] == ["litert", "saved_model"]
    assert uploaded == [(tmp_path, "me/birds")]


def test_a_file_is_checked_again_without_tensorflow(run, files):
    code = "from transfer_learning import export\nsys.exit(export.main(sys.argv[1:]))"
    done = run_without("tensorflow keras", code, run.name, "--gate-only", files["onnx"])
    assert "onnx" in done.stdout and "passed" in done.stdout


def test_the_report_has_the_table_of_the_export(run, exported):
    content = page_content(RunDir(run.run_dir.path))
    assert [row["format"] for row in content["exports"]] == list(FORMATS)
    page = run.run_dir.report.read_text()
    assert '<section id="export">' in page and "<code>model_int8.tflite</code>" in page
