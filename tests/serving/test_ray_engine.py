"""`serve --engine ray`: two replicas on a local cluster, one of which is killed under load (long)."""

import os
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from http.client import HTTPException
from pathlib import Path

import pandas as pd
import psutil
import pytest

from tests.support.attack import is_right
from tests.support.serving import Client
from tests.support.shortened import with_files
from transfer_learning.storage.run_directory import RunDir

TOKEN = "0123456789abcdef"


def replicas(server):
    """The processes of the replicas that a server has started."""
    found = []
    for process in psutil.Process(server.pid).children(recursive=True):
        try:
            if "ServeReplica" in process.cmdline()[0]:
                found.append(process)
        except (psutil.Error, IndexError):  # it has ended
            pass
    return found


def join(server, home, **variables):
    """Joins the cluster of a server as a Ray client in another process, with the token of `home` or the given one."""
    commands = [" ".join(process.cmdline()) for process in psutil.Process(server.pid).children(recursive=True)]
    (address,) = set(re.findall(r"--gcs-address=(\S+)", " ".join(commands)))
    code = f"import ray; print('dashboard:', ray.init('{address}', logging_level='ERROR').dashboard_url or '')"
    variables = os.environ | {"HOME": str(home), "RAY_AUTH_MODE": "token"} | variables
    return subprocess.run([sys.executable, "-c", code], env=variables, capture_output=True, text=True)


@pytest.mark.long
def test_no_answer_is_wrong_while_a_replica_is_killed_under_load(small_config, photos, tmp_path):
    from transfer_learning.experiments.train import run_experiment

    run_dir = RunDir(tmp_path / "run")
    with with_files():
        run_experiment(small_config, run_dir)
    table = pd.read_csv(run_dir.predictions("test"))
    images = [((photos / row["id"]).read_bytes(), row) for _, row in table.iterrows()]
    command = [sys.executable, "-m", "transfer_learning", "serve", "run/model.tflite", "--port", "0"]
    command += ["--engine", "ray", "--replicas", "2"]
    variables = os.environ | {"HOME": str(tmp_path), "TL_TOKEN": TOKEN}  # Ray's token goes below HOME
    with subprocess.Popen(command, cwd=tmp_path, env=variables, stdout=subprocess.PIPE, text=True) as server:
        try:
            line = next(line for line in iter(server.stdout.readline, "") if "http://" in line)
            client = Client(int(re.search(r"http://127\.0\.0\.1:(\d+)/", line)[1]))
            assert Path(tmp_path, ".ray", "auth_token").exists()
            assert client.post("/predict", images[0][0]).status == 401
            assert client.send("GET", "/model", None, {"Authorization": f"Bearer {TOKEN}"}).json["name"] == "model"
            joined = join(server, tmp_path)
            assert joined.returncode == 0 and joined.stdout == "dashboard: \n", joined.stderr
            refused = join(server, tmp_path, RAY_AUTH_TOKEN="f" * 64)
            assert refused.returncode and "AuthenticationError" in refused.stderr
            killed, *_ = replicas(server)

            def one(number):
                content, row = images[number % len(images)]
                if number == 50:
                    killed.kill()
                try:
                    answer = client.post("/predict", content, Authorization=f"Bearer {TOKEN}")
                except (OSError, HTTPException):
                    return "no answer"
                return answer.status if answer.status != 200 else "right" if is_right(answer, row) else "wrong"

            with ThreadPoolExecutor(8) as threads:
                counts = Counter(threads.map(one, range(400)))
            assert not counts["wrong"] and counts["right"] > 300, counts
            while len(replicas(server)) < 2 or killed in replicas(server):
                time.sleep(0.2)
            server.send_signal(signal.SIGTERM)
            assert server.wait(60) == 0
        finally:
            server.kill()
