"""DADA: a generator of images of each class plays against the classifier, then adds images.

Paper: Zhang, Wang, Liu, Ling, "DADA: Deep Adversarial Data Augmentation for Extremely Low Data
Regime Classification", ICASSP 2019, arXiv 1809.00981; and the authors' released code (Theano).
Computes: with noise u ~ U(0, 1)^Z and labels y, the classifier has 2K outputs, r_k for "a true k"
and f_k for "a made k", which are read as class logits c_k = r_k + f_k and source logits
s_k = r_k - f_k:

    made images  x̂ = G(u, y)                                     [B, C, H, W]
    source       P(true | x, y) = softmax(r_y, f_y) = σ(s_y): only the outputs of the label's class
    classifier   play:      -log P(true | x, y) - log(1 - P(true | x̂, y))
                 classify:  CE(c(x), y) + CE(c(x̂), y)
    generator    play:      -log P(true | x̂, y) + 0.5 · mean_d |mean_b z(x) - mean_b z(x̂)|,
                            z the pooled features [B, D]

c and s are the heads `clean` and `mixed`, so that the class prediction is a head like any other.
(r, f) -> (c, s) is a rotation and a factor of √2, and gradient descent on either is the same up to
a factor of 2 in the learning rate of the last layer. For the classifier made images are constants;
the generator's gradient flows through a classifier that is held fixed.

The generator is the released one for 32 pixels: 4 × 4 × 512, then 5 × 5 transposed convolutions to
256, 128 and 3 channels, the class as planes of every layer's input, batch norm without a gain,
tanh, and a weight-normalized last layer; weights start as N(0, 0.05). Other image sizes have fewer
or more layers. The planes take B K h w numbers per layer.

Training has two stages, as in the authors' code: both players play for the first third, and the
classifier then learns classes from true and made images while the generator is frozen. Where the
number of training steps is unknown (`create_method` without `steps`), both happen at every step.
Requires: pooled features, and a batch of at least 2.
Cost: 8F per step while both play (3F each for the classifier on true and on made images, 2F for the
generator; the features of true images are those of the classifier's pass), 6F afterwards; and the
generator itself.
Settings:
- noise: 200 in the authors' CIFAR-100 code. They use 100 on other data sets.
- feature_weight: 0.5, as in the authors' code.
- play: a third: 100 of 300 epochs in the authors' code.
- play_steps: none is a choice of this implementation: `play` decides.
- generator_optimizer: `adam`, as in the authors' code.
- generator_beta1: 0.5, as in the authors' code.
- generator_lr: none: 0.0003, as in the authors' code.
- generator_min_lr: none: constant, as in the authors' code.
Deviations:
- The authors use Adam with learning rate 3e-4, β₁ 0.5 and no weight decay for both players. The
  generator has that by default. The classifier has the optimizer of the run: set
  `optimizer: adamw`, `lr: 3e-4`, `min_lr: 3e-4`, `momentum: 0.5` (β₁) and `weight_decay: 0`, with
  which AdamW is Adam.
- Both players take one step from the same classifier. The authors' code updates the classifier and
  then the generator twice; a larger `generator_lr` can make up for it.
- Made images have the labels of a permuted batch. The authors' code draws classes uniformly, which
  is the same on balanced data.
- The authors' code augments true images (rotation, shift, flip) only in the second stage. A method
  does not control the augmentation of the data, which here is the same in both.
- Any network classifies, instead of a weight-normalized one with dropout. Batch norm uses the
  statistics of true and of made images separately, and its running ones come from true images only.
- Where a batch is processed in parts, the generator's batch norm and the mean features are those of
  one part. Where processes share a batch, they are those of all of it.
- tanh is scaled to the range of the pixels seen so far, because a method does not know the
  normalization.
- The authors evaluate an average of the classifier's weights. Here that is the teacher.
Evidence: none published for ResNet-18 on CIFAR-100 in the openmixup benchmark. The AdAutoMix paper
compares with this method in a table whose figures were not available.
"""

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from adautomix.errors import UsageError
from adautomix.methods.base import Method, MethodSettings, MixInputs
from adautomix.methods.facts import LabelRule, Paper, Requirement
from adautomix.methods.meada import Bounds, PixelRange
from adautomix.metrics import mixture_accuracy
from adautomix.mixing.mix_block import mean_over_processes
from adautomix.mixing.ops import Mixed
from adautomix.mixing.params import MixParams, Shape, draw_permutations
from adautomix.models import Classifier, frozen_running_stats

CLASS, SOURCE = "clean", "mixed"  # heads of the class logits c and of the source logits s
ADAM_LR = 3e-4
BASE = 4  # pixels per side of the generator's first feature map
KERNEL = 5  # pixels per side of its convolutions
DOUBLING: dict[str, Any] = {"stride": 2, "padding": 2, "output_padding": 1}


class DADASettings(MethodSettings):
    """Settings of DADA."""

    noise: int = Field(200, ge=1, description="Z, dimension of the noise an image is made from")
    feature_weight: float = Field(
        0.5, ge=0, description="generator: weight of the feature matching loss"
    )
    play: float | None = Field(
        1 / 3,
        ge=0,
        le=1,
        description="fraction of training in which both players play, before the classifier learns "
        "classes; none: both at every step",
    )
    play_steps: int | None = Field(
        None, ge=1, description="number of steps that play, instead of a fraction of training"
    )
    generator_optimizer: Literal["adam", "same"] = Field(
        "adam", description="optimizer of the generator: an Adam of its own, or the student's"
    )
    generator_beta1: float = Field(
        0.5, ge=0, lt=1, description="β₁ of the generator's Adam; closer to 1 averages more steps"
    )
    generator_lr: float | None = Field(
        None,
        gt=0,
        description="learning rate of the generator; none: 0.0003 with adam, else the student's",
    )
    generator_min_lr: float | None = Field(
        None,
        ge=0,
        description="last learning rate of the generator; none: the first with adam, else the "
        "student's",
    )


@dataclass(frozen=True)
class DADAParams(MixParams):
    """What images are generated from, once for the classifier and once for the generator.

    Attributes:
        perm: row of the batch whose label an image gets, int64 `[B, 1]`.
        noise: uniform on [0, 1), float32 `[B, Z]`.
        generator_perm: as `perm`, for the generator's loss.
        generator_noise: as `noise`, for the generator's loss.
        plays: whether both players train on the source of the images at this step.
        classifies: whether the classifier trains on classes at this step.
    """

    perm: Tensor
    noise: Tensor
    generator_perm: Tensor
    generator_noise: Tensor
    plays: bool = True
    classifies: bool = True


class ImageGenerator(nn.Module):
    """Generate images of given classes from noise, with values from -1 to 1.

    Args:
        num_classes: number of classes, K.
        noise: dimension of the noise, Z.
        size: largest side of the images in pixels.
    """

    def __init__(self, num_classes: int, noise: int, size: int) -> None:
        super().__init__()
        doublings = max(1, math.ceil(math.log2(size / BASE)))
        widths = [512, *(max(64, 256 >> layer) for layer in range(doublings - 1))]
        self.size = BASE << doublings
        self.stem = nn.Linear(noise + num_classes, widths[0] * BASE**2, bias=False)
        self.layers = nn.ModuleList(
            upsampling_conv(before + num_classes, after)
            for before, after in itertools.pairwise(widths)
        )
        self.norms = nn.ModuleList(
            BiasBatchNorm(width) for width in (self.stem.out_features, *widths[1:])
        )
        self.last = WeightNormConv(widths[-1] + num_classes, 3)
        for weight in (self.stem.weight, *(layer.weight for layer in self.layers)):
            nn.init.normal_(weight, std=0.05)  # type: ignore[arg-type]
        nn.init.normal_(self.last.direction, std=0.05)

    def forward(
        self, noise: Tensor, targets: Tensor, size: Sequence[int], *, split: bool = False
    ) -> Tensor:
        """Generate images.

        Args:
            noise: `[B, Z]`.
            targets: soft labels, `[B, K]`.
            size: (H, W), at most `self.size` each.
            split: this is one part of a batch that is split over processes.

        Returns:
            `[B, 3, H, W]`.
        """
        stem, *norms = self.norms
        flat = self.stem(torch.cat([noise, targets], dim=1))[:, :, None, None]
        maps = stem(flat, split=split).relu().reshape(len(noise), -1, BASE, BASE)
        for layer, norm in zip(self.layers, norms, strict=True):
            maps = norm(layer(with_class_planes(maps, targets)), split=split).relu()
        images: Tensor = self.last(with_class_planes(maps, targets)).tanh()
        return images[:, :, : size[0], : size[1]]


def upsampling_conv(channels: int, outputs: int) -> nn.ConvTranspose2d:
    """Return a transposed convolution that doubles the side of a feature map."""
    return nn.ConvTranspose2d(channels, outputs, KERNEL, **DOUBLING, bias=False)


class WeightNormConv(nn.Module):
    """A transposed convolution that doubles the side of a feature map, weight-normalized.

    Its weight is `gain · direction / |direction|`, with the norm over one output channel. PyTorch's
    parametrization computes the same, but a module that has it cannot be pickled.

    Args:
        channels: number of input channels.
        outputs: number of output channels.
    """

    def __init__(self, channels: int, outputs: int) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(outputs))
        self.gain = nn.Parameter(torch.ones(1, outputs, 1, 1))
        self.direction = nn.Parameter(torch.empty(channels, outputs, KERNEL, KERNEL))

    def forward(self, maps: Tensor) -> Tensor:
        """Map `[B, channels, h, w]` to `[B, outputs, 2h, 2w]`."""
        weight = torch._weight_norm(self.direction, self.gain, dim=1)
        return F.conv_transpose2d(maps, weight, self.bias, **DOUBLING)

    def _load_from_state_dict(self, state_dict: Any, prefix: str, *args: Any) -> None:
        """Accept the names that checkpoints had when this was a parametrized module."""
        for new, old in (("gain", "original0"), ("direction", "original1")):
            key = f"{prefix}parametrizations.weight.{old}"
            if key in state_dict:
                state_dict[f"{prefix}{new}"] = state_dict.pop(key)
        super()._load_from_state_dict(state_dict, prefix, *args)


class BiasBatchNorm(nn.Module):
    """Batch norm with a bias but no gain, which always uses the statistics of the batch.

    Args:
        channels: number of channels.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(channels))

    def forward(self, maps: Tensor, *, split: bool) -> Tensor:
        """Normalize `[B, C, h, w]` in float32; with `split` over the batch of all processes."""
        over = (0, 2, 3)
        maps = maps.float()
        centered = maps - mean_over_processes(maps.mean(over), split=split)[:, None, None]
        var = mean_over_processes(centered.square().mean(over), split=split)
        return centered * (var + 1e-6).rsqrt()[:, None, None] + self.bias[:, None, None]


def with_class_planes(maps: Tensor, targets: Tensor) -> Tensor:
    """Append a constant plane per class to maps `[B, C, h, w]`: `[B, C + K, h, w]`."""
    planes = targets[:, :, None, None].expand(-1, -1, *maps.shape[2:])
    return torch.cat([maps, planes.to(maps.dtype)], dim=1)


class DADA(Method[DADASettings, DADAParams]):
    """DADA (Zhang et al., ICASSP 2019)."""

    name = "dada"
    summary = "images from a class-conditional generator that plays against the classifier"
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
        """Create the generator for images of the size that the network is built for."""
        spec = getattr(self.network_with(model, "features"), "spec", None)
        size = spec.image_size if spec else 32
        self.generator = ImageGenerator(self.num_classes, self.settings.noise, size)
        self.pixel_range = PixelRange()

    @property
    def min_batch(self) -> int:
        """Two, because the generator's first layer is normalized over the batch alone."""
        return 2

    def learning_rates(self, lr: float, min_lr: float) -> tuple[float, float]:
        """Return the generator's learning rates: constant with its own Adam, else the student's."""
        s = self.settings
        if self.own_optimizer:
            first = last = s.generator_lr or ADAM_LR
        else:
            first, last = s.generator_lr or lr, min_lr
        return first, last if s.generator_min_lr is None else s.generator_min_lr

    @property
    def own_optimizer(self) -> bool:
        """Whether the generator has an Adam of its own."""
        return self.settings.generator_optimizer == "adam"

    @property
    def own_optimizer_options(self) -> dict[str, Any]:
        """β of Adam, and no weight decay, with which AdamW is Adam."""
        return {"betas": (self.settings.generator_beta1, 0.999), "weight_decay": 0.0}

    def make_params(self, shape: Shape, generator: torch.Generator, step: int) -> DADAParams:
        """Draw noise and labels for both players, and look up the stage of the training.

        Raises:
            UsageError: the images are larger than the generator can make.
        """
        batch, s = shape[0], self.settings
        if max(shape[2:]) > self.generator.size:
            raise UsageError(
                f"dada makes images of up to {self.generator.size} pixels per side and the batch"
                f" has {max(shape[2:])}: pass a model of that image_size"
            )
        perm, generator_perm = (draw_permutations(batch, 1, generator) for _ in range(2))
        noise, generator_noise = torch.rand(2, batch, s.noise, generator=generator)
        return DADAParams(perm, noise, generator_perm, generator_noise, *self.stage(step))

    def stage(self, step: int) -> tuple[bool, bool]:
        """Return whether both players play at a step, and whether the classifier learns classes.

        Both happen at every step if no stage is set, or is a fraction of an unknown number.
        """
        s, play_steps = self.settings, self.settings.play_steps
        if play_steps is None:
            if s.play is None or self.steps is None:
                return True, True
            play_steps = round(s.play * self.steps)
        plays = step < play_steps
        return plays, not plays

    def mix(self, images: Tensor, targets: Tensor, params: DADAParams, **features: Tensor) -> Mixed:
        """Return generated images and their labels; no gradient reaches the generator."""
        labels = targets[params.perm[:, 0]]
        with torch.no_grad():
            generated = self.generate(params.noise, labels, images, self.pixel_range(images))
        lam = torch.ones_like(params.perm, dtype=torch.float32)
        return Mixed(generated, labels, lam, params.perm)

    def generate(self, noise: Tensor, targets: Tensor, like: Tensor, bounds: Bounds) -> Tensor:
        """Generate images with the size, dtype and pixel range of a batch.

        Args:
            noise: `[M, Z]`.
            targets: soft labels, `[M, K]`.
            like: the batch, `[B, C, H, W]`.
            bounds: minimum and maximum of the pixels, both `[1, C, 1, 1]`.

        Returns:
            `[M, C, H, W]`.
        """
        low, high = bounds
        split = len(noise) < len(like)
        images: Tensor = self.generator(noise, targets, like.shape[2:], split=split)
        return (low + (images.float() + 1) / 2 * (high - low)).to(like.dtype)

    def compute_loss(
        self, sources: MixInputs, student: Classifier, teacher: Any, params: DADAParams
    ) -> dict[str, Tensor]:
        """Compute the sum of both players' losses, which share no parameters with gradients."""
        bounds = self.pixel_range.update(sources.images)
        images, targets = sources.images[sources.own], sources.targets[sources.own]
        # One forward pass of the real images serves both players.
        real = student.features(images).pooled
        # Minimized by the classifier; generated images are constants.
        parts = self.classifier_losses(sources, student, params, real, targets)
        # Minimized by the generator; the classifier is held fixed and real features are constants.
        if params.plays:
            parts |= self.generator_losses(sources, student, params, real.detach(), bounds)
        weights = {"generator_features": self.settings.feature_weight}
        loss = torch.stack([weights.get(name, 1.0) * part for name, part in parts.items()]).sum()
        with torch.no_grad():
            accuracy = mixture_accuracy(student.logits(real, CLASS), targets)
        return {
            "loss": loss,
            "mixture_accuracy": accuracy,
            **{name: part.detach() for name, part in parts.items()},
        }

    def classifier_losses(
        self,
        sources: MixInputs,
        student: Classifier,
        params: DADAParams,
        real: Tensor,
        targets: Tensor,
    ) -> dict[str, Tensor]:
        """Compute the terms that the classifier minimizes: source and class of both batches.

        Args:
            sources: the batch.
            student: the classifier.
            params: parameters of this step.
            real: pooled features of the real images, `[M, D]`.
            targets: their soft labels, `[M, K]`.
        """
        generated = self.mix(sources.images, sources.targets, params)
        # Batch norm uses the statistics of generated images but does not record them.
        with frozen_running_stats(student):
            features = student.features(generated.images).pooled
        losses: dict[str, Tensor] = {}
        if params.plays:
            losses["source"] = source_loss(student.logits(real, SOURCE), targets, true=True)
            losses["source_made"] = source_loss(
                student.logits(features, SOURCE), generated.targets, true=False
            )
        if params.classifies:
            losses["class"] = self.cross_entropy(student.logits(real, CLASS), targets)
            losses["class_made"] = self.cross_entropy(
                student.logits(features, CLASS), generated.targets
            )
        return losses

    def generator_losses(
        self,
        sources: MixInputs,
        student: Classifier,
        params: DADAParams,
        real: Tensor,
        bounds: Bounds,
    ) -> dict[str, Tensor]:
        """Compute the terms that the generator minimizes: fool the classifier, match features.

        Args:
            sources: the batch.
            student: the classifier, which is held fixed.
            params: parameters of this step.
            real: pooled features of the real images, `[M, D]`, without gradient.
            bounds: minimum and maximum of the pixels.
        """
        targets = sources.targets[params.generator_perm[:, 0]]
        generated = self.generate(params.generator_noise, targets, sources.images, bounds)
        features, logits = fixed_features(student, generated)
        gap = real.float().mean(dim=0) - features.float().mean(dim=0)
        gap = mean_over_processes(gap, split=len(generated) < len(sources.images))
        return {
            "generator_source": source_loss(logits, targets, true=True),
            "generator_features": gap.abs().mean(),
        }


def source_loss(logits: Tensor, targets: Tensor, *, true: bool) -> Tensor:
    """Compute `-log P(true)` or `-log P(generated)` given the labels, averaged over the batch.

    Args:
        logits: source logits of every class, `[B, K]`.
        targets: soft labels, `[B, K]`; only the logits of their classes count.
        true: whether the images should be classified as real.
    """
    label_logits = (logits.float() * targets).sum(dim=1)
    return F.softplus(-label_logits if true else label_logits).mean()


def fixed_features(model: Classifier, images: Tensor) -> tuple[Tensor, Tensor]:
    """Compute pooled features `[B, D]` and source logits `[B, K]` of a network held fixed.

    No weight receives a gradient and no buffer changes. Both outputs come from one pass, in which
    an identity matrix is stacked on top of the head's weight.
    """
    weights = {name: weight.detach() for name, weight in model.named_parameters()}
    weight, bias = (weights[f"heads.{SOURCE}.{name}"] for name in ("weight", "bias"))
    identity = torch.eye(weight.shape[1], dtype=weight.dtype, device=weight.device)
    weights[f"heads.{SOURCE}.weight"] = torch.cat([identity, weight])
    weights[f"heads.{SOURCE}.bias"] = torch.cat([bias.new_zeros(len(identity)), bias])
    with frozen_running_stats(model):
        both = torch.func.functional_call(model, weights, (images,), {"head": SOURCE})
    return both[:, : len(identity)], both[:, len(identity) :]
