"""Requests per second of `serve`, of the same model in LitServe and in a plain FastAPI handler, in turns, A B C C B A.

python -m benchmarks.serving RUN_DIR --peers-python peers/bin/python

Every answer is compared with predictions/test.csv. The handler predicts one image in a thread, as FastAPI's documentation
shows for work that blocks (https://fastapi.tiangolo.com/async).
"""

import argparse
import base64
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import psutil

from tests.support.attack import good_images, send_good
from tests.support.serving import Client

SERVERS = ("ours", "litserve", "fastapi")


class JsonClient(Client):
    """Sends images as LitServe takes them."""

    def post(self, path, body, **headers):
        return super().post(path, {"image": base64.b64encode(body).decode()}, **headers)


def predictor_of(run_dir):
    import transfer_learning as tl

    return tl.load_run(run_dir).predictor()


def probabilities_of(predictor, batch):
    """As `serve` computes them; `RunPredictor.probabilities` fills batches up to 32, for the bits of the run."""
    return predictor.probabilities_and_features(batch)[0]


def as_json(predictor, row):
    names = predictor.class_names
    return {"top": [{"class": names[place], "probability": float(row[place])} for place in np.argsort(-row)[:5]]}


def pixels_of(predictor, content):
    from transfer_learning.datasets.decoding.decode import decode

    return decode(content, predictor.image_size, predictor.resize, predictor.value_ranges).pixels


def serve_with_fastapi(run_dir, port):
    import uvicorn
    from fastapi import FastAPI, Request
    from fastapi.concurrency import run_in_threadpool

    app, predictor = FastAPI(), predictor_of(run_dir)

    def classify(content):
        return as_json(predictor, probabilities_of(predictor, pixels_of(predictor, content)[None])[0])

    @app.post("/predict")
    async def predict(request: Request):
        return await run_in_threadpool(classify, await request.body())

    uvicorn.run(app, host="127.0.0.1", port=port, log_level="error")


def measure(server, flags, images, port):
    """Seconds of each request by the number of clients; the server ends."""
    if server == "ours":
        command = [sys.executable, "-m", "transfer_learning", "serve", flags.run_dir, "--port", str(port)]
    elif server == "litserve":
        command = [flags.peers_python, "-m", "benchmarks.litserve_server", flags.run_dir, str(port)]
    else:
        command = [sys.executable, "-m", "benchmarks.serving", flags.run_dir, "--handler", str(port)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    client = (JsonClient if server == "litserve" else Client)(port)
    try:
        while process.poll() is None:
            try:
                if client.post("/predict", images[0][0]).status == 200:
                    break
            except OSError:
                time.sleep(0.2)
        if process.poll() is not None:
            sys.exit(f"{server} does not start: {' '.join(command)}")
        send_good(client, images, 64, 16)
        for clients in flags.clients:
            begun = time.perf_counter()
            seconds, wrong, busy = send_good(client, images, flags.requests, clients)
            rate, (p50, p99) = len(seconds) / (time.perf_counter() - begun), np.quantile(seconds, [0.5, 0.99]) * 1000
            load = os.getloadavg()[0]
            print(
                f"{server:9} {clients:3} clients: {rate:6.1f} requests/s, p50 {p50:6.0f} ms, p99 {p99:6.0f} ms, "
                f"{wrong} wrong, {busy} refused, load {load:.1f}",
                flush=True,
            )
    finally:
        children = psutil.Process(process.pid).children(recursive=True) if process.poll() is None else []
        process.terminate()
        process.wait()
        for child in psutil.wait_procs(children, timeout=5)[1]:
            child.kill()  # LitServe leaves one behind


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run_dir")
    parser.add_argument("--peers-python", default=sys.executable, help="a Python with this package and litserve")
    parser.add_argument("--clients", type=lambda text: list(map(int, text.split(","))), default=[1, 8, 64])
    parser.add_argument("--requests", type=int, default=300, help="per number of clients")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--handler", type=int, metavar="PORT", help="only serve by the plain handler")
    flags = parser.parse_args()
    if flags.handler:
        serve_with_fastapi(flags.run_dir, flags.handler)
        return
    images = good_images(Path(flags.run_dir))
    for round in range(flags.rounds):
        for place, server in enumerate(SERVERS if round % 2 == 0 else SERVERS[::-1]):
            measure(server, flags, images, 8400 + 10 * round + place)


if __name__ == "__main__":
    main()
