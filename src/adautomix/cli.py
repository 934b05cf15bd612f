"""The `adautomix` command: parse, call, print.

Everything heavy is imported inside the commands, so that help answers at once.
"""

import dataclasses
import json
import shlex
import sys
import traceback
from collections.abc import Iterable, Sequence
from contextlib import redirect_stdout
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from adautomix.errors import AdAutoMixError, RunError, UsageError

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    help="Train image classifiers with mixing augmentation: AdAutoMix and its peers.",
    epilog="Every setting is a flag of train, plan, compare, preview and bench: `adautomix "
    "settings`. Any command takes --debug for a traceback.",
)
TAKES_SETTINGS = {"allow_extra_args": True, "ignore_unknown_options": True}
out = Console(width=None if sys.stdout.isatty() else 120)
INTERRUPTED = 130  # what typer returns after Ctrl-C, where it does not raise Abort
# typer's UsageError, which it does not export
WRONG_WORDS: tuple[type[Any], ...] = typer.BadParameter.__bases__

Recipe = Annotated[str | None, typer.Option(help="start from a packaged recipe")]
ConfigFile = Annotated[Path | None, typer.Option("--config", help="YAML file with settings")]
Json = Annotated[bool, typer.Option("--json", help="print JSON for programs")]
Run = Annotated[Path, typer.Argument(help="run folder")]
Runs = Annotated[list[Path], typer.Argument(help="run folders")]
Pictures = Annotated[list[Path], typer.Argument(help="image files")]
NetworkName = Annotated[str, typer.Option("--network", help="teacher (moving average) or student")]
Which = Annotated[str, typer.Option(help="checkpoint: last, best, or a kept one: epoch-0005")]
Device = Annotated[str, typer.Option(help="cpu, cuda or auto")]
Baseline = Annotated[
    str | None,
    typer.Option(help="method or variant to hold the others against; none: vanilla, or the first"),
]


def main(arguments: Sequence[str] | None = None) -> None:
    """Run one command; an error is one line, and exit status 2 (wrong usage) or 1 (failed)."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    debug = "--debug" in words
    plain = [word for word in words if word != "--debug"]
    try:
        status = app(plain or ["--help"], prog_name="adautomix", standalone_mode=False)
        if status == INTERRUPTED:
            fail("stopped", 1)
    except (KeyboardInterrupt, typer.Abort):
        fail("stopped", 1)
    except WRONG_WORDS as error:
        fail(f"{error.format_message()} (`adautomix --help`)", 2)
    except AdAutoMixError as error:
        if debug:
            traceback.print_exc()
        fail(str(error), error.exit_status)
    except Exception as error:
        if debug:
            raise
        fail(f"{type(error).__name__}: {error} (--debug shows where)", 1)


def fail(text: str, status: int) -> None:
    """One line on stderr, then the exit status."""
    print(f"adautomix: {' '.join(text.split())}", file=sys.stderr)
    sys.exit(status)


def read_flags(words: Sequence[str]) -> dict[str, Any]:
    """Settings from `--name value`, `--name=value` and bare `--switch`.

    Raises:
        UsageError: a word that belongs to no flag.
    """
    flags: dict[str, Any] = {}
    waiting = list(words)
    while waiting:
        word = waiting.pop(0)
        if not word.startswith("--"):
            raise UsageError(f"unexpected argument {word!r}: settings are written --name value")
        name, equals, value = word[2:].partition("=")
        if not equals:
            value = waiting.pop(0) if waiting and not waiting[0].startswith("--") else "true"
        flags[name] = value
    return flags


def settings_of(context: typer.Context, recipe: str | None, config: Path | None) -> dict[str, Any]:
    """Nested settings from a recipe, a file and the flags that typer left over."""
    from adautomix.config import merge, nest, read_recipe, read_yaml

    values = read_recipe(recipe) if recipe else {}
    if config:
        values = merge(values, read_yaml(config))
    return merge(values, nest(read_flags(context.args)))


def command_line() -> str:
    """The command as typed, for the record."""
    return shlex.join(["adautomix", *sys.argv[1:]])


def print_json(value: Any) -> None:
    """Machine-readable output on stdout."""
    print(json.dumps(value, indent=1))


def names_in(text: str) -> list[str]:
    """The items of a comma-separated list."""
    return [item.strip() for item in text.split(",") if item.strip()]


def print_listing(rows: Sequence[tuple[str, ...]], columns: tuple[str, ...], as_json: bool) -> None:
    """Rows as a table, or as JSON objects."""
    if as_json:
        print_json([dict(zip(columns, row, strict=True)) for row in rows])
        return
    table = Table(*columns, box=None, pad_edge=False)
    for row in rows:
        table.add_row(*row)
    out.print(table)


# ---------------------------------------------------------------------- training


@app.command(context_settings=TAKES_SETTINGS)
def train(
    context: typer.Context, recipe: Recipe = None, config: ConfigFile = None, as_json: Json = False
) -> None:
    """Train one classifier into a run folder.

    Common settings: --data --data-root --model --width --stem --method --epochs --batch-size --lr
    --seed --out --device --precision --workers; all of them: `adautomix settings`.
    """
    from adautomix import training
    from adautomix.config import make_config

    values = settings_of(context, recipe, config)
    result = training.train(make_config(values), quiet=as_json, command=command_line())
    finish_run(result.folder, as_json)


@app.command()
def resume(
    run: Run,
    verify: Annotated[
        bool, typer.Option(help="prove that resuming is exact: train the last stretch again")
    ] = False,
    as_json: Json = False,
) -> None:
    """Go on exactly where a run stopped, or prove that it would."""
    from adautomix import training

    if verify:
        print_verification(run, as_json)
        return
    training.resume(run, quiet=as_json, command=command_line())
    finish_run(run, as_json)


def print_verification(run: Path, as_json: bool) -> None:
    """Hashes of the run and of the run resumed."""
    from adautomix.training.verify import verify_resume

    result = verify_resume(run)
    rows = [
        (what, mine[:16], theirs[:16], "equal" if mine == theirs else "DIFFERENT")
        for what, mine, theirs in result.rows
    ]
    print_listing(rows, ("what", "run", "resumed", "verdict"), as_json)
    if not result.equal:
        raise RunError(f"{run} does not resume exactly from step {result.start}")
    if not as_json:
        out.print(
            f"From step {result.start} to step {result.step}, resumed and uninterrupted are equal."
        )


def finish_run(folder: Path, as_json: bool) -> None:
    """Draw the page and say where everything is."""
    from adautomix.reporting.page import write_page
    from adautomix.reporting.tables import comparison_table
    from adautomix.runs.records import read_run, summary_fields

    page = write_page([folder], folder / "report.html")
    if as_json:
        print_json(summary_fields(read_run(folder)))
        return
    out.print(comparison_table([read_run(folder)]))
    out.print(f"Run folder {folder}, page {page}", soft_wrap=True)


@app.command(context_settings=TAKES_SETTINGS)
def compare(
    context: typer.Context,
    methods: Annotated[
        str | None, typer.Option(help="comma-separated; none: vanilla,adautomix")
    ] = None,
    sweep: Annotated[
        str | None, typer.Option(help="variants in their place: one of `adautomix sweeps`, or YAML")
    ] = None,
    seeds: Annotated[str, typer.Option(help="comma-separated numbers")] = "0,1,2",
    folder: Annotated[Path, typer.Option("--out", help="folder of the runs")] = Path(
        "runs/compare"
    ),
    jobs: Annotated[
        int | None, typer.Option(min=1, help="runs side by side; none: one a core, one on a GPU")
    ] = None,
    baseline: Baseline = None,
    recipe: Recipe = None,
    config: ConfigFile = None,
    as_json: Json = False,
) -> None:
    """Train several methods, or variants of one, with several seeds: one table, verdicts, one page.

    Takes every setting of train. Runs that are already there are finished, not repeated.
    """
    from adautomix.reporting.page import write_page
    from adautomix.reporting.significance import pick_baseline
    from adautomix.reporting.tables import comparison_table, verdict_lines
    from adautomix.runs.records import read_runs, summary_fields
    from adautomix.training import compare as comparing

    variants = variants_of(methods, sweep)
    if baseline:
        pick_baseline(list(variants), baseline)  # a wrong one is better named before the training
    runs = comparing.compare(
        settings_of(context, recipe, config),
        variants=variants,
        seeds=[read_seed(seed) for seed in names_in(seeds)],
        out=folder,
        jobs=jobs,
        quiet=as_json,
        command=command_line(),
    )
    page = write_page(runs, folder / "report.html", baseline=baseline)
    if as_json:
        print_json([summary_fields(run) for run in read_runs(runs)])
        return
    out.print(comparison_table(read_runs(runs)))
    for line in verdict_lines(read_runs(runs), baseline):
        out.print(line, markup=False, highlight=False)
    out.print(f"Page: {page.resolve()}", soft_wrap=True)


def variants_of(methods: str | None, sweep: str | None) -> dict[str, dict[str, Any]]:
    """What is compared, by name: methods, or the variants of a sweep.

    Raises:
        UsageError: both were named, or there is no such sweep.
    """
    from adautomix.config.sweeps import read_sweep
    from adautomix.training.compare import method_variants

    if sweep is None:
        return method_variants(names_in("vanilla,adautomix" if methods is None else methods))
    if methods is not None:
        raise UsageError("--methods and --sweep both say what to compare: leave out one")
    return read_sweep(sweep)


def read_seed(text: str) -> int:
    """A seed.

    Raises:
        UsageError: no whole number.
    """
    if not text.isdigit():
        raise UsageError(f"--seeds: {text!r} is no whole number; write 0,1,2")
    return int(text)


@app.command(context_settings=TAKES_SETTINGS)
def plan(
    context: typer.Context,
    steps: Annotated[int, typer.Option(min=2, help="measured steps a method")] = 20,
    recipe: Recipe = None,
    config: ConfigFile = None,
    as_json: Json = False,
) -> None:
    """What a run would cost, and what plain training and Mixup would: before it is started.

    Takes train's settings, runs a few of its steps on its images, and writes no run folder.
    """
    from adautomix.bench import plan as planning
    from adautomix.config import make_config

    settings = make_config(settings_of(context, recipe, config))
    with out.status("timing", spinner="dots") as status:
        rows = planning.plan(
            settings,
            steps=steps,
            on_progress=lambda done: status.update(f"timing: {done} of {steps} rounds"),
        )
    print_figures(rows, as_json)


@app.command(context_settings=TAKES_SETTINGS)
def bench(
    context: typer.Context,
    methods: Annotated[str, typer.Option(help="comma-separated, or all")] = "vanilla,adautomix",
    steps: Annotated[int, typer.Option(min=2, help="measured steps a method")] = 10,
    classes: Annotated[int, typer.Option(min=2)] = 100,
    size: Annotated[int, typer.Option(min=8, help="image side in pixels")] = 32,
    phases: Annotated[bool, typer.Option("--phases", help="where a step's time goes")] = False,
    work: Annotated[bool, typer.Option("--work", help="operations, share of the peak")] = False,
    rows: Annotated[Path | None, typer.Option(help="add the figures to this file")] = None,
    recipe: Recipe = None,
    config: ConfigFile = None,
    as_json: Json = False,
) -> None:
    """Time the real training step of several methods, taking turns. Takes train's settings.

    `all` are those that the network suits: a plain vision transformer has what each needs.
    """
    from adautomix.bench.rows import append
    from adautomix.bench.suite import run_suite
    from adautomix.bench.workload import Workload
    from adautomix.config import make_config
    from adautomix.methods import METHODS, suits

    values = settings_of(context, recipe, config)
    names = names_in(methods)
    if methods == "all":
        names = [name for name in METHODS if suits(name, make_config(values).model)]
    asked = Workload(values, names, steps, classes, size)
    with out.status("timing", spinner="dots") as status:
        results = run_suite(
            asked,
            phases=phases,
            work=work,
            on_progress=lambda done: status.update(f"timing: {done} of {steps} rounds"),
        )
    for kind, figures in results.items():
        if rows:
            append(rows, kind, figures, device=asked.device())
        if not as_json:
            out.print(f"[bold]{kind}[/bold]")
            print_figures(figures)
    if as_json:
        print_json(results)


def print_figures(figures: list[dict[str, Any]], as_json: bool = False) -> None:
    """Rows of data as a table, or as they are."""
    from adautomix.reporting.bench_table import table_of

    if as_json:
        print_json(figures)
        return
    titles, cells = table_of(figures)
    print_listing([tuple(line) for line in cells], tuple(titles), as_json=False)


# ---------------------------------------------------------------------- looking


@app.command(context_settings=TAKES_SETTINGS)
def evaluate(
    context: typer.Context,
    subjects: Annotated[
        list[str], typer.Argument(help="run folders, exported networks, timm models")
    ],
    suites: Annotated[str, typer.Option(help="comma-separated, or all")] = "accuracy",
    weights: Annotated[Path | None, typer.Option(help="safetensors file for a timm model")] = None,
    pretrained: Annotated[bool, typer.Option("--pretrained", help="timm's own weights")] = False,
    images: Annotated[
        int | None, typer.Option(min=1, help="at most so many test images; none: all")
    ] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="images a forward")] = 500,
    seed: Annotated[int, typer.Option(min=0, help="of every random number")] = 0,
    which: Which = "last",
    folder: Annotated[
        Path | None, typer.Option("--out", help="folder for what is found; none: the run's")
    ] = None,
    device: Device = "auto",
    as_json: Json = False,
) -> None:
    """Evaluate trained networks: calibration, corruption, attack, occlusion and more.

    Student and teacher of a run, a network of `adautomix export`, or a timm model with --data.
    Takes the suites' settings (--attack.steps 20; `adautomix suites` lists them) and those of the
    data set. Stopped, the same command goes on where it was.
    """
    from adautomix.config import nest
    from adautomix.evaluation import evaluate as evaluating
    from adautomix.evaluation.load_target import EvalOptions, load_target
    from adautomix.reporting.evaluations import evaluation_tables
    from adautomix.reporting.page import write_evaluation_page
    from adautomix.training.progress import suite_progress

    loose = take_loose(subjects)  # typer takes the flags it does not know for subjects
    flags = nest(read_flags([*subjects, *context.args]))
    groups, data = split_groups(flags, evaluating.SUITES)
    asked = EvalOptions(data, weights, pretrained, which, images, batch_size, seed, folder, device)
    names = names_in(suites)
    found = {}
    for name in loose:
        subject = load_target(name, asked)
        with suite_progress(name, quiet=as_json) as progress:
            found[name] = evaluating.evaluate(subject, names, groups, progress)
        write_evaluation_page(subject)
    if as_json:
        print_json({name: record.model_dump(mode="json") for name, record in found.items()})
        return
    for table in evaluation_tables(found):
        out.print(f"[bold]{table.title}[/bold]")
        print_listing(table.rows, table.columns, as_json=False)


def split_groups(
    values: dict[str, Any], names: Iterable[str]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Nested settings in two: the groups of these names, and the others."""
    known = set(names)
    groups = {name: value for name, value in values.items() if name in known}
    return groups, {name: value for name, value in values.items() if name not in known}


@app.command()
def predict(
    run: Run,
    images: Pictures,
    network: NetworkName = "teacher",
    top: Annotated[int, typer.Option(min=1, help="classes to print for each image")] = 3,
    which: Which = "last",
    device: Device = "auto",
    as_json: Json = False,
) -> None:
    """Class names and probabilities for image files."""
    from adautomix.runs.trained import check_network, load_trained

    trained = load_trained(run, which=which, device=device)
    probabilities = trained.predict(images, check_network(network))
    values, indices = probabilities.topk(min(top, len(trained.classes)), dim=1)
    best = [
        [(trained.classes[k], p) for k, p in zip(ks, ps, strict=True)]
        for ks, ps in zip(indices.tolist(), values.tolist(), strict=True)
    ]
    if as_json:
        print_json(
            [{"image": str(i), "classes": dict(b)} for i, b in zip(images, best, strict=True)]
        )
        return
    rows = [
        (str(image), ", ".join(f"{name} {p:.1%}" for name, p in classes))
        for image, classes in zip(images, best, strict=True)
    ]
    print_listing(rows, ("image", f"{network} says"), as_json=False)


@app.command(context_settings=TAKES_SETTINGS)
def preview(
    context: typer.Context,
    method: Annotated[str, typer.Option(help="a method, a comma-separated list, or all")] = "all",
    images: Annotated[
        list[Path] | None, typer.Option(help="picture files to mix; repeat the flag or list them")
    ] = None,
    run: Annotated[
        Path | None, typer.Option(help="mix as the generator of this run has learned to")
    ] = None,
    picture: Annotated[Path, typer.Option("--out", help="the PNG to write")] = Path("preview.png"),
    rows: Annotated[
        int | None, typer.Option(min=1, help="mixes a method; none: 3, or 1 of each of many")
    ] = None,
    recipe: Recipe = None,
    config: ConfigFile = None,
) -> None:
    """A picture of mixed samples: originals, masks, mixes, λ and labels.

    From a data set (--data and train's other settings) or from your own files
    (--images a.jpg b.jpg). Learned methods show an untrained generator unless --run is given.
    """
    from adautomix.pictures.image_grid import mix_grid
    from adautomix.pictures.preview import preview_rows

    files = list(images or [])
    if files:  # `--images a.jpg b.jpg`: typer keeps the first and leaves the others
        files += [Path(word) for word in take_loose(context.args)]
    drawn = preview_rows(
        settings_of(context, recipe, config), methods=method, files=files, run=run, count=rows
    )
    out.print(f"Wrote {mix_grid(drawn, picture)}", soft_wrap=True)


def take_loose(words: list[str]) -> list[str]:
    """Take out, and return, the words that are neither a flag nor the value of one."""
    after = ["", *words]
    is_loose = [
        not (word.startswith("--") or (before.startswith("--") and "=" not in before))
        for before, word in zip(after, words, strict=False)
    ]
    loose = [word for word, is_one in zip(words, is_loose, strict=True) if is_one]
    words[:] = [word for word, is_one in zip(words, is_loose, strict=True) if not is_one]
    return loose


@app.command()
def report(
    runs: Runs,
    page: Annotated[Path | None, typer.Option("--out", help="the HTML file")] = None,
    rows: Annotated[
        Path | None, typer.Option(help="also write the final figures as rows of JSON")
    ] = None,
    markdown: Annotated[
        bool, typer.Option(help="also print table and verdicts in Markdown")
    ] = False,
    baseline: Baseline = None,
) -> None:
    """One offline page: final table, verdicts, equal time, curves, samples, settings."""
    from adautomix.reporting.page import write_page
    from adautomix.reporting.tables import markdown_table, result_rows, verdict_lines
    from adautomix.runs.records import read_runs

    read = read_runs(runs)
    if markdown:
        print(markdown_table(read), *verdict_lines(read, baseline), sep="\n")
    if rows:
        lines = [json.dumps(row) + "\n" for row in result_rows(read, baseline)]
        rows.write_text("".join(lines))
    target = page or (runs[0] / "report.html" if len(runs) == 1 else Path("report.html"))
    out.print(f"Wrote {write_page(runs, target, baseline=baseline)}", soft_wrap=True)


@app.command()
def export(
    run: Run,
    folder: Annotated[Path, typer.Option("--out", help="a new folder")],
    network: NetworkName = "teacher",
    which: Which = "last",
) -> None:
    """Safetensors and a short script that loads them with timm alone."""
    from adautomix.runs.export import export_model
    from adautomix.runs.trained import check_network, load_trained

    trained = load_trained(run, which=which, device="cpu")
    source = {
        "run": run.name,
        "network": check_network(network),
        "method": trained.config.method,
        "step": trained.step,
    }
    export_model(
        trained.networks[network],
        folder,
        classes=trained.classes,
        mean=trained.card["mean"],
        std=trained.card["std"],
        source=source,
        head=trained.method.eval_head,
    )
    out.print(f"Wrote {folder}: try `python {folder}/load_model.py IMAGE`", soft_wrap=True)


# ---------------------------------------------------------------------- lists


@app.command()
def methods(as_json: Json = False) -> None:
    """The mixing methods: what each needs and costs (F: one forward of the network)."""
    from adautomix.methods import METHODS

    rows = [(name, m.summary, m.needs, m.cost) for name, m in METHODS.items()]
    print_listing(rows, ("method", "what it does", "needs", "cost a step"), as_json)


@app.command()
def recipes(as_json: Json = False) -> None:
    """The packaged recipes."""
    from adautomix.config import list_recipes

    print_listing(list(list_recipes().items()), ("recipe", "what it is"), as_json)


@app.command()
def sweeps(as_json: Json = False) -> None:
    """The packaged sweeps, for `adautomix compare --sweep`."""
    from adautomix.config.sweeps import list_sweeps

    print_listing(list_sweeps(), ("sweep", "what is varied", "variants"), as_json)


@app.command()
def datasets(as_json: Json = False) -> None:
    """What --data takes."""
    from adautomix.data import DATASETS

    print_listing(list(DATASETS.items()), ("data", "what it is"), as_json)


@app.command()
def suites(as_json: Json = False) -> None:
    """The suites of `adautomix evaluate`, and their settings."""
    from adautomix.config import field_rows
    from adautomix.evaluation.evaluate import SUITES

    rows = [(name, "", suite.summary) for name, suite in SUITES.items()]
    for name, suite in SUITES.items():
        rows += field_rows(f"{name}.", suite.Settings)
    print_listing(rows, ("suite or setting", "default", "meaning"), as_json)


@app.command()
def settings(as_json: Json = False) -> None:
    """Every setting with its default; each is a flag."""
    from adautomix.config import list_settings

    print_listing(list_settings(), ("setting", "default", "meaning"), as_json)


# ---------------------------------------------------------------------- proving


@app.command(name="check-mix", context_settings=TAKES_SETTINGS)
def check_mix(
    context: typer.Context,
    method: Annotated[
        str | None, typer.Option(help="a method, a comma-separated list, or all (the default)")
    ] = None,
    objects: Annotated[
        list[str] | None,
        typer.Option("--object", help="path.py:name or module:name; repeat the flag"),
    ] = None,
    batch: Annotated[int, typer.Option(min=4, help="images a batch")] = 8,
    size: Annotated[int, typer.Option(min=8, help="image side in pixels")] = 32,
    batches: Annotated[int, typer.Option(min=1, help="batches a mixer")] = 20,
    recipe: Recipe = None,
    config: ConfigFile = None,
    as_json: Json = False,
) -> None:
    """Count pixels: is the label of every mix what is in it? For our methods and your own mixer.

    --object names a timm, torchvision or kornia object, a function (images, labels) -> (images,
    targets), or a function without arguments that makes either. Takes the methods' settings.
    """
    from adautomix.checks import label_ledger as ledger
    from adautomix.checks import mixers
    from adautomix.methods import METHODS

    trial = ledger.Trial(batch, size, batches)
    with out.status("counting pixels", spinner="dots"):
        rows = [mixers.check_named(address, trial) for address in objects or []]
        if method or not objects:
            names = list(METHODS) if method in (None, "all") else names_in(str(method))
            rows += ledger.check_methods(names, settings_of(context, recipe, config), trial)
    if as_json:
        print_json([dataclasses.asdict(row) for row in rows])
    else:
        print_listing([row.cells() for row in rows], ledger.TITLES, as_json=False)
    if wrong := [row.name for row in rows if not row.ok]:
        raise RunError(f"labels are not what the pixels say: {', '.join(wrong)}")


@app.command()
def doctor(
    script: Annotated[str, typer.Argument(help="path.py, or path.py:name of the function")],
    steps: Annotated[int, typer.Option(min=2, help="training batches to look at")] = 6,
    alone: Annotated[
        bool, typer.Option("--alone", help="leave out the run in 2 processes")
    ] = False,
    as_json: Json = False,
) -> None:
    """Run a few batches of your training loop and look for mistakes with mixing.

    Mixing left on in validation or after its end, one class each for mixed images, the same λ in
    every process. make_loop() returns an adautomix.checks.doctor.Loop: docs/doctor.md has one.
    """
    from adautomix.checks.doctor import examine
    from adautomix.checks.script import load_named

    with out.status("looking", spinner="dots"), redirect_stdout(sys.stderr):  # what the loop prints
        make_loop = load_named(script, default="make_loop")
        findings = examine(make_loop, steps=steps, processes=not alone)
    if as_json:
        print_json([dataclasses.asdict(finding) for finding in findings])
    for finding in [] if as_json else findings:
        out.print(f"- {finding}", soft_wrap=True, markup=False)
    if findings:
        raise RunError(f"{script}: {len(findings)} found, and what to do is above")
    if not as_json:
        out.print(f"Nothing found in {script}.", soft_wrap=True)
