"""What `mkdocs build` calls: adds the generated pages to the site and resolves links out of docs/.

Pages in docs/ link to files of the repository, such as `../examples/hf_trainer.py`, so that they
can be read there as well. The site has a page for each of these files.
"""

import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT / "website"), str(ROOT / "src")]

from code_blocks import code_blocks, words_of  # noqa: E402
from command_pages import command_nav, command_pages  # noqa: E402
from method_pages import draw_pictures, method_nav, method_pages  # noqa: E402

PICTURES = ROOT / "build" / "pictures"
PROJECT_PAGES = {name: f"{name.lower()}.md" for name in ("CHANGELOG", "CONTRIBUTING", "SECURITY")}
LANGUAGES = {".py": "python", ".yaml": "yaml", ".sbatch": "bash"}
_LINK = re.compile(r"\]\(\.\./((?:examples|CHANGELOG|CONTRIBUTING|SECURITY)[^)#]*)")


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Put the generated pages into the navigation."""
    generated = {"Commands": command_nav(), "Methods": method_nav(), "Examples": example_nav()}
    for entry in config.nav or []:
        for title in entry:
            entry[title] = generated.get(title, entry[title])
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the generated pages and pictures."""
    pages = [*command_pages(examples_by_command()), *method_pages(), *example_pages()]
    for path, text in pages:
        files.append(File.generated(config, path, content=text))
    for name, path in PROJECT_PAGES.items():
        text = (ROOT / f"{name}.md").read_text(encoding="utf-8")
        files.append(File.generated(config, path, content=text.replace("](docs/", "](")))
    for path, file in draw_pictures(PICTURES):
        files.append(File.generated(config, path, abs_src_path=str(file)))
    return files


def on_page_markdown(markdown: str, page: Page, **_: Any) -> str:
    """Resolve links to files of the repository; keep the page of all cards out of the search."""
    if page.file.src_uri == "methods.md":
        page.meta["search"] = {"exclude": True}
    return _LINK.sub(lambda match: f"]({page_of(match[1])}", markdown)


def page_of(path: str) -> str:
    """Return the page of a file of the repository; a folder has the page of its overview."""
    name, dot, _ = path.rpartition(".")
    if name in PROJECT_PAGES:
        return PROJECT_PAGES[name]
    return f"{name if dot else path.rstrip('/') + '/index'}.md"


def examples() -> list[Path]:
    """Return the files in examples/."""
    return sorted(path for path in (ROOT / "examples").rglob("*") if path.suffix in LANGUAGES)


def example_pages() -> Iterator[tuple[str, str]]:
    """Yield the path and the text of a page per example, and of an overview of each folder."""
    lists: dict[str, list[str]] = {}
    for path in examples():
        relative = path.relative_to(ROOT)
        folder, text = relative.parent.as_posix(), path.read_text(encoding="utf-8")
        lists.setdefault(folder, []).append(f"- [{path.name}]({path.stem}.md)")
        title, language = relative.as_posix(), LANGUAGES[path.suffix]
        code = f"```{language}\n{text.rstrip()}\n```"
        yield relative.with_suffix(".md").as_posix(), f"# {path.name}\n\n`{title}`\n\n{code}\n"
    for folder, lines in lists.items():
        text = "\n".join(lines)
        yield f"{folder}/index.md", f"# Examples: {folder}\n\n{text}\n"


def example_nav() -> list[Any]:
    """Return the examples for the navigation."""
    pages = [path.relative_to(ROOT) for path in examples()]
    nav = [{path.name: path.with_suffix(".md").as_posix()} for path in pages]
    return ["examples/index.md", {"On clusters": "examples/cluster/index.md"}, *nav]


def examples_by_command() -> dict[str, list[tuple[str, str, str]]]:
    """Return the lines of the pages in docs/ that use each command, at most one of each page."""
    found: dict[str, list[tuple[str, str, str]]] = {}
    for path in sorted((ROOT / "docs").glob("*.md")):
        page = path.read_text(encoding="utf-8")
        title, seen = page.partition("\n")[0].removeprefix("# "), set()
        for block in code_blocks(page):
            for line in block.commands():
                name = command_in(line)
                if name and name not in seen:
                    seen.add(name)
                    found.setdefault(name, []).append((line, title, f"../{path.name}"))
    return found


def command_in(line: str) -> str:
    """Return the command of `adautomix` that a line starts with; empty if it does not."""
    if not line.startswith("adautomix "):
        return ""
    words = words_of(line)
    return words[1] if len(words) > 1 and not words[1].startswith("-") else ""
