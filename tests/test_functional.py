"""The functions of `adautomix.mix`: signatures, replay, checks of the inputs, documentation."""

import doctest
import functools
import inspect
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._dynamo.testing import CompileCounter

import adautomix.functional as mix
from adautomix.errors import UsageError
from adautomix.methods import InputMixing

NAMES = sorted(name for name in InputMixing.by_name if name != "vanilla")
OWN = {"images", "labels", "num_classes", "generator", "params"}


def function(name: str) -> Any:
    return getattr(mix, name.replace("+", "_"))


def batch() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(6, 3, 16, 16, generator=generator), torch.tensor([0, 1, 2, 3, 4, 5])


def test_every_input_mixing_method_has_a_function() -> None:
    assert sorted(mix.__all__) == sorted(name.replace("+", "_") for name in NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_defaults_are_those_of_the_settings(name: str) -> None:
    parameters = inspect.signature(function(name)).parameters
    defaults = {n: p.default for n, p in parameters.items() if n not in OWN}
    fields = InputMixing.by_name[name].Settings.model_fields
    assert defaults == {n: field.default for n, field in fields.items()}


@pytest.mark.parametrize("name", NAMES)
def test_documentation_names_every_argument(name: str) -> None:
    doc = inspect.getdoc(function(name)) or ""
    for parameter in inspect.signature(function(name)).parameters:
        assert f"\n    {parameter}: " in doc, parameter
    for part in ("Returns:", "Raises:", "Source:", "Example:"):
        assert part in doc


@pytest.mark.parametrize("name", NAMES)
def test_params_replay_a_mix(name: str) -> None:
    images, labels = batch()
    generator = torch.Generator().manual_seed(3)
    first = function(name)(images, labels, num_classes=6, generator=generator)
    again = function(name)(images, labels, num_classes=6, params=first.params)
    assert torch.equal(first.images, again.images)
    assert torch.equal(first.targets, again.targets)
    other = function(name)(images, labels, num_classes=6, generator=generator)
    assert not torch.equal(first.images, other.images)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["mixup", "cutmix", "resizemix", "mixture"])
def test_a_compiled_call_is_one_graph_and_mixes_alike(name: str) -> None:
    """Settings, checks and draws run outside the graph, which later calls use again."""
    images, labels = batch()
    torch.compiler.reset()
    counter = CompileCounter()
    mix_images = functools.partial(function(name), num_classes=6)
    compiled = torch.compile(lambda *pair: mix_images(*pair).images, backend=counter)
    with torch.random.fork_rng(devices=[]):
        for seed in range(3):
            torch.manual_seed(seed)
            ours = compiled(images, labels)
            torch.manual_seed(seed)
            torch.testing.assert_close(ours, mix_images(images, labels).images)
    # A mixture has a graph per method.
    assert counter.frame_count <= (3 if name == "mixture" else 1)
    torch.compiler.reset()


def test_examples_run() -> None:
    outcome = doctest.testmod(mix, extraglobs={"torch": torch})
    assert outcome.attempted >= 3 * len(NAMES)
    assert outcome.failed == 0


IMAGES, LABELS = batch()
SOFT = torch.eye(6)


@pytest.mark.parametrize(
    ("images", "labels", "line"),
    [
        ((255 * IMAGES.abs()).byte(), LABELS, "images is uint8: convert to float and normalize"),
        (IMAGES[0], LABELS, "images has shape [3, 16, 16]: pass a batch of shape [B, C, H, W]"),
        (IMAGES, LABELS[:4], "labels has 4 rows and images has 6: pass one label per image"),
        (IMAGES, LABELS[:, None], "labels has shape [6, 1]: pass class indices of shape [B]"),
        (IMAGES, SOFT[:, :4], "labels has 4 columns and num_classes is 6: they must agree"),
        (IMAGES, LABELS.float(), "labels of shape [B] is float32: pass integer class indices"),
        (IMAGES, LABELS + 1, "labels contains 6: class indices go from 0 to 5 with num_classes=6"),
        (IMAGES, LABELS - 1, "labels contains -1: class indices go from 0 to 5"),
        (IMAGES, LABELS.where(LABELS > 0, -100), "labels contains -100, the index that cross_en"),
        (IMAGES, SOFT * 3, "labels of shape [B, K] are not probabilities"),
        (IMAGES, SOFT - 0.1, "labels of shape [B, K] are not probabilities"),
        (IMAGES, SOFT[:, :, None], "labels has shape [6, 6, 1]: pass [B] or [B, 6]"),
    ],
)
def test_wrong_inputs_are_named(images: Tensor, labels: Tensor, line: str) -> None:
    with pytest.raises(UsageError) as error:
        mix.mixup(images, labels, num_classes=6)
    assert str(error.value).startswith(line)
    assert "\n" not in str(error.value)


@pytest.mark.slow
def test_type_checkers_know_the_functions(tmp_path: Path) -> None:
    script = tmp_path / "wrong.py"
    script.write_text(
        "import adautomix as am\n"
        "am.mix.cutmxi\n"
        'am.mix.cutmix("x", banana=3)\n'
        "reveal_type(am.load)\n"
    )
    words = [sys.executable, "-m", "mypy", "--strict", "--no-error-summary", str(script)]
    lines = subprocess.run(words, capture_output=True, text=True, check=False).stdout
    assert 'Module has no attribute "cutmxi"' in lines
    assert 'Unexpected keyword argument "banana" for "cutmix"' in lines
    assert 'Argument 1 to "cutmix" has incompatible type "str"' in lines
    assert "TrainedRun" in lines
