"""AutoMix: a block learns where each of two images shows, so that a teacher recognizes both.

Paper: Liu, Li, Wu, Liu, Chen, Wu, Li, "AutoMix: Unveiling the Power of Mixup for Stronger
Classifiers", ECCV 2022, arXiv 2103.13027; where it leaves something open, the authors' released
code (openmixup).
Computes: for a batch of B images, λ ~ Beta(a, a), a permutation π, and z the teacher's map of stage
`tap`,

    block      q = W_q z_a,  k = W_q z_b,  v = W_v z_b   (1×1 convolutions; q and k share theirs,
               C -> C/2, v: C -> 1; no activation); with the λ embedding, a plane of λ is one more
               channel of z_a, and one of 1 - λ of z_b
    masks      m = σ(up(softmax_rows(qᵀk / √(C/2)) v)),  M_a = 1 - m,  M_b = m   [B, 2, H, W]
    mix        x_mix = M_a ⊙ x + M_b ⊙ x[π],  y_mix = λ y + (1 - λ) y[π]
    student    CE(clean(x), y) + CE(mixed(x_mix), y_mix), the masks constants
    block      CE(teacher(x'_mix), y'_mix) + 0.1 · max(|mean(M'_a) - λ'| - 0.1, 0), with a λ' and a
               π' of its own; the gradient flows through the masks only

`mixed` and `clean` are two linear heads; the block is trained with the teacher's `mixed` head.
Where λ is within 0.08 of 0 or 1 the student's mix is plain Mixup. Convolutions start as N(0, 0.01)
with zero bias, so masks start near 1/2.
Requires: the feature map of an inner stage, and a teacher (moving average of the student).
Cost: 9F per step: 1F for the teacher's clean pass, which ends at the tap and serves both sets of
mixes, 2F for its pass on mixes and the backward pass to the images, 6F for the student's two
batches. The block itself costs almost nothing. A step at which it rests (`generator_every`) costs
7F.
Settings:
- alpha: 2 in the authors' CIFAR recipes.
- per_sample: off, as in the authors' code.
- lam_margin: 0.08 in the authors' CIFAR recipes.
- derange: off in the authors' recipes but those of CUB-200 and Aircraft.
- mask_adjust: 0 in the authors' CIFAR recipes.
- mask_weight: 0.1 in the authors' CIFAR recipes.
- mask_margin: 0.1 in the authors' CIFAR recipes.
- variance_weight: 0 in the authors' CIFAR recipes, whose mask loss has no variance.
- upsampling: `nearest` in the authors' CIFAR recipes.
- tap: none (the third of four stages), as in the authors' recipes.
- merged_tap: off in the authors' recipes for CNNs; on for Swin.
- generator_every: 1, as in the authors' code.
- generator_lr: none (the student's) in the authors' CIFAR recipes for CNNs.
- generator_min_lr: none (the student's) in the authors' CIFAR recipes for CNNs.
- generator_warmup: on is a choice of this implementation. In the authors' code the generator has
  no warm-up; their CIFAR recipes for CNNs have none at all.
- lam_embedding: off in the authors' CIFAR recipes for CNNs; on for ViTs and larger images.
- views: `full`, as in the authors' code; `split` and `alternate` are of this implementation.
- label: `lam`, as in the authors' code; `area` and `scaled` are of this implementation.
- generator_init: `released`, as in the authors' code; `scaled` is of this implementation.
- generator_optimizer: `same`, as in the authors' code; `adamw` is of this implementation.
- mask_warmup: 0, as in the authors' code.
Deviations:
- Convolutions are applied to the B maps and rows are selected afterwards; a plane of λ is λ times
  its column of weights. The numbers are those of the authors' code.
- `mask_adjust` scales the student's masks to their own λ. The authors' code uses the λ of the
  block's mixes.
- Mean and variance of the masks are those of all processes, but with `accumulate` of one part.
- What the authors' ViT recipes anneal over a run (the weight of the mask loss, how often the block
  learns) is constant here; `generator_every` rests the block.
- The clean head is trained on clean images, as in the authors' CIFAR recipes, never on Mixup or
  CutMix.
Evidence: 80.12 / 81.78 / 82.04 % top-1 accuracy with ResNet-18 on CIFAR-100 after 200 / 400 / 800
epochs (openmixup benchmark; clean head of the teacher, median of the last 10 epochs).
"""

import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from adautomix.methods.base_learned import MixBlockMethod, MixBlockSettings
from adautomix.methods.facts import Paper
from adautomix.mixing.generator import ATTENTION_GAIN, GeneratorInit, Upsampling, init_conv
from adautomix.mixing.mix_block import MixBlock, select_maps


class AutoMixSettings(MixBlockSettings):
    """Settings of AutoMix."""

    lam_embedding: bool = Field(False, description="feed λ to the block")


class AutoMixBlock(MixBlock):
    """A mix block with one convolution for query and key, and one for the value.

    Args:
        channels: number of channels C of the feature map.
        lam_embedding: append a constant plane of λ to the first map and one of 1 - λ to the second.
        upsampling: how h×w maps become H×W masks.
        init: initial weights, see `init_conv`.
    """

    def __init__(
        self,
        channels: int,
        *,
        lam_embedding: bool = False,
        upsampling: Upsampling = "nearest",
        init: GeneratorInit = "released",
    ) -> None:
        super().__init__(upsampling)
        self.lam_embedding = lam_embedding
        inputs = channels + lam_embedding
        query = nn.Conv2d(inputs, max(1, channels // 2), kernel_size=1)
        self.query = init_conv(query, init, gain=ATTENTION_GAIN, shared=True)
        self.value = init_conv(nn.Conv2d(inputs, 1, kernel_size=1), init)

    def project(self, features: Tensor, perm: Tensor, lam: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Compute query, key and value; see `MixBlock.project`."""
        queries, values = (self._convolve(conv, features) for conv in (self.query, self.value))
        (first, second), (lam_first, lam_second) = perm.unbind(dim=1), lam.unbind(dim=1)
        return (
            select_maps(queries, first) + self._lam_plane(self.query, lam_first),
            select_maps(queries, second) + self._lam_plane(self.query, lam_second),
            select_maps(values, second) + self._lam_plane(self.value, lam_second),
        )

    def _convolve(self, conv: nn.Conv2d, features: Tensor) -> Tensor:
        """Apply a convolution without the weights of the λ plane."""
        return F.conv2d(features, conv.weight[:, : features.shape[1]], conv.bias)

    def _lam_plane(self, conv: nn.Conv2d, lam: Tensor) -> Tensor | float:
        """What a constant plane of λ `[M]` adds at every position, `[M, C', 1]`."""
        return lam[:, None, None] * conv.weight[:, -1, :, 0] if self.lam_embedding else 0.0


class AutoMix(MixBlockMethod[AutoMixSettings]):
    """AutoMix (Liu et al., ECCV 2022)."""

    name = "automix"
    summary = "masks learned by a block that helps the teacher to recognize both images"
    paper = Paper(
        authors="Liu, Li, Wu, Liu, Chen, Wu, Li",
        title="AutoMix: Unveiling the Power of Mixup for Stronger Classifiers",
        venue="ECCV",
        year=2022,
        arxiv="2103.13027",
    )
    Settings = AutoMixSettings

    def make_generator(self, channels: int) -> AutoMixBlock:
        """Create the block that the settings describe."""
        s = self.settings
        return AutoMixBlock(
            channels,
            lam_embedding=s.lam_embedding,
            upsampling=s.upsampling,
            init=s.generator_init,
        )
