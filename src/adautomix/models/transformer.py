"""Run a plain vision transformer up to one of its blocks and from there on; read its attention."""

from typing import Any, Literal, cast

import torch
from torch import Tensor, nn

Queries = Literal["class", "patches"]
"""Whose attention to read: that of the class token, or the mean over all patches."""


class ViTBlocks:
    """A plain timm vision transformer whose forward pass can be split at the input of any block.

    `forward_from(forward_to(images, b), b)` is one full forward pass for every block b, counted
    from 1. The caller may read or change the tokens in between.

    Args:
        backbone: a network for which `is_plain_vit` holds.

    Attributes:
        depth: number of blocks.
        patch_size: height and width of a patch in pixels.
        num_prefix_tokens: number of tokens before the patches (class, distillation, registers).
        embed_dim: D, number of channels per token.
        uses_class_token: whether the class token (token 0) is the pooled feature; otherwise the
            patches are averaged.
    """

    def __init__(self, backbone: Any) -> None:
        self._backbone = backbone
        self.depth: int = len(backbone.blocks)
        self.patch_size: tuple[int, int] = backbone.patch_embed.patch_size
        self.num_prefix_tokens: int = backbone.num_prefix_tokens
        self.embed_dim: int = backbone.embed_dim
        self.uses_class_token: bool = backbone.global_pool == "token"

    def forward_to(self, images: Tensor, block: int) -> Tensor:
        """The input of a block: tokens `[B, num_prefix_tokens + P, D]`, patches in row order.

        Args:
            images: normalized, `[B, 3, H, W]`.
            block: number of the block, from 1.
        """
        net = self._backbone
        tokens = net.norm_pre(net.patch_drop(net._pos_embed(net.patch_embed(images))))
        for layer in net.blocks[: block - 1]:
            tokens = layer(tokens)
        return cast(Tensor, tokens)

    def forward_from(self, tokens: Tensor, block: int) -> tuple[Tensor, Tensor]:
        """The rest of the forward pass: pooled features `[B, D]` and normed patches `[B, P, D]`.

        Args:
            tokens: the input of the block, as `forward_to` returns it.
            block: number of the block, from 1.
        """
        net = self._backbone
        for layer in net.blocks[block - 1 :]:
            tokens = layer(tokens)
        tokens = net.norm(tokens)
        patches = tokens[:, self.num_prefix_tokens :]
        return net.forward_head(tokens, pre_logits=True), net.fc_norm(patches)

    def attention(self, tokens: Tensor, block: int, queries: Queries = "class") -> Tensor:
        """The attention that each patch receives in a block, float32 `[B, heads, P]`.

        The values are softmax weights, so they sum to 1 minus the attention on the prefix tokens.
        No gradient flows through them.

        The fused attention kernel does not return its weights. They are computed again from the
        input of the block, which is exact. It costs one more projection of queries and keys (at
        most a sixth of a block) and, unlike a forward hook, works under `torch.compile` and CUDA
        graphs.

        Args:
            tokens: the input of the block, as `forward_to` returns it.
            block: number of the block, from 1.
            queries: "class" for the attention of the class token; "patches" for the mean over the
                attention of all patches, which is also the fallback for a network that does not
                pool by its class token.
        """
        layer = self._backbone.blocks[block - 1]
        with torch.no_grad():
            normed = layer.norm1(tokens)
            by_class = queries == "class" and self.uses_class_token
            query_tokens = normed[:, :1] if by_class else normed[:, self.num_prefix_tokens :]
            query = layer.attn.q_norm(_project(layer.attn, query_tokens, 0))
            key = layer.attn.k_norm(_project(layer.attn, normed, 1))
            with torch.autocast(tokens.device.type, enabled=False):
                scores = (query.float() * layer.attn.scale) @ key.float().transpose(2, 3)
                weights: Tensor = scores.softmax(dim=-1).mean(dim=2)
            return weights[:, :, self.num_prefix_tokens :]

    def attend(self, tokens: Tensor, block: int) -> Tensor:
        """The first half of a block: tokens plus what its attention adds, `[B, T, D]`.

        Args:
            tokens: the input of the block; there may be fewer patches than the images have.
            block: number of the block, from 1.
        """
        layer = self._backbone.blocks[block - 1]
        added: Tensor = layer.drop_path1(layer.ls1(layer.attn(layer.norm1(tokens))))
        return tokens + added

    def feed_forward(self, tokens: Tensor, block: int) -> Tensor:
        """The second half of a block, from the result of `attend`, `[B, T, D]`."""
        layer = self._backbone.blocks[block - 1]
        added: Tensor = layer.drop_path2(layer.ls2(layer.mlp(layer.norm2(tokens))))
        return tokens + added

    def mean_keys(self, tokens: Tensor, block: int) -> Tensor:
        """The keys of a block, averaged over its heads, `[B, T, D / heads]`.

        Args:
            tokens: the input of the block.
            block: number of the block, from 1.
        """
        layer = self._backbone.blocks[block - 1]
        key: Tensor = layer.attn.k_norm(_project(layer.attn, layer.norm1(tokens), 1))
        return key.mean(dim=1)

    def attention_to_first(self, tokens: Tensor, block: int) -> Tensor:
        """The attention of each token to the first one, summed over heads, float32 `[B, T]`.

        Args:
            tokens: the input of the block.
            block: number of the block, from 1.
        """
        layer = self._backbone.blocks[block - 1]
        normed = layer.norm1(tokens)
        query = layer.attn.q_norm(_project(layer.attn, normed, 0))
        key = layer.attn.k_norm(_project(layer.attn, normed, 1))
        with torch.autocast(tokens.device.type, enabled=False):
            scores = (query.float() * layer.attn.scale) @ key.float().transpose(2, 3)
            weights: Tensor = scores.softmax(dim=-1)[..., 0].sum(dim=1)
            return weights


def _project(attention: Any, tokens: Tensor, part: int) -> Tensor:
    """Queries (part 0) or keys (part 1) of all heads, `[B, heads, T, D / heads]`."""
    size = attention.num_heads * attention.head_dim
    rows = slice(part * size, (part + 1) * size)
    bias = None if attention.qkv.bias is None else attention.qkv.bias[rows]
    projected: Tensor = nn.functional.linear(tokens, attention.qkv.weight[rows], bias)
    heads: Tensor = projected.unflatten(2, (attention.num_heads, -1))
    return heads.transpose(1, 2)


def is_plain_vit(backbone: nn.Module) -> bool:
    """Whether a network is a timm vision transformer that `ViTBlocks` can split.

    Its patches must stay in image order and none may be dropped, and every block must be a
    standard one in which all tokens attend to all.
    """
    from timm.layers.attention import Attention
    from timm.layers.patch_embed import PatchEmbed
    from timm.models.vision_transformer import Block, VisionTransformer

    return (
        isinstance(backbone, VisionTransformer)
        and type(backbone.patch_embed) is PatchEmbed
        and isinstance(backbone.patch_drop, nn.Identity)
        and all(type(block) is Block and type(block.attn) is Attention for block in backbone.blocks)
    )
