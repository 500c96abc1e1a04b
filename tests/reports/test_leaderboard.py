"""The leaderboard ranks runs of any state, a table per test set, and sorts in a browser."""

import shutil

import pytest

from tests.support import ROOT
from tests.support.chromium import chromium
from tests.support.html import Page
from transfer_learning import report
from transfer_learning.cli.parser import run_main
from transfer_learning.storage.run_directory import RunDir


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Two finished runs, two on other images, one that is unfinished and two that are damaged."""
    folder = tmp_path_factory.mktemp("leaderboard") / "runs"
    shutil.copytree(ROOT / "tests/old_runs/runs", folder)
    shutil.copytree(folder / "finished_a", folder / "<b>&copy")
    RunDir(folder / "<b>&copy").evaluation.write_text("{}")
    (folder / "broken").mkdir()
    (folder / "broken" / "config.json").write_text("{")
    return folder


@pytest.fixture(scope="module")
def page(runs):
    assert run_main(report.main, [str(runs)]) == 0
    return runs / "leaderboard.html"


def test_every_run_is_on_the_page_with_its_state_and_results(page):
    shown = Page(page)
    for words in ("finished_a", "finished_b", "comparison/warm-seed0", "<b>&copy", "broken", "7 runs on 3 test sets"):
        assert words in shown.text, words
    assert "unfinished, 3 of 6 epochs" in shown.text
    assert shown.text.count("damaged: ") == 2
    assert "not comparable" in shown.text
    assert "100.00 %" in shown.text and "70.09–100.00 %" in shown.text and "0.1159" in shown.text
    links = [value for name, value in shown.attributes if name == "href"]
    assert links and all((page.parent / link).is_file() for link in links)
    assert "src" not in dict(shown.attributes) and "http" not in page.read_text()


def test_runs_on_other_images_are_in_another_table(page):
    tables = page.read_text().split("<table")[1:]
    (with_a,) = [table for table in tables if "finished_a" in table]
    assert "finished_b" in with_a and "warm-seed0" not in with_a


@pytest.mark.browser
def test_headings_sort_by_click_and_by_keyboard(page):
    names = "[...document.querySelector('table').tBodies[0].rows].map(row => row.cells[0].textContent.trim())"
    with chromium() as tab:
        tab.open(page.as_uri())
        before = tab.run(names)
        place = "document.querySelectorAll('table')[0].tHead.rows[0].cells"
        tab.run(f"{place}[0].firstElementChild.click()")
        assert tab.run(f"{place}[0].ariaSort") == "ascending" and tab.run(f"{place}[1].ariaSort") is None
        assert tab.run(names) == sorted(before)
        tab.run(f"{place}[0].firstElementChild.focus()")
        tab.press("Enter")
        assert tab.run(f"{place}[0].ariaSort") == "descending" and tab.run(names) == sorted(before)[::-1]
        tab.run(f"{place}[1].firstElementChild.focus()")
        tab.press("Space")
        assert tab.run(names)[-1] == "unfinished", "runs without a figure are last"
        assert not [event for event in tab.events if event["method"] == "Network.requestWillBeSent"][1:]


def test_several_runs_are_ranked_on_a_page_beside_them_or_where_the_user_says(runs, tmp_path, refused, capsys):
    pair = [str(runs / name) for name in ("finished_a", "finished_b")]
    output = tmp_path / "pair.html"
    assert run_main(report.main, [*pair, pair[0], "--output", str(output)]) == 0
    assert str(output) in capsys.readouterr().out and "Leaderboard of 2 runs" in output.read_text()
    for arguments, words in (
        ([str(tmp_path)], "not a run directory and holds none"),
        ([str(tmp_path / "x")], "There is no run directory"),
        ([*pair, str(tmp_path / "x")], "not a run directory and holds none"),
        ([pair[0], "--output", "x.html"], "is for several runs"),
        ([*pair, "--output", "x.png"], "would be a web page; give a name that ends with .html"),
    ):
        assert words in refused(report.main, *arguments)
