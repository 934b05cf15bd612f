"""Method cards: every section is there, every default has a source, and figures are right."""

import re
from pathlib import Path

import pytest

from adautomix.errors import UsageError
from adautomix.methods import METHODS, describe, method_card, methods_page
from adautomix.methods.cards import SECTIONS, card_sections, read_card

EVERY = pytest.mark.parametrize("name", METHODS)

SOURCE = re.compile(
    r"paper|authors'|openmixup|timm|recipe|DeiT|this implementation", flags=re.IGNORECASE
)

# Published top-1 accuracy of ResNet-18 on CIFAR-100 after 200, 400 and 800 epochs, from the tables
# of the openmixup benchmark; AdAutoMix from its authors' tables.
PUBLISHED = {
    "vanilla": "76.42 / 77.73 / 78.04 %",
    "mixup": "78.52 / 79.34 / 79.12 %",
    "cutmix": "79.45 / 79.58 / 78.17 %",
    "manifoldmix": "79.18 / 80.18 / 80.35 %",
    "smoothmix": "77.90 / 78.77 / 78.69 %",
    "saliencymix": "79.75 / 79.64 / 79.12 %",
    "attentivecutmix": "79.62 / 80.14 / 78.91 %",
    "fmix": "78.91 / 79.91 / 79.69 %",
    "gridmix": "78.23 / 78.60 / 78.72 %",
    "resizemix": "79.56 / 79.19 / 80.01 %",
    "puzzlemix": "79.96 / 80.82 / 81.13 %",
    "comixup": "80.01 / 80.87 / 81.17 %",
    "automix": "80.12 / 81.78 / 82.04 %",
    "samix": "81.21 / 81.97 / 82.30 %",
    "adautomix": "81.55 / 81.97 / 82.32 %",
}
OTHER_EVIDENCE = {"alignmix": "81.71 %", "sumix": "79.78 %"}


@EVERY
def test_every_section_is_there_once_and_in_order(name: str) -> None:
    card = read_card(METHODS[name])
    assert tuple(card.sections) == SECTIONS
    assert all(card.sections.values())
    assert "\n" not in card.title
    assert ": " in card.title
    assert card.title.endswith(".")


@EVERY
def test_every_setting_has_a_source(name: str) -> None:
    card = read_card(METHODS[name])
    assert card.sources.keys() == METHODS[name].Settings.model_fields.keys()
    for setting, source in card.sources.items():
        assert SOURCE.search(source), f"{setting}: {source}"
        assert source.endswith("."), setting
    if not card.sources:
        assert card.sections["Settings"] == "None."


@EVERY
def test_the_card_states_the_paper_and_the_cost_of_the_class(name: str) -> None:
    cls, sections = METHODS[name], read_card(METHODS[name]).sections
    if cls.paper is None:
        assert sections["Paper"] == "None."
    else:
        stated = " ".join(sections["Paper"].split())
        assert stated.startswith(f'{cls.paper.authors}, "{cls.paper.title}"')
        assert re.search(
            rf"{re.escape(cls.paper.venue)}( 109,)? {cls.paper.year}|"
            rf"{re.escape(cls.paper.venue)}, {cls.paper.year}",
            stated,
        )
        assert cls.paper.arxiv is None or f"arXiv {cls.paper.arxiv}" in stated
    assert sections["Cost"].startswith(f"{cls.cost:g}F per step")


@EVERY
def test_shapes_are_stated(name: str) -> None:
    assert re.search(r"\[[A-Z](, [\w-]+)*\]", read_card(METHODS[name]).sections["Computes"])


@EVERY
def test_evidence_is_the_published_figure(name: str) -> None:
    evidence = read_card(METHODS[name]).sections["Evidence"]
    if name in PUBLISHED:
        assert evidence.startswith(PUBLISHED[name])
        assert ("the authors' tables" if name == "adautomix" else "openmixup benchmark") in evidence
    elif name in OTHER_EVIDENCE:
        assert evidence.startswith(OTHER_EVIDENCE[name])
    else:
        assert evidence.startswith("None published for ResNet-18")


@EVERY
def test_the_printed_card_has_values_meanings_and_sources(name: str) -> None:
    printed, settings = method_card(name), METHODS[name].Settings
    flat = " ".join(printed.split())
    for section in SECTIONS:
        assert f"\n{section}\n  " in printed
    for setting, field in settings.model_fields.items():
        default = "none" if field.default is None else field.default
        assert f"- {setting} = {default}: {field.description}. Default: " in flat
    assert max(map(len, printed.splitlines())) <= 102


def test_the_card_is_among_the_facts() -> None:
    assert describe(METHODS["cutmix"])["card"] == card_sections(METHODS["cutmix"])


def test_unknown_names_are_refused() -> None:
    with pytest.raises(UsageError, match="unknown method 'cutmxi'"):
        method_card("cutmxi")


def test_the_page_of_the_docs_is_up_to_date() -> None:
    page = Path(__file__).parents[2] / "docs" / "methods.md"
    assert page.read_text(encoding="utf-8") == methods_page(), (
        "run `adautomix methods --markdown > docs/methods.md`"
    )


def test_cards_say_with_which_probability_the_authors_mix() -> None:
    """CutMix and SnapMix leave it to `mix.prob`, whose default mixes at every step."""
    for name in ("cutmix", "snapmix"):
        deviations = " ".join(read_card(METHODS[name]).sections["Deviations"].split())
        assert "Every batch is mixed by default" in deviations
        assert "set `mix.prob: 0.5`" in deviations
