"""The job files of docs/jobs start workers that know each other, continue a run that was begun, and queue again."""

import json
import os
import subprocess

import pytest
import yaml
from jsonschema import validate
from jsonschema.exceptions import ValidationError as SchemaError
from pydantic import ValidationError

from tests.support import ROOT
from transfer_learning.machine.cluster import Cluster, find_cluster

JOBS = ROOT / "docs" / "jobs"


@pytest.fixture
def programs(tmp_path, monkeypatch):
    """Programs of this name print how they are called; `srun` runs its command, and ends with the code in CODE."""
    folder = tmp_path / "bin"
    folder.mkdir()
    for name, text in (
        ("transfer-learning", 'echo "$@"; echo "$TF_CONFIG" > tf_config'),
        ("srun", 'shift; "$@"; exit $CODE'),
        ("scontrol", 'echo scontrol "$@"'),
    ):
        (folder / name).write_text(f"#!/bin/bash\n{text}\n")
        (folder / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")


def output_of(script, here, **environment):
    done = subprocess.run(
        ["bash", "-c", script], cwd=here, env=os.environ | environment, capture_output=True, text=True
    )
    return done.returncode, done.stdout, done.stderr


def documents(name):
    return list(yaml.safe_load_all((JOBS / name).read_text()))


def begin(here, name):
    (here / "runs" / name).mkdir(parents=True)
    (here / "runs" / name / "config.json").write_text("{}")


@pytest.mark.parametrize(
    ("code", "is_queued"), [(0, False), (2, False), (4, False), (5, True), (137, True), (138, True), (143, False)]
)
def test_slurm_queues_again_what_can_be_continued(code, is_queued, programs, here):
    script = f"set -- --dataset 'my photos'; source {JOBS / 'slurm.sh'}"
    environment = {"SLURM_JOB_ID": "7", "CODE": str(code)}
    returned, output, errors = output_of(script, here, **environment)
    assert returned == code and "run --run-dir runs/slurm-7 --dataset my photos" in output, errors
    assert ("scontrol requeue 7" in output) == is_queued
    begin(here, "slurm-7")
    assert "run --resume runs/slurm-7\n" in output_of(script, here, **environment)[1]


def test_slurm_sends_a_signal_ahead_of_the_limit_and_may_queue_again():
    lines = (JOBS / "slurm.sh").read_text().splitlines()
    options = {"--signal=USR1@120", "--requeue", "--ntasks-per-node=1", "--open-mode=append"}
    assert {f"#SBATCH {option}" for option in options} <= {*lines}
    first_command = next(number for number, line in enumerate(lines) if line and not line.startswith("#"))
    assert all(number < first_command for number, line in enumerate(lines) if line.startswith("#SBATCH"))


def test_kubernetes_files_are_what_kubeflow_trainer_takes():
    from kubeflow_trainer_api.models.trainer_v1alpha1_train_job import TrainerV1alpha1TrainJob
    from kubeflow_trainer_api.models.trainer_v1alpha1_training_runtime import TrainerV1alpha1TrainingRuntime

    runtime, job = documents("kubernetes.yaml")
    for model, document in ((TrainerV1alpha1TrainingRuntime, runtime), (TrainerV1alpha1TrainJob, job)):
        assert model.from_dict(document).to_dict() == document  # unknown fields are left out
    job["spec"]["trainer"] |= {"numNodes": "two"}
    with pytest.raises(ValidationError, match="num_?[nN]odes"):
        TrainerV1alpha1TrainJob.from_dict(job)


def test_kubernetes_names_the_pods_of_the_job(programs, here):
    runtime, job = documents("kubernetes.yaml")
    assert job["spec"]["runtimeRef"]["name"] == runtime["metadata"]["name"]
    trainer, name = job["spec"]["trainer"], job["metadata"]["name"]
    environment = {one["name"]: one["value"] for one in trainer["env"]}
    assert environment == {"JOB": name, "NUM_NODES": str(trainer["numNodes"])}
    [script] = trainer["args"]
    code, output, errors = output_of(script, here, JOB_COMPLETION_INDEX="1", **environment)
    assert code == 0 and output == "run --run-dir runs/photos --dataset photos/\n", errors
    expected = Cluster(("photos-node-0-0.photos:2222", "photos-node-0-1.photos:2222"), 1, "TF_CONFIG")
    assert find_cluster("auto", {"TF_CONFIG": (here / "tf_config").read_text()}) == expected
    begin(here, "photos")
    assert output_of(script, here, JOB_COMPLETION_INDEX="0", **environment)[1] == "run --resume runs/photos\n"


def check_skypilot(task):
    schemas = json.loads((ROOT / "tests" / "support" / "skypilot_schemas.json").read_text())
    validate(task, schemas["task"])
    validate(task["resources"], schemas["resources"])


def test_the_skypilot_file_is_what_skypilot_takes():
    [task] = documents("skypilot.yaml")
    check_skypilot(task)
    for part in (task, task["resources"]):
        with pytest.raises(SchemaError, match="'nonsense' was unexpected"):
            part["nonsense"] = 1
            check_skypilot(task)
        del part["nonsense"]
    # What no schema says: only Kubernetes and RunPod have volumes, and files are those of `workdir`.
    assert task["resources"]["infra"].startswith("aws/") and "volumes" not in task
    assert task["workdir"] == "." and "pip install --python ~/venv '.[gpu]'" in task["setup"]


def test_skypilot_names_the_machines(programs, here, monkeypatch):
    monkeypatch.setenv("HOME", str(here))
    [task] = documents("skypilot.yaml")
    script = task["run"].replace("cd /work\n", "")
    environment = {"SKYPILOT_NODE_IPS": "10.0.0.1\n10.0.0.2", "SKYPILOT_NODE_RANK": "1", "SKYPILOT_TASK_ID": "a"}
    code, output, errors = output_of(script, here, **environment)
    assert code == 0 and output == "run --run-dir runs/a --dataset photos/\n", errors
    assert find_cluster("auto", {"TF_CONFIG": (here / "tf_config").read_text()}) == Cluster(
        ("10.0.0.1:2222", "10.0.0.2:2222"), 1, "TF_CONFIG"
    )
    begin(here, "a")
    assert output_of(script, here, **environment)[1] == "run --resume runs/a\n"
