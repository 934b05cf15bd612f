"""DADA: a generator of images of a class, and a classifier that tells made ones from true ones.

Paper: Zhang, Wang, Liu, Ling, "DADA: Deep Adversarial Data Augmentation for Extremely Low Data
Regime Classification", ICASSP 2019, arXiv 1809.00981; and the authors' released code (Theano).

Computes, with noise u ~ U(0, 1)^Z and labels y, 2K outputs of the classifier, r_k "a true k" and
f_k "a made k", which are read as class logits c_k = r_k + f_k and source logits s_k = r_k - f_k:

    made images  x̂ = G(u, y)                                     [B, C, H, W]
    source       P(true | x, y) = softmax(r_y, f_y) = σ(s_y): only the outputs of the label's class
    classifier   play:      -log P(true | x, y) - log(1 - P(true | x̂, y))
                 classify:  CE(c(x), y) + CE(c(x̂), y)
    generator    play:      -log P(true | x̂, y) + 0.5 · mean_d |mean_b z(x) - mean_b z(x̂)|,
                            z the pooled features

c and s are the heads `clean` and `mixed`, so that the class prediction is a head like any other;
(r, f) -> (c, s) is a rotation and a factor of √2, and gradient descent on either is the same but
for a factor of 2 in the last layer's learning rate. The classifier sees made images as constants;
the generator's gradient flows through a classifier that is held fixed.

Needs: pooled features; a batch of 2.
Cost: 8F a step and the generator (classifier on true and on made images 2 x 3, on the generator's
1 + 1 back); the features of true images are those of the classifier's own pass.
Defaults: Z = 200, weight of the features 0.5, both stages at every step. The generator is the
released one for 32 pixels: 4 x 4 x 512, then 5 x 5 transposed convolutions to 256, 128 and 3
channels, the class as planes of every layer's input, batch norm without a gain, tanh, the last
layer weight-normalized; weights N(0, 0.05). Other sizes have fewer or more layers. Memory: the
planes are B K h w numbers a layer.

Schedule: the paper plays for 100 epochs of 300 and then freezes the generator and classifies;
`play_steps` counts the steps of the first stage. Its default, none, plays and classifies at every
step, as a method does not know how long the run is and a classifier that never classifies is none.

Deviations from the paper's code, and why:
- One step of one optimizer moves both players, from the same classifier; the code moves the
  classifier, then the generator twice. `generator_lr` can make up for it.
- Made images have labels of a permuted batch; the code draws classes uniformly, which is the same
  on balanced data.
- Any network classifies, in the place of a weight-normalized one with dropout; batch norm takes
  its statistics from true and from made images apart, and its running ones from the true alone.
- Where a batch is processed in parts, the generator's batch norm and the mean features are those of
  one part; of processes that share a batch they are those of all.
- tanh is stretched to the range of the pixels seen so far, as a method does not know how they
  were normalized. The classifier that is judged as an average is the trainer's teacher.
"""

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn
from torch.nn.utils.parametrizations import weight_norm

from adautomix.errors import UsageError
from adautomix.methods.base import Method, MethodSettings, MixInputs
from adautomix.methods.facts import LabelRule, Paper, Requirement
from adautomix.methods.meada import Bounds, PixelRange
from adautomix.metrics import mixture_accuracy
from adautomix.mixing.mix_block import mean_of_processes
from adautomix.mixing.ops import Mixed
from adautomix.mixing.params import MixParams, Shape, draw_permutations
from adautomix.models import Classifier, frozen_statistics

CLASS, SOURCE = "clean", "mixed"  # the heads of c and of s
BASE = 4  # pixels a side that the generator starts from


class DADASettings(MethodSettings):
    """Settings of DADA."""

    noise: int = Field(200, ge=1, description="Z, random numbers an image is made of")
    feature_weight: float = Field(0.5, ge=0, description="weight of the matched mean features")
    play_steps: int | None = Field(
        None, ge=1, description="steps of the first stage, the game alone; none: both at every step"
    )
    generator_lr: float | None = Field(None, gt=0, description="none: that of the student")
    generator_min_lr: float | None = Field(None, ge=0, description="none: that of the student")


@dataclass(frozen=True)
class DADAParams(MixParams):
    """What images are made of: whose label `[B, 1]`, and noise `[B, Z]`.

    One set is for the classifier to learn from, one for the generator. `plays` and `classifies`
    say which stages this step belongs to.
    """

    perm: Tensor
    noise: Tensor
    generator_perm: Tensor
    generator_noise: Tensor
    plays: bool = True
    classifies: bool = True


class ImageGenerator(nn.Module):
    """Images of a class from noise; values from -1 to 1.

    Args:
        num_classes: K.
        noise: Z.
        size: the most pixels a side that an image can have.
    """

    def __init__(self, num_classes: int, noise: int, size: int) -> None:
        super().__init__()
        doublings = max(1, math.ceil(math.log2(size / BASE)))
        widths = [512, *(max(64, 256 >> layer) for layer in range(doublings - 1))]
        self.size = BASE << doublings
        self.stem = nn.Linear(noise + num_classes, widths[0] * BASE**2, bias=False)
        self.layers = nn.ModuleList(
            doubled(before + num_classes, after) for before, after in itertools.pairwise(widths)
        )
        self.norms = nn.ModuleList(Norm(width) for width in (self.stem.out_features, *widths[1:]))
        last = doubled(widths[-1] + num_classes, 3, bias=True)
        for module in (self.stem, *self.layers, last):
            nn.init.normal_(module.weight, std=0.05)
        nn.init.zeros_(last.bias)  # type: ignore[arg-type]
        self.last: Any = weight_norm(last, dim=1)
        nn.init.ones_(self.last.parametrizations.weight.original0)

    def forward(
        self, noise: Tensor, targets: Tensor, size: Sequence[int], *, split: bool = False
    ) -> Tensor:
        """Made images `[B, 3, H, W]`.

        Args:
            noise: `[B, Z]`.
            targets: soft labels, `[B, K]`.
            size: (H, W).
            split: these are a part of the batch, and other processes have the others.
        """
        stem, *norms = self.norms
        flat = self.stem(torch.cat([noise, targets], dim=1))[:, :, None, None]
        maps = stem(flat, split=split).relu().reshape(len(noise), -1, BASE, BASE)
        for layer, norm in zip(self.layers, norms, strict=True):
            maps = norm(layer(with_planes(maps, targets)), split=split).relu()
        images: Tensor = self.last(with_planes(maps, targets)).tanh()
        return images[:, :, : size[0], : size[1]]


def doubled(channels: int, outputs: int, *, bias: bool = False) -> nn.ConvTranspose2d:
    """A transposed convolution to maps of twice the side."""
    return nn.ConvTranspose2d(
        channels, outputs, kernel_size=5, stride=2, padding=2, output_padding=1, bias=bias
    )


class Norm(nn.Module):
    """Batch norm with a bias and no gain, always with the statistics of the batch at hand."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(channels))

    def forward(self, maps: Tensor, *, split: bool) -> Tensor:
        """`[B, C, h, w]` in float32; with `split` the batch is that of all processes."""
        over = (0, 2, 3)
        maps = maps.float()
        centerd = maps - mean_of_processes(maps.mean(over), split=split)[:, None, None]
        var = mean_of_processes(centerd.square().mean(over), split=split)
        return centerd * (var + 1e-6).rsqrt()[:, None, None] + self.bias[:, None, None]


def with_planes(maps: Tensor, targets: Tensor) -> Tensor:
    """Maps `[B, C, h, w]` and a constant plane for each class: `[B, C + K, h, w]`."""
    planes = targets[:, :, None, None].expand(-1, -1, *maps.shape[2:])
    return torch.cat([maps, planes.to(maps.dtype)], dim=1)


class DADA(Method[DADASettings, DADAParams]):
    """DADA (Zhang et al., ICASSP 2019)."""

    name = "dada"
    summary = "images made by a class-conditional generator that plays against the classifier"
    paper = Paper(
        authors="Zhang, Wang, Liu, Ling",
        title="DADA: Deep Adversarial Data Augmentation for Extremely Low Data Regime "
        "Classification",
        venue="ICASSP",
        year=2019,
        arxiv="1809.00981",
    )
    requires = frozenset({Requirement.POOLED_FEATURES, Requirement.LINEAR_HEAD})
    cost = 8.0
    label_rule = LabelRule.SYNTHETIC
    label_note = "images are generated, none is mixed in"
    heads = (CLASS, SOURCE)
    Settings = DADASettings

    def build(self, model: nn.Module | None) -> None:
        """Create the image generator for images of the size that the network is built for."""
        spec = getattr(self.network_with(model, "features"), "spec", None)
        size = spec.image_size if spec else 32
        self.generator = ImageGenerator(self.num_classes, self.settings.noise, size)
        self.pixel_range = PixelRange()

    @property
    def min_batch(self) -> int:
        """The generator's first layer is normalized over the batch alone."""
        return 2

    def learning_rates(self, lr: float, min_lr: float) -> tuple[float, float]:
        """The generator's own learning rates where they are set."""
        s = self.settings
        return s.generator_lr or lr, min_lr if s.generator_min_lr is None else s.generator_min_lr

    def make_params(self, shape: Shape, generator: torch.Generator, step: int) -> DADAParams:
        """Noise and whose labels, for both players, and the stage of the training."""
        batch, s = shape[0], self.settings
        if max(shape[2:]) > self.generator.size:
            raise UsageError(
                f"dada makes images of up to {self.generator.size} pixels a side and the batch has "
                f"{max(shape[2:])}: pass a model of that image_size"
            )
        perm, generator_perm = (draw_permutations(batch, 1, generator) for _ in range(2))
        noise, generator_noise = torch.rand(2, batch, s.noise, generator=generator)
        plays = s.play_steps is None or step < s.play_steps
        classifies = s.play_steps is None or not plays
        return DADAParams(perm, noise, generator_perm, generator_noise, plays, classifies)

    def mix(self, images: Tensor, targets: Tensor, params: DADAParams, **features: Tensor) -> Mixed:
        """Made images and their labels: constants to whoever learns from them."""
        labels = targets[params.perm[:, 0]]
        with torch.no_grad():
            made = self.make(params.noise, labels, images, self.pixel_range(images))
        return Mixed(made, labels, torch.ones_like(params.perm, dtype=torch.float32), params.perm)

    def make(self, noise: Tensor, targets: Tensor, like: Tensor, bounds: Bounds) -> Tensor:
        """Images like the batch `like` from noise `[M, Z]` and soft labels `[M, K]`."""
        low, high = bounds
        split = len(noise) < len(like)
        images: Tensor = self.generator(noise, targets, like.shape[2:], split=split)
        return (low + (images.float() + 1) / 2 * (high - low)).to(like.dtype)

    def compute_loss(
        self, sources: MixInputs, student: Classifier, teacher: Any, params: DADAParams
    ) -> dict[str, Tensor]:
        """The losses of both players; their gradients do not meet."""
        bounds = self.pixel_range.widen(sources.images)
        images, targets = sources.images[sources.own], sources.targets[sources.own]
        true = student.features(images).pooled
        parts = self.classifier_losses(sources, student, params, true, targets)
        if params.plays:
            parts |= self.generator_losses(sources, student, params, true.detach(), bounds)
        weights = {"generator_features": self.settings.feature_weight}
        loss = torch.stack([weights.get(name, 1.0) * part for name, part in parts.items()]).sum()
        with torch.no_grad():
            captured = mixture_accuracy(student.logits(true, CLASS), targets)
        return {
            "loss": loss,
            "mixture_accuracy": captured,
            **{n: p.detach() for n, p in parts.items()},
        }

    def classifier_losses(
        self,
        sources: MixInputs,
        student: Classifier,
        params: DADAParams,
        true: Tensor,
        targets: Tensor,
    ) -> dict[str, Tensor]:
        """What the classifier minimizes: true against made, and classes, each for both batches."""
        made = self.mix(sources.images, sources.targets, params)
        with frozen_statistics(student):
            features = student.features(made.images).pooled
        losses: dict[str, Tensor] = {}
        if params.plays:
            losses["source"] = source_loss(student.logits(true, SOURCE), targets, true=True)
            losses["source_made"] = source_loss(
                student.logits(features, SOURCE), made.targets, true=False
            )
        if params.classifies:
            losses["class"] = self.cross_entropy(student.logits(true, CLASS), targets)
            losses["class_made"] = self.cross_entropy(student.logits(features, CLASS), made.targets)
        return losses

    def generator_losses(
        self,
        sources: MixInputs,
        student: Classifier,
        params: DADAParams,
        true: Tensor,
        bounds: Bounds,
    ) -> dict[str, Tensor]:
        """What the generator minimizes: made images pass for true ones, and look like them."""
        targets = sources.targets[params.generator_perm[:, 0]]
        made = self.make(params.generator_noise, targets, sources.images, bounds)
        features, logits = fixed_features(student, made)
        gap = true.float().mean(dim=0) - features.float().mean(dim=0)
        gap = mean_of_processes(gap, split=len(made) < len(sources.images))
        return {
            "generator_source": source_loss(logits, targets, true=True),
            "generator_features": gap.abs().mean(),
        }


def source_loss(logits: Tensor, targets: Tensor, *, true: bool) -> Tensor:
    """`-log P(true)` or `-log P(made)` under the labels, mean over the batch.

    Args:
        logits: source logits of every class, `[B, K]`.
        targets: soft labels, `[B, K]`; only the logits of their classes count.
        true: what the images are to be taken for.
    """
    of_label = (logits.float() * targets).sum(dim=1)
    return F.softplus(-of_label if true else of_label).mean()


def fixed_features(model: Classifier, images: Tensor) -> tuple[Tensor, Tensor]:
    """Pooled features `[B, D]` and source logits `[B, K]` of a network held fixed.

    No weight gets a gradient and no buffer moves. Both come out of one pass: the head has rows of
    the identity above its own.
    """
    weights = {name: weight.detach() for name, weight in model.named_parameters()}
    weight, bias = (weights[f"heads.{SOURCE}.{name}"] for name in ("weight", "bias"))
    identity = torch.eye(weight.shape[1], dtype=weight.dtype, device=weight.device)
    weights[f"heads.{SOURCE}.weight"] = torch.cat([identity, weight])
    weights[f"heads.{SOURCE}.bias"] = torch.cat([bias.new_zeros(len(identity)), bias])
    with frozen_statistics(model):
        both = torch.func.functional_call(model, weights, (images,), {"head": SOURCE})
    return both[:, : len(identity)], both[:, len(identity) :]
