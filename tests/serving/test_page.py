"""The page in a real browser: ``make test-browser``, with Debian's chromium; screenshots go to $SCREENSHOTS if it is set."""

import base64
import os
from pathlib import Path

import numpy as np
import pytest

from tests.support.chromium import chromium
from tests.support.serving import ColourPredictor, WithFeatures, colour, png, served
from transfer_learning.serving.drift import Reference

pytestmark = pytest.mark.browser

NAMES = ["red <b>&\"'", "green 🙂", "blue", *(f"class {number}" for number in range(9))]
CARDS = "[...document.querySelectorAll('.card')]"
DONE = f"{CARDS}.length > 0 && {CARDS}.every(card => !card.classList.contains('waiting'))"
TITLES = f"{CARDS}.map(card => card.querySelector('h3').textContent)"
WIDER = "document.documentElement.scrollWidth > document.documentElement.clientWidth"


class Larger(WithFeatures):
    image_size = 64


@pytest.fixture(scope="module")
def client():
    with served(Larger(NAMES)) as client:
        yield client


@pytest.fixture
def page(client):
    with chromium() as page:
        page.looks_like(1000)
        page.open(f"http://127.0.0.1:{client.port}/")
        page.wait("document.getElementById('facts').textContent.includes('12 classes')")
        yield page
        hosts = {event["params"]["request"]["url"].split("/")[2] for event in requests_of(page)}
        assert hosts == {f"127.0.0.1:{client.port}"}
        problems = [event for event in page.events if event["method"] in ("Runtime.exceptionThrown", "Log.entryAdded")]
        assert not problems


def requests_of(page):
    events = [event for event in page.events if event["method"] == "Network.requestWillBeSent"]
    return [event for event in events if event["params"]["request"]["url"].startswith("http")]


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    folder = tmp_path_factory.mktemp("photos")
    rng = np.random.default_rng(0)
    for name, values in {"rose": (220, 60, 50), "grass": (60, 200, 70), "stone": (120, 118, 116)}.items():
        noise = rng.integers(-40, 40, (300, 400, 3)) + np.array(values)
        (folder / f"{name}.png").write_bytes(png(noise.clip(0, 255).astype(np.uint8)))
    (folder / "text.png").write_text("not an image")
    return folder


def shown(page, name):
    """Saves what the page looks like."""
    if folder := os.environ.get("SCREENSHOTS"):
        page.screenshot(Path(folder) / f"{name}.png")


def test_dropped_images_get_their_classes_bars_and_verdicts(page, photos):
    page.drop([photos / f"{name}.png" for name in ("rose", "stone", "text")])
    page.wait(f"{CARDS}.length === 3 && {DONE}")
    assert page.run(TITLES) == ["No result", f"Perhaps {NAMES[0]}", NAMES[0]]
    assert page.run(f"[...{CARDS}[0].querySelectorAll('button, img')].every(part => !part.offsetHeight)")
    assert "none of JPEG" in page.run(f"{CARDS}[0].querySelector('.verdict').textContent")
    assert page.run(f"{CARDS}[1].querySelector('.verdict').textContent").startswith("Rejected: ")
    assert page.run(f"{CARDS}[2].querySelectorAll('.bar').length") == 5
    lengths = f"[...{CARDS}[2].querySelectorAll('.bar')].map(bar => bar.firstChild.offsetWidth / bar.clientWidth)"
    texts = f"[...{CARDS}[2].querySelectorAll('.bars span')].map(text => parseFloat(text.textContent) / 100)"
    assert np.allclose(page.run(lengths), page.run(texts), atol=0.02)
    assert page.run("document.getElementById('status').textContent")  # what a screen reader says
    assert not page.run("document.getElementById('no-grad-cam').offsetHeight")
    page.run(f"{CARDS}[2].querySelectorAll('.more, .seen, .why').forEach(button => button.click())")
    page.wait(f"{CARDS}[2].querySelectorAll('.pictures img').length === 2")
    page.wait(f"{CARDS}[2].querySelectorAll('.bar').length === 12")
    page.wait(f"[...{CARDS}[2].querySelectorAll('img')].every(image => image.complete && image.naturalWidth > 0)")
    shown(page, "desktop")
    page.looks_like(1000, dark=True)
    shown(page, "dark")
    assert page.run("getComputedStyle(document.body).backgroundColor") == "rgb(21, 25, 29)"
    page.events = [event for event in page.events if event["method"] != "Log.entryAdded"]  # of the 400


def test_the_keyboard_alone_chooses_an_image_and_reads_the_result(page, photos):
    page.call("Page.setInterceptFileChooserDialog", enabled=True)
    page.press("Tab")
    assert page.run("document.activeElement.id") == "choose"
    assert page.run("getComputedStyle(document.activeElement).outlineStyle") == "solid"
    shown(page, "focus")
    page.press("Enter")
    chooser = page.event("Page.fileChooserOpened")
    page.call("DOM.setFileInputFiles", files=[str(photos / "grass.png")], backendNodeId=chooser["backendNodeId"])
    page.wait(DONE)
    assert page.run(TITLES) == [NAMES[1]]
    visited = []
    for _ in range(5):
        page.press("Tab")
        visited.append(page.run("document.activeElement.id || document.activeElement.classList[1]"))
    assert visited == ["photograph", "clear", "more", "seen", "why"]
    page.press("Space")
    page.wait(f"{CARDS}[0].querySelector('.pictures img')?.naturalWidth > 0")
    assert page.run("document.activeElement.getAttribute('aria-expanded')") == "true"
    shown(page, "keyboard")


def test_a_screen_reader_gets_controls_results_and_changes_by_name(page, photos):
    page.drop([photos / "rose.png"])
    page.wait(DONE)
    assert page.spoken("heading") == [("heading", text) for text in ("colours", "Results", NAMES[0])]
    assert page.spoken("region", "button", "image") == [
        ("region", "Choose images"),
        ("button", "Choose images"),
        ("button", "Take a photo"),
        ("button", "Clear"),
        ("button", "All classes"),
        ("button", "What the network saw"),
        ("button", "Grad-CAM"),
        ("image", "rose.png"),
    ]
    assert page.spoken("table") == [("table", "Probability of each class")]
    assert page.spoken("columnheader") == [("columnheader", "class"), ("columnheader", "probability")]
    assert page.spoken("rowheader") == [("rowheader", NAMES[position]) for position in range(5)]
    (_, share), *_ = page.spoken("cell")
    assert page.spoken("status") == [("status", f"rose.png: {NAMES[0]}, {share}.")]
    page.run("document.getElementById('clear').click()")
    assert page.spoken("status") == [("status", "Cleared.")]


def test_an_export_says_that_it_has_no_grad_cam(photos):
    with served(ColourPredictor(NAMES)) as client, chromium() as page:
        page.open(f"http://127.0.0.1:{client.port}/")
        page.wait("document.getElementById('facts').textContent.includes('12 classes')")
        page.drop([photos / "rose.png"])
        page.wait(DONE)
        shown(page, "export")
        text = "An export has no Grad-CAM; serve the run that it was made from."
        assert ("paragraph", text) in page.spoken("paragraph")
        assert page.spoken("button")[-1] == ("button", "What the network saw")


def test_drift_is_shown_in_a_row_per_comparison(photos):
    reds = np.random.default_rng(0).integers((200, 0, 0), (256, 20, 20), (150, 8, 8, 3)).astype(np.uint8)
    reference = Reference(*Larger(NAMES).probabilities_and_features(reds))
    rows = "[...document.querySelectorAll('#drift-rows tr')].map(row => [...row.children].map(cell => cell.innerText))"
    with served(Larger(NAMES), reference=reference) as client, chromium() as page:
        page.open(f"http://127.0.0.1:{client.port}/")
        page.wait("!document.getElementById('drift').hidden")
        page.run("document.querySelector('#drift summary').click()")
        few = ["0", "–", "–", "too few images"]
        assert page.run(rows) == [[name, *few] for name in ("confidence", "classes", "features")]
        green = base64.b64encode(png(colour(5, 240, 5, 64))).decode()
        for _ in range(5):
            assert client.post("/predict", {"images": [green] * 30}).status == 200
        page.drop([photos / "grass.png"])
        page.wait("document.querySelector('#drift-rows td').innerText === '151'")
        shown(page, "drift")
        for name, images, index, limit, verdict in page.run(rows):
            assert (images, verdict) == ("151", "drift") and float(index) > float(limit), name


def test_a_phone_shows_everything_without_scrolling_sideways(page, photos):
    page.looks_like(360, 740, mobile=True)
    page.drop([photos / "rose.png"])
    page.wait(DONE)
    assert not page.run(WIDER)
    sides = page.run("[...document.querySelectorAll('button')].filter(b => b.offsetHeight).map(b => b.offsetHeight)")
    assert min(sides) >= 44  # CSS pixels, the size of a finger
    assert page.run("document.getElementById('camera').getAttribute('capture')") == "environment"
    shown(page, "phone")


def test_a_pasted_image_is_predicted_and_clear_forgets_it(page):
    page.run(paste_script(png(colour(5, 5, 240, 64))))
    page.wait(DONE)
    assert page.run(TITLES) == ["blue"]
    page.run("document.getElementById('clear').click()")
    assert page.run(f"{CARDS}.length") == 0


def paste_script(content):
    return (
        f"const bytes = new Uint8Array({list(content)}); const data = new DataTransfer();"
        "data.items.add(new File([bytes], 'pasted.png', {type: 'image/png'}));"
        "document.dispatchEvent(new ClipboardEvent('paste', {clipboardData: data, bubbles: true})); 0"
    )


def test_the_page_asks_for_the_token(photos):
    with served(Larger(NAMES), token="0123456789abcdef") as client, chromium() as page:
        page.open(f"http://127.0.0.1:{client.port}/")
        page.wait("!document.getElementById('token').hidden")
        shown(page, "token")
        assert page.spoken("textbox") == [("textbox", "This server needs a token.")]
        page.run("document.getElementById('token-field').value = '0123456789abcdef'; 0")
        page.run("document.getElementById('token').requestSubmit(); 0")
        page.wait("document.getElementById('facts').textContent.includes('12 classes')")
        page.drop([photos / "grass.png"])
        page.wait(DONE)
        assert page.run(TITLES) == [NAMES[1]]
