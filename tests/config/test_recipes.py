"""Recipes: composed from the packaged table, complete, and true to their sources."""

from typing import Any

import pytest

from adautomix.config import load_config, make_config, merge, read_recipe
from adautomix.config.recipes import (
    BASES,
    FIGURES,
    Cell,
    compose,
    differences,
    find_cell,
    list_recipes,
    plain_recipes,
    read_cells,
    read_families,
)
from adautomix.config.recipes.compose import RENAMED, method_settings
from adautomix.errors import UsageError
from adautomix.methods import METHODS

CELLS = read_cells()

# What the authors trained with, where log and released configuration disagree as their log has it:
# N, α, β, λ margin, λ embedding, last learning rate, learning rates of the generator, ξ at the end.
AUTHORS: dict[str, tuple[Any, ...]] = {
    "cifar100-r18@200": (3, 0.5, 0.3, 0.03, False, 0.05, None, None, 0.999999),
    "cifar100-r18@400": (3, 0.5, 0.3, 0.03, False, 0.05, None, None, 0.999999),
    "cifar100-r18@800": (3, 0.5, 0.3, 0.03, False, 0.05, None, None, 0.999999),
    "cifar100-rx50@200": (3, 0.5, 0.3, 0.03, False, 0.05, None, None, 0.999999),
    "cifar100-rx50@800": (3, 0.5, 0.3, 0.03, False, 0.08, 0.1, 0.08, 0.999999),
    "cifar100-swin-t@200": (3, 0.5, 0.3, 0.03, True, 1e-4, 1e-3, 1e-4, 0.99996),
    "cifar100-convnext-t@200": (3, 0.5, 0.3, 0.03, True, 1e-4, 5e-4, 5e-5, 0.99996),
    "cifar100-deit-s@200": (3, 0.5, 0.3, 0.03, True, 1e-4, 1e-3, 1e-4, 0.99996),
    "tiny-r18@400": (3, 0.5, 0.4, 0.03, False, 0, 0.1, 0, 0.999999),
    "tiny-rx50@400": (3, 0.5, 0.4, 0.03, False, 0.05, 0.1, 1e-3, 0.999999),
    "imagenet-r18@100": (2, 0, 0.1, 0.03, True, 0, 0.1, 1e-3, 0.99999),
    "imagenet-r34@100": (2, 0, 0.1, 0.03, True, 0, 0.1, 1e-3, 0.99999),
    "imagenet-r50@100": (2, 0, 0.1, 0.03, True, 0, 0.1, 1e-3, 0.99999),
    "cub-r18@200": (3, 0.5, 0.3, 0, True, 0, 0.1, 1e-3, 0.99999),
    "cub-r50@200": (3, 0.5, 0.1, 0.03, True, 0, 0.1, 1e-3, 0.99999),
    "aircraft-r18@200": (2, 0, 0.3, 0, False, 5e-4, 0.1, 1e-3, 0.99999),
    "aircraft-rx50@200": (2, 0, 0.6, 0.03, True, 0, 0.1, 1e-3, 0.99999),
    "cars-r18@200": (2, 0, 0.3, 0.03, True, 0, 0.1, 1e-3, 0.99999),
    "cars-rx50@200": (2, 0, 0.3, 0.03, True, 0, 0.1, 1e-3, 0.99999),
}

# Optimizer, batch size, learning rate, weight decay, crop, epochs of warm-up, gradient clipping.
SCHEDULES: dict[str, tuple[Any, ...]] = {
    "cifar100-r18": ("sgd", 100, 0.1, 1e-4, "pad", 0, None),
    "cifar100-swin-t": ("adamw", 100, 5e-4, 0.05, "resized", 20, 5),
    "cifar100-convnext-t": ("adamw", 100, 1e-3, 0.05, "pad", 20, None),
    "tiny-r18": ("sgd", 100, 0.2, 1e-4, "resized", 0, None),
    "imagenet-r50": ("sgd", 256, 0.1, 1e-4, "resized", 0, None),
    "cub-r50": ("sgd", 16, 1e-3, 5e-4, "resized", 0, None),
    "aircraft-r18": ("sgd", 16, 1e-3, 5e-4, "resized", 0, None),
    "cars-rx50": ("sgd", 16, 1e-3, 5e-4, "resized", 0, None),
}

PUBLISHED = {
    "cifar100-r18/vanilla@200": 76.42,
    "cifar100-r18/mixup@400": 79.34,
    "cifar100-r18/adautomix@200": 81.55,
    "cifar100-rx50/adautomix@800": 84.22,
    "cifar100-swin-t/adautomix@200": 84.33,
    "cifar100-convnext-t/samix@200": 83.56,
    "tiny-rx50/automix@400": 70.72,
    "imagenet-r50/puzzlemix@100": 77.54,
    "cub-r50/adautomix@200": 84.57,
    "aircraft-rx50/fmix@200": 86.23,
    "cars-r18/snapmix@200": 88.45,
}


def is_trainable(cell: Cell) -> bool:
    return read_families()[cell.family].missing is None and "method" not in cell.differs


def value_at(tree: dict[str, Any], dotted: str) -> Any:
    for name in dotted.split("."):
        tree = tree[name]
    return tree


def leaves(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in tree.items():
        nested = isinstance(value, dict) and name != "model_options"
        flat |= leaves(value, f"{prefix}{name}.") if nested else {f"{prefix}{name}": value}
    return flat


# ---------------------------------------------------------------------- the table


@pytest.mark.parametrize("name", AUTHORS)
def test_settings_of_adautomix_are_those_of_the_authors(name: str) -> None:
    family, epochs = name.split("@")
    config = load_config(recipe=f"{family}/adautomix@{epochs}")
    s: Any = config.method_settings
    assert (
        s.n,
        s.alpha,
        s.beta,
        s.lam_margin,
        s.lam_embedding,
        config.min_lr,
        s.generator_lr,
        s.generator_min_lr,
        config.teacher.momentum_end,
    ) == AUTHORS[name]
    transformer_schedule = config.teacher.constant_share == 0.25
    assert transformer_schedule == (config.optimizer == "adamw")
    assert s.upsampling == ("nearest" if config.optimizer == "adamw" else "bilinear")
    assert (config.teacher.momentum, config.teacher.buffers) == (0.999, "own")
    assert (s.random_n, s.beta_parameter) == (False, 1)
    # The released code passes clean images through the teacher 1 + N times.
    assert s.clean_updates == 1 + s.n
    # Networks with a warm-up are those of AdamW; their learning rate changes at every step.
    assert s.generator_warmup == (config.warmup_epochs == 0)
    assert config.lr_update == ("step" if transformer_schedule else "epoch")
    assert s.attention_norm == (family == "imagenet-r50")


@pytest.mark.parametrize("family", SCHEDULES)
def test_schedules_of_families(family: str) -> None:
    epochs = min(cell.epochs for cell in CELLS.values() if cell.family == family)
    config = load_config(recipe=f"{family}/vanilla@{epochs}")
    assert (
        config.optimizer,
        config.batch_size,
        config.lr,
        config.weight_decay,
        config.crop,
        config.warmup_epochs,
        config.clip_grad,
    ) == SCHEDULES[family]


def test_published_figures() -> None:
    assert {name: CELLS[name].top1 for name in PUBLISHED} == PUBLISHED
    assert sum(cell.top1 is not None for cell in CELLS.values() if not cell.is_variant) == 621


def test_the_table_is_consistent() -> None:
    for cell in CELLS.values():
        assert cell.family in read_families()
        assert cell.basis in BASES
        assert (cell.top1 is None) == (cell.figure == ""), cell.name
        assert cell.figure in FIGURES
        assert all(differences(cell).values())
        if is_trainable(cell):
            assert cell.trained_method in METHODS
    # The table of figures has at least the cells of the paper's Tables 1 and 2.
    assert len(CELLS) > 750


def test_every_recipe_resolves_to_the_rows_it_is_composed_of() -> None:
    for cell in filter(is_trainable, CELLS.values()):
        resolved = make_config(compose(cell)).resolved()
        family = read_families()[cell.family].settings
        method = method_settings().get(cell.trained_method, {})
        wanted = leaves(merge(family, method)) | cell.settings
        for name, value in wanted.items():
            assert value_at(resolved, name) == value, f"{cell.name}: {name}"
        assert (resolved["method"], resolved["epochs"]) == (cell.trained_method, cell.epochs)
        assert resolved["recipe"] == cell.name
        foreign = resolved.keys() & (METHODS.keys() - {cell.trained_method})
        assert not foreign, f"{cell.name} has settings of {foreign}"


def test_a_variant_changes_one_setting_only() -> None:
    variants = [cell for cell in CELLS.values() if cell.is_variant]
    assert len(variants) == 8
    for variant in variants:
        released = CELLS[f"{variant.family}/adautomix@{variant.epochs}"]
        both = (make_config(compose(cell)).resolved() for cell in (released, variant))
        ours, theirs = map(leaves, both)
        different = {name for name in ours if ours[name] != theirs[name]}
        assert different == {"recipe", "adautomix.beta"}
        assert variant.method == f"adautomix:beta{theirs['adautomix.beta']:g}"


# ---------------------------------------------------------------------- names


@pytest.mark.parametrize("old", RENAMED)
def test_earlier_names_keep_working(old: str) -> None:
    assert read_recipe(old) == read_recipe(RENAMED[old])


def test_without_epochs_the_shortest_training_is_meant() -> None:
    assert read_recipe("cifar100-r18/adautomix")["epochs"] == 200
    assert read_recipe("tiny-r18/mixup") == read_recipe("tiny-r18/mixup@400")


def test_names_that_are_wrong_or_cannot_be_trained() -> None:
    with pytest.raises(UsageError, match=r"unknown recipe .*did you mean 'cub-r50/cutmix@200'"):
        read_recipe("cub-r50/cutmx@200")
    with pytest.raises(UsageError, match="timm has no Wide ResNet-28-8"):
        read_recipe("cifar100-wrn28-8/cutmix@400")
    with pytest.raises(UsageError, match="SuperMix is not in the product"):
        read_recipe("imagenet-r50/supermix@100")


def test_a_recipe_of_no_table() -> None:
    assert find_cell("digits/few-labels") is None
    assert load_config(recipe="digits/few-labels").per_class == 5
    assert plain_recipes().keys() == {"digits/few-labels", "digits/twenty-labels"}
    assert list_recipes().keys() == plain_recipes().keys() | CELLS.keys()


def test_the_recipe_is_recorded_and_flags_override_it() -> None:
    config = load_config(recipe="cifar100-r18/sumix:fmix@800", flags={"epochs": "3"})
    settings: Any = config.method_settings
    assert (config.recipe, config.epochs) == ("cifar100-r18/sumix:fmix@800", 3)
    assert (config.method, settings.mix) == ("sumix", "fmix")
