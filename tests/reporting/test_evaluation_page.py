"""All suites on networks that were never trained here, and the page that shows what they found."""

import json
from pathlib import Path
from typing import Any

import pytest
from conftest import CLASSES
from pages import CHROMIUM, Page, assert_accessible, assert_fits, assert_self_contained

from adautomix.cli import main
from adautomix.evaluation.registry import SUITES

NETWORKS = ("test_resnet", "test_vit")  # timm's own small ones


@pytest.fixture(scope="module", params=NETWORKS)
def folder(
    request: pytest.FixtureRequest, photos: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """A timm network evaluated by its name and a folder of images."""
    out = tmp_path_factory.mktemp("evaluated")
    words = ("evaluate", request.param, "--data", photos, "--image-size", 32, "--workers", 1)
    few = ("--corruption.severities", "1,5", "--attack.steps", 3)
    main([str(word) for word in (*words, "--suites", "all", *few, "--out", out, "--json")])
    return out


def record_of(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "evaluation.json").read_text())  # type: ignore[no-any-return]


def test_every_suite_says_something(folder: Path) -> None:
    record = record_of(folder)
    assert record["version"] == 3
    assert record["test_images"] == 9
    said = {**record["suites"], **record.get("not_applicable", {})}
    assert sorted(said) == sorted(SUITES)
    assert set(record["suites"]) >= set(SUITES) - {"diversity"}


def test_the_page_shows_it(folder: Path) -> None:
    page = Page(folder / "report.html")
    assert_self_contained(page)
    assert_accessible(page)
    assert len(page.all("svg")) >= 4
    assert CLASSES[0] in page.text or CLASSES[0] in str(page.all("img"))
    for name in record_of(folder)["suites"]:
        assert any(of.get("id") == name for of in page.all("h2")), name


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium to render with")
def test_the_page_in_a_browser(folder: Path, tmp_path: Path) -> None:
    assert_fits(folder / "report.html", tmp_path)
