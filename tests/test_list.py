"""Tables of the known datasets, backbones and recipes."""

import pytest

from transfer_learning import list as list_command
from transfer_learning.cli.parser import run_main
from transfer_learning.datasets.sources.registry import DATASETS
from transfer_learning.models.backbones import BACKBONES
from transfer_learning.recipes.known import RECIPES


@pytest.mark.parametrize(("kind", "names"), [("datasets", DATASETS), ("backbones", BACKBONES), ("recipes", RECIPES)])
def test_every_name_is_a_row(kind, names, capsys, tmp_path):
    assert run_main(list_command.main, [kind, "--data-dir", str(tmp_path)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert set(names) <= {line.split()[0] for line in lines if not line.startswith(" ")}
    assert max(map(len, lines)) <= 120


def test_backbones_show_whether_their_weights_are_there(capsys):
    run_main(list_command.main, ["backbones"])
    rows = {line.split()[0]: line for line in capsys.readouterr().out.splitlines() if not line.startswith(" ")}
    assert "installed" in rows["efficientnet_lite0"] and "download" in rows["resnet50"]


def test_datasets_show_their_licence_and_where_their_files_are(capsys, here):
    (here / "files" / "cifar10").mkdir(parents=True)
    run_main(list_command.main, ["datasets", "--data-dir", "files"])
    rows = {line.split()[0]: line for line in capsys.readouterr().out.splitlines() if not line.startswith(" ")}
    assert "in files/cifar10" in rows["cifar10"]
    assert "CC BY 4.0" in rows["digits"] and "ships with scikit-learn" in rows["digits"]


def test_every_dataset_and_all_weights_have_a_licence_or_a_word_that_says_why_not(tmp_path):
    rows = [*list_command.dataset_rows(tmp_path), *list_command.backbone_rows()]
    licences = {row[0]: row[-2] for row in rows}
    assert all(licences.values())
    assert licences["resnet18"] == licences["stop_signs"] == "not stated" and licences["small_cnn"] == "none"


def test_an_unknown_kind_is_named(refused):
    assert "'models'" in refused(list_command.main, "models")
