"""The ledger: which figure is compared, what counts as a match, and what it writes."""

from pathlib import Path
from typing import Any

import pytest
from records import epoch_fields, summary_fields
from scipy.stats import t

from adautomix.config import make_config, merge
from adautomix.config.recipes import compose, read_cells, read_families
from adautomix.errors import UsageError
from adautomix.runs.records import Run
from adautomix.runs.schema import EpochRow, Summary
from adautomix.tables.ledger import LedgerRow, collect, find_runs, protocol_figure
from adautomix.tables.ledger_page import cells_of, markdown, row_fields, write_ledger_page

MIXUP = "cifar100-r18/mixup@200"  # published 78.52, of the student
ADAUTOMIX = "cifar100-r18/adautomix@200"  # published 81.55, of the teacher
SWIN = "cifar100-swin-t/mixup@200"  # the best of the last 10 epochs


def scores(top1: float) -> dict[str, float]:
    return {"top1": top1, "top5": 0.9, "nll": 1.0, "ece": 0.1}


def make_run(
    name: str,
    student: float = 0.5,
    teacher: float = 0.6,
    *,
    last: list[float] | None = None,
    finished: bool = True,
    seed: int = 0,
    **changes: Any,
) -> Run:
    """A run of a recipe; `last` are accuracies of both networks in its last epochs."""
    cell = read_cells()[name]
    values = merge(compose(cell), changes | {"seed": seed})
    config = make_config(values).resolved()
    epochs = config["epochs"]
    figures = last or [student] * 10
    rows = [
        EpochRow.model_validate(
            epoch_fields(
                epoch,
                epoch,
                student=scores(figure),
                teacher=scores(figure if last else teacher),
            )
        )
        for epoch, figure in enumerate(figures, epochs - len(figures) + 1)
    ]
    family = read_families()[cell.family]
    summary = Summary.model_validate(
        summary_fields(
            train_images=family.train_images,
            test_images=family.test_images,
            epochs=epochs,
            seed=seed,
            seconds=7200.0,
            versions={"torch": "2", "commit": "abc123"},
            final={"student": scores(student), "teacher": scores(teacher)},
        )
    )
    folder = Path(f"{name}-s{seed}")
    return Run(folder.name, folder, config, [], rows, summary if finished else None, [])


def row_of(*runs: Run) -> LedgerRow:
    """The only row of these runs."""
    (row,) = (row for row in collect(runs) if row.status != "not run")
    return row


# ---------------------------------------------------------------------- the paper's protocol


def test_the_median_of_the_last_ten_epochs() -> None:
    last = [0.99, 0.70, 0.71, 0.72, 0.73, 0.74, 0.76, 0.77, 0.78, 0.79, 0.10]
    run = make_run(MIXUP, last=last)
    assert protocol_figure(run, read_cells()[MIXUP]) == pytest.approx((0.73 + 0.74) / 2)


def test_the_best_of_the_last_ten_epochs_for_transformers() -> None:
    run = make_run(SWIN, last=[0.99, *[0.7] * 4, 0.8, *[0.7] * 5])
    assert protocol_figure(run, read_cells()[SWIN]) == 0.8


def test_the_network_that_was_published() -> None:
    for name, figure in ((MIXUP, 0.5), (ADAUTOMIX, 0.6), ("cars-r18/adautomix@200", 0.5)):
        assert protocol_figure(make_run(name), read_cells()[name]) == figure


def test_there_is_no_figure_without_every_last_epoch() -> None:
    assert protocol_figure(make_run(MIXUP, last=[0.7] * 9), read_cells()[MIXUP]) is None
    # A run of three epochs counts with all of them.
    assert protocol_figure(make_run(MIXUP, last=[0.7] * 3, epochs=3), read_cells()[MIXUP]) == 0.7


# ---------------------------------------------------------------------- status


@pytest.mark.parametrize(
    ("top1", "status"),
    [(0.7852, "matched"), (0.80, "matched"), (0.775, "within noise"), (0.77, "not matched")],
)
def test_one_seed_is_compared_by_the_noise_of_the_test_images(top1: float, status: str) -> None:
    # 1.96 √(2 · 0.775 · 0.225 / 10,000) = 1.16 points
    row = row_of(make_run(MIXUP, top1))
    assert (row.status, row.published) == (status, 78.52)
    assert row.noise == pytest.approx(1.96 * (2 * top1 * (1 - top1) / 10_000) ** 0.5)


def test_several_seeds_are_compared_by_the_prediction_interval() -> None:
    runs = [make_run(MIXUP, top1, seed=seed) for seed, top1 in enumerate((0.78, 0.782, 0.784))]
    row = row_of(*runs)
    assert row.noise == pytest.approx(t.ppf(0.975, 2) * 0.002 * (4 / 3) ** 0.5)
    assert row.status == "within noise"
    assert row.seeds == (0, 1, 2)
    assert row.student is not None
    assert row.student.half_width == pytest.approx(t.ppf(0.975, 2) * 0.002 / 3**0.5)
    close = [make_run(MIXUP, 0.775 + seed / 1e5, seed=seed) for seed in range(3)]
    assert row_of(*close).status == "not matched"


def test_other_settings_make_a_rehearsal() -> None:
    row = row_of(make_run(MIXUP, 0.9, epochs=20, width=0.25))
    assert row.status == "rehearsal"
    assert row.differs == ("epochs 20 instead of 200", "width 0.25 instead of 1.0")
    method = row_of(make_run(ADAUTOMIX, adautomix={"beta": 0.7}))
    assert method.differs == ("adautomix.beta 0.7 instead of 0.3",)


def test_a_part_of_the_images_makes_a_rehearsal() -> None:
    run = make_run(MIXUP, 0.9)
    assert run.summary
    part = run.summary.model_copy(update={"train_images": 500})
    object.__setattr__(run, "summary", part)
    row = row_of(run)
    assert (row.status, row.differs) == ("rehearsal", ("train_images 500 instead of 50000",))


def test_settings_that_change_no_figure_do_not_count() -> None:
    run = make_run(MIXUP, 0.9, out="elsewhere", runtime="graph", data="/data/cifar100", log_every=1)
    assert row_of(run).differs == ()
    half = row_of(make_run(MIXUP, 0.9, precision="bf16"))
    assert half.status == "matched"
    assert half.differs == ("precision bf16 instead of fp32",)


def test_an_older_run_lacks_newer_settings() -> None:
    run = make_run(MIXUP, 0.9)
    del run.config["channels_last"], run.config["nesterov"], run.config["mix"]
    assert row_of(run).differs == ()


def test_runs_with_different_settings_are_different_rows() -> None:
    runs = [make_run(MIXUP), make_run(MIXUP, seed=1), make_run(MIXUP, epochs=20)]
    rows = [row for row in collect(runs) if row.status != "not run"]
    assert [len(row.runs) for row in rows] == [2, 1]


def test_a_variant_has_no_published_figure() -> None:
    row = row_of(make_run(ADAUTOMIX, label="beta=0.5", adautomix={"beta": 0.5}))
    assert (row.name, row.published, row.status) == (f"{ADAUTOMIX}/beta=0.5", None, "no figure")


def test_unfinished_and_missing_runs() -> None:
    assert row_of(make_run(MIXUP, finished=False)).status == "unfinished"
    rows = collect([])
    assert [row.cell.name for row in rows] == list(read_cells())
    assert {row.status for row in rows} == {"not run"}
    without_recipe = make_run(MIXUP)
    without_recipe.config["recipe"] = None
    assert {row.status for row in collect([without_recipe])} == {"not run"}


# ---------------------------------------------------------------------- files


def test_what_a_row_says() -> None:
    row = row_of(make_run(ADAUTOMIX, 0.7, 0.8, seed=2))
    assert cells_of(row) == [
        ADAUTOMIX,
        "81.55 (teacher)",
        "80.00",
        "70.00",
        "80.00",
        "2",
        "not matched",
        "–",
        "2.00",
        "512",
        "x86_64 CPU, 1 threads",
        "abc123",
    ]
    fields = row_fields(row)
    assert fields["ours_by_protocol"] == {"mean": 80.0, "half_width": None, "seeds": 1}
    assert fields["command"] == "adautomix train"
    assert fields["protocol"] == "median-10"


def test_the_markdown_lists_runs_and_what_was_not_run() -> None:
    text = markdown(collect([make_run(ADAUTOMIX)]))
    assert f"| {ADAUTOMIX} | 81.55 (teacher) |" in text
    assert f"- {ADAUTOMIX}: `adautomix train`" in text
    missing = text.partition("## Not run")[2]
    assert "adautomix@200 81.55" not in missing
    assert "adautomix@800 82.32" in missing
    assert "1 not matched" in text


def test_the_page_escapes_what_runs_say(tmp_path: Path) -> None:
    run = make_run(MIXUP)
    assert run.summary
    shown = run.summary.model_copy(update={"command": "adautomix train --out '<script>'"})
    object.__setattr__(run, "summary", shown)
    page = write_ledger_page(collect([run]), tmp_path / "ledger.html").read_text()
    assert "&lt;script&gt;" in page
    assert "<script>" not in page


def test_folders_without_runs(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no run folder found"):
        find_runs([tmp_path])
