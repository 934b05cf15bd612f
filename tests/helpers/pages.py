"""Helpers that read a report page: its tags and text, and how a browser displays it."""

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
    """Every tag of a page with its attributes, and the text of the page."""

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
        """Return the attributes of every tag of that name."""
        return [attributes for name, attributes in self.tags if name == tag]


def assert_self_contained(page: Page) -> None:
    """Check that the page runs no script and loads or links nothing from outside."""
    html = re.sub(r"xmlns(:\w+)?=([\"'])http://www\.w3\.org/[\w/]+\2", "", page.html)
    assert not re.search(r"https?:|//[a-z]+\.|@import", html)
    names = ("src", "href", "xlink:href", "srcset", "action", "poster", "data")
    addresses = [tag.get(name) for _, tag in page.tags for name in names if name in tag]
    assert addresses
    assert all(value and value.startswith(("data:", "#")) for value in addresses)
    assert all(address.startswith("#") for address in re.findall(r"url\(['\"]?([^)]+)", html))
    assert page.all("script") == page.all("iframe") == []


def assert_accessible(page: Page) -> None:
    """Check the language, table scopes, alternative texts, unique ids and link targets."""
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
    for section in page.all("section"):
        assert section["aria-labelledby"] in ids
    assert all(cell.get("scope") for cell in page.all("th"))
    targets = [link["href"] for link in page.all("a")]
    assert all(target is not None and target[1:] in ids for target in targets)


def assert_fits(page: Path, folder: Path) -> None:
    """Check that the page does not scroll sideways on a phone or a desktop, in light and dark."""
    html = page.read_text(encoding="utf-8")
    (folder / "open.html").write_text(html.replace("<details", "<details open"), encoding="utf-8")
    # Browser windows have a minimum width; a frame can be as narrow as a phone.
    (folder / "frames.html").write_text(FRAMES)
    for dark in (False, True):
        phone, desktop = measure_frames(folder / "frames.html", folder, dark=dark)
        assert phone[0] == phone[1]
        assert 370 <= phone[1] <= 390
        assert desktop[0] == desktop[1]
        assert 1260 <= desktop[1] <= 1280
        assert (phone[2] < 60) == dark, "the page does not follow the reader's color scheme"


def measure_frames(page: Path, folder: Path, *, dark: bool) -> list[list[int]]:
    """Return the scroll width, window width and background lightness (0 to 255) of each frame."""
    flags = "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-sync"
    network = "--disable-background-networking --disable-component-update --dump-dom"
    colors = f"--blink-settings=preferredColorScheme={0 if dark else 1}"
    options = [colors, "--allow-file-access-from-files", "--enable-logging=stderr"]
    profile = f"--user-data-dir={folder / 'profile'}"
    completed = subprocess.run(
        [str(CHROMIUM), *flags.split(), *network.split(), *options, profile, page.as_uri()],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    assert ":CONSOLE" not in completed.stderr, completed.stderr
    title = re.search(r"<title>([\d/ ]+)</title>", completed.stdout)
    assert title is not None, completed.stdout[:500]
    return [[int(number) for number in frame.split("/")] for frame in title[1].split()]
