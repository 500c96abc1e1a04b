"""Corrections: what a person wrote into the table is done, and what cannot be meant is refused by its line."""

import pytest

from tests.support.logs import log_messages
from transfer_learning.datasets.corrections import COLUMNS, Corrections, apply_corrections, read_corrections
from transfer_learning.datasets.dataset import Example, with_class_names
from transfer_learning.datasets.decoding.decode import content_hash
from transfer_learning.errors import UserError


def dataset():
    examples = [Example(f"{label}/{number}.jpg", label, "", None) for label in "ab" for number in range(3)]
    return with_class_names("photos", examples)


def table(tmp_path, *rows, head="id,label,suggestion,probability,why,action"):
    path = tmp_path / "some corrections.csv"
    path.write_text("\n".join([head, *rows]) + "\n", encoding="utf-8")
    return path


def test_every_action_is_done_and_logged(tmp_path):
    path = table(
        tmp_path,
        "a/0.jpg,a,b,0.9,likely label error,keep",
        "a/1.jpg,a,b,0.9,,relabel:b",
        "a/2.jpg,a,b,0.8,,Relabel",
        "b/0.jpg,b,,,blurred, drop ",
        "b/1.jpg,b,a,0.7,,relabel: b",
    )
    read = read_corrections(path)
    relabelled = dict.fromkeys(("a/1.jpg", "a/2.jpg", "b/1.jpg"), "relabel:b")
    assert read == Corrections(path, {"a/0.jpg": "keep", "b/0.jpg": "drop"} | relabelled)
    said = log_messages()
    corrected, dropped = apply_corrections(dataset(), read)
    labels = {example.id: example.label for example in corrected.examples}
    assert labels == {"a/0.jpg": "a", "a/1.jpg": "b", "a/2.jpg": "b", "b/0.jpg": "b", "b/1.jpg": "b", "b/2.jpg": "b"}
    assert dropped == {"b/0.jpg": "dropped by some corrections.csv"} and corrected.class_names == ("a", "b")
    assert said == [
        "some corrections.csv: 2 of 6 images relabelled (a/1.jpg as b, a/2.jpg as b), 1 dropped (b/0.jpg), 1 unchanged."
    ]


def test_a_table_of_two_columns_as_a_spreadsheet_saves_it_will_do(tmp_path):
    path = tmp_path / "c.csv"
    path.write_bytes('\ufeffid,action\r\n"a/0.jpg",drop\r\n'.encode())
    assert read_corrections(path).actions == {"a/0.jpg": "drop"}
    assert apply_corrections(dataset(), read_corrections(table(tmp_path))) == (dataset(), {})


@pytest.mark.parametrize(("separator", "encoding"), [(";", "cp1252"), ("\t", "utf-16"), (",", "utf-8-sig")])
def test_a_table_is_read_as_spreadsheets_write_it(separator, encoding, tmp_path):
    path = tmp_path / "c.csv"
    path.write_bytes(f"id{separator}action\r\nBäume/1.jpg{separator}drop\r\n".encode(encoding))
    assert read_corrections(path).actions == {"Bäume/1.jpg": "drop"}


def moved_table(tmp_path, content="same", labels="ab"):
    """Rows for two images of equal contents and different labels, and for one more; all under other ids than below."""
    sha256 = {name: content_hash(name.encode()) for name in ("same", "own", content)}
    rows = [f"x/{label}/0.jpg,{label},,,,relabel:b,{sha256[content]}" for label in labels]
    return table(tmp_path, *rows, f"x/a/1.jpg,a,,,,drop,{sha256['own']}", head=",".join(COLUMNS))


@pytest.fixture
def with_files(tmp_path):
    contents = {"a/0.jpg": "same", "b/0.jpg": "same", "a/1.jpg": "own", "b/1.jpg": "another"}
    for name, content in contents.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(content)
    return with_class_names("photos", [Example(name, name[0], "", tmp_path / name) for name in contents])


def test_images_that_have_moved_are_known_by_their_contents(with_files, tmp_path):
    messages = log_messages()
    corrected, dropped = apply_corrections(with_files, read_corrections(moved_table(tmp_path)))
    assert [example.label for example in corrected.examples] == ["b", "b", "a", "b"] and list(dropped) == ["a/1.jpg"]
    assert "3 images have the same content under another id, such as a/0.jpg instead of x/a/0.jpg." in messages[0]


@pytest.mark.parametrize("options", [{"content": "changed"}, {"labels": "ac"}])
def test_contents_that_are_not_there_are_refused(options, with_files, tmp_path):
    with pytest.raises(UserError, match="has no such image"):
        apply_corrections(with_files, read_corrections(moved_table(tmp_path, **options)))


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        (["a/0.jpg,a,b,,,remove"], "line 2 has the action 'remove' for a/0.jpg; write keep, drop, relabel:NAME"),
        (["a/0.jpg,a,b,,,"], "line 2 has the action '' for a/0.jpg"),
        (["a/0.jpg,a,b"], "line 2 has the action None for a/0.jpg"),
        (["a/0.jpg,a,,,,relabel"], "line 2 has the action 'relabel'"),
        (["a/0.jpg,a,,,,drop:it"], "line 2 has the action 'drop:it'"),
        (["a/0.jpg,a,,,,keep", "a/0.jpg,a,,,,drop"], "line 3 names a/0.jpg for the second time"),
        (["c/9.jpg,a,,,,drop"], "names c/9.jpg, and photos has no such image (its ids are like a/0.jpg)"),
        (["c/9.jpg,a,,,,relabel:b"], "names c/9.jpg"),
        (["a/0.jpg,a,,,,relabel:bb"], "relabels a/0.jpg as 'bb', and photos has no such class. Did you mean b?"),
    ],
)
def test_what_cannot_be_meant_is_refused(rows, words, tmp_path):
    with pytest.raises(UserError) as caught:
        apply_corrections(dataset(), read_corrections(table(tmp_path, *rows)))
    assert words in str(caught.value) and "some corrections.csv" in str(caught.value)


def test_a_kept_image_may_be_gone(tmp_path):
    read = read_corrections(table(tmp_path, "c/9.jpg,c,,,,keep"))
    assert apply_corrections(dataset(), read) == (dataset(), {})


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, "There is no table .*; give the path of the corrections.csv"),
        (b"", r"has the columns \(none\); id and action"),
        (b"path,label\n1.jpg,a\n", "has the columns path, label; id and action"),
        (b'id,action\n"a\n', "cannot be read as a table"),
        (b"id,action\n\0\xff,drop\n", "cannot be read as a table"),
    ],
)
def test_what_is_no_such_table_is_refused(content, words, tmp_path):
    path = tmp_path / "c.csv"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UserError, match=words):
        read_corrections(path)
    with pytest.raises(UserError, match="cannot be read as a table"):
        read_corrections(tmp_path)
