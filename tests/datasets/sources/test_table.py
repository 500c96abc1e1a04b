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
    dataset = table.read(tmp_path / "table.csv")
    assert [example[:4] for example in dataset.examples] == [
        ("a.png", "cat", "train", tmp_path / "a.png"),
        ("sub/b.png", "dog", "test", tmp_path / "sub" / "b.png"),
    ]
    assert dataset.class_names == ("cat", "dog")


def test_without_a_split_it_is_left_to_us_and_labels_stay_texts(tmp_path):
    (tmp_path / "t.csv").write_text('path,label\n1.png,01\n2.png,NA\n3.png,"a, b"\n4.png,1.0\n')
    dataset = table.read(tmp_path / "t.csv")
    assert [example.label for example in dataset.examples] == ["01", "NA", "a, b", "1.0"]
    assert {example.split for example in dataset.examples} == {""}


def test_absolute_paths_stay_what_they_are(tmp_path):
    (tmp_path / "t.csv").write_text("path,label\n/photos/1.png,a\n../2.png,b\n")
    contents = [example.source.as_posix() for example in table.read(tmp_path / "t.csv").examples]
    assert contents == ["/photos/1.png", f"{tmp_path.as_posix()}/../2.png"]


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
