"""SUMix: another method's mixes, with labels corrected by what the network predicts for them.

Paper: Qin, Jin, Zhu, Zhang, Yao, Yuan, "SUMix: Mixup with Semantic and Uncertain Information",
ECCV 2024, arXiv 2407.07805. The formulas are those of the authors' code.
Computes: images `[B, C, H, W]` and λ are those of another method. With p = softmax(logits) of the
clean sources and of the mix, held fixed, u = ℓ₂(softmax(W_u f)) from a second head on the pooled
features f `[B, D]`, ℓ₂(v) = v / ‖v‖, and s the number of images in the batch, for source n of N:

    α_n = s · ℓ₂(softmax(p_mix - p_n)),  p_n set to 0 at the classes of the other sources   [K]
    λ'_n = λ_n exp(-α_n[y_n]) / Σ_m λ_m exp(-α_m[y_m])
    β_n = u_n + u_mix                                                                       [K]
    loss = CE(mix, Σ_n λ'_n y_n) + γ Σ_n λ_n CE(exp(-(α_n + β_n)), y_n)

The exponentials of the second term are used as logits. Its gradient flows through β only: to the
second head and, through clean and mixed features, to the network.
Requires: the pooled features of clean and mixed images.
Cost: 6F per step; 9F where the batch is split over processes or accumulation steps, which then also
compute the features of the partners.
Settings:
- mix: `cutmix` is one of the four methods in the authors' tables, beside SaliencyMix, FMix and
  ResizeMix.
- options: none: the defaults of that method. The authors' CIFAR-100 configuration of CutMix has
  `alpha: 0.2`.
- gamma: 0.5 in the authors' CIFAR-100 configurations. The default of their code is 0.1.
- scale: none (the batch size), as in the authors' code.
Deviations:
- Each mix has its own λ'. The authors' code multiplies the mean cross-entropy of the batch by the
  mean of λ'.
- λ' is computed as a softmax of logarithms. In float32, exp(-α) is 0 for batches above a hundred or
  so images, and the quotient is then undefined.
- With soft labels, p_n is multiplied by 1 - y of the others, and exp(-α_n) is averaged over y_n.
- s counts the whole batch, however it is split. The authors' code counts the images on one GPU.
  Results depend on it, and `scale` fixes it. With K classes α is about s / √K everywhere, so the
  term with γ has a gradient of about exp(-s / √K) only: 5e-5 for 100 images and 100 classes.
Evidence: 79.78 % top-1 accuracy with ResNet-18 on CIFAR-100 after 800 epochs with CutMix, 79.91 %
with SaliencyMix, 80.20 % with FMix and 80.38 % with ResizeMix (the authors' README).
"""

from typing import Any, Self

import torch
import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import Tensor, nn

from adautomix.errors import UsageError
from adautomix.methods.base import InputMixing, Method, MethodSettings, MixInputs
from adautomix.methods.facts import LabelRule, Paper, Requirement
from adautomix.metrics import mixture_accuracy
from adautomix.mixing.ops import Mixed, weighted_sum
from adautomix.mixing.params import MixParams, Shape
from adautomix.models import Classifier
from adautomix.validation import one_line_errors, setting_names


class SUMixSettings(MethodSettings):
    """Settings of SUMix."""

    mix: str = Field("cutmix", description="the method that mixes the images")
    options: dict[str, Any] = Field({}, description="settings of that method")
    gamma: float = Field(0.5, ge=0, description="γ, weight of the uncertainty term")
    scale: float | None = Field(None, ge=0, description="s; none: number of images in the batch")

    @model_validator(mode="after")
    def _check(self) -> Self:
        """Check the settings of the wrapped method together with these."""
        self.wrapped()
        return self

    def wrapped(self) -> tuple[type[InputMixing], MethodSettings]:
        """Return the class of the wrapped method and its settings.

        Raises:
            UsageError: the method is unknown or mixes more than input images, or a setting of it is
                wrong.
        """
        if self.mix not in InputMixing.by_name:
            known = ", ".join(InputMixing.by_name)
            if self.mix not in Method.names:
                raise UsageError(f"unknown method {self.mix!r}: sumix.mix takes one of {known}")
            raise UsageError(
                f"sumix.mix = {self.mix}: it takes more than images and labels; use one of {known}"
            )
        cls = InputMixing.by_name[self.mix]
        with one_line_errors("sumix.options", lambda: setting_names("", cls.Settings)):
            return cls, cls.Settings(**self.options)


def semantic_distance(mixed: Tensor, clean: Tensor, labels: Tensor, scale: float) -> Tensor:
    """Compute α, how far the prediction for the mix is from that for each source, per class.

    Args:
        mixed: predicted probabilities of the mixes, `[M, K]`.
        clean: predicted probabilities of their sources, `[M, N, K]`.
        labels: soft labels of the sources, `[M, N, K]`.
        scale: s, the norm of each row.

    Returns:
        `[M, N, K]`.
    """
    others = labels.sum(dim=1, keepdim=True) - labels
    difference = mixed[:, None] - clean * (1 - others).clamp_min(0)
    return scale * F.normalize(difference.softmax(dim=2), dim=2)


def corrected_lam(lam: Tensor, alpha: Tensor, labels: Tensor) -> Tensor:
    """Compute λ', which is λ weighed by exp(-α) at the class of each source.

    Args:
        lam: `[M, N]`.
        alpha: `[M, N, K]`.
        labels: soft labels of the sources, `[M, N, K]`.

    Returns:
        `[M, N]`; rows sum to 1.
    """
    similarity = (labels.log() - alpha).logsumexp(dim=2) - labels.sum(dim=2).log()
    # A source without any label gives no evidence about its weight.
    similarity = similarity.nan_to_num(nan=0.0, neginf=0.0)
    return (lam.log() + similarity).softmax(dim=1)


def clean_sources(images: Tensor, perm: Tensor) -> tuple[Tensor, Tensor]:
    """Select the clean images that some mixes need and renumber `perm` accordingly.

    Returns:
        All images and `perm` if M = B; otherwise the `M·N` sources, mix by mix, and their rows,
        int64 `[M, N]`.
    """
    if len(perm) == len(images):
        return images, perm
    rows = torch.arange(perm.numel(), device=perm.device).view_as(perm)
    return images[perm.flatten()], rows


def select_rows(values: Tensor, rows: Tensor) -> Tensor:
    """Return `values[rows]`, `[M, N, ...]`, with a backward pass that adds up in a fixed order."""
    selected: Tensor = values.index_select(0, rows.flatten()).unflatten(0, rows.shape)
    return selected


class SUMix(Method[SUMixSettings, MixParams]):
    """SUMix (Qin et al., ECCV 2024)."""

    name = "sumix"
    summary = "another mix with λ corrected by the network, and an uncertainty term"
    paper = Paper(
        authors="Qin, Jin, Zhu, Zhang, Yao, Yuan",
        title="SUMix: Mixup with Semantic and Uncertain Information",
        venue="ECCV",
        year=2024,
        arxiv="2407.07805",
    )
    requires = frozenset({Requirement.POOLED_FEATURES})
    cost = 6.0
    needs_float32 = True
    label_rule = LabelRule.PREDICTION
    label_note = "the loss corrects these λ by what the network predicts"
    Settings = SUMixSettings

    def build(self, model: nn.Module | None) -> None:
        """Create the method that mixes the images, and the uncertainty head."""
        head: Any = self.network_with(model, "heads").heads["clean"]
        cls, options = self.settings.wrapped()
        self.mixing = cls(
            options,
            num_classes=self.num_classes,
            seed=self.seed,
            label_smoothing=self.label_smoothing,
        )
        self.uncertainty = nn.Linear(head.in_features, self.num_classes)
        nn.init.normal_(self.uncertainty.weight, std=0.01)
        nn.init.zeros_(self.uncertainty.bias)

    @property
    def min_batch(self) -> int:
        """The smallest batch that the wrapped method can mix."""
        return self.mixing.min_batch

    def make_params(self, shape: Shape, generator: torch.Generator, step: int) -> MixParams:
        """Draw the parameters of the wrapped method."""
        params: MixParams = self.mixing.make_params(shape, generator, step)
        return params

    def mix(self, images: Tensor, targets: Tensor, params: MixParams, **features: Tensor) -> Mixed:
        """Return the mix of the wrapped method, with λ not yet corrected."""
        return self.mixing.mix(images, targets, params)

    def compute_loss(
        self, sources: MixInputs, student: Classifier, teacher: Any, params: MixParams
    ) -> dict[str, Tensor]:
        """Compute the cross-entropy under the corrected λ, plus γ times the uncertainty term."""
        # Two forward passes with gradient: clean sources and mixes. Clean logits are only used as
        # constants below; the clean pass is trained through its uncertainty.
        mixed = self.mix(sources.images, sources.targets, params)
        images, rows = clean_sources(sources.images, mixed.perm)
        clean_logits, clean_uncertainty = self.predict(student, images)
        logits, mixed_uncertainty = self.predict(student, mixed.images)
        labels = select_rows(sources.targets, mixed.perm)
        # Correct λ by the predictions, which are constants here.
        with torch.no_grad():
            scale = self.settings.scale
            scale = len(sources.images) if scale is None else scale
            clean = select_rows(clean_logits.softmax(dim=1), rows)
            alpha = semantic_distance(logits.softmax(dim=1), clean, labels, scale)
            lam = corrected_lam(mixed.lam, alpha, labels)
            targets = weighted_sum(sources.targets, mixed.perm, lam[:, :, None])
        # This term trains the network and its classification head.
        cross_entropy = self.cross_entropy(logits, targets)
        # This term trains the network and the uncertainty head, through β only.
        beta = select_rows(clean_uncertainty, rows) + mixed_uncertainty[:, None]
        uncertainty = self.uncertainty_loss(alpha + beta, labels, mixed.lam)
        return {
            "loss": cross_entropy + self.settings.gamma * uncertainty,
            "mixed": cross_entropy.detach(),
            "uncertainty": uncertainty.detach(),
            "mixture_accuracy": mixture_accuracy(logits, targets),
        }

    def predict(self, student: Classifier, images: Tensor) -> tuple[Tensor, Tensor]:
        """Compute logits and uncertainty u of images, both float32 `[B, K]`."""
        pooled = student.features(images).pooled
        uncertainty = self.uncertainty(pooled).float().softmax(dim=1)
        return student.logits(pooled).float(), F.normalize(uncertainty, dim=1)

    def uncertainty_loss(self, distance: Tensor, labels: Tensor, lam: Tensor) -> Tensor:
        """Compute `Σ_n λ_n CE(exp(-(α_n + β_n)), y_n)`, averaged over the mixes.

        Args:
            distance: α + β, `[M, N, K]`.
            labels: soft labels of the sources, `[M, N, K]`.
            lam: weights before the correction, `[M, N]`.
        """
        likeness = (-distance).exp().flatten(0, 1)
        per_source = F.cross_entropy(
            likeness,
            labels.flatten(0, 1),
            reduction="none",
            label_smoothing=self.label_smoothing,
        )
        return (lam * per_source.view_as(lam)).sum(dim=1).mean()
