"""A page of ours as a browser sees it."""

import re
from html.parser import HTMLParser


class Page(HTMLParser):
    """The tags, attributes and texts that a browser would see."""

    def __init__(self, path):
        super().__init__()
        self.tags, self.attributes, self.texts = [], [], []
        self.feed(path.read_text(encoding="utf-8"))
        self.text = re.sub(r"\s+", " ", " ".join(self.texts))

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.attributes += attributes

    def handle_data(self, data):
        self.texts.append(data)

    def pictures(self):
        return [value for name, value in self.attributes if name == "src"]
