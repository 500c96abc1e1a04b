"""The table of predictions comes back from disk as it was, whatever the classes are called."""

import numpy as np
import pandas as pd
import pytest

from transfer_learning.errors import Diverged, UserError
from transfer_learning.evaluation import predictions

CLASS_NAMES = [
    ["a", "b"],
    [str(digit) for digit in range(10)],
    ["01", "1", "1.0", "1e3", "nan", "None", "NA", "True", "null", "-inf"],
    ["id", "label", "predicted", "confidence"],
    ["label", "label_", "label__", "labels", "_label", "id_x"],
    ["Fish Oil", "Kremil, S", 'the "best"', "'", " leading", "trailing ", "tab\t", "line\nend", "return\rhere", "\r\n"],
    ["錠剤", "пилюля", "💊", "é", "e\u0301"],
    ["", " ", ",", '"', '""'],
    ["bytes that are no UTF-8 \udcff", "$x_1$", "a\\b", "#", "Unnamed: 0", "a.1", "a"],
]


def random_table(class_names, num_examples=7, seed=0):
    random = np.random.default_rng(seed)
    probabilities = random.dirichlet([0.05] * len(class_names), num_examples).astype(np.float32)
    labels = random.integers(len(class_names), size=num_examples)
    ids = [f"{i}/{class_names[label]}" for i, label in enumerate(labels)]
    return predictions.table(ids, labels, probabilities, class_names)


@pytest.mark.parametrize("class_names", CLASS_NAMES, ids=repr)
def test_comes_back_the_same(tmp_path, class_names):
    table = random_table(class_names)
    predictions.write(table, tmp_path / "new folder" / "test.csv")
    again = predictions.read(tmp_path / "new folder" / "test.csv")
    pd.testing.assert_frame_equal(again, table, check_exact=True)
    assert predictions.class_names(again) == class_names
    assert set(again["label"]) <= set(class_names)
    assert predictions.probabilities(again).tobytes() == predictions.probabilities(table).tobytes()


def test_plain_pandas_finds_the_first_columns_by_name(tmp_path):
    table = random_table(["label", "id"])
    predictions.write(table, tmp_path / "test.csv")
    plain = pd.read_csv(tmp_path / "test.csv")
    assert list(plain.columns) == ["id", "label", "predicted", "confidence", "label_", "id_"]
    assert list(plain["label"]) == list(table["label"])


def test_every_float32_comes_back(tmp_path):
    random = np.random.default_rng(1)
    first = np.concatenate(
        [10.0 ** random.uniform(-45, 0, 4000), random.uniform(0, 1, 4000), [0, 1, 1e-45, 0.1, np.nextafter(1, 0)]]
    ).astype(np.float32)
    both = np.stack([first, 1 - first], axis=1)
    table = predictions.table([""] * len(first), np.zeros(len(first), int), both, ["a", "b"])
    predictions.write(table, tmp_path / "test.csv")
    assert predictions.probabilities(predictions.read(tmp_path / "test.csv")).tobytes() == both.tobytes()


def test_the_same_table_gives_the_same_bytes_also_after_reading(tmp_path):
    predictions.write(random_table(["a", "id"]), tmp_path / "one.csv")
    predictions.write(random_table(["a", "id"]), tmp_path / "two.csv")
    predictions.write(predictions.read(tmp_path / "one.csv"), tmp_path / "three.csv")
    assert len({(tmp_path / f"{name}.csv").read_bytes() for name in ("one", "two", "three")}) == 1


def test_rows_keep_their_order_and_the_first_of_equals_wins():
    table = predictions.table(["z", "a", "m"], [2, 0, 1], [[0.5, 0.5, 0], [0, 0.5, 0.5], [0, 0, 1]], ["x", "y", "w"])
    assert list(table.columns) == ["id", "label", "predicted", "confidence", "x", "y", "w"]
    assert table.iloc[:, :3].to_numpy().tolist() == [["z", "w", "x"], ["a", "x", "y"], ["m", "y", "w"]]
    assert table["confidence"].tolist() == [0.5, 0.5, 1.0]


def test_no_examples_make_an_empty_table(tmp_path):
    predictions.write(predictions.table([], [], np.zeros((0, 2)), ["a", "b"]), tmp_path / "none.csv")
    again = predictions.read(tmp_path / "none.csv")
    assert again.empty and predictions.class_names(again) == ["a", "b"]


def test_a_write_that_fails_leaves_the_old_file(tmp_path):
    table = random_table(["a", "b"])
    predictions.write(table, tmp_path / "test.csv")
    before = (tmp_path / "test.csv").read_bytes()
    with pytest.raises(UnicodeEncodeError):  # half of a surrogate pair is a character on no disk
        predictions.write(table.assign(id="\ud800"), tmp_path / "test.csv")
    assert (tmp_path / "test.csv").read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["test.csv"]


@pytest.mark.parametrize(
    ("labels", "probabilities", "class_names", "error", "message"),
    [
        ([0], [[np.nan, 1]], ["a", "b"], Diverged, "1 of 1 images.* lower learning rate"),
        ([0], [[np.inf, 0]], ["a", "b"], Diverged, "diverged"),
        ([0], [[3.0, -2.0]], ["a", "b"], ValueError, "logits"),
        ([0], [[0.2, 0.2]], ["a", "b"], ValueError, "sum 1"),
        ([2], [[0.5, 0.5]], ["a", "b"], ValueError, "from 0 to 1"),
        ([-1], [[0.5, 0.5]], ["a", "b"], ValueError, "from 0 to 1"),
        (["a"], [[0.5, 0.5]], ["a", "b"], ValueError, "integers"),
        ([0], [[0.5, 0.5]], ["a", "b", "c"], ValueError, r"\(1, 3\)"),
        ([0, 1], [[0.5, 0.5]], ["a", "b"], ValueError, r"\(1,\)"),
        ([0], [[0.5, 0.5]], ["a", "a"], ValueError, "must differ"),
    ],
)
def test_refuses_what_is_no_prediction(labels, probabilities, class_names, error, message):
    with pytest.raises(error, match=message):
        predictions.table(["x"], np.array(labels), np.array(probabilities), class_names)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "There are no predictions"),
        ("", "first columns are missing"),
        ("path,label\nx,a\n", "first columns are path, label"),
        ("id,label,predicted,confidence,a\nx,a,a,high,1\n", "is not a table of predictions"),
    ],
)
def test_names_a_file_that_is_no_table(tmp_path, content, message):
    if content is not None:
        (tmp_path / "test.csv").write_text(content)
    with pytest.raises(UserError, match=message):
        predictions.read(tmp_path / "test.csv")
