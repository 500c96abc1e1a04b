"""Hostile and good requests, mixed, against the real server: ``make test-serve``.

    python -m tests.support.attack RUN_DIR [--hostile 10000] [--good 1000] [--rate 5] [--clients 1,8,64]

First good requests as fast as different numbers of clients can; then at a rate, in turns: --good requests alone, as many
among harmless requests of another process, and as many among hostile ones. Exit code 0 if no good request got a wrong answer,
the server did not end, its memory at most doubled, and the 99th percentile among hostile requests was at most twice that
among harmless ones.
"""

import argparse
import base64
import functools
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
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor, wait
from http.client import HTTPException
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import pandas as pd
import psutil

from tests.support import bad_images, mutated_images
from tests.support.serving import Client, png

GOOD_CLIENTS, OTHER_CLIENTS, TURNS = 4, 8, 6
ALONE, HARMLESS, HOSTILE = "no", "harmless", "hostile"  # other requests
TOLERANCE = 1e-4  # of a probability; another batch shape changes the last bits


@functools.cache
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


@functools.cache
def hostile_files():
    files = [kind.make for kind in bad_images.kinds().values() if isinstance(kind.make, bytes)]
    return [*files, png(np.zeros((7000, 7200, 3), np.uint8)), b"x" * 10**6, bytes(10**7)]


def hostile_requests(model, good, seed):
    """Yields functions of a client, one hostile request each."""
    rng, choose, files = np.random.default_rng(seed), random.Random(seed), hostile_files()
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


def part(count, turn):
    """The requests of a turn, as a range of `count`."""
    return range(count * turn // TURNS, count * (turn + 1) // TURNS)


def prepare(run_dir):
    """Reads and makes the images, so that the requests of a turn begin at once."""
    good_images(run_dir)
    hostile_files()


def send_others(port, run_dir, kind, turn, count, rate, seed):
    """Sends a turn of `count` hostile or harmless requests, in a process of its own.

    Returns:
        How often each status was answered.
    """
    client, images, numbers = Client(port), good_images(run_dir), part(count, turn)
    if kind == HOSTILE:
        every = hostile_requests(client.get("/model").json["name"], images, seed)
        requests = list(itertools.islice(every, numbers.start, numbers.stop))
    else:
        requests = [lambda client: client.post("/predict", random.choice(images)[0]).status] * len(numbers)
    start = time.perf_counter()

    def one(number):
        wait_for_turn(start, number, rate)
        try:
            return requests[number](client)
        except (OSError, HTTPException) as error:
            return type(error).__name__

    with ThreadPoolExecutor(OTHER_CLIENTS) as threads:
        return Counter(threads.map(one, range(len(numbers))))


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


def in_turns(client, process, images, flags):
    """Sends good requests alone, among harmless and among hostile ones, in TURNS turns each.

    Returns:
        Seconds of the good requests of each turn and how often the others got which status, both by kind; how many good
        answers were wrong and refused by 503; the largest memory.
    """
    seconds, statuses = {ALONE: [], HARMLESS: [], HOSTILE: []}, {HARMLESS: Counter(), HOSTILE: Counter()}
    wrong, busy, peak = 0, 0, memory(process)
    others_rate = flags.rate * flags.hostile / flags.good
    with ProcessPoolExecutor(1, get_context("spawn")) as other, ThreadPoolExecutor(1) as good_thread:
        other.submit(prepare, flags.run_dir).result()
        for turn in range(TURNS):
            for kind in reversed(seconds) if turn % 2 else seconds:
                count = len(part(flags.good, turn))
                tasks = [good_thread.submit(send_good, client, images, count, GOOD_CLIENTS, flags.rate)]
                if kind != ALONE:
                    words = client.port, flags.run_dir, kind, turn, flags.hostile, others_rate, flags.seed
                    tasks.append(other.submit(send_others, *words))
                while wait(tasks, 0.5).not_done:
                    peak = max(peak, memory(process))
                taken, more_wrong, more_busy = tasks[0].result()
                seconds[kind].append(taken)
                wrong, busy = wrong + more_wrong, busy + more_busy
                for others in tasks[1:]:
                    statuses[kind] += others.result()
    return seconds, statuses, wrong, busy, peak


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run_dir", type=Path)
    parser.add_argument("--file", help="an exported file of the run, which is served instead of it")
    parser.add_argument("--hostile", type=int, default=10_000)
    parser.add_argument("--good", type=int, default=1_000)
    parser.add_argument("--rate", type=float, default=5, help="good requests per second, alone and mixed (default: 5)")
    parser.add_argument("--clients", default="1,8,64")
    parser.add_argument("--max-ratio", type=float, default=2, help="of the 99th percentiles (default: 2)")
    parser.add_argument("--seed", type=int, default=0)
    flags = parser.parse_args(arguments)
    images = good_images(flags.run_dir)
    command = [sys.executable, "-m", "transfer_learning", "serve", str(flags.file or flags.run_dir), "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        try:
            address = next(line for line in iter(server.stdout.readline, "") if "http://" in line)
            client = Client(int(re.search(r":(\d+)/", address)[1]))
            process = psutil.Process(server.pid)
            send_good(client, images, 100, 8)
            for clients in map(int, filter(None, flags.clients.split(","))):
                begun = time.perf_counter()
                taken, wrong, busy = send_good(client, images, min(flags.good, 100 + 20 * clients), clients)
                figures = describe(taken, time.perf_counter() - begun)
                print(f"{clients:3} clients: {figures}, {wrong} wrong, {busy} busy")
            idle = memory(process)
            seconds, statuses, wrong, busy, peak = in_turns(client, process, images, flags)
            time.sleep(2)
            after, alive = memory(process), server.poll() is None and client.get("/ready").status == 200
            server.send_signal(signal.SIGTERM)
            code = server.wait(60)
        finally:
            server.kill()
    p99s = {}
    for kind, turns in seconds.items():
        p50, p99s[kind] = np.quantile(np.concatenate(turns), [0.5, 0.99]) * 1000
        each = ", ".join(f"{1000 * np.quantile(turn, 0.99):.0f}" for turn in turns)
        count = sum(map(len, turns))
        print(
            f"{count} good requests among {kind} others: p50 {p50:.0f} ms, p99 {p99s[kind]:.0f} ms (of each turn: {each})"
        )
    for kind, found in statuses.items():
        print(f"Answers to {found.total()} {kind} requests: {dict(sorted(found.items(), key=str))}")
    print(f"Wrong answers: {wrong}; 503: {busy}; alive: {alive}; exit code after SIGTERM: {code}")
    print(f"Resident memory: idle {idle / 1e6:.0f} MB, peak {peak / 1e6:.0f} MB, after {after / 1e6:.0f} MB")
    ratio = p99s[HOSTILE] / p99s[HARMLESS]
    print(
        f"p99 among hostile ones: {ratio:.2f} of that among harmless ones, {p99s[HOSTILE] / p99s[ALONE]:.2f} of alone."
    )
    bad = [status for status in statuses[HOSTILE] if isinstance(status, int) and status >= 500 and status != 503]
    held = not wrong and alive and code == 0 and not bad and peak <= 2 * idle and ratio <= flags.max_ratio
    print("All limits held." if held else "A limit was exceeded.")
    return 0 if held else 1


if __name__ == "__main__":
    sys.exit(main())
