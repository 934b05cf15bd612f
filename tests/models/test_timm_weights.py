"""The weights of a classifier under timm's names, for every way in which timm computes logits."""

from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn

from adautomix.errors import UsageError
from adautomix.models import build_model
from adautomix.models.timm_weights import (
    _filled,
    check_exportable,
)
from adautomix.rng import generator_at

WEIGHT = torch.randn(3, 4, generator=generator_at(0, 0, "weight"))
BIAS = torch.tensor([0.5, -1.0, 2.0])
POOLED = torch.randn(5, 4, generator=generator_at(0, 0, "pooled"))


def filled(**modules: nn.Module) -> dict[str, nn.Module]:
    """The modules with the weights that are computed for them, in evaluation mode."""
    state: dict[str, Tensor] = dict(_filled(modules, WEIGHT, BIAS))
    for name, module in modules.items():
        own = {key.partition(".")[2]: v for key, v in state.items() if key.startswith(f"{name}.")}
        module.load_state_dict(own)
        module.eval()
    return modules


def test_a_batch_norm_before_the_layer_changes_nothing() -> None:
    parts = filled(norm=nn.BatchNorm1d(4), layer=nn.Linear(4, 3))
    logits = parts["layer"](parts["norm"](POOLED))
    torch.testing.assert_close(logits, POOLED @ WEIGHT.T + BIAS)


def test_a_convolution_computes_the_same() -> None:
    logits = filled(conv=nn.Conv2d(4, 3, 1))["conv"](POOLED[:, :, None, None]).flatten(1)
    torch.testing.assert_close(logits, POOLED @ WEIGHT.T + BIAS)


def test_layers_whose_outputs_are_averaged() -> None:
    parts = filled(head=nn.Linear(4, 3), distilled=nn.Linear(4, 3))
    logits = (parts["head"](POOLED) + parts["distilled"](POOLED)) / 2
    torch.testing.assert_close(logits, POOLED @ WEIGHT.T + BIAS)


def test_layers_that_each_read_a_part_of_the_features() -> None:
    parts = filled(first=nn.Linear(1, 3), second=nn.Linear(3, 3))
    logits = (parts["first"](POOLED[:, :1]) + parts["second"](POOLED[:, 1:])) / 2
    torch.testing.assert_close(logits, POOLED @ WEIGHT.T + BIAS)


def test_an_added_classifier_adds_nothing() -> None:
    parts = filled(head=nn.Linear(4, 3), aux_head=nn.Linear(4, 3))
    torch.testing.assert_close(parts["head"](POOLED), POOLED @ WEIGHT.T + BIAS)
    assert not parts["aux_head"](POOLED).any()


def test_another_classifier_is_refused_before_training(monkeypatch: pytest.MonkeyPatch) -> None:
    model = build_model("resnet18", 3, image_size=32, width=0.125)
    create = timm.create_model

    def two_layers(*names: Any, **arguments: Any) -> Any:
        network = create(*names, **arguments)
        network.fc = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 3))
        return network

    check_exportable(model)
    monkeypatch.setattr(timm, "create_model", two_layers)
    with pytest.raises(UsageError, match="does not compute its logits by one linear layer"):
        check_exportable(model)
