"""Follow docs/tutorial.md word for word: run its blocks in a folder, and write what they print.

    python website/tutorial.py FOLDER --transcript transcript.txt --write

FOLDER holds `grocery-store/`, the data set that the page names, and nothing else. Blocks marked
`bash` are run as they are; in blocks marked `console`, each `$ ` line is a command and the lines
below it are its output, which `--write` replaces in the page.
"""

import argparse
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from code_blocks import PROMPT, Block

PAGE = Path(__file__).parents[1] / "docs" / "tutorial.md"
BLOCK = re.compile(r"^```(bash|console|python)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def follow(page: str, run: Callable[[str, str], str]) -> str:
    """Run the blocks of a page in order, and return the page with what they printed.

    Args:
        page: the Markdown text.
        run: takes a language (bash or python) and a program, and returns what it prints.
    """

    def replaced(match: re.Match[str]) -> str:
        block = Block(match[1], match[2])
        if block.language != "console":
            run(block.language, block.text)
            return match[0]
        lines = [f"{PROMPT}{typed}\n{run('bash', typed)}" for typed in block.typed()]
        return "```console\n" + "".join(lines) + "```"

    return BLOCK.sub(replaced, page)


def run_in(folder: Path, transcript: Path) -> Callable[[str, str], str]:
    """Return a function that runs a program in a folder and adds it to a transcript.

    Raises:
        SystemExit: a program failed.
    """

    def run(language: str, program: str) -> str:
        words = ["bash", "-c"] if language == "bash" else [sys.executable, "-c"]
        done = subprocess.run(
            [*words, program],
            cwd=folder,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        with transcript.open("a", encoding="utf-8") as file:
            file.write(f"[{language}]\n{program.rstrip()}\n{done.stdout}[exit {done.returncode}]\n")
        if done.returncode:
            sys.exit(f"{program}\nended with {done.returncode}:\n{done.stdout}")
        return re.sub(r"[ \t]+$", "", done.stdout, flags=re.MULTILINE)

    return run


def main() -> None:
    """Follow the tutorial as the command line says."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--transcript", type=Path, default=Path("transcript.txt"))
    parser.add_argument("--write", action="store_true", help="write the outputs into the page")
    options = parser.parse_args()
    page = follow(PAGE.read_text(encoding="utf-8"), run_in(options.folder, options.transcript))
    if options.write:
        PAGE.write_text(page, encoding="utf-8")


if __name__ == "__main__":
    main()
