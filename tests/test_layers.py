"""Imports point down: from the commands to the modules that do not need TensorFlow."""

import ast
import shutil
from pathlib import Path

import pytest

import transfer_learning
from tests.support import run_without
from transfer_learning import __main__

ROOT = Path(transfer_learning.__file__).parent
PACKAGE = ROOT.name

# From the lowest to the highest: the files and folders in the package. All others are commands.
LAYERS = (
    ("errors", "config"),
    ("cli",),
    ("machine", "storage"),  # the cache asks how much memory there is, and the monitor writes its file
    ("datasets", "models"),
    ("evaluation",),
    ("training",),
    ("recipes", "exports"),  # the automatic recipe solves heads in closed form
    ("reports", "serving"),
    ("experiments",),
)
COMMANDS = len(LAYERS)
MODULES = sorted(ROOT.rglob("*.py"))
SLOW = {"scipy", "sklearn", "cleanlab", "matplotlib"}  # to import, and needed by some work only


def imported(path, is_inside=True):
    """The modules that a file imports, also inside functions or only when it is imported itself."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for node in ast.walk(tree) if is_inside else tree.body:
        if isinstance(node, ast.Import):
            yield from (name.name for name in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} imports by a relative name"
            if node.module == PACKAGE:
                yield from (f"{PACKAGE}.{name.name}" for name in node.names if name.name != "__version__")
            else:
                yield node.module


def member(module):
    """``transfer_learning.models.weights`` -> ``models``."""
    return module.split(".")[1]


def layer(name):
    return next((number for number, names in enumerate(LAYERS) if name in names), COMMANDS)


def name_of(path):
    return ".".join((PACKAGE, *path.relative_to(ROOT).with_suffix("").parts))


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_imports_point_down(path):
    own = member(name_of(path))
    for module in imported(path):
        if not module.startswith(f"{PACKAGE}."):
            continue
        other = member(module)
        is_below = layer(other) < layer(own)
        is_beside = other == own or {own, other} in ({"errors", "config"}, {"machine", "storage"})
        assert is_below or is_beside, f"{name_of(path)} imports {module}, which is not below it"


@pytest.mark.parametrize(
    "path", [path for path in MODULES if member(name_of(path)) in ("errors", "config", "cli", "storage")], ids=name_of
)
def test_the_lowest_layers_do_not_import_tensorflow(path):
    assert not {"tensorflow", "keras"} & {module.split(".")[0] for module in imported(path)}


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_slow_libraries_are_imported_by_the_functions_that_use_them(path):
    slow = SLOW - {"matplotlib"} if path.parent.name == "figures" else SLOW
    assert not slow & {module.split(".")[0] for module in imported(path, is_inside=False)}


def test_the_help_of_no_command_imports_a_slow_library():
    code = (
        "from contextlib import suppress\n"
        "from transfer_learning.__main__ import COMMANDS, call\n"
        "for name in COMMANDS:\n"
        "    with suppress(SystemExit): call([name, '--help'])\n"
        f"    slow = {SLOW | {'pandas', 'tensorflow', 'keras'}} & set(sys.modules)\n"
        "    assert not slow, f'{name} imports {slow}'\n"
    )
    assert run_without("", code).stdout.count("usage: transfer-learning") == len(__main__.COMMANDS)


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_no_function_has_more_than_7_parameters(path):
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            of_node = [one for one in ast.iter_child_nodes(node.args) if isinstance(one, ast.arg)]
            names = {one.arg for one in of_node} - {"self", "cls"}
            assert len(names) <= 7, f"{name_of(path)}:{node.lineno}: {node.name} has {len(names)} parameters"


def test_every_name_in_a_layer_exists():
    there = {member(name_of(path)) for path in MODULES}
    assert {name for names in LAYERS for name in names} <= there


def test_an_import_inside_a_function_counts(tmp_path):
    path = tmp_path / "module.py"
    path.write_text("def f():\n    from transfer_learning import run\n    import keras.layers\n")
    assert list(imported(path)) == ["transfer_learning.run", "keras.layers"]


def test_prepare_cache_and_report_need_no_tensorflow(tmp_path):
    folder = tmp_path / "old"
    shutil.copytree(Path(__file__).parent / "old_runs", folder)
    code = (
        "from transfer_learning import cache, evaluate, predict, prepare, report, run\n"
        "report.main(['runs/finished_a'])\n"
        "prepare.main(['photos', '--image-size', '24', '--cache-dir', 'new', '--out', 'audit'])\n"
        "cache.main(['--cache-dir', 'new'])\n"
    )
    done = run_without("tensorflow keras sklearn matplotlib cleanlab", code, cwd=folder)
    for text in ("report.html", "42 images of 4 classes", "pixels/24-squash"):
        assert text in done.stdout
