"""Tables become the right runs, in the right order, with the right settings."""

from pathlib import Path
from typing import Any

import pytest

from adautomix.config import make_config
from adautomix.config.recipes import compose, read_cells
from adautomix.errors import UsageError
from adautomix.evaluation.evaluate import validate_settings
from adautomix.tables.definition import find_table, read_tables
from adautomix.tables.tasks import Task, expand, scale_epochs

OUT = Path("runs")


def tasks_of(name: str, **options: Any) -> list[Task]:
    return expand(find_table(name)[1], out=OUT, **options)


# ---------------------------------------------------------------------- definitions


def test_the_tables_and_figures_of_the_paper() -> None:
    tables = {f"table{number}" for number in range(1, 12)}
    assert read_tables().keys() == tables | {"figure6", "figure9", "figure10", "figure14"}


@pytest.mark.parametrize(
    ("name", "full"),
    [("1", "table1"), ("Table 4", "table4"), ("fig9", "figure9"), ("figure 14", "figure14")],
)
def test_ways_to_name_a_table(name: str, full: str) -> None:
    assert find_table(name)[0] == full


def test_an_unknown_table() -> None:
    with pytest.raises(UsageError, match="unknown table '12': use table1, table2"):
        find_table("12")
    with pytest.raises(UsageError, match="did you mean 'figure14'"):
        find_table("figure 41")


def test_tables_1_and_2_are_the_published_cells() -> None:
    first, second = (find_table(name)[1].select() for name in "12")
    # ManifoldMix was not published on Swin-T.
    assert (len(first), len(second)) == (9 * 10 - 1, 6 * 10)
    assert all(cell.top1 is not None for cell in first + second)
    assert {cell.epochs for cell in first if cell.family == "cifar100-r18"} == {800}
    assert {cell.epochs for cell in first if cell.family == "cifar100-swin-t"} == {200}


@pytest.mark.parametrize("name", read_tables())
def test_suites_and_settings_of_every_table_are_valid(name: str) -> None:
    for suite, settings in read_tables()[name].evaluate.items():
        validate_settings(suite, settings)
    for task in tasks_of(name):
        make_config(task.values)


# ---------------------------------------------------------------------- expansion


def test_every_cell_is_trained_with_every_seed() -> None:
    tasks = tasks_of("11", seeds=[0, 3], only=["*/vanilla@*", "*/meada@*"])
    assert [(task.name, task.seed) for task in tasks] == [
        ("cifar100-r18/vanilla@200", 0),
        ("cifar100-r18/vanilla@200", 3),
        ("cifar100-r18/meada@200", 0),
        ("cifar100-r18/meada@200", 3),
    ]
    assert tasks[1].folder == OUT / "cifar100-r18" / "vanilla@200-s3"
    assert tasks[1].config().seed == 3
    assert tasks[1].config().out == tasks[1].folder


def test_without_changes_a_run_is_its_recipe() -> None:
    for task in tasks_of("2"):
        recipe = make_config(compose(task.cell)).resolved()
        assert task.config().resolved() == recipe | {"out": str(task.folder)}


def test_epochs_and_warm_up_are_scaled_together() -> None:
    (task,) = tasks_of("1", epochs_scale=0.1, only=["cifar100-swin-t/adautomix@*"])
    assert (task.values["epochs"], task.values["warmup_epochs"]) == (20, 2.0)
    assert scale_epochs({"epochs": 3}, 0.01) == {"epochs": 1}


def test_overrides_change_every_run() -> None:
    overrides = {"width": "0.5", "teacher": {"momentum": "0.9"}}
    for task in tasks_of("4", overrides=overrides):
        config = task.config()
        assert (config.width, config.teacher.momentum) == (0.5, 0.9)
        assert config.teacher.momentum_end == 0.999999
        assert task.evaluate.keys() == {"accuracy", "corruption", "attack"}


def test_variants_of_a_sweep_replace_the_recipe() -> None:
    tasks = tasks_of("10")
    labels = [
        f"{name}={value}" for name in ("alpha", "beta") for value in (0.1, 0.3, 0.5, 0.7, 0.9)
    ]
    assert [task.name.rpartition("/")[2] for task in tasks] == labels
    settings: Any = tasks[0].config().method_settings
    assert (settings.alpha, settings.beta) == (0.1, 0.3)
    assert tasks[0].config().label == "alpha=0.1"
    assert len({task.folder for task in tasks}) == len(tasks)


def test_transfer_trains_on_imagenet_first() -> None:
    tasks = tasks_of("3", only=["transfer-*/mixup@*"], epochs_scale=0.1)
    assert [task.name for task in tasks] == [
        "imagenet-r50/mixup@100",
        "transfer-cub-r50/mixup@100",
        "transfer-cars-r50/mixup@100",
    ]
    assert tasks[0].values["epochs"] == 10
    assert tasks[1].start == tasks[2].start == tasks[0].folder
    assert tasks[0].start is None


def test_a_table_that_nothing_is_left_of() -> None:
    with pytest.raises(UsageError, match=r"no run of this table matches .*/nothing"):
        tasks_of("1", only=["*/nothing"])


def test_folders_of_wrapped_methods_have_no_colon() -> None:
    assert any(":" in name for name in read_cells())
    assert not any(":" in str(task.folder) for name in read_tables() for task in tasks_of(name))


def test_the_root_of_the_data_sets_reaches_every_run(tmp_path: Path) -> None:
    overrides = {"data_root": str(tmp_path / "data")}
    tasks = expand(find_table("3")[1], overrides=overrides, out=tmp_path)
    assert {task.settings().data_root for task in tasks} == {tmp_path / "data"}
    assert any(task.start for task in tasks), "runs that provide weights are among them"
