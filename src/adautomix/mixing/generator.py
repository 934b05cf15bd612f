"""The mix generator of AdAutoMix: attention between feature maps of N images gives their masks.

Source: AdAutoMix (arXiv 2312.11954), section 3.2, and the authors' released code for what the
paper leaves open: a ReLU after the query and key convolutions and none after the value; weights
N(0, 0.01), biases 0. The number of parameters does not depend on N.
"""

from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Upsampling = Literal["bilinear", "nearest"]
GeneratorInit = Literal["released", "scaled"]

# Gain of the scaled weights of query and key. With it masks start with a spread of about 0.05.
ATTENTION_GAIN = 3.0
FLAT = 1e-4  # spread below which masks count as flat


class MixGenerator(nn.Module):
    """Predict the masks of mixes of N images from the feature maps of those images.

    Args:
        channels: number of channels C of the feature map.
        lam_embedding: append a constant plane of value λ_n to the feature map of image n.
        upsampling: how h×w attention maps become H×W masks; the authors' recipes use bilinear for
            convolutional networks and nearest for transformers.
        init: initial weights, see `init_conv`.
        attention_norm: batch norm after the query and key convolutions, before their ReLU. Its
            statistics are those of the batch for each source n, always.
    """

    def __init__(
        self,
        channels: int,
        *,
        lam_embedding: bool = False,
        upsampling: Upsampling = "bilinear",
        init: GeneratorInit = "released",
        attention_norm: bool = False,
    ) -> None:
        super().__init__()
        self.lam_embedding = lam_embedding
        self.upsampling = upsampling
        inputs = channels + lam_embedding
        self.query = nn.Conv2d(inputs, inputs // 2, kernel_size=1)
        self.key = nn.Conv2d(inputs, inputs // 2, kernel_size=1)
        self.value = nn.Conv2d(inputs, 1, kernel_size=1)
        init_conv(self.query, init, gain=ATTENTION_GAIN)
        init_conv(self.key, init, gain=ATTENTION_GAIN)
        init_conv(self.value, init)
        self.query_norm, self.key_norm = (
            nn.BatchNorm1d(inputs // 2, track_running_stats=False) if attention_norm else None
            for _ in range(2)
        )

    def forward(self, features: Tensor, perm: Tensor, lam: Tensor, size: Sequence[int]) -> Tensor:
        """Predict masks that sum to 1 over the N images at every pixel.

        Args:
            features: one feature map per image, `[B, C, h, w]`.
            perm: which image is source n of mix m, int64 `[M, N]`.
            lam: weights of the sources, `[M, N]`; used only with the λ embedding.
            size: (H, W) of the masks.

        Returns:
            Float32 `[M, N, H, W]`.
        """
        query = self._project(self.query, features, perm, lam)
        key = self._project(self.key, features, perm, lam)
        query, key = normalize(query, self.query_norm).relu(), normalize(key, self.key_norm).relu()
        value = self._project(self.value, features, perm, lam)
        # Attention and softmax in float32, whatever autocast chose for the convolutions.
        with torch.autocast(features.device.type, enabled=False):
            maps = cross_attention(query.float(), key.float(), value.float())
            maps = maps.unflatten(2, features.shape[2:])
            masks: Tensor = self._upsample(maps, size).softmax(dim=1)
            return masks

    def _project(self, conv: nn.Conv2d, features: Tensor, perm: Tensor, lam: Tensor) -> Tensor:
        """Apply a 1×1 convolution to every source, `[M, N, C', hw]`.

        The convolution acts on each image separately, so the B maps are convolved before rows are
        selected, instead of M·N maps. The constant λ plane adds λ_n times its weight column.
        """
        weight = conv.weight[:, : features.shape[1]]
        projected: Tensor = F.conv2d(features, weight, conv.bias).flatten(2)
        # index_select instead of [perm], whose backward adds up in no fixed order.
        projected = projected.index_select(0, perm.flatten()).unflatten(0, perm.shape)
        if self.lam_embedding:
            plane = conv.weight[:, -1, 0, 0]
            projected = projected + (lam[:, :, None] * plane)[..., None]
        return projected

    def _upsample(self, maps: Tensor, size: Sequence[int]) -> Tensor:
        align_corners = False if self.upsampling == "bilinear" else None
        large: Tensor = F.interpolate(
            maps, list(size), mode=self.upsampling, align_corners=align_corners
        )
        return large


def init_conv(
    conv: nn.Conv2d, init: GeneratorInit = "released", *, gain: float = 1.0, shared: bool = False
) -> nn.Conv2d:
    """Initialize a 1×1 convolution of a mask generator and return it; biases are 0.

    `released` draws weights from N(0, 0.01) (standard deviation) whatever the number of channels,
    so masks start flat, most of all in narrow networks. `scaled` gives masks the same spread at
    every width. How the parts of a mask vary over positions, for weights of standard deviation w:

    - A value is a sum over C channels: standard deviation w √C.
    - A score `q·k / √d` is a sum of d products of two such sums. If query and key have separate
      weights, the products have random signs and their sum grows like √d: w² C after the division.
    - If they share their weights, products add up wherever features are alike: w² C √d.

    So w is gain / √C, and gain / (√C d^¼) for a convolution that query and key share.

    Args:
        conv: a convolution from C to d channels.
        init: `released` or `scaled`.
        gain: factor of the scaled weights.
        shared: whether query and key share the convolution.
    """
    outputs, inputs = conv.weight.shape[:2]
    scaled = gain / inputs**0.5 / (outputs**0.25 if shared else 1.0)
    nn.init.normal_(conv.weight, std=0.01 if init == "released" else scaled)
    if conv.bias is not None:
        nn.init.zeros_(conv.bias)
    return conv


def mask_spread(masks: Tensor) -> Tensor:
    """Mean over mixes and sources of the standard deviation of a mask over its pixels.

    Args:
        masks: `[M, N, H, W]`.

    Returns:
        A detached scalar, 0 to 0.5. It is 0 if masks are flat, as in plain Mixup: below `FLAT`
        the standard deviation consists of rounding errors.
    """
    spread = masks.detach().float().flatten(2).std(dim=2, correction=0).mean()
    return torch.where(spread < FLAT, 0.0, spread)


def normalize(projected: Tensor, norm: nn.BatchNorm1d | None) -> Tensor:
    """Apply batch norm to each source's maps `[M, C', hw]` of `[M, N, C', hw]`, if there is one."""
    if norm is None:
        return projected
    return torch.stack([norm(maps) for maps in projected.unbind(dim=1)], dim=1)


def cross_attention(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Let each image attend to the summed keys of the *other* images and gather its own values.

    `A_n = softmax_rows(Σ_{m≠n} q_nᵀ k_m / √d)`, `p_n = A_n v_n`. Because only keys are summed,
    `Σ_m q_nᵀ k_m = q_nᵀ Σ_m k_m`: N products instead of N².

    Args:
        query: `[M, N, d, hw]`.
        key: `[M, N, d, hw]`.
        value: `[M, N, 1, hw]`.

    Returns:
        `[M, N, hw]`.
    """
    others = key.sum(dim=1, keepdim=True) - key
    scaled = query.transpose(2, 3) / query.shape[2] ** 0.5
    scores = scaled @ others
    maps: Tensor = scores.softmax(dim=-1) @ value.transpose(2, 3)
    return maps.squeeze(-1)
