"""README and docs agree with the code: tables, flags, commands, Python snippets, links and words.

A code block in a page, preceded by the line ``<!-- runs -->``, is executed in a folder with small images and two
finished runs. Every other command is parsed.
"""

import argparse
import dataclasses
import importlib
import re
import shlex
import shutil
import tomllib
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from packaging.requirements import Requirement

from tests.support import ROOT
from transfer_learning.__main__ import COMMANDS
from transfer_learning.config import Phase
from transfer_learning.datasets.augmentation import AUGMENTATIONS
from transfer_learning.datasets.sources.registry import DATASETS, SCHEMES
from transfer_learning.errors import ExitCode
from transfer_learning.models.backbones import BACKBONES
from transfer_learning.models.keras_applications import APPLICATIONS
from transfer_learning.recipes import known, resolve
from transfer_learning.storage.run_directory import RunDir
from transfer_learning.training.optimizers import OPTIMIZERS
from transfer_learning.training.schedules import SCHEDULES

PACKAGE = ROOT / "transfer_learning"
PAGES = {
    path.relative_to(ROOT).as_posix(): path.read_text(encoding="utf-8")
    for pattern in ("*.md", "docs/*.md", "data/*.md", "benchmarks/*.md")
    for path in sorted(ROOT.glob(pattern))
}
README = PAGES["README.md"]
ALL = "\n".join(PAGES.values())
OTHER_PROGRAMS = ("curl", "docker", "pip", "ray", "sbatch")  # whose flags are not ours
SCRIPTS = ("benchmarks.__main__", "benchmarks.sets", "tests.support.kill_randomly", "tests.support.mutated_images")
SCRIPTS += ("tests.support.fault_injection", "tests.support.attack")
MOST_WORDS = 900
# Words of earlier versions that a reader would have to look up, and what to write instead: the project's terms.
OLD_WORDS = {
    r"foresee\w*|foreseen|foresight(?!\.json)|foretell|foretold": "estimate",
    r"(?<!\.)tells?(?!\()|telling|told": "log, show, name; rejected",
    r"doubts|doubtful": "label issues",
    r"mend|mended": "fix",
    r"judge|judged|judges|judging": "evaluate",
    r"held[ -]out": "unseen classes",
    r"kept (?:pools?|features|pixels|jpegs?|activations)": "cached",
    r"what [\w.`']+ makes? of": "the output of X for",
    r"(?:is|that is|gives) no number": "NaN or infinite",
    r"stirred in|tasted|tasting": "added to the soup",
    r"micro-batch(?:es)?": "gradient accumulation",
    r"head start": "initial weights of the head",
    r"surroundings": "runtime fingerprint",
    r"counterparts?": "PyTorch weights",
    r"stands? in": "is in",
    r"verbs?": "command",
    r"(?:each|every) updates?|updates at once": "train step",
    r"(?:an?|one) \w+ an? (?:epoch|class|sample|image)": "per epoch",
    r"lowest_rate|(?:start|end)_divisor|head_start|micro_batches|make_updates?|make_measure": "current names",
}


class Block(NamedTuple):
    page: str
    language: str
    text: str
    runs: bool


class Stop(Exception):
    """Carries a parser out of a command's `main`."""


def blocks():
    pattern = r"^(<!-- runs -->\n)?```(\w*)\n(.*?)^```$"
    for page, text in PAGES.items():
        for marker, language, body in re.findall(pattern, text, re.MULTILINE | re.DOTALL):
            yield Block(page, language, body, bool(marker))


def commands_of(text):
    """(command, words) for each line or inline code that calls the program."""
    for line in text.splitlines():
        found = re.match(r"(?:\$ )?(?:transfer-learning|python -m transfer_learning(?: |\.))\s*(\w+)(.*)", line)
        if found and found[1] != "COMMAND":
            yield found[1], shlex.split(found[2], comments=True)


def code():
    """The code blocks that are commands, and all inline code, line by line; the changelog has flags of the past."""
    lines = [line for block in blocks() if block.language != "python" for line in block.text.splitlines()]
    current = "\n".join(text for page, text in PAGES.items() if page != "CHANGELOG.md")
    prose = re.sub(r"^```.*?^```$", "", current, flags=re.MULTILINE | re.DOTALL)
    return lines + [span.replace("\\|", "|") for span in re.findall(r"`([^`\n]+)`", prose)]


def documented_commands():
    return sorted({(command, *words) for line in code() for command, words in commands_of(line)})


def parser_of(module):
    """The parser that a module's `main` or `parse` makes."""

    def stop(parser, *_):
        raise Stop(parser)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("transfer_learning.cli.parser.Parser.parse_args", stop)
        patch.setattr(argparse.ArgumentParser, "parse_args", stop)
        with pytest.raises(Stop) as stopped:
            main = importlib.import_module(module).main
            main([]) if main.__code__.co_argcount else main()
    return stopped.value.args[0]


@pytest.fixture(scope="module")
def parsers():
    return {command: parser_of(f"transfer_learning.{command}") for command in COMMANDS}


def rows(page, heading, column=0):
    """The names in backquotes in a column of the table under a heading."""
    section = re.split(rf"^#+ {re.escape(heading)}$", PAGES[page], flags=re.MULTILINE)[1].split("\n#")[0]
    cells = [re.split(r"(?<!\\)\|", line)[1 + column] for line in section.splitlines() if line.startswith("| ")]
    return [name for cell in cells[1:] for name in re.findall(r"`([^`]+)`", cell)]


# Tables


def test_every_dataset_has_a_row():
    named = {name.partition(":")[0] for name in rows("docs/datasets.md", "Known datasets")}
    assert named == {*DATASETS, *SCHEMES}


def test_every_backbone_has_a_row():
    assert set(rows("docs/backbones.md", "Backbones")) == set(BACKBONES)


def test_every_network_of_keras_applications_has_a_row():
    assert set(rows("docs/backbones.md", "Networks of keras.applications", column=1)) == set(APPLICATIONS)


@pytest.mark.parametrize(("page", "heading"), [("README.md", "Commands"), ("docs/command-line.md", "Command line")])
def test_every_command_has_a_row(page, heading):
    named = {command for cell in rows(page, heading) for command, _ in commands_of(cell)}
    assert named == set(COMMANDS)


def test_every_augmentation_optimizer_and_schedule_has_a_row():
    assert set(rows("docs/training.md", "Augmentation")) == set(AUGMENTATIONS)
    names = set(rows("docs/training.md", "Optimizers and schedules", column=1))
    assert names >= {*OPTIMIZERS, *SCHEDULES}


def test_every_folder_has_a_row():
    folders = {path.parent.name for path in PACKAGE.glob("*/__init__.py")}
    assert set(rows("CONTRIBUTING.md", "Layers", column=1)) == folders


def test_every_file_of_a_run_directory_has_a_row():
    run_dir = RunDir(Path("run"))
    paths = [path for name, path in vars(run_dir).items() if name not in ("path", "lock")]
    for split in ("val", "test"):
        paths += [
            method(split, tta) for method in (run_dir.predictions, run_dir.evaluation_of) for tta in (False, True)
        ]
        paths += [run_dir.comparison_of(split), run_dir.comparison_page_of(split)]
    paths += [run_dir.predictions("NAME"), run_dir.evaluation_of("NAME")]  # of another dataset
    documented = {name.rstrip("/") for name in rows("docs/run-directory.md", "Run directory")}
    assert documented == {path.relative_to("run").as_posix() for path in paths}


def test_every_pinned_package_has_a_row():
    lines = [line for line in (ROOT / "requirements.txt").read_text().splitlines() if line and line[0] != "#"]
    assert all(re.fullmatch(r"[a-z0-9-]+(\[[a-z]+\])?==[0-9.]+", line) for line in lines)
    documented = set(rows("docs/installation.md", "Dependencies"))
    assert documented == {Requirement(line).name for line in lines}


def test_every_extra_has_a_row():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert set(rows("docs/installation.md", "Extras")) == set(project["optional-dependencies"])


def test_every_exit_code_has_a_row():
    section = PAGES["docs/command-line.md"].split("## Exit codes")[1]
    documented = {
        int(code) for row in re.findall(r"^\| ([\d, ]+) \|", section, re.MULTILINE) for code in row.split(",")
    }
    assert documented == set(ExitCode)


# Flags and commands


def documented_flags():
    lines = [line for line in code() if not line.startswith(OTHER_PROGRAMS)]
    return sorted({flag for line in lines for flag in re.findall(r"(?<![\w-])--[a-z][a-z0-9.-]*[a-z0-9]", line)})


@pytest.fixture(scope="module")
def known_flags(parsers):
    """The current flags, and the hidden ones, which are earlier names."""
    scripts = [parser_of(module) for module in SCRIPTS]
    actions = [action for parser in [*parsers.values(), *scripts] for action in parser._actions]
    shown, hidden = (
        {
            flag
            for action in actions
            if (action.help == argparse.SUPPRESS) == is_hidden
            for flag in action.option_strings
        }
        for is_hidden in (False, True)
    )
    return shown | {"--version"}, hidden


@pytest.mark.parametrize("flag", documented_flags())
def test_every_documented_flag_exists(flag, known_flags):
    current, _ = known_flags
    assert flag in current


def test_every_earlier_flag_is_in_the_changelog(known_flags):
    current, earlier = known_flags
    documented = re.findall(r"^\| `(--\S+)` \| `(--\S+)` \|", PAGES["CHANGELOG.md"], re.MULTILINE)
    assert {old for old, _ in documented} == earlier
    assert {new for _, new in documented} <= current


@pytest.mark.parametrize("words", documented_commands(), ids=" ".join)
def test_every_documented_command_parses(words, parsers):
    command, *arguments = words
    if arguments:
        parsers[command].parse_args(arguments)
    else:
        assert command in parsers


# Execution


@pytest.fixture(scope="module")
def workspace(photos, small_config, tmp_path_factory):
    """A folder with photos/ (also as table and archive), more_photos/, docs/ and two finished runs; settings are fast."""
    from transfer_learning.experiments.train import run_experiment

    folder = tmp_path_factory.mktemp("workspace")
    shutil.copytree(photos, folder / "photos")
    shutil.copytree(photos, folder / "more_photos")
    (folder / "docs").symlink_to(ROOT / "docs")
    shutil.make_archive(str(folder / "photos"), "zip", photos)
    for number, file in enumerate(sorted((folder / "photos").rglob("*.png"))):
        file.rename(file.with_stem(f"object{number // 2}_{number % 2}"))  # two photos of each object
    files = sorted((folder / "photos").rglob("*.png"))
    table = [f"{file.relative_to(folder).as_posix()},{file.parent.name}" for file in files]
    (folder / "table.csv").write_text("\n".join(["path,label", *table, ""]))
    (folder / "corrections.csv").write_text(f"id,action\n{files[0].relative_to(folder / 'photos').as_posix()},drop\n")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        config = dataclasses.replace(
            small_config,
            dataset=str(folder / "photos"),
            frozen=Phase(epochs=1),
            fine_tune=dataclasses.replace(small_config.fine_tune, epochs=0),
        )
        patch.setattr(resolve, "auto_recipe", lambda dataset, **_: (dataclasses.replace(config, dataset=dataset), {}))
        patch.setattr(known, "drawn_pills", lambda: config)
        for name, seed in (("photos", 0), ("other", 1)):
            run_experiment(dataclasses.replace(config, seed=seed), RunDir(folder / "runs" / name))
        yield folder


RUNNING = {block.text: block for block in blocks() if block.runs}.values()  # the README repeats some


@pytest.mark.parametrize("block", RUNNING, ids=lambda block: f"{block.page}: {block.text.splitlines()[0]}")
def test_blocks_run(block, workspace):
    if block.language == "python":
        exec(compile(block.text, block.page, "exec"), {})
        return
    commands = list(commands_of(block.text))
    assert len(commands) == len(block.text.splitlines())
    for command, words in commands:
        assert importlib.import_module(f"transfer_learning.{command}").main(words) in (None, ExitCode.DONE)


def test_all_python_blocks_run():
    assert all(block.runs for block in blocks() if block.language == "python" and block.page != "CONTRIBUTING.md")
    assert len(RUNNING) > 8


# The worked examples of CONTRIBUTING.md: code and row are evaluated in the module that they are for.
EXAMPLES = {
    "Add a dataset": "datasets.sources.registry",
    "Add a backbone": "models.backbones",
    "Add an augmentation": "datasets.augmentation",
    "Add a schedule": "training.schedules",
    "Add a figure": "evaluation.figures.table",
    "Add a command": "__main__",
}


@pytest.fixture(scope="module")
def examples():
    """For each of EXAMPLES the names that its code defines, the "row" that its last block adds, and the lines of both."""
    found = {}
    for heading, module in EXAMPLES.items():
        section = PAGES["CONTRIBUTING.md"].split(f"## {heading}\n")[1].split("\n## ")[0]
        *functions, row = re.findall(r"^```\w*\n(.*?)^```$", section, re.MULTILINE | re.DOTALL)
        names = dict(vars(importlib.import_module(f"transfer_learning.{module}")))
        exec("".join(functions), names)
        names["row"] = eval("{" + row + "}" if row.lstrip().startswith('"') else f"[{row}]", names)
        found[heading] = names | {"lines": [line for line in "".join([*functions, row]).splitlines() if line]}
    return found


@pytest.mark.parametrize("heading", EXAMPLES)
def test_example_has_at_most_15_lines(heading, examples):
    assert len(examples[heading]["lines"]) <= 15


def test_example_of_a_dataset_reads_a_folder(examples, photos, tmp_path):
    (tmp_path / "flowers").symlink_to(photos)
    (source,) = examples["Add a dataset"]["row"].values()
    assert source.function == "flowers:load"
    assert examples["Add a dataset"]["load"](tmp_path).class_names == ("circle", "cross", "stripes")


def test_example_of_a_command_prints_the_class_names(examples, workspace, capsys):
    assert list(examples["Add a command"]["row"]) == ["classes"]
    examples["Add a command"]["main"]([str(workspace / "runs/photos")])
    assert capsys.readouterr().out == "circle\ncross\nstripes\n"


def test_example_of_a_backbone_is_the_network_of_keras(examples):
    (row,) = examples["Add a backbone"]["row"]
    assert (row.name, row.builder) == ("efficientnet_b0", "keras.applications:EfficientNetB0")


def test_example_of_an_augmentation_erases_a_rectangle(examples):
    augmentation = examples["Add an augmentation"]["row"]["erasing"]
    generator = np.random.default_rng(0)
    parameters = augmentation.draw(lambda count: generator.uniform(-1, 1, (8, count)), True, 16)
    erased = np.asarray(augmentation.apply(np.zeros((8, 16, 16, 3), np.float32), parameters.astype(np.float32)))
    assert erased.shape == (8, 16, 16, 3) and set(np.unique(erased)) == {0, 127.5}
    assert np.all(erased.any(axis=(1, 2, 3)) & ~erased.all(axis=(1, 2, 3)))


def test_example_of_a_schedule_lowers_the_rate_after_each_third(examples):
    schedule = examples["Add a schedule"]["row"]["thirds"]
    rates = [schedule(Phase(epochs=3, learning_rate=1.0), step, 4) for step in range(12)]
    assert rates == pytest.approx([1.0] * 4 + [0.1] * 4 + [0.01] * 4)


def test_example_of_a_figure_is_in_a_section_of_the_report(examples):
    assert f'("{examples["Add a figure"]["row"]["class_f1"].section}",' in (PACKAGE / "reports/run.html").read_text()


# Links, length and words


def anchors(page):
    """The anchors that GitHub makes of the headings of a page."""
    headings = re.findall(r"^#+ (.+)$", PAGES[page], re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES)
def test_links_resolve(page):
    for target in re.findall(r"\]\(([^)\s]+)\)", PAGES[page]):
        if re.match(r"https?://|mailto:", target):
            continue
        path, _, anchor = target.partition("#")
        file = (ROOT / page).parent / path if path else ROOT / page
        assert file.exists(), f"{page} links to {target}"
        if anchor:
            assert anchor in anchors(file.resolve().relative_to(ROOT).as_posix()), f"{page} links to {target}"


def test_readme_links_to_every_page():
    assert {page for page in PAGES if page.startswith("docs/")} <= set(re.findall(r"\]\(([^)\s#]+)\)", README))


def test_readme_is_short():
    assert len(README.split()) <= MOST_WORDS


def test_screenshot_is_small():
    (image,) = re.findall(r"!\[[^\]]*\]\((docs/images/[^)]+)\)", README)
    assert (ROOT / image).stat().st_size < 200_000


def test_number_of_kills_is_that_of_the_test():
    from tests.test_kills import KILLS

    assert f"killed {len(KILLS)} times by SIGKILL" in PAGES["docs/reproducibility.md"]


def test_no_figure_is_left_to_be_filled_in():
    assert not re.search(r"@[A-Z]+@|TODO|TBD", ALL)


SOURCES = [path for kind in ("*.py", "*.html", "*.css", "*.js") for path in sorted(PACKAGE.rglob(kind))]
TESTS = [
    path for path in sorted((ROOT / "tests").rglob("*.py")) if "old_runs" not in path.parts and path != Path(__file__)
]


@pytest.mark.parametrize("words", OLD_WORDS)
def test_old_words_are_gone(words):
    pattern = re.compile(rf"(?<![\w\"'`])(?:{words})(?![\w\"'`])", re.IGNORECASE)
    texts = {str(path.relative_to(ROOT)): path.read_text(encoding="utf-8") for path in SOURCES} | PAGES
    texts |= {str(path.relative_to(ROOT)): path.read_text(encoding="utf-8").replace("_", " ") for path in TESTS}
    found = [
        f"{name}:{number}: {line.strip()}"
        for name, text in texts.items()
        for number, line in enumerate(text.splitlines(), 1)
        if pattern.search(line)
    ]
    assert not found, f"write {OLD_WORDS[words]!r}: " + "\n".join(found)
