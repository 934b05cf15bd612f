"""What a method states about itself: requirements, label rule and paper."""

import dataclasses
import enum


class Requirement(enum.Enum):
    """Something that a method needs besides images, labels and a network that gives logits."""

    POOLED_FEATURES = "pooled_features"
    """The pooled feature `[B, D]` that the classification heads see."""
    LINEAR_HEAD = "linear_head"
    """A linear classification head whose weight can be read."""
    STAGE_FEATURES = "stage_features"
    """The feature map `[B, C, h, w]` of an inner stage."""
    LAST_FEATURES = "last_features"
    """The feature map `[B, C, h, w]` of the last stage."""
    STAGE_OUTPUTS = "stage_outputs"
    """Stages that are modules whose output can be read or replaced during a forward pass."""
    INPUT_GRADIENT = "input_gradient"
    """The gradient of the loss with respect to the images."""
    FEATURE_GRADIENT = "feature_gradient"
    """The gradient of the loss with respect to a stage's feature map."""
    PATCH_ATTENTION = "patch_attention"
    """Attention between all patches, which plain vision transformers (ViT, DeiT) have."""
    TEACHER = "teacher"
    """The moving average of the student."""


class LabelRule(enum.Enum):
    """What decides how much each source image weighs in a mixed label."""

    PIXELS = "pixels"
    """Its fraction of the pixels, by construction; the label check verifies this."""
    LAMBDA = "lambda"
    """The drawn λ, whatever fraction of the pixels its mask covers."""
    SALIENCY = "saliency"
    """The saliency or class activation of what is visible of it."""
    ATTENTION = "attention"
    """The attention paid to what is visible of it."""
    PREDICTION = "prediction"
    """The network's prediction, which corrects λ inside the loss."""
    KEPT = "kept"
    """Every image keeps its label, however many of its pixels are hidden."""
    HIDDEN = "hidden"
    """Its weight in a mix of hidden states; pixels cannot show this."""
    SYNTHETIC = "synthetic"
    """The label of one source: images are generated or perturbed, not mixed."""

    @property
    def countable(self) -> bool:
        """Whether counting pixels can say how much of each source a mix contains."""
        return self not in (LabelRule.HIDDEN, LabelRule.SYNTHETIC)


@dataclasses.dataclass(frozen=True)
class Paper:
    """Where a method was published.

    Attributes:
        authors: last names, separated by commas.
        title: full title.
        venue: conference or journal, without the year; "arXiv" for a preprint.
        year: year of publication at that venue.
        arxiv: arXiv identifier, such as "2312.11954"; None if there is none.
        url: another address, where the method has no arXiv identifier or comes from code.
    """

    authors: str
    title: str
    venue: str
    year: int
    arxiv: str | None = None
    url: str | None = None

    @property
    def link(self) -> str | None:
        """The address of the paper, preferably on arXiv."""
        return f"https://arxiv.org/abs/{self.arxiv}" if self.arxiv else self.url
