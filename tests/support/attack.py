"""Hostile and good requests, mixed, against the real server: ``make test-serve``.

    python -m tests.support.attack RUN_DIR [--hostile 10000] [--good 1000] [--rate 5] [--clients 1,8,64]

First good requests as fast as different numbers of clients can; then at a rate: alone, and in turns among as many harmless or
hostile requests of another process. Exit code 0 if no good request got a wrong answer, the server did not end, its memory at
most doubled, and the 99th percentile of the good requests among hostile ones was at most twice that among harmless ones.
"""

import argparse
import base64
import itertools
import json
import random
import re
import signal
import socket
import struct
import subprocess
import sys
import time
from collections import Counter
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from http.client import HTTPException
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import pandas as pd
import psutil

from tests.support import bad_images, mutated_images
from tests.support.serving import Client, png

GOOD_CLIENTS, OTHER_CLIENTS, TURNS = 4, 8, 6
TOLERANCE = 1e-4  # of a probability; another batch shape changes the last bits


def good_images(run_dir):
    """(content, row of predictions/test.csv) of the test images."""
    config = json.loads((run_dir / "config.json").read_text())
    table = pd.read_csv(run_dir / "predictions" / "test.csv")
    manifest = pd.read_csv(run_dir / "manifest.csv").set_index("id")
    root = Path(config["dataset"])
    return [
        (next(place for place in (Path(file), root / file) if place.exists()).read_bytes(), row)
        for file, (_, row) in zip(manifest.loc[table["id"], "file"], table.iterrows(), strict=True)
    ]


def is_right(answer, row):
    return answer.status == 200 and all(
        abs(top["probability"] - row[top["class"]]) < TOLERANCE for top in answer.json["top"]
    )


def hostile_requests(model, good, seed):
    """Yields functions of a client, one hostile request each."""
    rng, choose = np.random.default_rng(seed), random.Random(seed)
    files = [kind.make for kind in bad_images.kinds().values() if isinstance(kind.make, bytes)]
    files += [png(np.zeros((7000, 7200, 3), np.uint8)), b"x" * 10**6, bytes(10**7)]
    mutations = [mutated_images.flipped, mutated_images.cut, mutated_images.edited, mutated_images.spliced]

    def image(client):
        return client.post("/predict", choose.choice(files)).status

    def mutated(client):
        content = bytearray(choose.choice(good)[0])
        return client.post("/predict", bytes(choose.choice(mutations)(rng, content, [bytes(content)]))).status

    def several(client):
        texts = [base64.b64encode(choose.choice(files[:-3])).decode() for _ in range(choose.randint(0, 40))]
        return client.post("/predict", {"images": texts}).status

    def too_large(client):
        return client.post("/predict", bytes(21 * 10**6)).status

    def bad_json(client):
        text = choose.choice([b"[" * 10**5, b'{"images": 1}', b"\xff", b'{"images": ["?"]}', b'{"inputs": [{}]}'])
        path = choose.choice(["/predict", f"/v2/models/{model}/infer", "/grad-cam?class=x", "/v2/models/x/infer"])
        return client.send("POST", path, text, {"Content-Type": "application/json"}).status

    def bad_tensor(client):
        tensor = {"name": "image_bytes", "datatype": "BYTES", "shape": [choose.choice([1, 2**40, -1])]}
        text = json.dumps({"inputs": [tensor | {"parameters": {"binary_data_size": 8}}]}).encode()
        body = text + struct.pack("<I", choose.choice([4, 2**32 - 1])) + b"abcd"
        headers = {"Inference-Header-Content-Length": str(len(text))}
        return client.send("POST", f"/v2/models/{model}/infer", body, headers).status

    def stranger(client):
        headers = choose.choice([{"Host": "evil.example"}, {"Origin": "http://evil.example"}, {"Host": ""}])
        return client.send("POST", "/predict", choose.choice(good)[0], headers).status

    def noise(client):
        """Something else than HTTP, a request that ends in the middle, or one that nobody waits for."""
        start = b"POST /predict HTTP/1.1\r\nHost: localhost\r\n"
        sent = choose.choice(
            [
                bytes(rng.integers(0, 256, 2000, np.uint8)),
                start + b"Content-Length: 100000\r\n\r\nabc",
                start + b"Transfer-Encoding: chunked\r\n\r\nzz\r\n",
                start + b"X: " + b"a" * 10**5,
                start + b"Content-Length: %d\r\n\r\n" % len(good[0][0]) + good[0][0],
            ]
        )
        with socket.create_connection(("127.0.0.1", client.port), timeout=30) as connection:
            connection.sendall(sent)
        return "closed"

    kinds = [image] * 6 + [mutated] * 6 + [several, bad_json, bad_json, bad_tensor, stranger, noise, noise]
    for number in range(10**9):
        yield too_large if number % 200 == 0 else choose.choice(kinds)


def send_good(client, images, count, clients, rate=None):
    """Sends good requests, as fast as the clients can or `rate` per second.

    Returns:
        Seconds of each from when it was due, and how many answers were wrong and refused by 503.
    """
    seconds, wrong, busy, start = [], 0, 0, time.perf_counter()

    def one(number):
        content, row = images[number % len(images)]
        due = wait_for_turn(start, number, rate)
        answer = client.post("/predict", content)
        return time.perf_counter() - due, answer, row

    with ThreadPoolExecutor(clients) as threads:
        for taken, answer, row in threads.map(one, range(count)):
            if answer.status == 503:
                busy += 1
                continue
            seconds.append(taken)
            wrong += not is_right(answer, row)
    return np.array(seconds), wrong, busy


def wait_for_turn(start, number, rate):
    """Waits until request `number` is due; returns when that is."""
    now = time.perf_counter()
    if rate is None:
        return now
    due = start + number / rate
    if due > now:
        time.sleep(due - now)
    return due


def send_others(port, run_dir, are_hostile, turn, count, rate, seed):
    """Sends one of TURNS parts of the hostile requests, or as many harmless ones, in a process of its own.

    Returns:
        How often each status was answered.
    """
    client, images = Client(port), good_images(run_dir)
    if are_hostile:
        every = hostile_requests(client.get("/model").json["name"], images, seed)
        requests = list(itertools.islice(every, turn * count, (turn + 1) * count))
    else:
        requests = [lambda client: client.post("/predict", random.choice(images)[0]).status] * count
    start = time.perf_counter()

    def one(number):
        wait_for_turn(start, number, rate)
        try:
            return requests[number](client)
        except (OSError, HTTPException) as error:
            return type(error).__name__

    with ThreadPoolExecutor(OTHER_CLIENTS) as threads:
        return Counter(threads.map(one, range(count)))


def memory(process):
    """Resident bytes of the server and of its decoders."""
    total = 0
    for one in [process, *process.children(recursive=True)]:
        try:
            total += one.memory_info().rss
        except psutil.NoSuchProcess:
            pass
    return total


def describe(seconds, wall):
    p50, p99 = np.quantile(seconds, [0.5, 0.99]) * 1000
    return f"{len(seconds) / wall:7.1f} requests/s, p50 {p50:6.1f} ms, p99 {p99:6.1f} ms"


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run_dir", type=Path)
    parser.add_argument("--hostile", type=int, default=10_000)
    parser.add_argument("--good", type=int, default=1_000)
    parser.add_argument("--rate", type=float, default=5, help="good requests per second, alone and mixed (default: 5)")
    parser.add_argument("--clients", default="1,8,64")
    parser.add_argument("--seed", type=int, default=0)
    flags = parser.parse_args(arguments)
    images = good_images(flags.run_dir)
    command = [sys.executable, "-m", "transfer_learning", "serve", str(flags.run_dir), "--port", "0"]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        address = next(line for line in iter(server.stdout.readline, "") if "http://" in line)
        client = Client(int(re.search(r":(\d+)/", address)[1]))
        process = psutil.Process(server.pid)
        send_good(client, images, 100, 8)
        for clients in map(int, filter(None, flags.clients.split(","))):
            begun = time.perf_counter()
            seconds, wrong, busy = send_good(client, images, min(flags.good, 100 + 20 * clients), clients)
            print(f"{clients:3} clients: {describe(seconds, time.perf_counter() - begun)}, {wrong} wrong, {busy} busy")
        alone, wrong, busy = send_good(client, images, flags.good // TURNS, GOOD_CLIENTS, flags.rate)
        idle, peak, among, statuses = memory(process), 0, {False: [], True: []}, Counter()
        with ProcessPoolExecutor(1, get_context("spawn")) as other, ThreadPoolExecutor(1) as good_thread:
            for turn in range(TURNS):
                for are_hostile in (False, True) if turn % 2 else (True, False):
                    words = client.port, flags.run_dir, are_hostile, turn, flags.hostile // TURNS
                    others = other.submit(send_others, *words, flags.rate * flags.hostile / flags.good, flags.seed)
                    good = good_thread.submit(send_good, client, images, flags.good // TURNS, GOOD_CLIENTS, flags.rate)
                    while not good.done():
                        peak = max(peak, memory(process))
                        time.sleep(0.5)
                    seconds, more_wrong, more_busy = good.result()
                    among[are_hostile].append(seconds)
                    wrong, busy = wrong + more_wrong, busy + more_busy
                    if are_hostile:
                        statuses += others.result()
                    others.result()
        time.sleep(2)
        after, alive = memory(process), server.poll() is None and client.get("/ready").status == 200
        server.send_signal(signal.SIGTERM)
        code = server.wait(60)
    finally:
        server.kill()
    for name, parts in (("alone", [alone]), ("among harmless", among[False]), ("among hostile", among[True])):
        p50, p99 = np.quantile(np.concatenate(parts), [0.5, 0.99]) * 1000
        each = ", ".join(f"{1000 * np.quantile(part, 0.99):.0f}" for part in parts)
        print(f"Good requests {name}: p50 {p50:.0f} ms, p99 {p99:.0f} ms (of each turn: {each})")
    ratio = p99 / (1000 * np.quantile(np.concatenate(among[False]), 0.99))
    print(f"Answers to hostile requests: {dict(sorted(statuses.items(), key=str))}")
    print(f"Wrong answers: {wrong}; 503: {busy}; alive: {alive}; exit code after SIGTERM: {code}")
    print(f"Resident memory: idle {idle / 1e6:.0f} MB, peak {peak / 1e6:.0f} MB, after {after / 1e6:.0f} MB")
    print(f"p99 of good requests among hostile ones is {ratio:.2f} of that among harmless ones.")
    bad_statuses = [status for status in statuses if isinstance(status, int) and status >= 500 and status != 503]
    held = not wrong and alive and code == 0 and not bad_statuses and peak <= 2 * idle and ratio <= 2
    print("All limits held." if held else "A limit was exceeded.")
    return 0 if held else 1


if __name__ == "__main__":
    sys.exit(main())
