"""Which layers a part of a network contains, and what freezing does to them."""

from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from adautomix.ema import Teacher
from adautomix.errors import UsageError
from adautomix.models import BACKBONE, Classifier, build_model, part_up_to, set_frozen
from adautomix.models.freezing import stage_names


def network(name: str = "resnet18", **options: Any) -> Classifier:
    return build_model(name, 3, width=0.125, image_size=32, seed=0, options=options)


def test_a_part_of_a_resnet_ends_with_its_stage() -> None:
    model = network()
    part = part_up_to(model, "layer2")
    expected = ("conv1", "bn1", "layer1", "layer2")
    names = {name for name, _ in model.backbone.named_parameters()}
    frozen = {f"backbone.{name}" for name in names if name.startswith(expected)}
    assert part.parameters == frozen
    assert "backbone.layer2.1.bn2" in part.modules
    assert not any(name.startswith("backbone.layer3") for name in part.modules)
    assert "backbone" not in part.modules, "it also contains layers that are trained"
    assert part_up_to(model, "backbone.layer2") == part


def test_a_part_of_a_transformer_contains_its_tokens() -> None:
    model = network("vit_tiny_patch16_224", patch_size=8, depth=4)
    part = part_up_to(model, "blocks.1")
    assert {"backbone.cls_token", "backbone.pos_embed"} <= part.parameters
    assert "backbone.patch_embed.proj.weight" in part.parameters
    assert "backbone.blocks.1.mlp.fc2.bias" in part.parameters
    assert "backbone.norm" not in part.modules
    assert not any(name.startswith("backbone.blocks.2") for name in part.modules)
    assert "backbone.blocks" not in part.modules
    inside = part_up_to(model, "blocks.1.attn").parameters
    assert {"backbone.blocks.1.attn.qkv.weight", "backbone.blocks.1.norm1.weight"} <= inside
    assert "backbone.blocks.1.mlp.fc2.bias" not in inside


def test_the_whole_backbone_leaves_the_heads() -> None:
    model = network()
    left = {name for name, _ in model.named_parameters()} - part_up_to(model, BACKBONE).parameters
    assert left == {f"heads.{head}.{kind}" for head in model.heads for kind in ("weight", "bias")}


def test_an_unknown_stage_is_refused_with_those_that_exist() -> None:
    model = network()
    assert stage_names(model) == ["conv1", "bn1", "layer1", "layer2", "layer3", "layer4"]
    for name in ("layer9", "layer", "heads.clean", ""):
        with pytest.raises(UsageError, match=r"conv1, bn1, .*, layer4, or backbone for all"):
            part_up_to(model, name)
    transformer = network("vit_tiny_patch16_224", patch_size=8, depth=4)
    assert stage_names(transformer) == ["patch_embed", "blocks.0 to blocks.3", "norm"]


def test_frozen_layers_compute_as_in_evaluation_in_student_and_teacher() -> None:
    model = network(drop_path_rate=0.5)
    fixed = model.backbone.layer1[0].conv1.weight.requires_grad_(False)
    teacher = Teacher(model).model
    part = part_up_to(model, "layer2")
    set_frozen(model, teacher, part, frozen=True)
    for name, module in model.named_modules():
        assert module.training is (name not in part.modules)
    for net in (model, teacher):
        for name, module in net.named_modules():
            if isinstance(module, _BatchNorm):
                assert module.training is name.startswith(("backbone.layer3", "backbone.layer4"))
    images = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    nn.init.ones_(model.backbone.layer1[0].bn2.running_var)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    # Student and teacher agree on the frozen layers, whatever the batch is.
    assert torch.equal(model.feature_map(images, 2), teacher.feature_map(images, 2))
    alone, together = model.feature_map(images[:1], 2), model.feature_map(images, 2)[:1]
    assert torch.allclose(alone, together, atol=1e-5)
    model(images).sum().backward()
    for name, value in model.state_dict().items():
        changed = name.startswith(("backbone.layer3", "backbone.layer4")) and (
            "running" in name or "batches" in name
        )
        assert torch.equal(value, before[name]) is not changed, name
    graded = {name for name, parameter in model.named_parameters() if parameter.grad is not None}
    assert not graded & part.parameters
    assert "backbone.layer3.0.conv1.weight" in graded

    set_frozen(model, teacher, part, frozen=False)
    assert all(module.training for module in model.modules())
    assert all(m.training for m in teacher.modules() if isinstance(m, _BatchNorm))
    untrained = [name for name, p in model.named_parameters() if not p.requires_grad]
    assert untrained == ["backbone.layer1.0.conv1.weight"], "it was fixed before"
    assert not fixed.requires_grad
