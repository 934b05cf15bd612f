"""Method cards: the docstring of a method's file, read section by section.

The docstring of every method's file starts with a title line and has the sections below, each of
which begins with its name and a colon at the start of a line. `Settings` lists where each default
comes from; values and meanings are those of the settings class, so they are written only once.
"""

import re
import sys
import textwrap
from collections.abc import Iterable
from dataclasses import dataclass

from adautomix.methods.base import Method

SECTIONS = ("Paper", "Computes", "Requires", "Cost", "Settings", "Deviations", "Evidence")
WIDTH = 100  # columns
PAGE_HEAD = """\
# Methods

One card per mixing method, written by `adautomix methods --markdown > docs/methods.md` from the
docstrings in `src/adautomix/methods/`. `adautomix methods NAME` prints the card of one method.

B is the number of images per batch, K the number of classes, π a random permutation of the batch,
x̃ and ỹ a mixed image and its label, λ the weight of the first image. F is one forward pass of the
network; plain training costs 3F per step. Every method mixes at every step unless the common
settings `mix.prob`, `mix.start`, `mix.ramp` and `mix.stop` say otherwise. `mix.decouple` adds the
regularizer of Decoupled Mixup (NeurIPS 2023) to the loss of a method that only mixes its input:
for each class of a mix, the cross-entropy against all classes that are not in it. openmixup, whose
code it follows, uses 0.1; it leaves the term out at λ = 1/2 exactly, and takes the means of mixed
rows and of rows with one class separately.

*Adversarial MixUp* for domain adaptation is not among the methods. It interpolates labeled images
of one domain with unlabeled ones of another and trains a discriminator of the domains against the
features (Xu et al., AAAI 2020, arXiv 1912.01805; Zhu et al., WACV 2025). Its mixes have a domain
label besides a class label, and an unlabeled image has no class to mix, so it needs a second data
set and a second loss: it adapts a classifier to a domain rather than augmenting its training set.
What is nearest to it here: `manifoldmix`, which interpolates hidden states, `adautomix`, which
mixes adversarially, and `meada`, which perturbs images against the classifier for robustness to
other domains."""

_HEADING = re.compile(rf"^({'|'.join(SECTIONS)}):", re.MULTILINE)
_ENTRY = re.compile(r"^- (\w+): ", re.MULTILINE)


@dataclass(frozen=True)
class Card:
    """What a method says about itself.

    Attributes:
        title: one line: the method's name and what it does.
        sections: text of each section, in the order of `SECTIONS`; paragraphs are wrapped,
            formulas are indented by four spaces and list items begin with "- ".
        sources: where the default of each setting comes from, by the setting's name.
    """

    title: str
    sections: dict[str, str]
    sources: dict[str, str]


def read_card(method: type[Method]) -> Card:
    """Read the card of a method from the docstring of its file."""
    title, *parts = _HEADING.split(sys.modules[method.__module__].__doc__ or "")
    sections = {name: _as_text(body) for name, body in zip(parts[::2], parts[1::2], strict=True)}
    _, *entries = _ENTRY.split(sections.get("Settings", ""))
    sources = {
        name: " ".join(text.split()) for name, text in zip(entries[::2], entries[1::2], strict=True)
    }
    return Card(title.strip(), sections, sources)


def _as_text(body: str) -> str:
    """Return what follows a heading as text that begins with a capital, unless with a symbol."""
    text = body.strip("\n").rstrip().removeprefix(" ")
    return text[:1].upper() + text[1:] if text[:1].isascii() else text


def setting_lines(method: type[Method], card: Card) -> list[str]:
    """Return one list item per setting: name, default, meaning, and source of the default."""
    items = []
    for name, field in method.Settings.model_fields.items():
        default = "none" if field.default is None else field.default
        text = f"- {name} = {default}: {field.description}. Default: {card.sources[name]}"
        items.append(textwrap.fill(text, WIDTH, subsequent_indent="  ", break_on_hyphens=False))
    return items


def card_sections(method: type[Method]) -> dict[str, str]:
    """Return the text of each section, with values and meanings of the settings filled in."""
    card = read_card(method)
    settings = "\n".join(setting_lines(method, card)) or card.sections["Settings"]
    return {**card.sections, "Settings": settings}


def card_text(method: type[Method]) -> str:
    """Return the card of a method for a terminal."""
    parts = [f"{method.name}\n{read_card(method).title}"]
    parts += [
        f"{name}\n{textwrap.indent(text, '  ')}" for name, text in card_sections(method).items()
    ]
    return "\n\n".join(parts)


def cards_page(methods: Iterable[type[Method]]) -> str:
    """Return the cards of methods as one Markdown page with a table of contents."""
    methods = list(methods)
    rows = ["| method | what it does | cost per step |", "| --- | --- | --- |"]
    for method in methods:
        anchor = method.name.replace("+", "")
        rows.append(f"| [{method.name}](#{anchor}) | {method.summary} | {method.cost:g}F |")
    table = "\n".join(rows)
    return "\n\n".join([PAGE_HEAD, table, *map(card_markdown, methods)]) + "\n"


def card_markdown(method: type[Method]) -> str:
    """Return the card of a method as a Markdown section."""
    parts = [f"## {method.name}", read_card(method).title]
    parts += [f"**{name}**\n\n{text}" for name, text in card_sections(method).items()]
    return "\n\n".join(parts)
