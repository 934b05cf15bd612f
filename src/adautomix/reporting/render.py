"""Render a page from its template, and write it."""

from pathlib import Path
from typing import Any

from adautomix.text import printable

_TEMPLATES = Path(__file__).parent / "templates"


def render(template: str, **values: Any) -> str:
    """Return a page as HTML; every value is escaped."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(_TEMPLATES),
        autoescape=True,
        finalize=_readable,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template(template).render(**values)


def _readable(value: Any) -> Any:
    """Replace characters in names of files and classes that a page cannot hold or would obey."""
    return printable(value, None, keep_newlines=True) if type(value) is str else value


def write_html(html: str, out: Path) -> Path:
    """Write a page to a file, create its folder if needed, and return the path."""
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(html, encoding="utf-8")
    return out
