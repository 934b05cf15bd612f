"""Properties of every method that mixes images, for many settings of each.

`test_every_method.py` has properties of whole trainings.
"""

import contextlib
import copy
import functools
from typing import Any

import pytest
import torch
from contract_cases import CASES
from given import compiled, make, network, rng, same_params, telling_network, toys
from tiny import CLASSES, gradients_of, state_of
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from adautomix.ema import Teacher
from adautomix.errors import UsageError
from adautomix.methods import Method, Mixed, MixParams
from adautomix.methods.adautomix import AdAutoMix
from adautomix.methods.alignmix import AlignMix
from adautomix.methods.attentivecutmix import AttentiveCutMix
from adautomix.methods.gridmix import GridMixSettings
from adautomix.methods.manifoldmix import ManifoldMix
from adautomix.methods.recursivemix import RecursiveMix
from adautomix.methods.resizemix import ResizeMixSettings
from adautomix.methods.saliencygrafting import SaliencyGrafting
from adautomix.methods.snapmix import SnapMix
from adautomix.methods.sumix import SUMix
from adautomix.metrics import mixture_accuracy
from adautomix.mixing.ops import soft_targets
from adautomix.models import build_model

EACH = [name for name in CASES if "-each" in name]
SHARED = [name for name in CASES if name not in EACH]
# These move pixels, so a mix is not a weighted sum of its sources pixel by pixel.
MOVES_PIXELS = {"resizemix", "resizemix-each", "snapmix", "snapmix-each", "puzzlemix"}
# Labels follow what is left of the content, not the fraction of pixels.
LABELED_BY_CONTENT = {"snapmix", "snapmix-each", "saliencygrafting"}
COUNT = 7


@functools.cache
def networks() -> tuple[Any, Any]:
    """A student and its teacher, shared by tests that do not train them."""
    student = telling_network()
    return student, Teacher(student).model


class Case:
    """A method with networks and a batch."""

    def __init__(self, name: str) -> None:
        cls, settings = CASES[name]
        self.name = name
        self.student, self.teacher = networks()
        self.method: Any = make(cls, self.student, **settings)
        self.images, self.targets = toys(COUNT)

    def make_params(self, seed: int = 0) -> MixParams:
        drawn: MixParams = self.method.make_params(self.images.shape, rng(seed), 0)
        return drawn

    def extract_features(self, params: MixParams) -> dict[str, Tensor]:
        arguments = self.images, self.targets, self.student, self.teacher, params
        features: dict[str, Tensor] = self.method.extract_features(*arguments)
        return features

    def mix(self, params: MixParams, images: Tensor | None = None) -> Mixed:
        """Mix the given images with features of the case's own images."""
        images = self.images if images is None else images
        mixed: Mixed = self.method.mix(
            images, self.targets, params, **self.extract_features(params)
        )
        return mixed

    def losses(self, labels: Tensor, step: int = 0) -> dict[str, Tensor]:
        losses: dict[str, Tensor] = self.method.losses(
            self.images, labels, self.student, self.teacher, step
        )
        return losses


def training(name: str, smoothing: float = 0.0) -> Case:
    """A case with networks of its own that can be trained."""
    case = Case(name)
    case.student, case.teacher = copy.deepcopy(networks())
    case.method.label_smoothing = smoothing
    return case


@pytest.fixture
def case(request: pytest.FixtureRequest) -> Case:
    return Case(request.param)


def cases(names: Any = CASES) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("case", names, indirect=True)


def all_but(*left_out: str) -> list[str]:
    return [name for name in CASES if name.partition(":")[0].partition("-")[0] not in left_out]


# ---------------------------------------------------------------------- mixes and labels


@cases(all_but("cutout", "vanilla"))
def test_mixes_are_what_masks_and_lam_say(case: Case) -> None:
    """Images and labels summed up one source at a time."""
    images = case.images
    if case.name in MOVES_PIXELS:
        images = images.mean(dim=(2, 3), keepdim=True).expand_as(images).contiguous()
    for seed in range(3):
        mixed = case.mix(case.make_params(seed), images)
        sources = mixed.perm.shape[1]
        masks = mixed.lam[:, :, None, None].expand(-1, -1, 16, 16)
        masks = masks if mixed.masks is None else mixed.masks
        assert masks.shape == (COUNT, sources, 16, 16)
        torch.testing.assert_close(masks.sum(dim=1), torch.ones(COUNT, 16, 16))
        if "snapmix" not in case.name:
            torch.testing.assert_close(mixed.lam.sum(dim=1), torch.ones(COUNT))
        for b in range(COUNT):
            picture, label = torch.zeros(3, 16, 16, dtype=torch.float64), torch.zeros(CLASSES)
            for n, source in enumerate(mixed.perm[b].tolist()):
                picture += masks[b, n].double() * images[source]
                label += mixed.lam[b, n] * case.targets[source]
            torch.testing.assert_close(mixed.images[b].double(), picture, atol=1e-5, rtol=0)
            torch.testing.assert_close(mixed.targets[b], label, atol=1e-6, rtol=0)
            assert case.name == "comixup" or mixed.perm[b, 0] == b


@cases([name for name in all_but("cutout", "vanilla") if name not in LABELED_BY_CONTENT])
def test_labels_match_the_pixels(case: Case) -> None:
    """Each image is one shade of gray: the mean of a mix is the mean of the grays by its label."""
    grays = torch.rand(COUNT, generator=rng(8))
    images = grays[:, None, None, None].expand(COUNT, 3, 16, 16).contiguous()
    pixel = 1 / 256 if "fmix" in case.name else 1e-5
    for seed in range(6):
        mixed = case.mix(case.make_params(seed), images)
        recounted = mixed.images.mean(dim=(1, 2, 3))
        labeled = (mixed.lam * grays[mixed.perm]).sum(dim=1)
        torch.testing.assert_close(recounted, labeled, atol=pixel, rtol=0)


@cases(all_but("cutout", "vanilla", "snapmix"))
def test_an_image_mixed_with_itself_is_itself(case: Case) -> None:
    case.images, case.targets = case.images[:1], case.targets[:1]
    if case.name in MOVES_PIXELS:
        case.images = torch.full_like(case.images, 0.3)
    mixed = case.mix(case.make_params())
    torch.testing.assert_close(mixed.images, case.images)
    torch.testing.assert_close(mixed.targets, case.targets)


@cases([*EACH, "saliencygrafting", "guidedmixup", "puzzlemix", "comixup"])
def test_labels_belong_to_their_mix(case: Case) -> None:
    """Shuffling the labels within the batch changes the loss."""
    mixed = case.mix(case.make_params(3))
    assert len(mixed.lam.unique(dim=0)) > 3
    logits = torch.randn(COUNT, CLASSES, generator=rng(6))
    shuffled = mixed.targets.roll(1, dims=0)
    losses = (case.method.cross_entropy(logits, labels) for labels in (mixed.targets, shuffled))
    assert next(losses).item() != pytest.approx(next(losses).item(), abs=1e-4)


# ---------------------------------------------------------------------- random parameters


@cases()
def test_rows_of_the_parameters_give_rows_of_the_mix(case: Case) -> None:
    """Fewer mixes than images, also an odd number, are the same mixes as in the whole batch."""
    for seed in range(2):
        params = case.make_params(seed)
        whole = case.mix(params)
        for some in (slice(1, 4), slice(2, 3), slice(0, COUNT)):
            part = case.mix(params.rows(some))
            torch.testing.assert_close(part.images, whole.images[some], rtol=0, atol=1e-6)
            torch.testing.assert_close(part.targets, whole.targets[some], rtol=0, atol=1e-6)
            torch.testing.assert_close(part.lam, whole.lam[some], rtol=0, atol=1e-6)
            assert torch.equal(part.perm, whole.perm[some])


@cases(all_but("comixup"))
def test_mixes_may_come_in_any_order(case: Case) -> None:
    """With fewer mixes than images, column 0 of `perm` says which image is the first source."""
    params = case.make_params()
    whole, order = case.mix(params), torch.tensor([3, 0, 6])
    mixed = case.mix(params.select(order))
    torch.testing.assert_close(mixed.images, whole.images[order], rtol=0, atol=1e-6)
    torch.testing.assert_close(mixed.targets, whole.targets[order], rtol=0, atol=1e-6)


@cases()
def test_parameters_depend_on_the_generator_alone(case: Case) -> None:
    one = case.make_params(4)
    torch.rand(7)  # another user of the global generator
    before = torch.get_rng_state()
    other, third = case.make_params(4), case.make_params(5)
    assert torch.equal(before, torch.get_rng_state())
    assert same_params(one, other)
    assert same_params(one, third) == (case.name == "vanilla")
    tensors = [value for value in vars(one).values() if isinstance(value, Tensor)]
    assert all(len(value) == COUNT and value.is_contiguous() for value in tensors)


@cases(["cutmix", "mixup", "manifoldmix", "alignmix", "saliencymix", "attentivecutmix: beta"])
def test_shared_parameters_are_the_same_for_all_mixes(case: Case) -> None:
    params = vars(case.make_params())
    shared = [params[name] for name in ("lam", "box", "count") if name in params]
    assert shared
    assert all(len(value.unique(dim=0)) == 1 for value in shared)


# ----------------------------------------------------------------- dtypes, layouts and side effects


@cases()
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision(case: Case, dtype: torch.dtype) -> None:
    params = case.make_params(3)
    images = case.images.to(dtype)
    half, full = case.mix(params, images), case.mix(params, images.float())
    assert half.images.dtype == dtype
    assert half.targets.dtype == torch.float32
    torch.testing.assert_close(half.images.float(), full.images, atol=0.03, rtol=0.01)
    torch.testing.assert_close(half.targets, full.targets)


@cases()
def test_inputs_are_not_changed_and_the_memory_format_is_kept(case: Case) -> None:
    params = case.make_params(3)
    plain = case.mix(params)
    assert plain.images.is_contiguous()
    last = case.images.to(memory_format=torch.channels_last)
    kept = last.clone(), case.targets.clone()
    for some in (params.rows(slice(1, 4)), params):
        mixed = case.mix(some, last)
        assert mixed.images.is_contiguous(memory_format=torch.channels_last)
        expected = plain.images if some is params else plain.images[1:4]
        torch.testing.assert_close(mixed.images, expected)
        mixed.images.mul_(2)
        mixed.targets.mul_(2)
        assert torch.equal(last, kept[0])
        assert torch.equal(case.targets, kept[1])


EXTRACTING = ["attentivecutmix", "snapmix", "guidedmixup: gradient", "puzzlemix", "comixup"]


@pytest.mark.parametrize("name", [*EXTRACTING, "saliencygrafting"])
def test_extracting_features_changes_nothing(name: str) -> None:
    case = training(name)
    for model in (case.student, case.teacher):
        model.train()
    kept = [state_of(model) for model in (case.student, case.teacher)]
    with torch.no_grad():
        features = case.extract_features(case.make_params())
    assert features
    assert all(len(value) == COUNT and not value.requires_grad for value in features.values())
    for model, before in zip((case.student, case.teacher), kept, strict=True):
        assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
        assert all(gradient is None for gradient in gradients_of(model).values())
        assert all(module.training for module in model.modules())


# Unrolling the solvers of the other two would take minutes.
@pytest.mark.slow
@cases([name for name in all_but("comixup", "puzzlemix") if name not in EACH])
def test_a_mix_is_one_graph(case: Case) -> None:
    with compiled(case.method.mix) as graph:
        for seed in range(2):
            params = case.make_params(seed)
            features = case.extract_features(params)
            ours = graph(case.images, case.targets, params, **features)
            plain = case.method.mix(case.images, case.targets, params, **features)
            torch.testing.assert_close(ours.images, plain.images, atol=1e-5, rtol=1e-4)
            torch.testing.assert_close(ours.targets, plain.targets, atol=1e-5, rtol=1e-4)


@cases(["puzzlemix", "comixup"])
def test_solvers_in_mixed_precision_are_the_same(case: Case) -> None:
    params = case.make_params()
    features = case.extract_features(params)
    full = case.method.mix(case.images, case.targets, params, **features)
    with torch.autocast("cpu", torch.bfloat16):
        half = case.method.mix(case.images, case.targets, params, **features)
    assert torch.equal(half.lam, full.lam)
    assert torch.equal(half.images, full.images)


# ---------------------------------------------------------------------- losses


@pytest.mark.parametrize("name", SHARED)
def test_training_loss(name: str) -> None:
    """The loss is finite, trains the student but not the teacher, and accepts class indices."""
    hard, soft = training(name, smoothing=0.1), training(name, smoothing=0.1)
    labels = torch.arange(COUNT) % CLASSES
    losses, others = hard.losses(labels), soft.losses(soft_targets(labels, CLASSES))
    assert losses["loss"].item() == pytest.approx(others["loss"].item(), rel=1e-5)
    losses["loss"].backward()
    for key, gradient in gradients_of(hard.student).items():
        assert (gradient is None) == key.startswith("heads.mixed"), key
        assert gradient is None or torch.isfinite(gradient).all()
    assert all(gradient is None for gradient in gradients_of(hard.teacher).values())
    assert 0 <= losses["mixture_accuracy"].item() <= 1


NOT_THE_MIX_ALONE = ("manifoldmix", "alignmix", "sumix", "comixup", "regmixup", "catchupmix")


@pytest.mark.parametrize("name", all_but(*NOT_THE_MIX_ALONE))
def test_the_loss_is_that_of_the_mix(name: str) -> None:
    case = training(name, smoothing=0.1)
    case.student.eval()
    losses = case.losses(case.targets, step=2)
    params = case.method.params_for_step(case.images.shape, 2)
    mixed = case.mix(params)
    log_p = case.student(mixed.images).log_softmax(dim=1)
    expected = -((0.9 * mixed.targets + 0.1 / CLASSES) * log_p).sum(dim=1).mean()
    assert losses["loss"].item() == pytest.approx(expected.item(), rel=1e-4)
    assert losses["mixture_accuracy"].item() == mixture_accuracy(log_p, mixed.targets).item()


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_nothing_reads_a_tensor_on_the_host(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run on the meta device, which has no values, so that reading one fails."""
    # Autocast does not support the meta device; it is only ever disabled here.
    monkeypatch.setattr(torch, "autocast", lambda *_, **__: contextlib.nullcontext())
    case, meta = training(name), torch.device("meta")
    params = case.make_params().to(meta)
    networks = case.student.to(meta), case.teacher.to(meta)
    method = case.method.to(meta)
    sources = method.prepare(case.images.to(meta), case.targets.to(meta), *networks, params)
    loss = method.compute_loss(sources, *networks, params)["loss"]
    loss.backward()
    assert loss.device == meta
    with pytest.raises(RuntimeError):
        loss.item()


@functools.cache
def operations(name: str) -> int:
    """Multiplications and additions of one step, forward and backward."""
    case = training(name)
    with FlopCounterMode(display=False) as counter:
        case.losses(case.targets)["loss"].backward()
    return int(counter.get_total_flops())


COST_OF_SETTINGS = {"guidedmixup: gradient": 5.0}  # where it differs from the default settings


@pytest.mark.parametrize("name", SHARED)
def test_a_step_has_the_stated_cost(name: str) -> None:
    """In forward passes of the network, of which plain training takes three."""
    cost = COST_OF_SETTINGS.get(name, CASES[name][0].cost)
    assert 3 * operations(name) / operations("vanilla") == pytest.approx(cost, abs=0.3)


# ---------------------------------------------------------------------- errors


def test_settings_out_of_order_are_refused() -> None:
    with pytest.raises(UsageError, match=r"gridmix.holes_min = 9 is above holes_max = 6"):
        GridMixSettings(holes_min=9)
    with pytest.raises(UsageError, match=r"resizemix.scale_min = 0.9 is above scale_max = 0.8"):
        ResizeMixSettings(scale_min=0.9)


@pytest.mark.parametrize("cls", [ManifoldMix, RecursiveMix, AlignMix, SaliencyGrafting, SUMix])
def test_methods_that_look_inside_need_build_model(cls: type[Method]) -> None:
    for model in (None, torch.nn.Linear(2, 2)):
        with pytest.raises(UsageError, match=rf"{cls.name} looks inside the network: pass model="):
            make(cls, model)


def test_impossible_settings_are_refused_in_one_line() -> None:
    with pytest.raises(UsageError, match=r"manifoldmix.deepest = 5: resnet18 has 4 stages"):
        make(ManifoldMix, network(), deepest=5)
    with pytest.raises(UsageError, match=r"patches = 50: a grid of 7 has 49 cells"):
        make(AttentiveCutMix, network(), patches=50)
    for cls in (AttentiveCutMix, SnapMix):
        with pytest.raises(UsageError, match=f"{cls.name} looks at a feature map"):
            make(cls, torch.nn.Linear(2, 2))
    with pytest.raises(UsageError, match=f"sumix.mix = {AdAutoMix.name}: it takes more"):
        SUMix.Settings(mix="adautomix")
    with pytest.raises(UsageError, match="unknown method 'cutmx'"):
        SUMix.Settings(mix="cutmx")
    with pytest.raises(UsageError, match=r"sumix\.options\.alpha = -1"):
        SUMix.Settings(options={"alpha": -1})
    with pytest.raises(UsageError, match="320 channels and its head sees 1280"):
        make(SnapMix, build_model("efficientnet_b0", CLASSES, image_size=32, seed=0))
