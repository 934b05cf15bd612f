"""A plain vision transformer taken apart at its blocks: attention and tokens."""

from typing import Any, Literal, cast

import torch
from torch import Tensor, nn

Queries = Literal["class", "patches"]


class Blocks:
    """A plain vision transformer, entered and left at the input of any of its blocks.

    `leave(enter(images, b), b)` is one forward, whatever the block b, counted from 1; what lies
    between is the caller's to read or to change.

    Attributes:
        depth: how many blocks there are.
        patch: height and width of a patch in pixels.
        prefix: tokens ahead of the patches: class, distillation, registers.
        width: D, channels of a token.
        by_class: whether the network is pooled by its class token, which is token 0.
    """

    def __init__(self, backbone: Any) -> None:
        self._backbone = backbone
        self.depth: int = len(backbone.blocks)
        self.patch: tuple[int, int] = backbone.patch_embed.patch_size
        self.prefix: int = backbone.num_prefix_tokens
        self.width: int = backbone.embed_dim
        self.by_class: bool = backbone.global_pool == "token"

    def enter(self, images: Tensor, block: int) -> Tensor:
        """What goes into a block: tokens `[B, prefix + P, D]`, the patches row by row."""
        net = self._backbone
        tokens = net.norm_pre(net.patch_drop(net._pos_embed(net.patch_embed(images))))
        for layer in net.blocks[: block - 1]:
            tokens = layer(tokens)
        return cast(Tensor, tokens)

    def leave(self, tokens: Tensor, block: int) -> tuple[Tensor, Tensor]:
        """The rest of the forward: pooled features `[B, D]`, normalized patches `[B, P, D]`."""
        net = self._backbone
        for layer in net.blocks[block - 1 :]:
            tokens = layer(tokens)
        last = net.norm(tokens)
        return net.forward_head(last, pre_logits=True), net.fc_norm(last[:, self.prefix :])

    def attention(self, tokens: Tensor, block: int, queries: Queries = "class") -> Tensor:
        """How much each patch is attended to in a block that these tokens go into.

        A row of softmax weights, of which those of the patches are given; they sum to 1 less what
        the tokens ahead of them take. It is the row of the class token or, where the network is
        not pooled by one, as for `queries="patches"`, the mean over the rows of all patches.

        timm's fused kernel keeps no weights. Queries and keys are therefore projected again from
        the block's own input, which is exact, costs one key projection (a twelfth of a block),
        and unlike a hook changes no module, so that it can be compiled and captured.

        Returns:
            Float32 `[B, heads, P]`, without gradient.
        """
        layer = self._backbone.blocks[block - 1]
        with torch.no_grad():
            normed = layer.norm1(tokens)
            by_class = queries == "class" and self.by_class
            asking = normed[:, :1] if by_class else normed[:, self.prefix :]
            query = layer.attn.q_norm(_project(layer.attn, asking, 0))
            key = layer.attn.k_norm(_project(layer.attn, normed, 1))
            with torch.autocast(tokens.device.type, enabled=False):
                scores = (query.float() * layer.attn.scale) @ key.float().transpose(2, 3)
                weights: Tensor = scores.softmax(dim=-1).mean(dim=2)
            return weights[:, :, self.prefix :]


def _project(attention: Any, tokens: Tensor, part: int) -> Tensor:
    """Queries (part 0) or keys (part 1) of all heads, `[B, heads, T, D / heads]`."""
    size = attention.num_heads * attention.head_dim
    rows = slice(part * size, (part + 1) * size)
    bias = None if attention.qkv.bias is None else attention.qkv.bias[rows]
    projected: Tensor = nn.functional.linear(tokens, attention.qkv.weight[rows], bias)
    heads: Tensor = projected.unflatten(2, (attention.num_heads, -1))
    return heads.transpose(1, 2)


def is_plain_transformer(backbone: nn.Module) -> bool:
    """Whether the tokens are all patches of the image, in order, and all attend to all."""
    from timm.layers.attention import Attention
    from timm.layers.patch_embed import PatchEmbed
    from timm.models.vision_transformer import Block, VisionTransformer

    return (
        isinstance(backbone, VisionTransformer)
        and type(backbone.patch_embed) is PatchEmbed
        and isinstance(backbone.patch_drop, nn.Identity)
        and all(type(block) is Block and type(block.attn) is Attention for block in backbone.blocks)
    )
