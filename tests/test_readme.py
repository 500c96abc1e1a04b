"""The README names what is there, and all of it."""

import dataclasses
import re
import shlex
from pathlib import Path

import pytest

from tests.support import ROOT
from transfer_learning import benchmark, cache, compare, evaluate, predict, prepare, report, run
from transfer_learning.config import PHASES, Phase, RunConfig, flag_name
from transfer_learning.datasets.sources.registry import DATASETS, SCHEMES
from transfer_learning.models.backbones import BACKBONES
from transfer_learning.recipes import known
from transfer_learning.recipes.known import RECIPES
from transfer_learning.storage.run_directory import RunDir

README = (ROOT / "README.md").read_text()
PACKAGE = ROOT / "transfer_learning"
VERBS = {
    "run": run,
    "prepare": prepare,
    "evaluate": evaluate,
    "predict": predict,
    "report": report,
    "cache": cache,
    "benchmark": benchmark,
    "compare": compare,
}


def first_cells(heading):
    """The names in backquotes in the first column of the table under a heading."""
    section = README.split(f"\n{heading}\n")[1].split("\n#")[0]
    rows = [re.split(r"(?<!\\)\|", line)[1] for line in section.splitlines() if line.startswith("| `")]
    return [name for row in rows for name in re.findall(r"`([^`]+)`", row)]


def test_every_dataset_has_a_row_a_recipe_and_a_file():
    assert {name.partition(":")[0] for name in first_cells("## Datasets")} == {*DATASETS, *SCHEMES}
    assert set(DATASETS) <= set(RECIPES)
    assert all((PACKAGE / "datasets" / f"{name}.py").exists() for name in DATASETS)


def test_every_backbone_has_a_row():
    assert set(first_cells("## Backbones")) == set(BACKBONES)


def test_every_verb_has_a_row():
    named = {re.search(r"transfer_learning\.(\w+)", command)[1] for command in first_cells("## Verbs")}
    assert named == set(VERBS) == {path.stem for path in PACKAGE.glob("*.py") if "__main__" in path.read_text()}


def test_every_folder_has_a_row():
    assert set(first_cells("## Development")) == {path.parent.name for path in PACKAGE.glob("*/__init__.py")}


def test_the_call_from_python_works_as_it_stands(small_config, tmp_path, monkeypatch):
    (snippet,) = re.findall(r"```python\n(.+?)```", README, re.DOTALL)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(known, "drawn_pills", lambda: small_config)
    names = {}
    exec(snippet, names)
    assert names["evaluation"]["split"] == "test" and (tmp_path / "runs" / "first" / "report.html").exists()


def test_every_file_of_a_run_directory_has_a_row():
    run_dir = RunDir(Path("run"))
    properties = [name for name, value in vars(RunDir).items() if isinstance(value, property) and name != "is_finished"]
    paths = [getattr(run_dir, name) for name in properties if name != "lock"]
    for split in ("val", "test"):
        paths += [
            named(split, in_views) for named in (run_dir.predictions, run_dir.evaluation_of) for in_views in (0, 1)
        ]
        paths += [run_dir.comparison_of(split), run_dir.comparison_page_of(split)]
    named = {name.rstrip("/") for name in first_cells("## What a run directory holds")}
    assert named == {path.relative_to("run").as_posix() for path in paths}


def test_every_package_has_a_line_and_a_pinned_version():
    lines = [line for line in (ROOT / "requirements.txt").read_text().splitlines() if line and line[0] != "#"]
    assert all(re.fullmatch(r"[a-z0-9-]+(\[[a-z]+\])?==[0-9.]+", line) for line in lines)
    assert set(first_cells("### Dependencies")) == {re.split(r"[\[=]", line)[0] for line in lines}


@pytest.mark.parametrize("flag", sorted(set(re.findall(r"(?<![\w-])--[a-z][a-z.-]+", README))))
def test_every_flag_that_is_named_is_one(flag):
    fields = [item.name for item in dataclasses.fields(RunConfig)]
    fields += [f"{phase}.{item.name}" for phase in PHASES for item in dataclasses.fields(Phase)]
    others = {"--help", "--resume", "--run-dir", "--split", "--clear", "--keep-gb", "--devices"}
    others |= {"--signal", "--rm", "--profile"}  # of SLURM and of Docker
    others |= {"--number", "--kills", "--saves", "--features"}  # of mutants, kill_randomly, faults, and of prepare
    others |= {"--peers-python", "--work-dir", "--seconds"}
    others |= {"--config", "--seeds", "--epochs", "--learning-rates", "--reach"}
    others |= {"--tta", "--soup", "--paired", "--reject"}
    assert flag in others | {f"--{flag_name(name)}" for name in fields} | {f"--no-{flag_name(name)}" for name in fields}


def commands():
    blocks = re.findall(r"`(?:python -m transfer_learning\.)?(run|evaluate|predict|compare) ([^`]+)`", README)
    fences = re.findall(r"^python -m transfer_learning\.(\w+) (.+)$", README, re.MULTILINE)
    return sorted({(verb, arguments.replace("\\|", "|")) for verb, arguments in [*blocks, *fences]})


@pytest.mark.parametrize(("verb", "arguments"), [pair for pair in commands() if pair[0] == "run"])
def test_every_run_command_parses_to_a_config_without_contradiction(verb, arguments):
    flags = run.parse([word.split("|")[0] for word in shlex.split(arguments)])
    assert flags.resume or flags.dataset


@pytest.mark.parametrize("arguments", [arguments for verb, arguments in commands() if verb == "compare"])
def test_every_compare_command_parses_to_sides_or_goes_on(arguments):
    flags = compare.parse([word.split("|")[0] for word in shlex.split(arguments)])
    assert flags.resume or flags.dataset


def test_the_kills_are_as_many_as_it_says():
    import test_kills

    assert f"killed {len(test_kills.KILLS)} times by SIGKILL" in README


def test_no_figure_is_left_to_be_filled_in():
    assert not re.search(r"@[A-Z]+@|TODO|TBD", README)
