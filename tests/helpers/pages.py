"""A report page as its tags and text, and as a browser shows it."""

import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path

CHROMIUM = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)
FRAMES = """<iframe src="open.html" width="390" height="800" frameborder="0"></iframe>
<iframe src="open.html" width="1280" height="800" frameborder="0"></iframe>
<script>onload = () => { document.title = [...document.querySelectorAll("iframe")].map(frame => {
    const root = frame.contentDocument.documentElement;
    const paper = frame.contentWindow.getComputedStyle(frame.contentDocument.body).backgroundColor;
    const light = Math.round(paper.match(/[0-9]+/g).slice(0, 3).reduce((a, b) => a + +b, 0) / 3);
    return root.scrollWidth + "/" + root.clientWidth + "/" + light; }).join(" "); };
</script>"""


class Page(HTMLParser):
    """Every tag of a page with its attributes, and its visible text."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.html = path.read_text(encoding="utf-8")
        self.feed(self.html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]


def assert_asks_nothing(page: Page) -> None:
    """No script runs in the page and nothing that it names lies outside of it."""
    bare = re.sub(r"xmlns(:\w+)?=([\"'])http://www\.w3\.org/[\w/]+\2", "", page.html)
    assert not re.search(r"https?:|//[a-z]+\.|@import", bare)
    places = ("src", "href", "xlink:href", "srcset", "action", "poster", "data")
    addresses = [of.get(name) for _, of in page.tags for name in places if name in of]
    assert addresses
    assert all(value and value.startswith(("data:", "#")) for value in addresses)
    assert all(address.startswith("#") for address in re.findall(r"url\(['\"]?([^)]+)", bare))
    assert page.all("script") == page.all("iframe") == []


def assert_accessible(page: Page) -> None:
    """Language, scopes, alternative texts, unique ids, links that lead somewhere."""
    assert page.html.lstrip().startswith("<!doctype html>")
    assert page.all("html") == [{"lang": "en"}]
    assert any(meta.get("name") == "viewport" for meta in page.all("meta"))
    ids = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    assert all(image.get("alt") for image in page.all("img"))
    titles = {title.get("id") for title in page.all("title")}
    for svg in page.all("svg"):
        assert svg["role"] == "img"
        assert svg["aria-labelledby"] in titles
    assert all(cell.get("scope") for cell in page.all("th"))
    targets = [link["href"] for link in page.all("a")]
    assert all(target is not None and target[1:] in ids for target in targets)


def assert_fits(page: Path, folder: Path) -> None:
    """On a phone and on a desk, light and dark, nothing scrolls sideways or complains."""
    html = page.read_text(encoding="utf-8")
    (folder / "open.html").write_text(html.replace("<details", "<details open"), encoding="utf-8")
    # A window has a least width of its own; a frame may be as narrow as a phone.
    (folder / "frames.html").write_text(FRAMES)
    for dark in (False, True):
        phone, desk = mask_source(folder / "frames.html", folder, dark=dark)
        assert phone[0] == phone[1]
        assert 370 <= phone[1] <= 390
        assert desk[0] == desk[1]
        assert 1260 <= desk[1] <= 1280
        assert (phone[2] < 60) == dark, "the page follows the reader's colors"


def mask_source(page: Path, folder: Path, *, dark: bool) -> list[list[int]]:
    """Scroll width, window width and lightness of the paper in each frame."""
    flags = "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-sync"
    more = "--disable-background-networking --disable-component-update --dump-dom"
    colors = f"--blink-settings=preferredColorScheme={0 if dark else 1}"
    words = [colors, "--allow-file-access-from-files", "--enable-logging=stderr"]
    profile = f"--user-data-dir={folder / 'profile'}"
    done = subprocess.run(
        [str(CHROMIUM), *flags.split(), *more.split(), *words, profile, page.as_uri()],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    assert ":CONSOLE" not in done.stderr, done.stderr
    title = re.search(r"<title>([\d/ ]+)</title>", done.stdout)
    assert title is not None, done.stdout[:500]
    return [[int(number) for number in frame.split("/")] for frame in title[1].split()]
