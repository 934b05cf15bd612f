"""The command `recipes`: what it lists, for people and for programs."""

import pytest
from conftest import Command

from adautomix.config.recipes import read_cells


@pytest.mark.slow
def test_all_recipes_are_listed_for_programs(command: Command) -> None:
    rows = command("recipes", "--json").json
    assert [row["recipe"] for row in rows] == [
        *read_cells(),
        "digits/few-labels",
        "digits/twenty-labels",
    ]
    row = next(row for row in rows if row["recipe"] == "cars-r18/adautomix@200")
    assert row["published_top1"] == 89.19
    assert row["network"] == "student"
    assert row["settings_from"] == "the configuration in the log of the authors' run"
    assert "normalization" in row["differs"]
    assert "N 2" in row["note"]


def test_recipes_of_a_family_and_a_method(command: Command) -> None:
    args = ("recipes", "--family", "cifar100-r18", "--method", "adautomix")
    names = [row["recipe"] for row in command(*args, "--json").json]
    assert names == [
        "cifar100-r18/adautomix@200",
        "cifar100-r18/adautomix:beta0.7@200",
        "cifar100-r18/adautomix@400",
        "cifar100-r18/adautomix@800",
    ]
    listing = command(*args).out
    assert "81.55 teacher" in listing
    assert "digits" not in listing


@pytest.mark.parametrize(
    ("option", "name", "message"),
    [
        ("--family", "cifar100-r81", "unknown family 'cifar100-r81': did you mean 'cifar100-r18'?"),
        ("--method", "adautomx", "did you mean 'adautomix'?"),
    ],
)
def test_unknown_names(option: str, name: str, message: str, command: Command) -> None:
    outcome = command("recipes", option, name)
    assert outcome.status == 2
    assert message in outcome.err
