"""Grad-CAM by its formula, the choice of the layer, and how much of the maps is left in mixes."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import torch.nn.functional as F
from conftest import SMALL_NET, Command
from PIL import Image
from targets import KINDS, MEAN, STD, make_target, random_images
from torch import Tensor, nn

from adautomix.errors import UsageError
from adautomix.evaluation.evaluate import evaluate
from adautomix.evaluation.grad_cam import Layout, MappedLayer, find_layer, grad_cam, load_captum
from adautomix.evaluation.load_target import EvalOptions, load_target
from adautomix.evaluation.maps import (
    SUITE,
    MappedNetwork,
    MapsResult,
    MapsSettings,
    SourceMaps,
    largest,
    measure_survival,
    mixed_batches,
    scale_to_one,
    score_sources,
    source_maps,
)
from adautomix.evaluation.mixing import plain_mixer, run_mixer
from adautomix.evaluation.record import Evaluation, read_evaluation
from adautomix.evaluation.registry import SUITES
from adautomix.evaluation.suite import NotApplicableError, ResultCache
from adautomix.evaluation.target import EvalTarget, PixelNetwork
from adautomix.mixing.ops import Mixed
from adautomix.models import build_model
from adautomix.pictures.image_grid import MAX_BYTES
from adautomix.reporting.evaluations import evaluation_sections
from adautomix.reporting.section import Evaluated

CLASSES = len(KINDS)


def pixels_of(count: int, size: int, seed: int = 0) -> Tensor:
    return torch.rand(count, 3, size, size, generator=torch.Generator().manual_seed(seed))


def pixel_network(model: nn.Module, head: str | None = None) -> PixelNetwork:
    return PixelNetwork(model, MEAN, STD, head).eval()


# --- the formula -----------------------------------------------------------------------------


class TwoLayers(nn.Module):
    """Convolution, ReLU, mean over positions, linear; the features lie as the layout says."""

    def __init__(self, layout: Layout, stride: int = 1, seed: int = 0) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.conv = nn.Conv2d(3, 5, 3, stride, padding=1)
            self.head = nn.Linear(5, CLASSES)
        self.layout = layout
        self.features = nn.Identity()

    def forward(self, images: Tensor) -> Tensor:
        grid = self.conv(images).relu()
        if self.layout.kind == "tokens":
            prefix = grid.new_full((len(grid), self.layout.prefix, 5), 7.0)
            features = torch.cat([prefix, grid.flatten(2).transpose(1, 2)], dim=1)
            pooled = self.features(features)[:, self.layout.prefix :].mean(dim=1)
        elif self.layout.kind == "last":
            pooled = self.features(grid.permute(0, 2, 3, 1)).mean(dim=(1, 2))
        else:
            pooled = self.features(grid).mean(dim=(2, 3))
        logits: Tensor = self.head(pooled)
        return logits

    def layer(self, side: int) -> MappedLayer:
        return MappedLayer("features", self.features, self.layout, side)


def by_formula(model: TwoLayers, pixels: Tensor, classes: Tensor) -> Tensor:
    """Return the maps image by image; the gradient of logit k at every position is W_kc / hw."""
    maps = []
    for image, k in zip(pixels, classes.tolist(), strict=True):
        normalized = (image - torch.tensor(MEAN)[:, None, None]) / torch.tensor(STD)[:, None, None]
        grid = model.conv(normalized[None])[0].relu()
        weights = model.head.weight[k] / (grid.shape[1] * grid.shape[2])
        maps.append(sum(w * channel for w, channel in zip(weights, grid, strict=True)).relu())
    return torch.stack(maps).detach()


LAYOUTS = [Layout("first"), Layout("last"), Layout("tokens"), Layout("tokens", 2)]


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_maps_equal_the_formula(layout: Layout) -> None:
    model, pixels, classes = TwoLayers(layout), pixels_of(4, 6), torch.tensor([0, 3, 1, 1])
    found = grad_cam(pixel_network(model), model.layer(6), pixels, classes)
    torch.testing.assert_close(found, by_formula(model, pixels, classes))
    assert (found > 0).any(dim=2).any(dim=1).all()


def test_a_smaller_map_is_enlarged_to_the_image() -> None:
    model, pixels, classes = TwoLayers(Layout("first"), stride=2), pixels_of(3, 8), torch.arange(3)
    found = grad_cam(pixel_network(model), model.layer(4), pixels, classes)
    small = by_formula(model, pixels, classes)
    assert small.shape == (3, 4, 4)
    large = F.interpolate(small[:, None], (8, 8), mode="bilinear", align_corners=False)[:, 0]
    torch.testing.assert_close(found, large)


def test_images_are_independent_and_the_network_is_unchanged() -> None:
    torch.manual_seed(0)
    network = pixel_network(timm.create_model("resnet18", num_classes=CLASSES))
    network.train()  # grad_cam switches to evaluation mode itself
    before = {name: value.clone() for name, value in network.state_dict().items()}
    pixels, classes = pixels_of(3, 32), torch.tensor([2, 0, 1])
    layer = find_layer(network, pixels[:2])
    together = grad_cam(network, layer, pixels, classes)
    alone = [grad_cam(network, layer, pixels[i, None], classes[i, None]) for i in range(3)]
    torch.testing.assert_close(together, torch.cat(alone), rtol=1e-3, atol=1e-5)
    assert together.shape == (3, 32, 32)
    assert network.training
    assert all(w.requires_grad and w.grad is None for w in network.parameters())
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    assert not any(module._forward_hooks for module in network.modules())


def from_gradient(leaf: Tensor, logits: Tensor, classes: Tensor, size: int) -> Tensor:
    """Return the maps for a feature map `[B, C, h, w]` that the logits were computed from."""
    chosen = logits.gather(1, classes[:, None]).sum()
    (gradient,) = torch.autograd.grad(chosen, leaf)
    maps = (gradient.mean(dim=(2, 3), keepdim=True) * leaf).sum(dim=1, keepdim=True).relu()
    large = F.interpolate(maps, (size, size), mode="bilinear", align_corners=False)
    return large[:, 0].detach()


VIT = {"img_size": 32, "patch_size": 8, "depth": 2, "embed_dim": 24, "num_heads": 2}
SWIN = {"img_size": 64, "window_size": 2, "embed_dim": 12, "depths": (1, 1, 1, 1)}
SWIN["num_heads"] = (1, 2, 2, 2)
CONVNEXT = {"depths": (1, 1, 1, 1), "dims": (8, 16, 24, 32)}


def tiny(name: str, **options: Any) -> Any:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return timm.create_model(name, num_classes=CLASSES, **options).eval()


def test_maps_of_a_vision_transformer() -> None:
    """The gradient is taken at the norm before the last attention."""
    model, pixels, classes = tiny("vit_tiny_patch16_224", **VIT), pixels_of(2, 32), torch.arange(2)
    network = pixel_network(model)
    found = grad_cam(network, find_layer(network, pixels), pixels, classes)
    tokens = model._pos_embed(model.patch_embed(network.normalize(pixels)))
    tokens = model.norm_pre(tokens)
    tokens, last = model.blocks[0](tokens), model.blocks[1]
    normed = last.norm1(tokens)
    grid = normed[:, 1:].transpose(1, 2).reshape(2, 24, 4, 4).detach().requires_grad_()
    again = torch.cat([normed[:, :1], grid.flatten(2).transpose(1, 2)], dim=1)
    after = tokens + last.ls1(last.attn(again))
    after = after + last.ls2(last.mlp(last.norm2(after)))
    expected = from_gradient(grid, model.forward_head(model.norm(after)), classes, 32)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-7)
    assert (found > 0).any()


def test_maps_of_a_swin_with_channels_last() -> None:
    name = "swin_tiny_patch4_window7_224"
    model, pixels, classes = tiny(name, **SWIN), pixels_of(2, 64), torch.tensor([3, 1])
    network = pixel_network(model)
    found = grad_cam(network, find_layer(network, pixels), pixels, classes)
    stage = model.layers(model.patch_embed(network.normalize(pixels)))
    grid = stage.permute(0, 3, 1, 2).detach().requires_grad_()
    logits = model.forward_head(model.norm(grid.permute(0, 2, 3, 1)))
    torch.testing.assert_close(found, from_gradient(grid, logits, classes, 64))


# --- the layer -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "options", "size", "path", "layout", "side"),
    [
        ("resnet18", {}, 64, "layer4", Layout("first"), 2),
        ("resnet18", {}, 32, "layer3", Layout("first"), 2),  # the map of layer4 is a single pixel
        ("convnext_tiny", CONVNEXT, 64, "stages.3", Layout("first"), 2),
        ("swin_tiny_patch4_window7_224", SWIN, 64, "layers.3", Layout("last"), 2),
        ("vit_tiny_patch16_224", VIT, 32, "blocks.1.norm1", Layout("tokens", 1), 4),
        (
            "vit_tiny_patch16_224",
            {**VIT, "reg_tokens": 4, "class_token": False, "global_pool": "avg"},
            32,
            "blocks.1.norm1",
            Layout("tokens", 4),
            4,
        ),
        ("mobilenetv3_small_050", {}, 64, "blocks.5", Layout("first"), 2),
    ],
)
def test_the_chosen_layer(
    name: str, options: dict[str, Any], size: int, path: str, layout: Layout, side: int
) -> None:
    network, pixels = pixel_network(tiny(name, **options)), pixels_of(2, size)
    layer = find_layer(network, pixels)
    assert (layer.path, layer.layout, layer.side) == (path, layout, side)
    assert layer.module is network.backbone.get_submodule(path)
    maps = grad_cam(network, layer, pixels, torch.tensor([0, 1]))
    assert maps.shape == (2, size, size)
    assert maps.dtype == torch.float32
    assert (maps >= 0).all()


def test_maps_of_a_run_use_the_requested_head() -> None:
    model = build_model("resnet18", CLASSES, stem="cifar", width=0.125, image_size=16)
    pixels, classes = pixels_of(2, 16), torch.tensor([0, 1])
    maps = {}
    for head in ("clean", "mixed"):
        network = pixel_network(model, head)
        layer = find_layer(network, pixels)
        assert layer.path == "layer4"
        maps[head] = grad_cam(network, layer, pixels, classes)
        features = model.feature_map(network.normalize(pixels), 4).detach().requires_grad_()
        logits = model.logits(features.mean(dim=(2, 3)), head)
        torch.testing.assert_close(maps[head], from_gradient(features, logits, classes, 16))
    assert not torch.equal(maps["clean"], maps["mixed"])


def test_a_layer_named_by_the_user() -> None:
    network, pixels = pixel_network(tiny("resnet18")), pixels_of(2, 64)
    layer = find_layer(network, pixels, "layer2.0")
    assert (layer.path, layer.layout, layer.side) == ("layer2.0", Layout("first"), 8)


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("layer9", r"maps\.layer = 'layer9': no such module; the network has patch_embed, .*head"),
        ("head", r"maps\.layer = 'head': its output is not a feature map"),
        ("blocks.1", r"no logit depends on the map of blocks\.1: .*maps\.layer"),
    ],
)
def test_a_layer_that_cannot_be_mapped(path: str, message: str) -> None:
    """The logits only depend on the class token of the last block's output."""
    network = pixel_network(tiny("vit_tiny_patch16_224", **VIT))
    with pytest.raises(UsageError, match=message) as failure:
        find_layer(network, pixels_of(2, 32), path)
    assert not isinstance(failure.value, NotApplicableError)


class Misnamed(TwoLayers):
    """A model whose description of its only stage in timm is wrong."""

    def __init__(self, stage: str) -> None:
        super().__init__(Layout("first"))
        self.feature_info = [{"module": stage}]

    def forward_intermediates(self, images: Tensor, intermediates_only: bool) -> list[Tensor]:
        return [self.conv(images)]  # without the ReLU that `features` sees


@pytest.mark.parametrize(
    "model", [TwoLayers(Layout("first")), Misnamed("stage"), Misnamed("features")]
)
def test_the_error_names_the_setting_if_no_layer_is_found(model: TwoLayers) -> None:
    network, pixels = pixel_network(model), pixels_of(2, 6)
    with pytest.raises(NotApplicableError, match=r"maps finds no layer of .*maps\.layer"):
        find_layer(network, pixels)
    assert find_layer(network, pixels, "features").side == 6
    if isinstance(model, Misnamed):
        model.feature_info = [{"module": "conv"}]
        assert find_layer(network, pixels).path == "conv"


def test_the_error_without_captum_names_the_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "captum.attr", None)
    with pytest.raises(NotApplicableError, match=r"pip install 'adautomix\[maps\]'"):
        load_captum()


# --- scores ----------------------------------------------------------------------------------

LEFT = torch.tensor([[1.0, 0.0], [1.0, 0.0]])
TOP = torch.tensor([[1.0, 1.0], [0.0, 0.0]])
NOTHING = torch.zeros(2, 2)


def planted(
    classes: list[int], clean: list[Tensor], mixed: list[Tensor], lam: list[float], masks: Any
) -> tuple[SourceMaps, Mixed]:
    """One mix of two sources on 2 × 2 pixels."""
    maps = SourceMaps(torch.tensor([classes]), torch.stack(clean)[None], torch.stack(mixed)[None])
    stacked = None if masks is None else torch.stack(masks)[None]
    images, targets = torch.zeros(1, 3, 2, 2), torch.zeros(1, CLASSES)
    return maps, Mixed(images, targets, torch.tensor([lam]), torch.tensor([[0, 1]]), stacked)


def test_scores_by_hand() -> None:
    """Half of LEFT is in TOP, so the cosine is 1 / (√2 √2). Scales have no effect."""
    masks = [LEFT, 1 - LEFT]
    weak = torch.tensor([[1e-12, 0.0], [0.0, 3e-12]])
    found = score_sources(*planted([0, 1], [1e-9 * LEFT, TOP], [5 * TOP, weak], [0.5, 0.5], masks))
    torch.testing.assert_close(
        found.similarity, torch.tensor([0.5, 1 / (2 * 10) ** 0.5], dtype=torch.float64)
    )
    assert found.inside.tolist() == pytest.approx([0.5, 3 / 4])
    assert found.area.tolist() == [0.5, 0.5]


def test_scores_of_an_empty_map() -> None:
    maps, mixed = planted([0, 1], [LEFT, TOP], [NOTHING, TOP], [0.5, 0.5], [LEFT, 1 - LEFT])
    found = score_sources(maps, mixed)
    assert found.similarity.tolist() == pytest.approx([0, 1])
    assert found.inside.isnan().tolist() == found.area.isnan().tolist() == [True, False]
    without = score_sources(maps, replace(mixed, mask_source=None))
    assert without.similarity.tolist() == pytest.approx([0, 1])
    assert without.inside.isnan().all()


@pytest.mark.parametrize(
    ("classes", "clean", "lam", "count"),
    [
        ([0, 1], [LEFT, TOP], [0.5, 0.5], 2),
        ([1, 1], [LEFT, TOP], [0.5, 0.5], 0),  # the same map for both
        ([0, 1], [LEFT, TOP], [1.0, 0.0], 1),  # one source has weight 0
        ([0, 1], [LEFT, NOTHING], [0.5, 0.5], 1),  # the clean map is empty
    ],
)
def test_which_sources_count(
    classes: list[int], clean: list[Tensor], lam: list[float], count: int
) -> None:
    found = score_sources(*planted(classes, clean, [LEFT, TOP], lam, None))
    assert found.similarity.tolist() == pytest.approx([1.0] * count)


def test_where_a_mask_is_the_largest() -> None:
    masks = torch.tensor([[0.5, 0.2], [0.5, 0.3], [0.0, 0.5]])[None, :, :, None]
    expected = torch.tensor([[False, False], [False, False], [False, True]])
    assert torch.equal(largest(masks)[0, :, :, 0], expected)  # a tie counts for none
    assert largest(torch.zeros(1, 1, 2, 2)).all()
    torch.testing.assert_close(
        scale_to_one(torch.stack([3 * LEFT, NOTHING])), torch.stack([LEFT, NOTHING])
    )


def mapped_network(size: int) -> MappedNetwork:
    model = TwoLayers(Layout("first"), seed=2)
    return MappedNetwork("network", pixel_network(model), model.layer(size))


def test_a_mix_equal_to_its_first_source_keeps_its_map() -> None:
    mapped, pixels, labels = mapped_network(8), pixels_of(2, 8), torch.tensor([2, 0])
    whole = torch.stack([torch.ones(8, 8), torch.zeros(8, 8)])
    perm, lam = torch.tensor([[0, 1], [1, 0]]), torch.tensor([[1.0, 0.0], [1.0, 0.0]])
    mixed = Mixed(pixels, torch.eye(CLASSES)[labels], lam, perm, whole.expand(2, 2, 8, 8))
    maps = source_maps(mapped, pixels, labels, mixed)
    for values in score_sources(maps, mixed):
        assert values.tolist() == pytest.approx([1, 1])
    torch.testing.assert_close(maps.clean[:, 1], mapped.maps(pixels, labels).flip(0))


# --- the suite -------------------------------------------------------------------------------


def convnext_target(folder: Path) -> EvalTarget:
    networks = {"network": pixel_network(tiny("convnext_tiny", **CONVNEXT))}
    return make_target(random_images(40, 64), folder, networks=networks)


def run_suite(target: EvalTarget, **values: Any) -> MapsResult:
    cache = ResultCache(target.folder / "parts.jsonl", "maps/0", target.folder / "pictures")
    found = SUITE.run(target, MapsSettings(**values), cache)
    assert isinstance(found, MapsResult)
    return found


@pytest.mark.slow
def test_other_networks_are_mapped_on_mixup_and_cutmix(tmp_path: Path) -> None:
    target = convnext_target(tmp_path)
    found = run_suite(target, images=16, rows=2)
    network = found.networks["network"]
    assert (network.layer, network.side) == ("stages.3", 2)
    assert list(network.survival) == ["mixup", "cutmix"]
    assert network.survival["mixup"].inside is None
    assert network.survival["cutmix"].inside is not None
    for survival in network.survival.values():
        assert survival.similarity is not None
        assert 0 < survival.similarity <= 1
        assert 0 < survival.sources <= 32
    for file in network.pictures.values():
        path = tmp_path / "pictures" / file
        assert path.stat().st_size < MAX_BYTES
        assert Image.open(path).size == (12 + 4 * 140, 34 + 2 * (12 + 2 * 150))
    assert run_suite(target, images=16, rows=2) == found
    assert run_suite(convnext_target(tmp_path / "again"), images=16, rows=2) == found


def test_the_means_are_over_all_batches_and_sources(tmp_path: Path) -> None:
    """40 images in two batches of 20, computed again source by source."""
    target, settings = make_target(random_images(40, 8), tmp_path), MapsSettings(images=64)
    mapped, mixer = mapped_network(8), plain_mixer("cutmix", target)
    found = measure_survival(mapped, target, settings, mixer)
    similarities, inside, sizes = [], [], []
    for pixels, labels, mixed in mixed_batches(target, settings, mixer):
        sizes.append(len(pixels))
        assert mixed.masks is not None
        for m in range(len(pixels)):
            for n in range(2):
                own, other = (labels[mixed.perm[m, k], None] for k in (n, 1 - n))
                if own == other or mixed.lam[m, n] == 0:
                    continue
                clean = mapped.maps(pixels[mixed.perm[m, n], None], own)[0]
                on_mix = mapped.maps(mixed.images[m, None], own)[0]
                if clean.max() == 0:
                    continue
                scale = (clean.square().sum() * on_mix.square().sum()).sqrt()
                similarities.append(float((clean * on_mix).sum() / scale) if scale > 0 else 0.0)
                if on_mix.sum() > 0:
                    inside.append(float((on_mix * mixed.masks[m, n]).sum() / on_mix.sum()))
    assert sizes == [20, 20]
    assert found["sources"] == len(similarities)
    assert found["similarity"] == pytest.approx(sum(similarities) / len(similarities), rel=1e-3)
    assert found["inside"] == pytest.approx(sum(inside) / len(inside), rel=1e-3)


@pytest.fixture(scope="module")
def trained(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    from adautomix.cli import main

    folder = tmp_path_factory.mktemp("maps")

    def run_of(method: str) -> Path:
        if not (folder / method).exists():
            words = ("train", "--data", photos, "--method", method, "--out", folder / method)
            more = (*SMALL_NET, "--epochs", 1, "--batch-size", 6, "--json")
            main([str(word) for word in (*words, *more)])
        return folder / method

    return run_of


def test_a_run_is_mapped_on_its_own_mixes(
    trained: Callable[[str], Path], command: Command, tmp_path: Path
) -> None:
    run = trained("adautomix")
    words = ("--suites", "maps", "--maps.images", 16, "--maps.rows", 2, "--out", tmp_path)
    outcome = command("evaluate", run, *words)
    assert outcome.status == 0, outcome.err
    assert "How much of the maps is left in a mix" in outcome.out
    record = read_evaluation(tmp_path)
    assert record is not None
    found = record.result("maps")
    assert isinstance(found, MapsResult)
    assert list(found.networks) == ["student", "teacher"]
    for network in found.networks.values():
        assert network.layer == "layer4"
        assert list(network.survival) == ["adautomix"]
    (section,) = evaluation_sections([Evaluated("one", record, tmp_path, 0)])
    assert [row[:2] for row in section.tables[0].rows] == [
        ("one", "student, adautomix"),
        ("one", "teacher, adautomix"),
    ]
    assert [picture.title for picture in section.pictures] == [
        "one, student: maps on adautomix mixes",
        "one, teacher: maps on adautomix mixes",
    ]
    assert section.pictures[0].source.startswith("data:image/webp;base64,")
    assert (tmp_path / "report.html").read_text().count("data:image/webp") == 2


@pytest.mark.slow
def test_a_run_without_mixing_is_mapped_on_plain_mixes(
    trained: Callable[[str], Path], tmp_path: Path
) -> None:
    options = EvalOptions({}, device="cpu", out=tmp_path)
    found = run_suite(load_target(str(trained("vanilla")), options), images=16)
    assert list(found.networks["teacher"].survival) == ["mixup", "cutmix"]
    target = load_target(str(trained("adautomix")), options)
    found = run_suite(target, images=16, mixes="plain")
    assert list(found.networks["teacher"].survival) == ["mixup", "cutmix"]


def test_the_mixes_of_a_run_by_hand(trained: Callable[[str], Path], tmp_path: Path) -> None:
    """Mixed by hand in pixels, with the teacher's features and one λ per mix."""
    target = load_target(str(trained("adautomix")), EvalOptions({}, device="cpu", out=tmp_path))
    mixer = run_mixer(target)
    settings = MapsSettings(images=16)
    pixels, labels, mixed = next(mixed_batches(target, settings, mixer))
    assert len(mixed.lam.unique(dim=0)) == len(mixed.lam) == 16
    normalized = target.networks["teacher"].normalize(pixels)
    method: Any = mixer.method
    with torch.no_grad():
        features = mixer.teacher.feature_map(normalized, method.tap)
        masks = method.generator(features, mixed.perm, mixed.lam, (16, 16))
    middle = (mixed.lam[:, 0] > 0.03) & (mixed.lam[:, 0] <= 0.97)
    assert mixed.masks is not None
    torch.testing.assert_close(mixed.masks[middle], masks[middle])
    by_hand = sum(mixed.masks[:, n, None] * pixels[mixed.perm[:, n]] for n in range(3))
    torch.testing.assert_close(mixed.images, by_hand, rtol=1e-4, atol=1e-5)
    one_hot = torch.eye(3)[labels[mixed.perm]]
    torch.testing.assert_close(mixed.targets, (mixed.lam[:, :, None] * one_hot).sum(dim=1))
    assert not mixed.images.requires_grad


# --- skipped suites --------------------------------------------------------------------------


def test_skipped_suites_are_recorded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in SUITES.keys() - {"accuracy", "maps"}:
        monkeypatch.delitem(SUITES, name)
    target = make_target(
        random_images(8, 6), tmp_path
    )  # linear maps of the pixels: no layer to map
    record = evaluate(target, ["all"], {})
    assert list(record.suites) == ["accuracy"]
    assert "maps.layer" in record.not_applicable["maps"]
    assert read_evaluation(tmp_path) == record
    with pytest.raises(NotApplicableError, match=r"maps\.layer"):
        evaluate(target, ["maps"], {})
    _, section = evaluation_sections([Evaluated("noise", record, tmp_path, 0)])
    assert section.slug == "not-applicable"
    assert section.tables[0].rows == [("noise: maps", record.not_applicable["maps"])]
    older = record.model_dump(mode="json", exclude={"not_applicable"})
    assert Evaluation.model_validate(older).not_applicable == {}
