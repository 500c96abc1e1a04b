"""Hostile weights, models, checkpoints and datasets are refused with one sentence, and nothing else happens."""

import hashlib
import json
import pickle
import resource
from dataclasses import replace

import pytest

from tests.support import hostile_files
from tests.support.hostile_files import CHECKPOINT, DATASET, MODEL, SECRET, WEIGHTS
from tests.support.logs import log_messages
from transfer_learning import evaluate, predict, prepare, run
from transfer_learning.cli.parser import run_main
from transfer_learning.errors import UserError
from transfer_learning.models.backbones import build_backbone
from transfer_learning.models.classifier import build_classifier, save_model
from transfer_learning.models.state_dict import read_state_dict
from transfer_learning.training import checkpoint

TABLE = hostile_files.hostile_files()
MOST_MEMORY = 60e6  # bytes that a file may take beyond what the tests have taken; bombs ask for 100 MB and more


def of(door):
    return pytest.mark.parametrize("name", [name for name, hostile_file in TABLE.items() if hostile_file.door == door])


@pytest.fixture
def canary(tmp_path):
    """The folder whose contents no hostile file may read or change."""
    folder = tmp_path / "canary"
    folder.mkdir()
    (folder / "secret").write_bytes(SECRET)
    return folder


@pytest.fixture
def laid(tmp_path, canary):
    """Writes a hostile file into a place of its own; afterwards checks that everything outside is as it was."""
    states = []

    def lay(name, place=None):
        hostile_file = TABLE[name]
        path = (place or tmp_path / "given") / hostile_file.file_name
        path.parent.mkdir(exist_ok=True)
        hostile_file.make(path, canary)
        states.append((everything_below(canary), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss))
        return path

    yield lay
    [(before, memory)] = states
    assert not (canary / "ran").exists(), "code of the hostile file was run"
    assert everything_below(canary) == before
    assert not [path for path in tmp_path.rglob("*") if path.name == "ran"], "something was written"
    assert 1024 * (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - memory) < MOST_MEMORY


def everything_below(folder):
    return {path: path.read_bytes() if path.is_file() else None for path in folder.rglob("*")}


@pytest.fixture
def refused(capsys):
    """Calls a command, which has to end with one sentence and exit code 2; returns the sentence."""

    def refuse(command, *arguments):
        capsys.readouterr()
        assert run_main(command.main, [str(argument) for argument in arguments]) == 2
        output = capsys.readouterr()
        lines = output.err.splitlines()
        assert len(lines) == 1 and lines[0].startswith("error: "), lines
        assert len(lines[0]) < 1000 and SECRET[:20].decode() not in output.out + output.err
        return lines[0]

    return refuse


def test_there_are_many_and_the_pickles_among_them_do_what_they_threaten(canary):
    assert len(TABLE) > 100
    pickle.loads(pickle.dumps(hostile_files.Attack(canary)))
    assert (canary / "ran").is_dir(), "a canary that never sings proves nothing"


def test_the_lambda_among_them_does_what_it_threatens(canary, tmp_path):
    import keras

    function = hostile_files.lambda_layer(canary)["config"]["function"]["config"]
    keras.src.utils.python_utils.func_load([function["code"], None, None])(1)
    assert (canary / "ran").is_dir()


@of(WEIGHTS)
def test_weights(name, laid, here):
    path = laid(name)
    with pytest.raises(UserError) as caught:
        if path.suffix in (".pth", ".safetensors"):
            read_state_dict(path)
        else:
            build_backbone("small_cnn", 16, str(path))
    sentence = str(caught.value)
    assert str(path) in sentence and TABLE[name].words in sentence and "\n" not in sentence and len(sentence) < 1000


@pytest.mark.parametrize(
    ("name", "backbone"),
    [
        ("HDF5 shape bomb (CVE-2026-0897), x.weights.h5", "small_cnn"),
        ("pickle of protocol 2 as a state dict, zip", "efficientnet_lite0"),
        ("weights as x.keras", "small_cnn"),
    ],
)
def test_weights_through_the_command(name, backbone, laid, refused, photos, here):
    path = laid(name)
    line = refused(run, "--dataset", photos, "--backbone", backbone, "--weights", path, "--image-size", 32)
    assert str(path) in line
    assert not (here / "runs").exists() or not list((here / "runs").iterdir())


@pytest.fixture(scope="module")
def run_files(small_config, tmp_path_factory):
    """The files of a run that its directory needs before its model is read."""
    folder = tmp_path_factory.mktemp("runs") / "run"
    folder.mkdir()
    config = replace(small_config, head=())
    classifier = build_classifier(config, ("a", "b", "c"))
    save_model(classifier, folder / "model.keras")
    (folder / "config.json").write_text(config.to_json())
    (folder / "environment.json").write_text(json.dumps({"device": {}, "dataset": {"fingerprint": ""}, "sessions": []}))
    (folder / "evaluation.json").write_text(
        json.dumps({"weights_sha256": classifier.weights_digest(), "class_names": ["a", "b", "c"]})
    )
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture
def run_dir(run_files, tmp_path):
    folder = tmp_path / "stranger"
    folder.mkdir()
    for name, content in run_files.items():
        (folder / name).write_bytes(content)
    return folder


def test_the_run_directory_itself_is_read(run_dir, photos, capsys):
    assert run_main(predict.main, [str(run_dir), str(photos / "cross" / "000.png")]) == 0
    assert "000.png," in capsys.readouterr().out


@of(MODEL)
def test_a_model(name, laid, refused, run_dir, photos, here):
    laid(name, run_dir)
    line = refused(predict, run_dir, photos / "cross" / "000.png")
    assert f"{run_dir}/model.keras cannot be read" in line and TABLE[name].words in line


@pytest.mark.parametrize(
    "name", ["Lambda layer (CVE-2024-3660, CVE-2026-12481)", "HDF5 external storage (CVE-2026-1669), in .keras"]
)
def test_a_model_through_another_command(name, laid, refused, run_dir, here):
    laid(name, run_dir)
    assert "model.keras cannot be read" in refused(evaluate, run_dir)


@of(CHECKPOINT)
def test_a_checkpoint(name, laid, tmp_path):
    folder = tmp_path / "checkpoint" / "000001"
    folder.mkdir(parents=True)
    (folder / "arrays.npz").write_bytes(
        hostile_files.npz({"model/0.npy": hostile_files.npy(hostile_files.np.zeros(2))})
    )
    (folder / "state.json").write_text('{"groups": {"model": 1}}')
    sign(folder)
    assert checkpoint.load(folder.parent)[0]["model"][0].shape == (2,), "it would be read"
    laid(name, folder)
    sign(folder)
    said = log_messages()
    with pytest.raises(UserError, match="Every checkpoint in .* is damaged"):
        checkpoint.load(folder.parent)
    assert len(said) == 1 and "checksums are right" in said[0] and TABLE[name].words in said[0]


def sign(folder):
    """A stranger's checkpoint bears the digests of its own files."""
    files = {name: (folder / name).read_bytes() for name in ("arrays.npz", "state.json")}
    manifest = {
        name: {"size": len(content), "sha256": hashlib.sha256(content).hexdigest()} for name, content in files.items()
    }
    (folder / "manifest.json").write_text(json.dumps(manifest))


@of(DATASET)
def test_a_dataset(name, laid, refused, here):
    path = laid(name)
    given = f"hf:{path}" if path.is_dir() else path
    line = refused(prepare, "--dataset", given, "--cache-dir", "cache")
    assert str(path) in line and TABLE[name].words in line


# ---------------------------------------------------------------------------------------------------------------------
# The other files of a stranger's run directory


@pytest.mark.parametrize("file_name", ["config.json", "environment.json", "evaluation.json"])
@pytest.mark.parametrize("content", [b"", b"[]", b"{}", b"[" * 100_000, b"\xff\xfe", b"1e999999", b'{"device": 1}'])
def test_what_is_no_description_of_a_run(file_name, content, run_dir, refused, photos, here):
    (run_dir / file_name).write_bytes(content)
    assert file_name in refused(predict, run_dir, photos / "cross" / "000.png")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"head": [10**9]}, "its head would have"),
        ({"head": [10**4] * 4}, "its head would have"),
        ({"head": [-1]}, "--head"),
        ({"image_size": 10**9}, "--image-size"),
        ({"input_size": 10**9}, "--input-size"),
        ({"backbone": "os.system"}, "There is no backbone"),
        ({"backbone": "../../canary/evil"}, "There is no backbone"),
        ({"seed": -1}, "--seed"),
        ({"precision": "__import__('os')"}, "--precision"),
    ],
)
def test_a_config_that_asks_for_too_much(changes, words, run_dir, refused, photos, here):
    config = json.loads((run_dir / "config.json").read_text())
    (run_dir / "config.json").write_text(json.dumps(config | changes))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert words in refused(predict, run_dir, photos / "cross" / "000.png")
    assert 1024 * (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) < MOST_MEMORY


@pytest.mark.parametrize(
    "name", [".lock", "evaluation_test.json", "figures", "predictions", "figures/curves.png", "notes.json"]
)
def test_a_link_out_of_a_run_directory_is_neither_read_nor_written_through(
    name, run_dir, canary, refused, photos, here
):
    before = everything_below(canary)
    (run_dir / name).parent.mkdir(exist_ok=True)
    target = canary if name in ("figures", "predictions") else canary / "secret"
    (run_dir / name).symlink_to(target)
    for command, arguments in ((predict, [photos / "cross" / "000.png"]), (evaluate, [])):
        assert f"holds the link {name}, which leads out of it" in refused(command, run_dir, *arguments)
    assert everything_below(canary) == before


def test_a_lock_that_is_a_link_inside_is_not_followed(run_dir, here):
    from transfer_learning.storage.run_directory import RunDir

    (run_dir / ".lock").symlink_to("config.json")
    before = (run_dir / "config.json").read_bytes()
    with pytest.raises(OSError), RunDir(run_dir).locked():
        pass
    assert (run_dir / "config.json").read_bytes() == before
