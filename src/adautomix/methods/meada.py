"""ME-ADA: training on copies of some images that were made hard and uncertain for the student.

Paper: Zhao, Liu, Peng, Metaxas, "Maximum-Entropy Adversarial Data Augmentation for Improved
Generalization and Robustness", NeurIPS 2020, arXiv 2010.08001; and the authors' released code.
Computes: with the student in evaluation mode and its weights fixed, z `[B, D]` its pooled feature
and p `[B, K]` its prediction,

    objective   J(x') = CE(p(x'), y) + η H(p(x')) - γ mean_d (z(x') - z(x))²    [B]
    ascent      x' ← x;  K times x' ← x' + step_size · ∇J(x');  x' clipped to the range of pixels
    loss        CE of the images and of the copies x' [M, C, H, W], one mean and one forward pass
                of both; the label of a copy stays y

Every image is perturbed on its own: no quantity is a mean over the batch.
Requires: the pooled feature, and the gradient of the student's loss with respect to the images.
Cost: 14.3F per step with the defaults: 3F · (1 + 1/every), and for a fraction 1/every of the images
1F for z(x) and 2F for each of the K ascent steps.
Settings:
- every: 3 is a choice of this implementation, between the shares of copies in the paper's phases.
- ascents: 15, as in the authors' code.
- step_size: 1: the step of the authors' code, 20/128 per image in pixels normalized by 0.5, is
  0.98 in pixels normalized by 0.2, as CIFAR's are.
- entropy_weight: 10 in the authors' CIFAR script. The default of their code is 1.
- distance_weight: 1 in the authors' CIFAR script.
- start_step: 0 is a choice of this implementation. The paper makes its first copies after epoch 10
  of 100.
Deviations:
- Copies are made at every step instead of in phases. The paper stops twice (after epochs 10 and 20
  of 100), makes a copy of every image with the student of that moment and appends it to the data
  set, which grows to two and three times its size. A method sees a batch, not the data set; here
  one image in `every` of each batch has a copy, made with the student of that step. So copies are
  never stale, need no memory, and are made of augmented images; their share is constant from
  `start_step` on, where the paper has 0, then 1/2, then 2/3.
- Copies are not rounded to 8 bits, because they are never stored.
- The range of the pixels is that of all images seen so far, per channel, because a method does not
  know the normalization. It equals the true one once a channel was seen black and white.
Evidence: none published for ResNet-18 on CIFAR-100 in the openmixup benchmark. The AdAutoMix paper
compares with this method in a table whose figures were not available.
"""

from dataclasses import dataclass, replace
from typing import Any

import torch
from pydantic import Field
from torch import Tensor, nn

from adautomix.methods.base import Method, MethodSettings, MixInputs
from adautomix.methods.facts import LabelRule, Paper, Requirement
from adautomix.metrics import mixture_accuracy
from adautomix.mixing.ops import Mixed
from adautomix.mixing.params import MixParams, Shape, draw_permutations
from adautomix.models import Classifier, evaluating

# A power of two, which rounds nothing, keeps fp16 gradients from underflowing.
LOSS_SCALE = 2.0**10

Bounds = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class MEADAParams(MixParams):
    """Parameters of ME-ADA.

    Attributes:
        perm: a permutation of the batch, int64 `[B, 1]`; one row in `every` is copied.
        copies: whether this step makes copies at all.
    """

    perm: Tensor
    copies: bool = True


class MEADASettings(MethodSettings):
    """Settings of ME-ADA."""

    every: int = Field(3, ge=1, description="one image in this many gets an adversarial copy")
    ascents: int = Field(15, ge=1, description="K, number of gradient ascent steps per copy")
    step_size: float = Field(
        1.0, gt=0, description="step size of the ascent, in normalized pixel values"
    )
    entropy_weight: float = Field(10.0, ge=0, description="η, weight of the prediction's entropy")
    distance_weight: float = Field(
        1.0, ge=0, description="γ, weight of the distance to the clean image's feature"
    )
    start_step: int = Field(0, ge=0, description="first training step that makes copies")


class PixelRange(nn.Module):
    """Running minimum and maximum of the pixels of each channel.

    Args:
        channels: number of channels.
    """

    low: Tensor
    high: Tensor

    def __init__(self, channels: int = 3) -> None:
        super().__init__()
        self.register_buffer("low", torch.full((1, channels, 1, 1), torch.inf))
        self.register_buffer("high", torch.full((1, channels, 1, 1), -torch.inf))

    @torch.no_grad()
    def forward(self, images: Tensor) -> Bounds:
        """Return minimum and maximum so far and of these images, both `[1, C, 1, 1]`.

        The buffers are not updated.
        """
        low = images.amin(dim=(0, 2, 3), keepdim=True)
        high = images.amax(dim=(0, 2, 3), keepdim=True)
        return torch.minimum(self.low, low), torch.maximum(self.high, high)

    def update(self, images: Tensor) -> Bounds:
        """Update the buffers with these images and return them."""
        low, high = self(images)
        self.low.copy_(low)
        self.high.copy_(high)
        return low, high


class MEADA(Method[MEADASettings, MEADAParams]):
    """ME-ADA (Zhao et al., NeurIPS 2020), online."""

    name = "meada"
    summary = "adversarial copies of some images, with high-entropy predictions"
    paper = Paper(
        authors="Zhao, Liu, Peng, Metaxas",
        title="Maximum-Entropy Adversarial Data Augmentation for Improved Generalization and "
        "Robustness",
        venue="NeurIPS",
        year=2020,
        arxiv="2010.08001",
    )
    requires = frozenset({Requirement.POOLED_FEATURES, Requirement.INPUT_GRADIENT})
    cost = 14.3
    needs_float32 = True
    label_rule = LabelRule.SYNTHETIC
    label_note = "an image is perturbed, none is mixed in"
    Settings = MEADASettings

    def build(self, model: nn.Module | None) -> None:
        """Create the running range of the pixels."""
        self.pixel_range = PixelRange()

    def make_params(self, shape: Shape, generator: torch.Generator, step: int) -> MEADAParams:
        """Draw which images are copied."""
        perm = draw_permutations(shape[0], 1, generator)
        return MEADAParams(perm, copies=step >= self.settings.start_step)

    def mix(
        self, images: Tensor, targets: Tensor, params: MEADAParams, **features: Tensor
    ) -> Mixed:
        """Return the images to be copied, still clean, and their labels."""
        rows = params.perm[:, 0]
        lam = torch.ones_like(params.perm, dtype=torch.float32)
        return Mixed(images[rows], targets[rows], lam, params.perm)

    def mix_batch(
        self, images: Tensor, targets: Tensor, student: Any, teacher: Any, params: MEADAParams
    ) -> Mixed:
        """Return adversarial copies of all images in the permutation."""
        return self.copies(images, targets, student, params, self.pixel_range(images))

    def copies(
        self,
        images: Tensor,
        targets: Tensor,
        student: Classifier,
        params: MEADAParams,
        bounds: Bounds,
    ) -> Mixed:
        """Return adversarial copies of the images in `params.perm`, with the original labels."""
        clean = self.mix(images, targets, params)
        return replace(clean, images=self.ascend(student, clean.images, clean.targets, bounds))

    def compute_loss(
        self, sources: MixInputs, student: Classifier, teacher: Any, params: MEADAParams
    ) -> dict[str, Tensor]:
        """Compute the cross-entropy of clean images and copies, in one forward pass."""
        bounds = self.pixel_range.update(sources.images)
        images, targets = sources.images[sources.own], sources.targets[sources.own]
        # Inner maximization: copies are constants for the loss below.
        copied_rows = self.copied(sources, params)
        hard = self.copies(sources.images, sources.targets, student, copied_rows, bounds)
        # Outer minimization: the student alone receives a gradient.
        logits = student(torch.cat([images, hard.images]))
        clean_logits, copy_logits = logits.split([len(images), len(hard.images)])
        loss = self.cross_entropy(clean_logits, targets)
        parts = {
            "mixture_accuracy": mixture_accuracy(clean_logits, targets),
            "clean": loss.detach(),
        }
        if params.copies:
            batch, count = len(sources.images), -(-len(sources.images) // self.settings.every)
            # A part of a split batch may hold more or fewer copies than its fraction of images, so
            # its mean is reweighted: averaged over parts, this is the mean over the whole batch.
            weight = len(copy_logits) / count * batch / len(images)
            adversarial = (
                weight * self.cross_entropy(copy_logits, hard.targets) if weight else 0 * loss
            )
            loss = (batch * loss + count * adversarial) / (batch + count)
            parts["adversarial"] = adversarial.detach()
        return {"loss": loss, **parts}

    def copied(self, sources: MixInputs, params: MEADAParams) -> MEADAParams:
        """Return the rows of these parameters that are copied: one in `every` of the batch."""
        every = self.settings.every
        first = -(sources.own.start or 0) % every
        return params.rows(slice(first, None, every) if params.copies else slice(0))

    def ascend(
        self, student: Classifier, images: Tensor, targets: Tensor, bounds: Bounds
    ) -> Tensor:
        """Take K gradient ascent steps on `objective`, starting from `images`.

        Args:
            student: in any mode; it is run in evaluation mode and receives no gradient.
            images: `[M, C, H, W]`.
            targets: soft labels, `[M, K]`.
            bounds: minimum and maximum of the result, both `[1, C, 1, 1]`.

        Returns:
            `[M, C, H, W]` in the dtype of `images`.
        """
        if len(images) == 0:  # a part of the batch, or a step, without copies
            return images
        s = self.settings
        with evaluating(student):
            anchor = student.features(images).pooled.float()

            def scaled_objective(perturbed: Tensor) -> Tensor:
                values = objective(
                    student, perturbed, targets, anchor, s.entropy_weight, s.distance_weight
                )
                return LOSS_SCALE * values.sum()

            # Only the images are differentiated: weights are constants and get no gradient.
            gradient = torch.func.grad(scaled_objective)
            perturbed = images.float()
            for _ in range(s.ascents):
                perturbed = perturbed + s.step_size / LOSS_SCALE * gradient(perturbed)
            return perturbed.clamp(*bounds).to(images.dtype)


def objective(
    student: Classifier,
    images: Tensor,
    targets: Tensor,
    anchor: Tensor,
    entropy_weight: float,
    distance_weight: float,
) -> Tensor:
    """Compute what the ascent maximizes, `CE + η H - γ mean_d (z - anchor)²`, per image.

    Args:
        student: network that gives features z and logits.
        images: `[M, C, H, W]`.
        targets: soft labels, `[M, K]`.
        anchor: features of the clean images, `[M, D]`.
        entropy_weight: η.
        distance_weight: γ.

    Returns:
        `[M]`.
    """
    pooled = student.features(images).pooled
    log_p = student.logits(pooled).float().log_softmax(dim=1)
    loss = -(targets * log_p).sum(dim=1)
    entropy = -(log_p.exp() * log_p).sum(dim=1)
    distance = (pooled.float() - anchor).square().mean(dim=1)
    return loss + entropy_weight * entropy - distance_weight * distance
