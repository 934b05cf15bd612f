"""Every command and block of code in README and docs is run, or parsed by what would run it."""

import ast
import importlib.util
import re
import tomllib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision
import yaml
from code_blocks import Block, code_blocks, words_of
from conftest import CLASSES, SMALL_NET, Command, write_photo
from tutorial import follow

import adautomix
from adautomix.cli.app import cli
from adautomix.cli.settings import SettingsCommand
from adautomix.config import TrainConfig, load_config
from adautomix.config.sweeps import read_sweep
from adautomix.evaluation.evaluate import select_suites
from adautomix.methods import METHODS
from adautomix.training.compare import method_variants

ROOT = Path(__file__).parents[1]
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")])


def name_of(page: Path) -> str:
    return page.name


EVERY = pytest.mark.parametrize("page", PAGES, ids=name_of)
LANGUAGES = {"python", "bash", "console", ""}
INLINE = re.compile(r"(?<!`)`([^`\n]+)`(?!`)")
LISTINGS = {"methods", "settings", "sweeps", "datasets", "suites", "recipes", "completion"}
"""Commands that are run wherever they occur; `report` is, where its files are in the repository."""
SHELL = {"for", "done", "cp", "mkdir", "head", ".", "eval"}
PLACEHOLDERS = {"COMMAND", "…"}
FOREIGN_FLAGS = {"--max-restarts", "--requeue", "--nproc_per_node"}
RETIRED = {"--vs": "benchmarks/compare_openmixup.py", "--mixing": "benchmarks/mixing_alone.py"}
MISTAKES = {"--mixup", *RETIRED}
"""Options of other programs, and ones that pages name because they do not exist."""


def read(page: Path) -> str:
    return page.read_text(encoding="utf-8")


def prose(page: str) -> str:
    """A page without its fenced blocks."""
    return re.sub(r"^```.*?^```$", "", page, flags=re.MULTILINE | re.DOTALL)


def commands_of(page: Path) -> Iterator[list[str]]:
    """Yield the words of each command in a block, or in a line of text, of a page."""
    text = read(page)
    for block in code_blocks(text):
        if block.language != "python" and is_typed(block):
            yield from (before_redirection(words_of(line)) for line in block.commands())
    for line in INLINE.findall(prose(text)):
        if re.match(r"(adautomix|make|pip install|torchrun) ", line):
            yield before_redirection(words_of(line))


def before_redirection(words: list[str]) -> list[str]:
    """What a shell passes on of `command > file` and `command | other`."""
    ends = [number for number, word in enumerate(words) if word in (">", "|")]
    return words[: min(ends, default=len(words))]


def is_typed(block: Block) -> bool:
    """Whether a block is for a shell: a tree of folders and formulas are not."""
    programs = {*SHELL, "adautomix", "torchrun", "python", "python3", "make", "pip"}
    return bool(block.language) or block.commands()[0].split()[0] in programs | {"$"}


# --- commands ---------------------------------------------------------------------------------


@EVERY
def test_every_command_is_accepted(page: Path) -> None:
    for words in commands_of(page):
        check_command(words)


def test_commands_of_generated_pages_are_accepted() -> None:
    from method_pages import method_page

    for name in ("adautomix", "mixup+cutmix"):
        first = next(iter(code_blocks(method_page(METHODS[name]))))
        for line in first.commands():
            check_command(words_of(line))


def check_command(words: list[str]) -> None:
    program, *rest = words
    if program == "adautomix":
        check_adautomix(rest)
    elif program == "torchrun":
        module = rest.index("-m") + 1 if "-m" in rest else len(rest)
        assert rest[module : module + 1] in ([], ["adautomix"])
        check_adautomix(rest[module + 1 :])
    elif program == "make":
        targets = re.findall(r"^([\w-]+):", read(ROOT / "Makefile"), re.MULTILINE)
        assert {word for word in rest if "=" not in word} <= {*targets}, words
    elif program == "pip":
        check_extras(rest[-1])
    elif program in ("python", "python3"):
        check_python(rest)
    else:
        assert program in SHELL, words


def check_python(words: list[str]) -> None:
    """Check that a script is in the repository and knows its options, or is an exported one."""
    if words[0] == "-m":
        assert importlib.util.find_spec(words[1])
        return
    if Path(words[0]).name == "load_model.py":
        assert (ROOT / "src/adautomix/runs/templates/load_model.py").exists()
        return
    script = read(ROOT / words[0])
    for flag in (word for word in words[1:] if word.startswith("--")):
        setting = flag[2:].replace("-", "_") in TrainConfig.model_fields
        assert setting or f'"{flag}"' in script, words


def check_extras(requirement: str) -> None:
    project = tomllib.loads(read(ROOT / "pyproject.toml"))["project"]
    name, _, extras = requirement.rstrip("]").partition("[")
    assert name in (".", "adautomix", "uv", "tensorboard"), requirement
    assert {*filter(None, extras.split(","))} <= {*project["optional-dependencies"]}


def check_adautomix(words: list[str]) -> None:
    """Check a command by parsing it, and its settings by validating them."""
    name, *rest = words or ["--help"]
    if name not in cli.commands:
        assert name in PLACEHOLDERS | {"--help", "--version", "-h"}
        return
    command, arguments = cli.commands[name], [word for word in rest if word != "--help"]
    if name == "bench":
        arguments = without_retired(arguments)
    lacks_arguments = not arguments or arguments != rest
    values = command.make_context(name, arguments, resilient_parsing=lacks_arguments).params
    flags: dict[str, Any] = values.get("flags") or {}
    if name == "evaluate":
        select_suites((values["suites"] or "accuracy").split(","))
    elif flags:
        method_flags = {key: value for key, value in flags.items() if key != "method"}
        chosen = flags if flags.get("method") in METHODS else method_flags
        load_config(recipe=values.get("recipe"), flags=chosen)
    if values.get("methods") and name in ("compare", "bench"):
        method_variants(values["methods"].split(","))
    if (sweep := values.get("sweep")) and not sweep.endswith(".yaml"):
        read_sweep(sweep)


def without_retired(arguments: list[str]) -> list[str]:
    """Leave out options of recorded commands that are scripts now, as the page says."""
    kept = list(arguments)
    for flag, script in RETIRED.items():
        if flag in kept:
            page = " ".join(read(ROOT / "docs" / "performance.md").split())
            assert re.search(rf"`{flag}`[^.]* `{script}`", page)
            assert (ROOT / script).exists()
            kept = kept[: kept.index(flag)] + kept[kept.index(flag) + 2 :]
    return kept


@pytest.fixture(scope="module")
def options() -> set[str]:
    """Every option of every command, and the names of a setting."""
    found: set[str] = set()
    for command in cli.commands.values():
        found |= {flag for option in command.params for flag in option.opts}
        if isinstance(command, SettingsCommand):
            for setting in command.settings(None):
                flag = setting.name.replace("_", "-")
                found |= {f"--{flag}", f"--no-{flag}"}
    return found | {"--help", "-h", "--version"}


@pytest.mark.parametrize("page", [page for page in PAGES if page.name != "methods.md"], ids=name_of)
def test_options_in_the_text_exist(page: Path, options: set[str]) -> None:
    """Cards of methods also name options of their authors' code."""
    known = options | FOREIGN_FLAGS | MISTAKES | script_options(read(page))
    for code in INLINE.findall(prose(read(page))):
        for flag in re.findall(r"(?:^|\s)(--[a-z][\w.-]*)", code):
            assert {flag, flag.replace("_", "-")} & known, f"{page.name}: {flag}"


def script_options(text: str) -> set[str]:
    """Options of the scripts that a page names."""
    scripts = set(re.findall(r"(?:tests/helpers|benchmarks)/\w+\.py", text))
    sources = [read(ROOT / script) for script in scripts]
    return {flag for source in sources for flag in re.findall(r'"(--[a-z-]+)"', source)}


def small_commands() -> list[list[str]]:
    """Commands that need seconds: listings, and pages from rows in the repository."""
    found = {tuple(words) for page in PAGES for words in commands_of(page)}
    return sorted([*words] for words in found if words[0] == "adautomix" and is_small(words[1:]))


def is_small(words: Sequence[str]) -> bool:
    if words[0] == "report":
        return words[1:] != () and words[1].startswith("docs/results/")
    return words[0] in LISTINGS


def marked(words: list[str]) -> Any:
    """Four evaluations with pictures take seconds."""
    slow = any("*-evaluation.json" in word for word in words)
    return pytest.param(words, marks=[pytest.mark.slow] if slow else [], id=" ".join(words))


@pytest.mark.parametrize("words", [*map(marked, small_commands())])
def test_small_commands_run(
    words: list[str], command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "docs").symlink_to(ROOT / "docs")
    monkeypatch.chdir(tmp_path)
    placeholders = {"NAME": "cutmix", "FILTER": "mask", "WORD": "mask"}
    arguments: list[str] = []
    for word in words[1:]:
        arguments += map(str, Path().glob(word)) if "*" in word else [placeholders.get(word, word)]
    if arguments == ["completion"]:
        arguments.append("bash")
    outcome = command(*arguments)
    assert (outcome.status, outcome.err) == (0, "")
    assert outcome.out


# --- the photos of the READMEs, and the tutorial ------------------------------------------------


def shrunk(words: list[str]) -> list[str]:
    """A command with a network and images small enough for a test, started from random weights."""
    if words[0] not in ("train", "compare", "preview", "tune"):
        return words
    small = ["--no-pretrained", *SMALL_NET, "--image-size", "16", "--epochs", "1"]
    if "--seeds" in words:
        small += ["--seeds", "0", "--jobs", "1"]
    return [*words, *small, "--batch-size", "6"] if "--run" not in words else words


@pytest.mark.slow
def test_the_photos_of_the_readme(
    command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for label, name in enumerate(CLASSES):
        for number in range(10):
            write_photo(Path("my_photos") / name.replace("/", "") / f"{number}.png", label)
    write_photo(Path("new_photo.jpg"), 0)
    write_photo(Path("album/2026/one.jpg"), 1)
    blocks = [[*map(words_of, block.commands())] for block in code_blocks(read(ROOT / "README.md"))]
    training = ["adautomix", "train", "--data", "my_photos", "--pretrained"]
    first = next(block for block in blocks if block[0][:5] == training)
    for words in first:
        outcome = command(*shrunk(words[1:]))
        assert outcome.status == 0, f"{words}: {outcome.err}"
    assert Path("out.csv").read_text(encoding="utf-8").count("\n") == 2
    assert Path("mixes.png").exists()
    assert Path("pets/model.safetensors").exists()


@pytest.mark.slow
def test_the_tutorial_can_be_followed(
    command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Block by block in an empty folder, with noise for photos and a small network."""
    monkeypatch.chdir(tmp_path)
    page = read(ROOT / "docs" / "tutorial.md")
    fruit = re.search(r"for fruit in (.*); do", page)
    assert fruit
    for split in ("train", "test"):
        for label, name in enumerate(fruit[1].split()):
            for number in range(4):
                file = f"{name}_00{number}.jpg"
                write_photo(Path("grocery-store") / split / "Fruit" / name / file, label % 3)
    outputs = []

    def run(language: str, program: str) -> str:
        if language == "python":
            exec(compile(program, "tutorial.md", "exec"), {})
            return ""
        words = words_of(program.replace("\\\n", " "))
        if words[0] != "adautomix":
            return str(run_shell(program))
        outcome = command(*shrunk(words[1:]))
        assert outcome.status == 0, f"{program}: {outcome.err}"
        outputs.append(outcome.out)
        return outcome.out

    followed = follow(page, run)
    assert all(output in followed for output in outputs)
    assert outputs[1].startswith("Right on ")
    assert Path("fruit/model.safetensors").exists()


def run_shell(program: str) -> str:
    import subprocess
    import sys

    program = re.sub(r"^python ", f"{sys.executable} ", program)
    done = subprocess.run(["bash", "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


# --- Python -----------------------------------------------------------------------------------


def python_blocks() -> Iterator[Any]:
    """Yield the page and the code of each Python block that needs no second process or run."""
    seen = set()
    for page in PAGES:
        for number, block in enumerate(code_blocks(read(page))):
            code = re.sub("#.*", "", block.text)
            if block.language != "python" or page.name == "tutorial.md" or code in seen:
                continue
            seen.add(code)
            marks = [pytest.mark.slow] if "am.train(" in block.text else []
            if "DistributedDataParallel(" not in block.text:  # see test_public_api.py
                yield pytest.param(block.text, marks=marks, id=f"{page.name}-{number}")


@pytest.mark.parametrize("code", [*python_blocks()])
def test_python_blocks_run(code: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    model = torchvision.models.resnet18(num_classes=10)
    images, labels = torch.randn(6, 3, 32, 32), torch.arange(6)
    names = {
        "__name__": "page",
        "loader": [(images, labels), (images.flip(0), labels.flip(0))],
        "model": model,
        "optimizer": torch.optim.SGD(model.parameters(), lr=0.01),
        "images": images,
        "labels": labels,
    }
    exec(code.replace("epochs=20", "epochs=1"), names)


# --- pages ------------------------------------------------------------------------------------


@EVERY
def test_languages_are_known(page: Path) -> None:
    assert {block.language for block in code_blocks(read(page))} <= LANGUAGES


@EVERY
def test_links_lead_to_files(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#:\s]+)(?:#[^)]*)?\)", prose(read(page))):
        assert (page.parent / target).exists(), f"{page.name} links to {target}"


def templates() -> set[str]:
    """Every text in the package, with … for what is filled in."""
    found = set()
    for path in Path(adautomix.__file__).parent.rglob("*.py"):
        for node in ast.walk(ast.parse(read(path))):
            if isinstance(node, ast.JoinedStr):
                found.add("".join(filled(part) for part in node.values))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                found.add(node.value)
    return found


def filled(part: ast.expr) -> str:
    return str(part.value) if isinstance(part, ast.Constant) else "…"


def test_messages_that_troubleshooting_quotes_exist() -> None:
    quoted = re.findall(
        r"^`([^`]+)`\n:   ", read(ROOT / "docs" / "troubleshooting.md"), flags=re.MULTILINE
    )
    assert len(quoted) >= 30
    known = templates()
    missing = [
        message
        for message in quoted
        if not any(message in re.sub(r"`", "", template) for template in known)
    ]
    assert missing == []


def test_each_command_and_method_has_a_page() -> None:
    from command_pages import command_pages
    from method_pages import file_name, method_pages

    commands, methods = dict(command_pages({})), dict(method_pages())
    assert commands.keys() == {
        "commands/index.md",
        *(f"commands/{name}.md" for name in cli.commands),
    }
    assert methods.keys() == {"methods/index.md", *(f"methods/{file_name(m)}.md" for m in METHODS)}
    train = commands["commands/train.md"]
    for setting in load_config(flags={"data": "digits"}).model_dump():
        flag = setting.replace("_", "-")
        assert f"`--{flag}" in train or setting in METHODS or setting in ("mix", "teacher"), setting
    assert "alpha" in methods["methods/cutmix.md"]


def test_a_command_page_escapes_what_markdown_would_read() -> None:
    from command_pages import as_markdown

    assert as_markdown("a*b `c*d` <e>") == r"a\*b `c*d` &lt;e&gt;"


def test_issue_templates_ask_for_something() -> None:
    """In the fields that GitHub's forms have."""
    files = sorted((ROOT / ".github" / "ISSUE_TEMPLATE").glob("*.yml"))
    assert [file.stem for file in files] == ["bug", "config", "method", "result"]
    for file in files:
        form = yaml.safe_load(read(file))
        if file.stem == "config":
            continue
        assert {"name", "description", "body"} <= form.keys()
        asked = [field for field in form["body"] if field["type"] != "markdown"]
        assert all(field["attributes"]["label"] for field in asked)
        assert len({field["id"] for field in asked}) == len(asked) >= 2


def test_pictures_are_small() -> None:
    pictures = [*(ROOT / "docs" / "images" / "tutorial").glob("*.webp")]
    assert pictures
    assert all(picture.stat().st_size <= 150_000 for picture in pictures)
    assert sum(picture.stat().st_size for picture in pictures) <= 1_000_000


def test_blocks_are_found() -> None:
    shell = "    $ adautomix a \\\n      --b\n    out\n\n"
    page = f"text\n\n{shell}```python\nx = 1\n```\n\n    one  # two\n"
    fenced, first, second = code_blocks(page)
    assert fenced == Block("python", "x = 1\n")
    assert first.commands() == ["adautomix a --b"]
    assert words_of(second.commands()[0]) == ["one"]


def test_following_a_page_writes_what_is_printed() -> None:
    page = "```console\n$ a \\\n  b\nold\n$ c\n```\n\n```bash\nd\n```\n"
    ran: list[tuple[str, str]] = []

    def run(language: str, program: str) -> str:
        ran.append((language, program))
        return "new\n" if program.startswith("a") else ""

    assert follow(page, run) == "```console\n$ a \\\n  b\nnew\n$ c\n```\n\n```bash\nd\n```\n"
    assert ran == [("bash", "a \\\n  b"), ("bash", "c"), ("bash", "d\n")]


def test_generated_commands_use_the_command_line(
    command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A page has each option of the help that the command prints."""
    from command_pages import command_page

    page = command_page("predict", [("adautomix predict runs/a x.jpg", "Home", "../index.md")])
    printed = command("predict", "--help").out
    for flag in re.findall(r"^  (?:-h, )?(--[\w-]+)", printed, flags=re.MULTILINE):
        assert flag in page
    assert "[Home](../index.md):\n\n    adautomix predict runs/a x.jpg" in page
