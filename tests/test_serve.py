"""The command `serve`: a real run in a process of its own, its end, and what it refuses."""

import dataclasses
import http.client
import json
import re
import signal
import socket
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pandas as pd
import pytest
import yaml

from tests.support import ROOT
from tests.support.serving import Answer, Client, running, served
from transfer_learning import serve
from transfer_learning.config import Phase
from transfer_learning.serving import server
from transfer_learning.storage.run_directory import RunDir


@pytest.fixture(scope="module")
def run_dir(small_config, tmp_path_factory):
    from transfer_learning.experiments.train import run_experiment

    run_dir = RunDir(tmp_path_factory.mktemp("runs") / "small")
    phase = dataclasses.replace(small_config.fine_tune, epochs=0)
    run_experiment(dataclasses.replace(small_config, frozen=Phase(epochs=1), fine_tune=phase), run_dir)
    return run_dir


@pytest.fixture(scope="module")
def test_images(run_dir, small_config):
    """The contents of the test images, and the rows of predictions/test.csv."""
    table = pd.read_csv(run_dir.predictions("test"))
    return [(ROOT / small_config.dataset / name).read_bytes() for name in table["id"]], table


def is_recorded(answer, row):
    """Whether an answer is that of predictions/test.csv."""
    found = {top["class"]: top["probability"] for top in answer.json["top"]}
    return answer.json["class"] == row["predicted"] and all(
        abs(probability - row[name]) < 1e-5 for name, probability in found.items()
    )


def test_a_run_is_served_with_the_recorded_probabilities_grad_cam_and_drift(run_dir, test_images):
    from transfer_learning.experiments.finished_run import FinishedRun
    from transfer_learning.serving.drift import Reference

    contents, table = test_images
    predictor = FinishedRun(run_dir).predictor()
    reference = Reference(predictor.validation_probabilities(), predictor.validation_features())
    assert len(reference.probabilities) == len(reference.features) == len(pd.read_csv(run_dir.predictions("val")))
    assert np.abs(reference.features.mean(axis=0)).max() > 0
    with served(predictor, reference=reference) as client, ThreadPoolExecutor(4) as threads:
        answers = list(threads.map(lambda content: client.post("/predict", content), contents))
        assert all(is_recorded(answer, row) for answer, (_, row) in zip(answers, table.iterrows(), strict=True))
        assert client.get("/model").json["drift"]["features"]["images"] == len(contents)
        heat = client.post(f"/grad-cam?class={predictor.class_names[0]}", contents[0])
        assert heat.status == 200 and heat.body.startswith(b"\x89PNG")


def test_sigterm_lets_requests_end_and_exits_with_0_and_nothing_is_written(run_dir, test_images, tmp_path):
    (content, *_), table = test_images
    command = [sys.executable, "-m", "transfer_learning", "serve", str(run_dir.path), "--port", "0", "--no-drift"]
    before = {path: path.stat().st_mtime_ns for path in run_dir.path.rglob("*")}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, cwd=tmp_path, **pipes) as process:
        try:
            address = next(line for line in iter(process.stdout.readline, "") if "http://" in line)
            client = Client(int(re.search(r"http://127\.0\.0\.1:(\d+)/", address)[1]))
            assert client.get("/ready").status == 200
            begun = http.client.HTTPConnection("127.0.0.1", client.port, timeout=60)
            begun.putrequest("POST", "/predict")
            begun.putheader("Content-Length", str(len(content)))
            begun.endheaders(content[:50])
            assert client.get("/ready").status == 200
            process.send_signal(signal.SIGTERM)
            while client.get("/ready").status == 200:
                pass
            assert is_recorded(client.post("/predict", content), table.iloc[0])
            with pytest.raises(ConnectionError):
                while True:
                    assert client.get("/ready").status == 503
            begun.send(content[50:])
            response = begun.getresponse()
            assert is_recorded(Answer(response.status, {}, response.read()), table.iloc[0])
            begun.close()
            assert process.wait(60) == 0
            assert not process.stderr.read() and not list(tmp_path.iterdir())
        finally:
            process.kill()
    assert {path: path.stat().st_mtime_ns for path in run_dir.path.rglob("*")} == before


@pytest.mark.parametrize(("flags", "has_drift"), [([], True), (["--no-drift"], False)])
def test_drift_is_recorded_and_shown_unless_no_drift_is_given(run_dir, test_images, flags, has_drift, monkeypatch):
    monkeypatch.setattr(server, "serve", lambda *parts: started.append(parts))
    started = []
    serve.main([str(run_dir.path), "--port", "0", *flags])
    with running(*started[0]) as client:
        assert client.post("/predict", test_images[0][0]).status == 200
        drift = client.get("/model").json["drift"] or {}
        shown = dict.fromkeys(("confidence", "classes", "features"), 1) if has_drift else {}
        assert {name: row["images"] for name, row in drift.items()} == shown
        assert ("tl_drift" in client.get("/metrics").body.decode()) == has_drift


UNFINISHED = str(ROOT / "tests/old_runs/runs/unfinished")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([UNFINISHED], "is unfinished; continue it with run --resume"),
        (["nowhere"], "There is no run directory nowhere"),
        (["RUN", "--address", "0.0.0.0"], "needs a token"),
        (["RUN", "--address", "0.0.0.0", "--token", "short"], "has 5 characters; give 16 or more"),
        (["RUN", "--port", "TAKEN"], "cannot be opened (Address already in use)"),
        (["RUN", "--port", "70000"], "70000 is not a port"),
        (["RUN", "--replicas", "2"], "--replicas 2 needs --engine ray"),
        (["RUN", "--engine", "ray", "--replicas", "0"], "at least one process"),
        (["RUN", "--address", "203.0.113.1", "--token", "0123456789abcdef"], "cannot be opened"),
        (["RUN", "--max-waiting", "0"], "--max-waiting 0 is too small"),
        (["RUN", "--seconds", "nan"], "--seconds nan is too small"),
        (["RUN", "--max-megabytes", "many"], "invalid float value"),
    ],
)
def test_what_cannot_be_served_is_one_sentence(arguments, words, refused, monkeypatch):
    monkeypatch.delenv("TL_TOKEN", raising=False)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        known = {"RUN": str(ROOT / "tests/old_runs/runs/finished_a"), "TAKEN": str(taken.getsockname()[1])}
        assert words in refused(serve.main, *[known.get(word, word) for word in arguments])


def test_the_token_comes_from_the_environment_too(monkeypatch):
    monkeypatch.setenv("TL_TOKEN", "0123456789abcdef")
    assert serve.parse(["RUN", "--address", "0.0.0.0"]).token == "0123456789abcdef"
    assert np.isclose(serve.parse(["RUN"]).max_megapixels, 50)


def yaml_blocks():
    text = (ROOT / "docs/serving.md").read_text()
    return [yaml.safe_load(block) for block in re.findall(r"^```yaml\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)]


# Fields by kind, "*" before required ones: kserve 0.21.0 and, from V1Container on, kubernetes 37.0.2. The package kserve
# excludes the versions of FastAPI and pandas that are used here.
KSERVE_FIELDS = json.loads((ROOT / "tests/serving/kserve_fields.json").read_text())
TYPES = {"str": str, "int": int, "bool": bool, "object": dict, "any": object}


def mistakes(value, kind, place):
    """What is wrong in a manifest by the fields of its kind."""
    if isinstance(kind, list):
        if not isinstance(value, list):
            return [f"{place} is no list"]
        return [text for number, item in enumerate(value) for text in mistakes(item, kind[0], f"{place}[{number}]")]
    if kind in TYPES:
        return (
            []
            if isinstance(value, TYPES[kind]) and (kind != "int" or type(value) is int)
            else [f"{place} is no {kind}"]
        )
    fields = {name.removeprefix("*"): inner for name, inner in KSERVE_FIELDS[kind].items()}
    required = {name[1:] for name in KSERVE_FIELDS[kind] if name[0] == "*"}
    found = [f"{place}.{name} is missing" for name in required - value.keys()]
    found += [f"{place}.{name} is unknown" for name in value.keys() - fields.keys()]
    known = sorted(value.keys() & fields.keys())
    return found + [text for name in known for text in mistakes(value[name], fields[name], f"{place}.{name}")]


def test_the_manifests_of_the_documentation_call_the_server_as_it_is(monkeypatch):
    own, of_tensorflow = yaml_blocks()
    for manifest in (own, of_tensorflow):
        assert not mistakes(manifest, "V1beta1InferenceService", "manifest")
        assert (manifest["apiVersion"], manifest["kind"]) == ("serving.kserve.io/v1beta1", "InferenceService")
    (container,) = own["spec"]["predictor"]["containers"]
    monkeypatch.setenv("TL_TOKEN", "0123456789abcdef")
    assert container["command"][:2] == ["transfer-learning", "serve"]
    flags = serve.parse([*container["command"][2:], *container["args"]])
    assert flags.port == container["ports"][0]["containerPort"]
    with served(token=flags.token, host_names=flags.host_name) as client:
        for probe in ("readinessProbe", "livenessProbe"):
            assert container[probe]["httpGet"]["port"] == flags.port
            assert client.get(container[probe]["httpGet"]["path"], Host="10.1.2.3:8080").status == 200
    assert of_tensorflow["spec"]["predictor"]["model"]["modelFormat"]["name"] == "tensorflow"
    container["ports"][0] |= {"containerPort": "8080", "hostPorts": 1}
    del own["spec"]["predictor"]["containers"][0]["name"]
    place = "manifest.spec.predictor.containers[0]"
    assert mistakes(own, "V1beta1InferenceService", "manifest") == [
        f"{place}.name is missing",
        f"{place}.ports[0].hostPorts is unknown",
        f"{place}.ports[0].containerPort is no int",
    ]
