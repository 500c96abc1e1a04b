"""A table ``path,label[,split]``: every row is an example, in its order; test_bad_input.py has what is refused."""

import pytest
from PIL import Image

from transfer_learning.config import RunConfig
from transfer_learning.datasets.prepared import load_prepared
from transfer_learning.datasets.sources import table
from transfer_learning.errors import UserError


@pytest.mark.parametrize(
    "content",
    [
        b"path,label,split\na.png,cat,train\nsub/b.png,dog,test\n",
        b"\xef\xbb\xbfpath,label,split\r\na.png,cat,train\r\nsub/b.png,dog,test\r\n",  # as Excel writes it
        b"number,split,label,path\n1,train,cat,a.png\n2,test,dog,sub/b.png",
        b"path , label, split\na.png, cat, train\n\nsub/b.png, dog, test\n\n",
        b'"path","label","split"\n"a.png","cat","train"\n"sub/b.png","dog","test"\n',
    ],
)
def test_reads_what_spreadsheets_and_people_write(content, tmp_path):
    (tmp_path / "table.csv").write_bytes(content)
    (tmp_path / "a.png").touch()  # a path that does not exist is read, if others do
    dataset = table.read(tmp_path / "table.csv")
    assert [example[:4] for example in dataset.examples] == [
        ("a.png", "cat", "train", tmp_path / "a.png"),
        ("sub/b.png", "dog", "test", tmp_path / "sub" / "b.png"),
    ]
    assert dataset.class_names == ("cat", "dog")


def test_without_a_split_it_is_left_to_us_and_labels_stay_texts(tmp_path):
    (tmp_path / "1.png").touch()
    (tmp_path / "t.csv").write_text('path,label\n1.png,01\n2.png,NA\n3.png,"a, b"\n4.png,1.0\n')
    dataset = table.read(tmp_path / "t.csv")
    assert [example.label for example in dataset.examples] == ["01", "NA", "a, b", "1.0"]
    assert {example.split for example in dataset.examples} == {""}


def test_absolute_paths_stay_what_they_are(tmp_path):
    (tmp_path / "2.png").touch()
    (tmp_path / "tables").mkdir()
    (tmp_path / "tables" / "t.csv").write_text("path,label\n/photos/1.png,a\n../2.png,b\n")
    contents = [example.source.as_posix() for example in table.read(tmp_path / "tables" / "t.csv").examples]
    assert contents == ["/photos/1.png", f"{tmp_path.as_posix()}/tables/../2.png"]


def test_the_line_of_an_error_counts_every_line_of_the_file(tmp_path):
    (tmp_path / "t.csv").write_text('path,label\n\n1.png,"two\nlines"\n\n2.png,\n')
    with pytest.raises(UserError, match="line 6 has label ''"):
        table.read(tmp_path / "t.csv")


def test_a_file_that_is_not_there_is_named(tmp_path):
    Image.new("RGB", (8, 8)).save(tmp_path / "1.png")
    (tmp_path / "t.csv").write_text("path,label\n1.png,a\n2.png,b\n")
    config = RunConfig(dataset=str(tmp_path / "t.csv"), image_size=8, cache_dir=str(tmp_path / "cache"))
    with pytest.raises(UserError, match=r"2\.png: there is no such file"):
        load_prepared(config)


def test_a_table_without_an_end_is_not_read(tmp_path):
    with open(tmp_path / "table.csv", "wb") as file:
        file.truncate(10**12)  # zeros, and no disk
    with pytest.raises(
        UserError, match="table.csv has 1,000.0 GB; a folder, an archive, or a CSV file of at most 1.0 GB"
    ):
        table.read(tmp_path / "table.csv")


LABELS = ("alpha", "beta", "gamma")
ROWS = [(f"img/{label}/{number:03d}.png", label) for label in LABELS for number in range(2)]


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """A folder with the images of ROWS, and with other files."""
    root = tmp_path_factory.mktemp("tables") / "set"
    for path, _ in ROWS:
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).touch()
    return root


def write(root, head, rows, separator=",", encoding="utf-8", name="t.csv"):
    root.joinpath(name).parent.mkdir(exist_ok=True)
    root.joinpath(name).write_bytes("".join(f"{separator.join(row)}\n" for row in (head, *rows)).encode(encoding))
    return root / name


def each(change):
    return [(change(path), label) for path, label in ROWS]


HEAD = ("path", "label")


@pytest.mark.parametrize(
    ("head", "rows", "options"),
    [
        (HEAD, ROWS, {"separator": ";"}),
        (HEAD, ROWS, {"separator": "\t"}),
        (HEAD, ROWS, {"separator": "|"}),
        (HEAD, ROWS, {"encoding": "utf-16"}),
        (HEAD, ROWS, {"encoding": "utf-16-le"}),
        (HEAD, ROWS, {"encoding": "utf-8-sig", "separator": "\t"}),
        (("sep=;\npath", "label"), ROWS, {"separator": ";"}),
        (("\n\npath", "label"), ROWS, {}),
        ((",\n,,\npath", "label"), ROWS, {}),
        (("Path", "Label"), ROWS, {}),
        (("PATH", "LABEL"), ROWS, {}),
        (("filename", "class"), ROWS, {}),
        (("File Name", "Category"), ROWS, {}),
        (("image", "target"), ROWS, {}),
        (("img", "label_name"), ROWS, {}),
        (("image_id", "breed"), ROWS, {}),
        (("picture of it", "label"), ROWS, {}),
        (("", "path", "label"), [(str(number), *row) for number, row in enumerate(ROWS)], {}),
        (HEAD, [(path, label + " " * (number % 3)) for number, (path, label) in enumerate(ROWS)], {}),
        (HEAD, [(f" {path} ", f"\u00a0{label}") for path, label in ROWS], {}),
        (HEAD, [*ROWS, ("", "")], {}),
        (HEAD, [*ROWS[:2], ("", ""), *ROWS[2:], ("\n",)], {}),
        (HEAD, [(*row, "", "") for row in ROWS], {}),
        (HEAD, [*ROWS, ROWS[0], ROWS[3]], {}),
        (HEAD, each(lambda path: path.replace("/", "\\")), {}),
        (HEAD, each(lambda path: path.removesuffix(".png")), {}),
        (HEAD, each(lambda path: path.replace(".png", ".JPG")), {}),
        (HEAD, each(lambda path: f"./{path}"), {}),
        (HEAD, each(lambda path: f"/home/someone/data/{path}"), {}),
        (HEAD, each(lambda path: f"C:\\Users\\someone\\data\\{path}".replace("/", "\\")), {}),
        (HEAD, each(lambda path: f"set/{path}"), {}),
        (HEAD, each(lambda path: path.removeprefix("img/")), {}),
        (HEAD, ROWS, {"name": "tables/t.csv"}),
        (HEAD, each(lambda path: path.title().replace(".Png", ".png")), {}),
    ],
)
def test_what_people_write_is_understood(head, rows, options, images):
    dataset = table.read(write(images, head, rows, **options))
    assert [example.source.resolve() for example in dataset.examples] == [images / path for path, _ in ROWS]
    assert [example.label for example in dataset.examples] == [label for _, label in ROWS]
    is_plain = (
        head[-2:] in (HEAD, ("\n\npath", "label"), (",\n,,\npath", "label"))
        and not {"separator", "encoding"} & options.keys()
    )
    exists = all((images / path.strip()).exists() for path, *_ in rows if path.strip()) and "name" not in options
    is_once = len(rows) == len({row for row in rows})
    assert bool(dataset.notes) == (not (is_plain and (exists or head[0] == "") and is_once)), dataset.notes


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"separator": ";"}, "t.csv uses semicolons as separator."),
        ({"encoding": "utf-16"}, "t.csv is read as UTF-16."),
        ({"encoding": "utf-16-be"}, "t.csv is read as UTF-16-BE."),
        ({"encoding": "utf-32"}, "t.csv is read as UTF-32."),
        ({"encoding": "utf-8-sig"}, None),
    ],
)
def test_an_unusual_way_of_writing_is_logged(options, words, images):
    notes = table.read(write(images, HEAD, ROWS, **options)).notes
    assert [note.text.endswith(words) for note in notes] == [True] * (words is not None)


def test_the_home_directory_in_a_path_is_filled_in(images, monkeypatch):
    monkeypatch.setenv("HOME", str(images))
    dataset = table.read(write(images, HEAD, [("~/img/alpha/000.png", "alpha"), *ROWS[1:]]))
    assert dataset.examples[0].source == images / ROWS[0][0] and not dataset.notes


@pytest.mark.parametrize(
    ("head", "rows"),
    [
        (("path",), [(path,) for path, _ in ROWS]),
        (("what it is called",), [(path,) for path, _ in ROWS]),
        (("what it is called", "label"), ROWS),
        (("id", "filename", "width"), [("7", path, "10") for path, _ in ROWS]),
        (("path", "label", "split"), [(path, "", "later") for path, _ in ROWS]),
        (("path", "label"), [*ROWS, (ROWS[0][0], "beta")]),
    ],
)
def test_for_prediction_paths_are_enough(head, rows, images):
    dataset = table.read(write(images, head, rows), with_labels=False)
    assert [example.source for example in dataset.examples] == [images / path for path, _ in ROWS]


@pytest.mark.parametrize(
    ("head", "words"),
    [(("img/1.png",), "begins with 'img/1.png'.*RUN - < FILE"), (("a", "b"), "has the columns a, b; a column path")],
)
def test_a_table_without_paths_is_explained_for_prediction(head, words, images):
    with pytest.raises(UserError, match=words):
        table.read(write(images, head, ROWS), with_labels=False)


def test_a_table_in_windows_1252_is_read_and_logged(images):
    rows = [(path, label.replace("beta", "Bête")) for path, label in ROWS]
    dataset = table.read(write(images, HEAD, rows, encoding="cp1252"))
    assert dataset.class_names == ("Bête", "alpha", "gamma")
    assert dataset.notes[0].text.endswith(
        "t.csv is not UTF-8, so it is read as Windows-1252; if names look wrong, save it as UTF-8."
    )


@pytest.mark.parametrize(
    "names",
    [
        ("Train", "Val", "Test"),
        ("TRAIN", "VALIDATION", "TEST"),
        ("train", "valid", "test"),
        ("training", "validation", "testing"),
        ("train ", "dev ", " test"),
        ("TRN", "VLD", "holdout"),
        ("train_set", "val_set", "test_set"),
    ],
)
@pytest.mark.parametrize("column", ["split", "Subset"])
def test_splits_by_any_of_their_names(names, column, images):
    rows = [(*row, names[number % 3]) for number, row in enumerate(ROWS)]
    dataset = table.read(write(images, (*HEAD, column), rows))
    assert [example.split for example in dataset.examples] == ["train", "val", "test"] * 2


def test_a_split_may_be_left_open_as_pandas_does(images):
    rows = [(*row, value) for row, value in zip(ROWS, ("", "nan", "None", "NULL", "-", "test"), strict=True)]
    assert [example.split for example in table.read(write(images, (*HEAD, "split"), rows)).examples] == [""] * 5 + [
        "test"
    ]


def test_columns_that_are_not_used_are_logged(images):
    rows = [(str(number), *row, "1") for number, row in enumerate(ROWS)]
    (note,) = table.read(write(images, ("", *HEAD, "is_train"), rows)).notes
    assert note.text.endswith("t.csv: these columns are not used: is_train.")


def test_columns_can_be_named(images):
    rows = [(str(number), *row, "x") for number, row in enumerate(ROWS)]
    path = write(images, ("id", "where it is", "what it is", "label"), rows)
    dataset = table.read(path, table.Columns("where it is", "what it is"))
    assert dataset.class_names == LABELS
    with pytest.raises(
        UserError, match="--label-column what it iss: .*t.csv has no such column. Did you mean what it is"
    ):
        table.read(path, table.Columns("where it is", "what it iss"))


@pytest.mark.parametrize(
    ("head", "rows", "words"),
    [
        (("image", *LABELS), [(path, *(str(int(label == name)) for name in LABELS)) for path, label in ROWS], "idxmax"),
        (("image", *LABELS), [(path, *(str(label == name) for name in LABELS)) for path, label in ROWS], "idxmax"),
        (HEAD, [], "t.csv has no images below its first line"),
        (
            ("image", *LABELS),
            [(path, *(f"{label == name:.1f}" for name in LABELS)) for path, label in ROWS],
            "one column",
        ),
        (ROWS[0], ROWS[1:], "add such a line above the first image"),
        (("a", "b", "c"), [("1", *row) for row in ROWS], "--path-column and --label-column"),
        (("path label",), [(" ".join(row),) for row in ROWS], "separated by a comma, semicolon, tab"),
        (HEAD, [*ROWS, (ROWS[0][0], "beta")], "line 8 has path .*; every path once, or with the same label .* line 2"),
        ((*HEAD, "split"), [(*row, "later") for row in ROWS], "line 2 has split 'later'; train, val, test or nothing"),
        (HEAD, each(lambda path: f"no/such{path[-12:-4]}"), "None of the paths in .* .6. exists, such as 'no/such"),
        (HEAD, [("000.png", "alpha"), ("001.png", "beta")], "nor do files"),
        (HEAD, [*each(lambda path: f"x/{path}"), ("x/img/9.png", "alpha")], "6 would, as img/alpha/000.png for x/img"),
    ],
)
def test_what_is_not_understood_is_explained(head, rows, words, images):
    with pytest.raises(UserError, match=words):
        table.read(write(images, head, rows))


def test_a_file_of_the_same_name_in_another_folder_is_not_taken(images):
    rows = [*each(lambda path: f"x/{path}"), ("x/img/delta/000.png", "delta")]
    with pytest.raises(UserError, match="6 would"):
        table.read(write(images, HEAD, rows))


def test_paths_from_the_working_directory(images, monkeypatch, tmp_path):
    monkeypatch.chdir(images.parent)
    dataset = table.read(write(tmp_path, HEAD, each(lambda path: f"set/{path}")))
    assert [example.source.resolve() for example in dataset.examples] == [images / path for path, _ in ROWS]
