"""Requests and answers of the server: its own, those of the Open Inference Protocol, and bad ones."""

import base64
import io
import json
import re
import struct
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from tests.support import bad_images
from tests.support.faulty_worker import FAULTY_COMMAND
from tests.support.serving import SIZE, ColourPredictor, WithFeatures, colour, png, served
from transfer_learning import serving
from transfer_learning.datasets.decoding import workers
from transfer_learning.datasets.decoding.decode import Decoded
from transfer_learning.serving import app, guard
from transfer_learning.serving.drift import Reference
from transfer_learning.serving.guard import Limits

RED, GREEN, GREY = colour(240, 5, 5), colour(5, 240, 5), colour(90, 90, 90)
LIMITS = Limits(body_bytes=10**6, all_bodies_bytes=10**7, pixels=10**6, images=16, seconds=20)


@pytest.fixture(scope="module")
def client():
    with served(WithFeatures(), LIMITS) as client:
        yield client


def shares(pixels):
    return ColourPredictor().probabilities(pixels[None])[0]


def in_base64(content):
    return base64.b64encode(content).decode()


# The interface of the project


def test_an_image_as_the_body_gives_classes_in_order_and_the_verdict(client):
    answer = client.post("/predict", png(GREEN))
    assert answer.status == 200 and answer.json["class"] == "green" and not answer.json["rejected"]
    assert [row["class"] for row in answer.json["top"]] == ["green", "red", "blue"]
    assert [row["probability"] for row in answer.json["top"]] == sorted(map(float, shares(GREEN)), reverse=True)
    assert client.post("/predict", png(GREY)).json["rejected"]
    assert len(client.post("/predict?top_k=2", png(GREY)).json["top"]) == 2


def test_several_images_in_base64_are_answered_in_order_and_an_unreadable_one_has_a_reason(client):
    images = [in_base64(png(RED)), in_base64(b"no image"), f"data:image/png;base64,{in_base64(png(GREEN))}"]
    red, bad, green = client.post("/predict", {"images": images}).json["predictions"]
    assert (red["class"], green["class"]) == ("red", "green") and "cannot be decoded" in bad["error"]


def test_pixels_are_what_the_network_saw(client):
    photo = np.random.default_rng(0).integers(0, 256, (40, 30, 3), np.uint8)
    answer = client.post("/predict?pixels=true", png(photo)).json
    seen = np.asarray(Image.open(io.BytesIO(base64.b64decode(answer["pixels"].partition(",")[2]))))
    assert seen.shape == (SIZE, SIZE, 3)
    assert answer["top"][0]["probability"] == float(shares(seen).max())


def test_grad_cam_is_an_image_of_a_run_and_an_export_has_none(client):
    answer = client.post("/grad-cam?class=red", png(RED))
    assert answer.status == 200 and Image.open(io.BytesIO(answer.body)).size == (SIZE, SIZE)
    assert client.post("/grad-cam?class=purple", png(RED)).status == 404
    with served(ColourPredictor()) as of_export:
        assert not of_export.get("/model").json["has_grad_cam"]
        answer = of_export.post("/grad-cam?class=red", png(RED))
        assert answer.status == 404 and "An export has no Grad-CAM" in answer.json["error"]


def test_health_readiness_metrics_and_openapi_are_there(client):
    assert client.get("/health").status == client.get("/ready").status == 200
    client.post("/predict", png(RED))
    text = client.get("/metrics").body.decode()
    assert re.search(r'tl_predicted_images_total{class="red"} [1-9]', text)
    assert 'tl_http_requests_total{path="/predict",status="200"}' in text
    assert set(client.get("/openapi.json").json["paths"]) >= {"/predict", "/metrics", "/v2/models/{model}/infer"}
    assert client.get("/docs").status == client.get("/redoc").status == 404


def test_many_clients_get_the_answers_of_their_own_images_in_batches_of_fixed_shapes(client):
    pixels = np.random.default_rng(1).integers(0, 256, (60, SIZE, SIZE, 3), np.uint8)
    before = len(client.service.predictor.shapes)
    with ThreadPoolExecutor(8) as threads:
        answers = list(threads.map(lambda image: client.post("/predict", png(image)), pixels))
    for image, answer in zip(pixels, answers, strict=True):
        found = {row["class"]: row["probability"] for row in answer.json["top"]}
        assert found == dict(zip(("red", "green", "blue"), map(float, shares(image)), strict=True))
    assert {shape[0] for shape in client.service.predictor.shapes[before:]} <= {1, 2, 4, 8, 16, 32}


NAMES = ['"quotes" & <b>', "two\nlines", "emoji 🙂", "", "not UTF-8 \udcff", *map(str, range(995))]


def test_odd_class_names_and_a_thousand_of_them_come_through():
    with served(ColourPredictor(NAMES)) as client:
        rows = client.post("/predict?top_k=1000", png(GREEN)).json["top"]
        assert rows[0]["class"] == NAMES[1] and {row["class"] for row in rows} == set(NAMES)
        assert client.get("/model").json["class_names"] == NAMES
        assert b'class="two\\nlines"' in client.get("/metrics").body
        tensor = {"name": "image_bytes", "datatype": "BYTES", "shape": [1], "data": [in_base64(png(RED))]}
        (label,) = client.post("/v2/models/colours/infer", {"inputs": [tensor], "outputs": [{"name": "label"}]}).json[
            "outputs"
        ]
        assert label["data"] == [NAMES[0]]


# The Open Inference Protocol


def outputs_of(answer):
    assert answer.status == 200, answer.body
    return {output["name"]: output for output in answer.json["outputs"]}


@pytest.mark.parametrize("base", ["/v2/models/colours", "/v2/models/colours/versions/1"])
def test_metadata_and_health_of_the_protocol(client, base):
    assert client.get("/v2/health/live").json == {"live": True}
    assert client.get("/v2/health/ready").status == client.get(f"{base}/ready").status == 200
    metadata = client.get(base).json
    assert metadata["inputs"][1] == {"name": "image", "datatype": "UINT8", "shape": [-1, SIZE, SIZE, 3]}
    assert {output["name"] for output in metadata["outputs"]} == {"probabilities", "confidence", "label", "rejected"}
    assert client.get("/v2/models/others").status == client.get("/v2/models/colours/versions/2").status == 404


def test_infer_takes_encoded_images_and_pixels(client):
    encoded = {
        "name": "image_bytes",
        "datatype": "BYTES",
        "shape": [2],
        "data": [in_base64(png(i)) for i in (RED, GREY)],
    }
    found = outputs_of(client.post("/v2/models/colours/infer", {"id": "a", "inputs": [encoded]}))
    assert found["label"]["data"][0] == "red" and found["rejected"]["data"] == [False, True]
    assert found["probabilities"]["shape"] == [2, 3]
    assert found["probabilities"]["data"] == [float(share) for i in (RED, GREY) for share in shares(i)]
    pixels = {"name": "image", "datatype": "UINT8", "shape": [2, SIZE, SIZE, 3]}
    for data in ([*RED.ravel().tolist(), *GREY.ravel().tolist()], [RED.tolist(), GREY.tolist()]):
        answer = client.post("/v2/models/colours/infer", {"inputs": [pixels | {"data": data}]})
        assert outputs_of(answer)["probabilities"] == found["probabilities"]


def test_infer_takes_and_returns_binary_tensors(client):
    """As Triton's client sends them: https://github.com/triton-inference-server/server, extension_binary_data."""
    texts = b"".join(struct.pack("<I", len(image)) + image for image in map(png, (RED, GREEN)))
    head = {
        "inputs": [
            {"name": "image_bytes", "datatype": "BYTES", "shape": [2], "parameters": {"binary_data_size": len(texts)}}
        ],
        "outputs": [{"name": name, "parameters": {"binary_data": True}} for name in ("probabilities", "label")],
    }
    text = json.dumps(head).encode()
    headers = {"Inference-Header-Content-Length": str(len(text)), "Content-Type": "application/octet-stream"}
    answer = client.send("POST", "/v2/models/colours/infer", text + texts, headers)
    length = int(answer.headers["inference-header-content-length"])
    head, tensors = json.loads(answer.body[:length]), answer.body[length:]
    first, second = (output["parameters"]["binary_data_size"] for output in head["outputs"])
    assert np.array_equal(np.frombuffer(tensors[:first], np.float32), np.concatenate([shares(RED), shares(GREEN)]))
    assert tensors[first:] == b"\x03\0\0\0red\x05\0\0\0green" and len(tensors) == first + second


# Bad requests


def infer(**tensor):
    tensor = {"name": "image_bytes", "datatype": "BYTES", "shape": [1], "data": [""]} | tensor
    return "/v2/models/colours/infer", {"inputs": [tensor]}


BAD = {
    "0 bytes": ("/predict", b"", 400, "empty"),
    "a text": ("/predict", b"I am a text named photo.jpg", 400, "none of JPEG"),
    "more pixels than allowed": ("/predict", png(np.zeros((1001, 1001, 3), np.uint8)), 400, "exceeds the limit of"),
    "more bytes than allowed": ("/predict", bytes(10**6 + 1), 413, "larger than 1 MB"),
    "100 MB": ("/predict", bytes(10**8), 413, "larger than 1 MB"),
    "top_k 0": ("/predict?top_k=0", png(RED), 422, "top_k"),
    "a top_k that is no number": ("/predict?top_k=all", png(RED), 422, "top_k"),
    "no images": ("/predict", {"images": []}, 400, "1 to 32"),
    "33 images": ("/predict", {"images": ["aGk="] * 33}, 413, "1 to 32"),
    "no list": ("/predict", {"images": "aGk="}, 400, "Expected"),
    "an array": ("/predict", [1], 400, "not an object"),
    "no base64": ("/predict", {"images": ["?"]}, 400, "base64"),
    "a number": ("/predict", {"images": [7]}, 400, "base64"),
    "no class": ("/grad-cam", png(RED), 422, "class"),
    "Grad-CAM of a text": ("/grad-cam?class=red", b"text", 400, "cannot be used"),
    "another path": ("/predictions", b"", 404, "Not Found"),
    "another method": ("/health", b"", 405, "Not Allowed"),
    "infer: an undecodable image": (*infer(data=["aGk="]), 400, "Image 0"),
    "infer: another shape": (*infer(shape=[2]), 400, "shape"),
    "infer: a negative shape": (*infer(shape=[-1]), 400, "positive"),
    "infer: another name": (*infer(name="x" * 1000), 400, "no input"),
    "infer: another datatype": (*infer(datatype="FP32"), 400, "datatype"),
    "infer: no data": (*infer(data=None), 400, "list"),
    "infer: pixels of another size": (*infer(name="image", datatype="UINT8", shape=[1, 2, 2, 3]), 400, "shape"),
    "infer: too few pixels": (*infer(name="image", datatype="UINT8", shape=[1, 8, 8, 3], data=[1]), 400, "as many"),
    "infer: pixels above 255": (*infer(name="image", datatype="UINT8", shape=[1, 8, 8, 3], data=[256]), 400, "255"),
    "infer: a wrong size of binary data": (*infer(parameters={"binary_data_size": 5}), 400, "binary_data_size"),
    "infer: two inputs": ("/v2/models/colours/infer", {"inputs": [{}, {}]}, 400, "one tensor"),
    "infer: an unknown output": (infer()[0], infer()[1] | {"outputs": [{"name": "x"}]}, 400, "no output"),
    "another model": ("/v2/models/x/infer", {}, 404, "no such model"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_request_gets_its_status_and_one_sentence(client, name):
    path, body, status, words = BAD[name]
    answer = client.post(path, body)
    assert answer.status == status, answer.body
    (reason,) = answer.json.values()
    assert list(answer.json) == ["error"] and words in reason and "/" not in reason.replace("/grad-cam", "")
    assert client.post("/predict", png(RED)).json["class"] == "red"


@pytest.mark.parametrize("text", [b"", b"{", b"[" * 100_000, b'{"images": [' + b"9" * 5000 + b"]}", b"\xff"])
def test_damaged_json_is_refused(client, text):
    answer = client.send("POST", "/predict", text, {"Content-Type": "application/json; charset=utf-8"})
    assert answer.status == 400 and "JSON" in answer.json["error"]


@pytest.mark.parametrize("length", ["x", "-1", "9999", "²"])
def test_a_wrong_length_of_the_json_is_refused(client, length):
    headers = {"Inference-Header-Content-Length": length.encode()}
    assert client.send("POST", "/v2/models/colours/infer", b"{}", headers).status == 400


@pytest.mark.parametrize("kind", ["a text in a binary tensor", "one that is cut off"])
def test_a_damaged_binary_tensor_is_refused(client, kind):
    texts = b"\x05\0\0" if kind == "one that is cut off" else b"\xff\xff\xff\xffabc"
    tensor = {"name": "image_bytes", "datatype": "BYTES", "shape": [1], "parameters": {"binary_data_size": len(texts)}}
    text = json.dumps({"inputs": [tensor]}).encode()
    answer = client.send(
        "POST", "/v2/models/colours/infer", text + texts, {"Inference-Header-Content-Length": str(len(text))}
    )
    assert answer.status == 400 and "length" in answer.json["error"]


def test_more_images_than_the_queue_holds_get_503_and_when_to_come_again():
    with served(limits=replace(LIMITS, images=3)) as client:
        answer = client.post("/predict", {"images": [in_base64(png(RED))] * 4})
        assert answer.status == 503 and int(answer.headers["retry-after"]) == 1
        assert len(client.post("/predict", {"images": [in_base64(png(RED))] * 3}).json["predictions"]) == 3


def test_large_images_wait_in_a_lane_of_their_own(monkeypatch):
    """While one is decoded, another is refused, alone or among others, and a small one is answered."""
    monkeypatch.setattr(app, "MAX_WAITING_LARGE", 1)
    begun, go = threading.Event(), threading.Event()

    def decode(content):
        begun.set()
        assert go.wait(20)
        return "", Decoded(GREEN, SIZE, SIZE, "")

    large = png(np.zeros((1300, 1200, 3), np.uint8))
    with served(limits=replace(LIMITS, pixels=2 * 10**6)) as client, ThreadPoolExecutor(1) as threads:
        monkeypatch.setattr(client.service._slow._workers, "decode", decode)
        first = threads.submit(client.post, "/predict", large)
        assert begun.wait(20)
        for body in (large, {"images": [in_base64(png(RED)), in_base64(large)]}):
            answer = client.post("/predict", body)
            assert answer.status == 503 and answer.headers["retry-after"] == "1" and b"large images" in answer.body
        assert client.post("/predict", png(RED)).json["class"] == "red"
        too_large = client.post("/predict", png(np.zeros((1500, 1400, 3), np.uint8)))
        assert too_large.status == 400 and b"exceeds the limit of 2,000,000" in too_large.body
        go.set()
        assert first.result().json["class"] == "green"
        assert client.post("/predict", large).json["class"] == "green"


def test_an_error_in_the_predictor_is_a_500_without_details_and_the_server_goes_on(caplog):
    class Broken(ColourPredictor):
        def probabilities(self, images):
            if images.max() == 77:
                raise RuntimeError("secret")
            return super().probabilities(images)

    with served(Broken()) as client:
        answer = client.post("/predict", png(colour(77, 77, 77)))
        assert answer.status == 500 and b"secret" not in answer.body and list(answer.json) == ["error"]
        assert client.post("/predict", png(RED)).status == 200
    assert "secret" in caplog.text


def test_a_prediction_that_takes_too_long_is_a_503_at_once_and_the_next_request_is_answered(monkeypatch):
    monkeypatch.setattr(guard, "SECONDS_TO_DISCARD", 1000)  # of a body, which has been read here
    go, limits = threading.Event(), SimpleNamespace(**vars(LIMITS) | {"seconds": 1})

    class Slow(ColourPredictor):
        def probabilities(self, images):
            assert images.max() != 77 or go.wait(20)
            return super().probabilities(images)

    with served(Slow(), limits) as client:
        answer = client.post("/predict", png(colour(77, 77, 77)))
        assert answer.status == 503 and answer.headers["retry-after"] == "1"
        assert "longer than 1 s to be answered" in answer.json["error"]
        limits.seconds = LIMITS.seconds
        go.set()
        assert client.post("/predict", png(RED)).json["class"] == "red"


def test_an_image_whose_decoder_dies_is_a_400_and_the_next_one_is_predicted(monkeypatch):
    monkeypatch.setattr(workers, "COMMAND", FAULTY_COMMAND)
    with served() as client:
        for fault in (b"exit", b"crash", b"abort"):
            answer = client.post("/predict", png(RED) + fault)
            assert answer.status == 400 and list(answer.json) == ["error"], fault
            assert client.post("/predict", png(RED)).json["class"] == "red"


def test_hostile_images_among_good_ones_change_no_answer(client):
    """Every kind of bad or odd file whose content is bytes; 10,000 of them are sent by tests/support/attack.py."""
    contents = [kind.make for kind in bad_images.kinds().values() if isinstance(kind.make, bytes)]
    contents = [content for content in contents if len(content) < 10**6]
    assert len(contents) > 100
    bodies = [body for content in contents for body in (content, png(GREEN))]
    with ThreadPoolExecutor(4) as threads:
        answers = list(threads.map(lambda body: client.post("/predict", body), bodies))
    assert {answer.status for answer in answers} == {200, 400}
    assert all(answer.json["class"] == "green" for answer in answers[1::2])
    assert all(list(answer.json) == ["error"] for answer in answers if answer.status == 400)
    assert client.get("/ready").status == 200


# The page


class Links(HTMLParser):
    def __init__(self, text):
        super().__init__()
        self.found, self.labelled = [], set()
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.found += [value for name, value in attributes if name in ("src", "href", "action")]


def test_the_page_uses_nothing_of_another_host(client):
    folder = Path(serving.__file__).parent
    page = client.get("/")
    assert page.headers["content-type"].startswith("text/html")
    assert "default-src 'none'" in page.headers["content-security-policy"]
    links = [link for link in Links(page.body.decode()).found if link and not link.startswith("data:")]
    assert set(links) == {"page.css", "page.js"}
    for link in links:
        assert client.get(f"/{link}").body == (folder / link).read_bytes()
    for name in ("page.html", "page.css", "page.js"):
        assert not re.search(r"https?:|//\w+\.|@import|url\(|style=|innerHTML", (folder / name).read_text())


def test_drift_is_reported_against_the_validation_images_and_can_be_left_out(client):
    rng = np.random.default_rng(0)
    reds = [colour(200 + int(n), 20, 20) for n in rng.integers(0, 50, 150)]
    probabilities = np.stack([shares(image) for image in reds])
    reference = Reference(probabilities, np.stack([image.mean(axis=(0, 1)) for image in reds]).astype(np.float32))
    assert client.get("/model").json["drift"] is None
    with served(WithFeatures(), reference=reference) as watched:
        for start in range(0, 120, 30):
            images = [in_base64(png(image)) for image in reds[start : start + 30]]
            watched.post("/predict", {"images": images})
        found = watched.get("/model").json["drift"]
        assert {name: row["drift"] for name, row in found.items()} == dict.fromkeys(found, False)
        assert set(found) == {"confidence", "classes", "features"}
        for _ in range(5):
            watched.post("/predict", {"images": [in_base64(png(GREEN))] * 30})
        assert all(row["drift"] for row in watched.get("/model").json["drift"].values())
        assert 'tl_drift_stability_index{of="features"}' in watched.get("/metrics").body.decode()
