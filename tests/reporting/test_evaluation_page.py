"""All suites on timm models, and the page with their results."""

import json
from pathlib import Path
from typing import Any

import pytest
from conftest import CLASSES
from pages import CHROMIUM, Page, assert_accessible, assert_fits, assert_self_contained

from adautomix.cli import main
from adautomix.evaluation.registry import SUITES

pytestmark = pytest.mark.slow

NETWORKS = ("test_resnet", "test_vit")  # small models that timm provides for tests


@pytest.fixture(scope="module", params=NETWORKS)
def folder(
    request: pytest.FixtureRequest, photos: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """The results of a timm model on a folder of images."""
    out = tmp_path_factory.mktemp("evaluated")
    words = ("evaluate", request.param, "--data", photos, "--image-size", 32, "--workers", 1)
    few = ("--corruption.severities", "1,5", "--attack.steps", 3)
    main([str(word) for word in (*words, "--suites", "all", *few, "--out", out, "--json")])
    return out


def record_of(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "evaluation.json").read_text())  # type: ignore[no-any-return]


def test_every_suite_has_a_result_or_a_reason(folder: Path) -> None:
    record = record_of(folder)
    assert record["version"] == 4
    assert record["test_images"] == 9
    reported = {**record["suites"], **record.get("not_applicable", {})}
    assert sorted(reported) == sorted(SUITES)
    assert set(record["suites"]) >= set(SUITES) - {"diversity"}


def test_the_page_shows_every_suite(folder: Path) -> None:
    page = Page(folder / "report.html")
    assert_self_contained(page)
    assert_accessible(page)
    assert len(page.all("svg")) >= 4
    assert CLASSES[0] in page.text or CLASSES[0] in str(page.all("img"))
    for name in record_of(folder)["suites"]:
        assert any(heading.get("id") == name for heading in page.all("h2")), name


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium to render with")
def test_the_page_in_a_browser(folder: Path, tmp_path: Path) -> None:
    assert_fits(folder / "report.html", tmp_path)
