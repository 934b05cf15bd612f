"""The weights of a classifier under timm's names, for every way in which timm computes logits."""

import multiprocessing
from concurrent.futures import ProcessPoolExecutor
from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn

from adautomix.errors import UsageError
from adautomix.models import build_model, timm_plan
from adautomix.models.timm_weights import (
    _filled,
    check_exportable,
    replace_modules,
    timm_state_dict,
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


def smallest_networks() -> list[str]:
    """The network of every module of timm with the fewest parameters, from its published sizes."""
    smallest: dict[str, tuple[int, str]] = {}
    for name in timm.list_models():
        with torch.device("meta"):
            try:
                network = timm.create_model(name)
            except Exception:  # some build tensors that the meta device has no values for
                continue
        size = sum(parameter.numel() for parameter in network.parameters())
        module = timm.models.model_entrypoint(name).__module__
        smallest[module] = min(smallest.get(module, (size, name)), (size, name))
    return [name for _, name in smallest.values()]


@pytest.mark.slow
def test_every_module_of_timm_is_exact_or_refused() -> None:
    wrong = []
    # In a process of its own, because timm keeps some modules that were made on the meta device.
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        names = pool.submit(smallest_networks).result()
    for name in names:
        cfg = timm.get_pretrained_cfg(name)
        size = cfg.input_size[-1] if cfg and cfg.fixed_input_size else 64
        try:
            model = build_model(name, 5, image_size=size, seed=0, heads=("clean",)).eval()
            check_exportable(model)
        except UsageError:
            continue
        plan = timm_plan(model.spec)
        network = timm.create_model(name, num_classes=5, **plan.arguments)
        replace_modules(network, plan.replacements)
        network.load_state_dict(timm_state_dict(model))
        images = torch.randn(2, 3, size, size, generator=generator_at(0, 0, "images"))
        with torch.no_grad():
            mine, theirs = model(images), network.eval()(images)
        if not torch.allclose(mine, theirs, atol=1e-5 * max(1.0, mine.abs().max().item())):
            wrong.append(name)
    assert wrong == []
