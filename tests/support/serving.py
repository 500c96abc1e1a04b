"""A server in a thread, a predictor without a network, and requests by the standard library."""

import asyncio
import http.client
import io
import json
import threading
from contextlib import contextmanager
from typing import NamedTuple

import numpy as np
import uvicorn
from PIL import Image

from transfer_learning.serving.app import Service, make_app
from transfer_learning.serving.guard import Limits
from transfer_learning.serving.server import bound_socket, config_of

SIZE = 8


class ColourPredictor:
    """Classes are the colour channels: the probability is the share of the channel."""

    resize, image_size, rejection_threshold, value_ranges = "squash", SIZE, 0.4, {}

    def __init__(self, class_names=("red", "green", "blue")):
        self.class_names = list(class_names)
        self.shapes = []

    def probabilities(self, images):
        self.shapes.append(images.shape)
        sums = images.sum(axis=(1, 2), dtype=np.float32) + 1
        shares = np.zeros((len(images), len(self.class_names)), np.float32)
        shares[:, :3] = sums / sums.sum(axis=1, keepdims=True)
        return shares


class WithFeatures(ColourPredictor):
    """Has what only a run has."""

    def probabilities_and_features(self, images):
        return self.probabilities(images), images.mean(axis=(1, 2), dtype=np.float32)

    def grad_cam(self, image, class_index):
        return png(image)


class Answer(NamedTuple):
    status: int
    headers: dict
    body: bytes

    @property
    def json(self):
        return json.loads(self.body)


class Client:
    """Sends requests to a port of this machine, each over a connection of its own."""

    def __init__(self, port, service=None):
        self.port, self.service = port, service

    def send(self, method, path, body=None, headers=None):
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        try:
            connection.request(method, path, body, headers or {})
            response = connection.getresponse()
            headers = {name.lower(): value for name, value in response.getheaders()}
            return Answer(response.status, headers, response.read())
        finally:
            connection.close()

    def get(self, path, **headers):
        return self.send("GET", path, headers=headers)

    def post(self, path, body, **headers):
        if not isinstance(body, bytes):
            body, headers = json.dumps(body).encode(), {"Content-Type": "application/json"} | headers
        return self.send("POST", path, body, headers)


@contextmanager
def served(predictor=None, limits=None, reference=None, token="", host_names=()):
    """Serves in a thread; yields a client."""
    service = Service(predictor or ColourPredictor(), "colours", limits or Limits(), reference)
    with running(make_app(service, token, host_names), service, bound_socket("127.0.0.1", 0)) as client:
        yield client


@contextmanager
def running(app, service, listening):
    """Serves an application in a thread; yields a client."""
    server = uvicorn.Server(config_of(app, service))
    thread = threading.Thread(target=lambda: asyncio.run(server.serve([listening])))
    thread.start()
    try:
        while not server.started:  # later than ready: the socket is open only then
            assert thread.is_alive()
            thread.join(0.01)
        yield Client(listening.getsockname()[1], service)
    finally:
        server.should_exit = True
        thread.join()


def colour(red, green, blue, size=SIZE):
    """Pixels uint8 (size, size, 3) of one colour."""
    return np.full((size, size, 3), (red, green, blue), np.uint8)


def png(pixels):
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "PNG")
    return stream.getvalue()
