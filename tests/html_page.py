"""What a reader sees of an HTML page, and a text that must not become a part of it."""

from html.parser import HTMLParser

HOSTILE = "<script>alert(1)</script>{{ 7 * 7 }}<img src=x onerror=alert(2)>&amp;\"'</details></div>"
BLOCKS = {"td", "th", "h1", "h2", "h3", "h4", "p", "header", "dt", "dd"}
VOID = {"meta", "br", "wbr", "input", "link", "img"}


class Page(HTMLParser):
    """The elements of a page, the text that a reader sees, and what is marked in it.

    Its elements must be closed in order.
    """

    def __init__(self, html):
        super().__init__()
        self.elements = []
        self.attributes = []
        self.text = ""
        self.marked = []
        self._open = []
        self.feed(html)
        self.text = " ".join(self.text.split())

    def handle_starttag(self, tag, attrs):
        self.elements.append(tag)
        self.attributes += attrs
        if tag not in VOID:
            self._open.append(tag)

    def handle_endtag(self, tag):
        assert self._open.pop() == tag
        self.text += " " if tag in BLOCKS else ""

    def handle_data(self, data):
        if not {"script", "style"} & set(self._open):
            self.text += data
            if "mark" in self._open:
                self.marked.append(data)

    def assert_self_contained(self):
        loaded = [value for name, value in self.attributes if name in ("src", "href")]
        assert not [value for value in loaded if value is None or "//" in value]
        assert "link" not in self.elements

    def assert_as_safe_as(self, plain):
        assert set(self.elements) <= set(plain.elements)
        assert self.elements.count("script") == plain.elements.count("script")
        assert not [name for name, _ in self.attributes if name.startswith("on")]
