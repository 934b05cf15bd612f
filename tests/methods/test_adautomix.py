"""AdAutoMix: masks, all terms of both losses, where their gradients flow, and what is learned."""

import copy
from typing import Any

import pytest
import torch
from tiny import CLASSES, gradients_of, state_of, tiny_classifier, toy_images, trained_networks
from torch import Tensor, nn

from adautomix.config.sweeps import read_sweep
from adautomix.ema import Teacher
from adautomix.errors import UsageError
from adautomix.methods.adautomix import AdAutoMix, AdAutoMixParams, AdAutoMixSettings
from adautomix.methods.base import MixInputs
from adautomix.methods.base_learned import use_lam_near_edge
from adautomix.mixing.generator import MixGenerator, normalize
from adautomix.mixing.ops import mix_by_lam, soft_targets
from adautomix.mixing.params import draw_permutations, draw_simplex
from adautomix.models import build_model

ALPHA, BETA = 0.2, 0.3
CLASSIFIER_TERMS = ("clean_term", "mixup_term", "mixed_term")
GENERATOR_TERMS = ("teacher_term", "student_term", "cosine_term")

# Weight of each term of the generator's loss, from the formulas of the module's docstring.
GENERATOR_CASES: dict[str, tuple[dict[str, Any], bool, dict[str, float]]] = {
    "paper, even step": (
        {"variant": "paper"},
        True,
        {"student": -1, "teacher": BETA, "cosine": -(1 - BETA)},
    ),
    "paper, odd step": (
        {"variant": "paper"},
        False,
        {"student": -1, "teacher": BETA, "cosine": -(1 - BETA)},
    ),
    "alternating, adversarial": (
        {"variant": "alternating"},
        True,
        {"teacher": -BETA, "cosine": 1 - BETA},
    ),
    "alternating, cooperative": ({"variant": "alternating"}, False, {"teacher": 1}),
    "no adversary": ({"adversary": False}, True, {"teacher": 1}),
    "no adversary, paper": ({"adversary": False, "variant": "paper"}, False, {"teacher": 1}),
}


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def make(student: Any = None, **settings: Any) -> AdAutoMix:
    """The method with a generator whose masks are far from uniform."""
    settings = {"alpha": ALPHA, "beta": BETA, **settings}
    method = AdAutoMix(
        AdAutoMixSettings(**settings), num_classes=CLASSES, model=student or tiny_classifier()
    )
    for conv in (method.generator.query, method.generator.key, method.generator.value):
        nn.init.normal_(conv.weight, generator=rng(9))
    return method


class World:
    """A student, a teacher that differs from it, and a batch."""

    def __init__(self, images: int = 12, **settings: Any) -> None:
        self.student = tiny_classifier(seed=0)
        self.teacher: Any = Teacher(tiny_classifier(seed=1)).model
        self.method = make(self.student, **settings)
        self.images, self.labels = toy_images(images)
        self.targets = soft_targets(self.labels, CLASSES)

    def make_params(self, *, adversarial: bool = True) -> AdAutoMixParams:
        return self.method.make_params(self.images.shape, rng(4), step=0 if adversarial else 1)

    def compute_loss(self, *, adversarial: bool = True) -> dict[str, Tensor]:
        params = self.make_params(adversarial=adversarial)
        return self.method.compute_loss(self.sources(params), self.student, self.teacher, params)

    def sources(self, params: AdAutoMixParams) -> MixInputs:
        return self.method.prepare(self.images, self.targets, self.student, self.teacher, params)

    def features(self) -> Tensor:
        with torch.no_grad():
            tap = self.teacher.features(self.images, 1).tap
        assert isinstance(tap, Tensor)
        return tap


# ---------------------------------------------------------------------- random parameters


def test_classifier_and_generator_mixes_are_drawn_separately() -> None:
    params = World(n=3).make_params()
    assert not torch.equal(params.classifier_perm, params.generator_perm)
    assert not torch.equal(params.classifier_lam, params.generator_lam)


def test_adversarial_and_cooperative_steps_alternate() -> None:
    world = World()
    turns = [world.method.params_for_step(world.images.shape, step) for step in range(4)]
    adversarial = [params.adversarial for params in turns if isinstance(params, AdAutoMixParams)]
    assert adversarial == [True, False] * 2


# ---------------------------------------------------------------------- masks


def masks_of(generator: MixGenerator, perm: Tensor, lam: Tensor) -> Tensor:
    features = torch.randn(12, 8, 4, 4, generator=rng(1))
    masks: Tensor = generator(features, perm, lam, (8, 8))
    return masks


@pytest.mark.parametrize("n", [2, 3, 4])
@pytest.mark.parametrize("lam_embedding", [False, True])
@pytest.mark.parametrize("upsampling", ["bilinear", "nearest"])
def test_masks_sum_to_one_and_follow_their_sources(
    n: int, lam_embedding: bool, upsampling: str
) -> None:
    generator = make(n=n, lam_embedding=lam_embedding, upsampling=upsampling).generator
    perm = draw_permutations(12, n, rng(2))
    lam = draw_simplex(12, n, 1.0, rng(3), per_sample=True)
    masks = masks_of(generator, perm, lam)
    torch.testing.assert_close(masks.sum(dim=1), torch.ones(12, 8, 8))
    assert masks.std() > 0.05
    order = torch.arange(n).roll(1)
    permuted = masks_of(generator, perm[:, order], lam[:, order])
    torch.testing.assert_close(permuted, masks[:, order], atol=1e-5, rtol=1e-5)


def test_masks_depend_on_lam_only_with_the_embedding() -> None:
    perm = draw_permutations(12, 3, rng(2))
    one, other = (draw_simplex(12, 3, 1.0, rng(seed)) for seed in (3, 4))
    blind, seeing = (make(lam_embedding=embedded).generator for embedded in (False, True))
    assert torch.equal(masks_of(blind, perm, one), masks_of(blind, perm, other))
    assert not torch.equal(masks_of(seeing, perm, one), masks_of(seeing, perm, other))


def test_mix_sample_by_sample() -> None:
    world = World(per_sample=True)
    params = world.make_params()
    mix = params.generator
    with torch.no_grad():
        mixed = world.method.generator_mix(world.images, world.targets, params, world.features())
    assert mixed.masks is not None
    for b, rows in enumerate(mix.perm.tolist()):
        shares = mix.lam[b].double()
        weights = mixed.masks[b].double()
        image = sum(weights[n] * world.images[row].double() for n, row in enumerate(rows))
        label = sum(shares[n] * world.targets[row].double() for n, row in enumerate(rows))
        torch.testing.assert_close(mixed.images[b].double(), image, atol=1e-5, rtol=0)
        torch.testing.assert_close(mixed.targets[b].double(), label, atol=1e-6, rtol=0)
    torch.testing.assert_close(mixed.targets.sum(dim=1), torch.ones(12))


# ---------------------------------------------------------------------- margin of λ


def test_near_edge_mixes_are_plain_mixup() -> None:
    """One row each for λ_1 just inside and outside 0.03 of both ends; others do not count."""
    world = World(images=6, lam_margin=0.03)
    first = torch.tensor([0.029, 0.031, 0.969, 0.971, 0.5, 0.5])
    second = torch.tensor([0.5, 0.5, 0.01, 0.01, 0.49, 0.01])
    lam = torch.stack([first, second, 1 - first - second], dim=1)
    perm = draw_permutations(6, 3, rng(1))
    params = AdAutoMixParams(perm, lam, perm, lam, adversarial=True)
    mixed = world.method.mix(world.images, world.targets, params, features=world.features())
    plain = mix_by_lam(world.images, world.targets, perm, lam)
    equal = (mixed.images == plain.images).flatten(1).all(dim=1)
    assert equal.tolist() == [True, False, False, True, False, False]
    assert torch.equal(mixed.targets, plain.targets)


def test_fraction_of_mixes_near_an_edge() -> None:
    """For N = 3, a = 1 and r = m / (1 - m): P(λ_1 ≤ m) = r and P(λ_1 > 1 - m) = r²/6."""
    lam = draw_simplex(200_000, 3, 1.0, rng(), per_sample=True)
    marked = torch.full((200_000, 3, 1, 1), -1.0)
    replaced = use_lam_near_edge(marked, lam, 0.03) != -1
    ratio = 0.03 / 0.97
    expected = ratio + ratio**2 / 6
    assert replaced.float().mean().item() == pytest.approx(expected, abs=0.0015)


@pytest.mark.parametrize(
    ("n", "replaced"),
    [(3, [True, True, True, False, True]), (2, [True, False, False, True, False])],
)
def test_the_inverted_margin_of_openmixup(n: int, replaced: list[bool]) -> None:
    """For N = 3 masks remain only where λ_1 > 0.97; with two images the slip is not there."""
    world = World(images=5, n=n, lam_margin=0.03, lam_margin_bug=True)
    first = torch.tensor([0.029, 0.031, 0.969, 0.971, 0.5])
    rest = [(1 - first) / (n - 1)] * (n - 1)
    lam = torch.stack([first, *rest], dim=1)
    perm = torch.stack([torch.arange(5).roll(shift) for shift in range(n)], dim=1)
    params = AdAutoMixParams(perm, lam, perm, lam, adversarial=True)
    mixed = world.method.mix(world.images, world.targets, params, features=world.features())
    plain = mix_by_lam(world.images, world.targets, perm, lam)
    equal = (mixed.images == plain.images).flatten(1).all(dim=1)
    assert equal.tolist() == replaced


def test_the_inverted_margin_hides_almost_all_mixes() -> None:
    lam = draw_simplex(20_000, 3, 1.0, rng(), per_sample=True)
    marked = torch.full((20_000, 3, 1, 1), -1.0)
    hidden = use_lam_near_edge(marked, lam, 0.03, inverted=True) != -1
    assert hidden.float().mean() > 0.999


def test_a_sweep_compares_the_margin_and_its_slip() -> None:
    variants = read_sweep("methods/margin-bug")
    margin, slip = (variants[name] for name in ("margin", "margin-bug"))
    assert slip["adautomix"] == {"lam_margin_bug": True}
    assert margin | {"label": "margin-bug", "adautomix": slip["adautomix"]} == slip


def test_generators_own_mixes_have_no_margin() -> None:
    world = World(lam_margin=0.499)
    params = world.make_params()
    mixed = world.method.generator_mix(world.images, world.targets, params, world.features())
    plain = mix_by_lam(world.images, world.targets, *params.generator)
    assert (mixed.images - plain.images).abs().max() > 0.1


# ---------------------------------------------------------------------- both losses, by hand


def cross_entropy(logits: Tensor, targets: Tensor) -> float:
    return -(targets.double() * logits.double().log_softmax(dim=1)).sum(dim=1).mean().item()


def masked(images: Tensor, masks: Tensor, perm: Tensor) -> Tensor:
    return torch.einsum("bnhw,bnchw->bchw", masks, images[perm])


def mixed_labels(targets: Tensor, perm: Tensor, lam: Tensor) -> Tensor:
    return (lam[:, :, None] * targets[perm]).sum(dim=1)


def cosine_by_hand(mix: Tensor, sources: Tensor, perm: Tensor, lam: Tensor) -> float:
    total = 0.0
    for b in range(len(perm)):
        for n in range(perm.shape[1]):
            one, other = mix[b].double(), sources[perm[b, n]].double()
            total += float(lam[b, n] * (one @ other) / (one.norm() * other.norm()))
    return total / len(perm)


@torch.no_grad()
def parts_by_hand(world: World, params: AdAutoMixParams) -> dict[str, float]:
    """All six terms of both losses, computed from the networks alone."""
    student, teacher = copy.deepcopy(world.student), copy.deepcopy(world.teacher)
    images, targets, generator = world.images, world.targets, world.method.generator
    features = world.features()
    (perm, lam), (perm_g, lam_g) = params.classifier, params.generator
    label, label_g = mixed_labels(targets, perm, lam), mixed_labels(targets, perm_g, lam_g)
    linear = (lam[:, :, None, None, None] * images[perm]).sum(dim=1)
    mix = masked(images, generator(features, perm, lam, (16, 16)), perm)
    mix_g = masked(images, generator(features, perm_g, lam_g, (16, 16)), perm_g)
    generator_logits = teacher(mix_g, head="mixed")
    sources = teacher(images, head="mixed")
    return {
        "clean": cross_entropy(student(images), targets),
        "mixup": cross_entropy(student(linear, head="mixed"), label),
        "mixed": cross_entropy(student(mix, head="mixed"), label),
        "teacher": cross_entropy(generator_logits, label_g),
        "student": cross_entropy(student(mix_g, head="mixed"), label_g),
        "cosine": cosine_by_hand(generator_logits, sources, perm_g, lam_g),
    }


def weights_by_hand(generator: dict[str, float], alpha: float = ALPHA) -> dict[str, float]:
    return {"clean": 1 - alpha, "mixup": alpha, "mixed": 1, **generator}


def weigh(parts: dict[str, float], weights: dict[str, float]) -> float:
    return sum(weight * parts[name] for name, weight in weights.items())


@pytest.mark.parametrize("case", GENERATOR_CASES)
@pytest.mark.parametrize("n", [2, 3])
def test_loss_is_the_weighted_sum_of_its_parts(case: str, n: int) -> None:
    settings, adversarial, generator = GENERATOR_CASES[case]
    world = World(n=n, lam_margin=0, lam_embedding=True, **settings)
    expected = parts_by_hand(world, world.make_params(adversarial=adversarial))
    losses = world.compute_loss(adversarial=adversarial)
    loss = weigh(expected, weights_by_hand(generator))
    assert losses["loss"].item() == pytest.approx(loss, abs=1e-5)
    for name in ("clean", "mixup", "mixed"):
        assert losses[name].item() == pytest.approx(expected[name], abs=1e-5)
    for name in generator:
        assert losses[f"generator_{name}"].item() == pytest.approx(expected[name], abs=1e-5)
    assert not any(value.requires_grad for name, value in losses.items() if name != "loss")


@pytest.mark.parametrize("case", GENERATOR_CASES)
@pytest.mark.parametrize("term", CLASSIFIER_TERMS + GENERATOR_TERMS)
def test_a_switch_removes_its_term_only(case: str, term: str) -> None:
    settings, adversarial, generator = GENERATOR_CASES[case]
    world = World(lam_margin=0, **settings)
    part = term.removesuffix("_term")
    expected = weights_by_hand(generator)
    parts = parts_by_hand(world, world.make_params(adversarial=adversarial))
    without = World(lam_margin=0, **settings, **{term: False}).compute_loss(adversarial=adversarial)
    loss = weigh(parts, {name: w for name, w in expected.items() if name != part})
    assert without["loss"].item() == pytest.approx(loss, abs=1e-5)
    if term in CLASSIFIER_TERMS:
        assert part not in without


@pytest.mark.parametrize(("alpha", "missing"), [(0.0, "mixup"), (1.0, "clean")])
def test_edges_of_alpha(alpha: float, missing: str) -> None:
    world = World(alpha=alpha, lam_margin=0, adversary=False)
    parts = parts_by_hand(world, world.make_params())
    losses = world.compute_loss()
    assert missing not in losses
    loss = weigh(parts, weights_by_hand({"teacher": 1}, alpha))
    assert losses["loss"].item() == pytest.approx(loss, abs=1e-5)


@pytest.mark.parametrize(("beta", "missing"), [(0.0, "teacher"), (1.0, "cosine")])
def test_edges_of_beta(beta: float, missing: str) -> None:
    world = World(beta=beta, lam_margin=0, variant="paper")
    parts = parts_by_hand(world, world.make_params())
    generator = {"student": -1, "teacher": beta, "cosine": -(1 - beta)}
    assert generator.pop(missing) == 0
    assert world.compute_loss()["loss"].item() == pytest.approx(
        weigh(parts, weights_by_hand(generator)), abs=1e-5
    )


@pytest.mark.parametrize(
    ("settings", "head"),
    [({}, "clean"), ({"clean_term": False}, "mixed"), ({"alpha": 1.0}, "mixed")],
)
def test_the_evaluated_head_is_trained(settings: dict[str, Any], head: str) -> None:
    world = World(**settings)
    assert world.method.eval_head == head
    world.compute_loss()["loss"].backward()
    assert world.student.heads[head].weight.grad is not None


def test_soft_labels_give_the_loss_of_hard_ones() -> None:
    world = World()
    common = (world.student, world.teacher, 5)
    hard = world.method.losses(world.images, world.labels, *common)
    soft = world.method.losses(world.images, world.targets, *common)
    assert torch.equal(hard["loss"], soft["loss"])


def test_label_smoothing_reaches_every_cross_entropy() -> None:
    world = World(variant="paper", lam_margin=0, clean_term=False)
    plain = world.compute_loss()
    world.method.label_smoothing = 0.4
    smooth = world.compute_loss()
    for name in ("mixup", "mixed", "generator_teacher", "generator_student"):
        assert smooth[name] != plain[name]
    assert torch.equal(smooth["generator_cosine"], plain["generator_cosine"])


# ---------------------------------------------------------------------- gradients


def backward(world: World, *, adversarial: bool) -> tuple[Any, Any]:
    """Gradients of the student and of the generator."""
    world.compute_loss(adversarial=adversarial)["loss"].backward()
    assert all(p.grad is None for p in world.teacher.parameters())
    return gradients_of(world.student), gradients_of(world.method)


NO_GENERATOR_LOSS = dict.fromkeys(GENERATOR_TERMS, False)
NO_CLASSIFIER_LOSS = dict.fromkeys(CLASSIFIER_TERMS, False)


@pytest.mark.parametrize("case", GENERATOR_CASES)
def test_generator_loss_gives_the_student_no_gradient(case: str) -> None:
    settings, adversarial, _ = GENERATOR_CASES[case]
    both, _ = backward(World(**settings), adversarial=adversarial)
    alone, generator = backward(World(**settings, **NO_GENERATOR_LOSS), adversarial=adversarial)
    assert all(gradient is None for gradient in generator.values())
    for name, gradient in both.items():
        assert gradient.abs().max() > 0, name
        assert torch.equal(gradient, alone[name]), name


@pytest.mark.parametrize("case", GENERATOR_CASES)
def test_classifier_loss_gives_the_generator_no_gradient(case: str) -> None:
    settings, adversarial, _ = GENERATOR_CASES[case]
    _, both = backward(World(**settings), adversarial=adversarial)
    student, alone = backward(World(**settings, **NO_CLASSIFIER_LOSS), adversarial=adversarial)
    assert all(gradient is None for gradient in student.values())
    for name, gradient in both.items():
        assert torch.equal(gradient, alone[name]), name
    assert both["generator.value.weight"].abs().max() > 0


def test_generator_loss_does_not_update_the_students_statistics() -> None:
    with_pass, without = World(variant="paper"), World(variant="paper", student_term=False)
    for world in (with_pass, without):
        world.compute_loss()
    moved, expected = state_of(with_pass.student), state_of(without.student)
    for name, value in expected.items():
        assert torch.equal(moved[name], value), name
    assert int(moved["bn1.num_batches_tracked"]) == 3  # clean, Mixup, mixed
    assert with_pass.student.bn1.track_running_stats


# -------------------------------------------------------------- batch size, taps and learning rates


@pytest.mark.parametrize("n", [2, 4])
def test_a_batch_must_have_n_images(n: int) -> None:
    world = World(images=n, n=n)
    common = (world.student, world.teacher, 0)
    world.method.losses(world.images, world.labels, *common)
    with pytest.raises(UsageError, match=f"mixes {n} images and the batch holds {n - 1}"):
        world.method.losses(world.images[1:], world.labels[1:], *common)


def test_it_needs_build_model() -> None:
    with pytest.raises(UsageError, match=r"pass model=build_model"):
        AdAutoMix(AdAutoMixSettings(), num_classes=CLASSES)


def test_taps_are_stages_of_the_network() -> None:
    model = build_model("resnet18", CLASSES, stem="cifar", width=0.125, image_size=16)
    images, labels = toy_images(6)
    for tap, used, channels in ((None, 3, 32), (1, 1, 8), (4, 4, 64)):
        method = make(model, tap=tap)
        assert method.tap == used
        assert method.generator.query.weight.shape[1] == channels
        method.losses(images, labels, model, Teacher(model).model, 0)["loss"].backward()
        assert gradients_of(method)["generator.query.weight"] is not None
    with pytest.raises(UsageError, match="tap 5: resnet18 has stages 1 to 4"):
        make(model, tap=5)


def test_generators_own_learning_rates() -> None:
    assert make().learning_rates(0.1, 0.05) == (0.1, 0.05)
    assert make(generator_lr=0.02).learning_rates(0.1, 0.05) == (0.02, 0.05)
    assert make(generator_min_lr=0.0).learning_rates(0.1, 0.05) == (0.1, 0.0)


def test_mix_batch_returns_what_the_student_sees() -> None:
    world = World(lam_margin=0)
    features: list[Tensor] = []
    world.student.register_forward_pre_hook(lambda module, args: features.append(args[0]))
    params = world.make_params()
    world.method.compute_loss(world.sources(params), world.student, world.teacher, params)
    sample = world.method.mix_batch(
        world.images, world.targets, world.student, world.teacher, params
    )
    assert torch.equal(features[0], world.images)
    assert torch.equal(features[2], sample.images)
    assert torch.equal(sample.perm, params.classifier_perm)
    assert not sample.images.requires_grad


# ---------------------------------------------------------------------- what the generator learns


@pytest.fixture(scope="module")
def trained() -> tuple[Any, Any]:
    """A student trained on the toy classes, mixed and unmixed, and its moving average."""
    student, teacher = trained_networks()
    held_out, truth = toy_images(40, seed=2)
    assert (student(held_out).argmax(dim=1) == truth).float().mean() > 0.95
    return student, teacher


@torch.no_grad()
def judge(
    method: AdAutoMix, networks: tuple[Any, Any], params: AdAutoMixParams
) -> dict[str, float]:
    """Losses of both networks on the generator's mixes, computed without the method."""
    student, teacher = (copy.deepcopy(network) for network in networks)
    images, labels = toy_images(40, seed=2)
    perm, lam = params.generator
    masks = method.generator(teacher.features(images, 1).tap, perm, lam, (16, 16))
    mix = masked(images, masks, perm)
    label = mixed_labels(soft_targets(labels, CLASSES), perm, lam)
    logits = teacher(mix, head="mixed")
    return {
        "student": cross_entropy(student(mix, head="mixed"), label),
        "teacher": cross_entropy(logits, label),
        "cosine": cosine_by_hand(logits, teacher(images, head="mixed"), perm, lam),
    }


def train_generator(
    networks: tuple[Any, Any], **settings: Any
) -> tuple[dict[str, float], dict[str, float]]:
    """Losses before and after 40 steps of the generator alone, on one batch of mixes.

    Every step is adversarial, unless there is no adversary.
    """
    student, teacher = (copy.deepcopy(network) for network in networks)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        method = AdAutoMix(
            AdAutoMixSettings(lam_embedding=True, **NO_CLASSIFIER_LOSS, **settings),
            num_classes=CLASSES,
            model=student,
        )
    images, labels = toy_images(40, seed=2)
    targets = soft_targets(labels, CLASSES)
    params = method.make_params(images.shape, rng(), step=0)
    before = judge(method, networks, params)
    optimizer = torch.optim.Adam(method.parameters(), lr=0.03)
    for _ in range(40):
        sources = method.prepare(images, targets, student, teacher, params)
        loss = method.compute_loss(sources, student, teacher, params)["loss"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return before, judge(method, networks, params)


def test_paper_variant_makes_mixes_harder_for_the_student(trained: tuple[Any, Any]) -> None:
    before, after = train_generator(trained, variant="paper")
    _, helped = train_generator(trained, variant="paper", adversary=False)
    assert after["student"] > before["student"] + 0.2
    assert after["student"] > helped["student"] + 0.3


def test_alternating_adversary_makes_mixes_harder_for_the_teacher(
    trained: tuple[Any, Any],
) -> None:
    before, after = train_generator(trained, variant="alternating", cosine_term=False)
    assert after["teacher"] > before["teacher"] + 0.2
    before, after = train_generator(trained, variant="alternating")
    assert after["teacher"] > before["teacher"] + 0.2


def test_cooperative_generator_makes_mixes_easier_for_the_teacher(
    trained: tuple[Any, Any],
) -> None:
    before, after = train_generator(trained, adversary=False)
    assert after["teacher"] < before["teacher"] - 0.03


@pytest.mark.slow
def test_cosine_alone_draws_mixes_to_their_sources_in_the_paper(trained: tuple[Any, Any]) -> None:
    alone = {"teacher_term": False, "student_term": False}
    before, after = train_generator(trained, variant="paper", **alone)
    assert after["cosine"] > before["cosine"] + 0.005


def test_cosine_alone_pushes_mixes_away_in_the_released_code(trained: tuple[Any, Any]) -> None:
    before, after = train_generator(trained, variant="alternating", teacher_term=False)
    assert after["cosine"] < before["cosine"] - 0.03


# ---------------------------------------------------------------------- options of the recipes


@pytest.mark.parametrize("lam_embedding", [False, True])
def test_batch_norm_after_query_and_key_by_hand(lam_embedding: bool) -> None:
    plain = MixGenerator(6, lam_embedding=lam_embedding)
    normed = MixGenerator(6, lam_embedding=lam_embedding, attention_norm=True)
    for conv in (plain.query, plain.key, plain.value):
        nn.init.normal_(conv.weight, generator=rng(3))
    normed.load_state_dict(plain.state_dict(), strict=False)
    features = torch.randn(5, 6, 2, 3, generator=rng(1))
    perm, lam = draw_permutations(5, 3, rng(2)), draw_simplex(5, 3, 1.0, rng(4))
    queries = []
    for n in range(3):
        maps = features[perm[:, n]]
        if lam_embedding:
            maps = torch.cat([maps, lam[:, n, None, None, None].expand(5, 1, 2, 3)], dim=1)
        maps = plain.query(maps).flatten(2)
        mean = maps.mean(dim=(0, 2), keepdim=True)
        variance = maps.var(dim=(0, 2), unbiased=False, keepdim=True)
        queries.append((maps - mean) / (variance + 1e-5).sqrt())
    projected = normed._project(normed.query, features, perm, lam)
    torch.testing.assert_close(normalize(projected, normed.query_norm), torch.stack(queries, dim=1))
    assert normalize(projected, None) is projected
    masks = normed(features, perm, lam, (4, 6))
    torch.testing.assert_close(masks.sum(dim=1), torch.ones(5, 4, 6))
    assert not torch.allclose(masks, plain(features, perm, lam, (4, 6)))
    masks[:, 0].mean().backward()
    assert normed.query_norm is not None
    assert normed.query_norm.weight.grad is not None
    assert not list(normed.buffers())


def test_permutations_without_fixed_points() -> None:
    method = make(derange=True)
    for step in range(10):
        params = method.params_for_step((6, 3, 16, 16), step)
        for perm in (params.classifier_perm, params.generator_perm):
            assert not (perm == torch.arange(6)[:, None]).any()


def test_a_clean_batch_can_count_as_often_as_in_the_released_code() -> None:
    batches = {}
    for count in (1, 4):
        student = build_model("resnet18", CLASSES, stem="cifar", width=0.125, image_size=16, seed=0)
        method, teacher = make(student, clean_updates=count), Teacher(student, "own")
        images, labels = toy_images(6)
        before = teacher.model.backbone.bn1.running_mean.clone()
        params = method.params_for_step(images.shape, 0)
        method.prepare(images, labels, student, teacher.model, params)
        batches[count] = teacher.model.backbone.bn1.running_mean - before
    # From 0 towards the mean of the batch: 0.1 of the way, or 1 - 0.9⁴ of it.
    torch.testing.assert_close(batches[4], batches[1] * (1 - 0.9**4) / 0.1)


def test_the_generator_can_rest_at_random() -> None:
    """`switch_off` of the authors' logs is the probability that a step trains the generator."""
    method = make(generator_prob=0.8)
    trained = [method.params_for_step((4, 3, 8, 8), step).trains_generator for step in range(500)]
    assert sum(trained) / 500 == pytest.approx(0.8, abs=0.06)
    always = make()
    for step in range(3):
        ours, usual = (m.params_for_step((4, 3, 8, 8), step) for m in (method, always))
        assert usual.trains_generator
        assert torch.equal(ours.classifier_perm, usual.classifier_perm)
        assert torch.equal(ours.generator_lam, usual.generator_lam)
    resting = make(generator_prob=0.0).params_for_step((4, 3, 8, 8), 0)
    assert not resting.trains_generator
    assert method.generator_weights(resting) == {}
