"""A small transformer that predicts the next token."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from decaybench.networks.small import MakeActivation


class Attention(nn.Module):
    """Causal self-attention (Vaswani et al. 2017)."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv, self.out = nn.Linear(width, 3 * width, bias=False), nn.Linear(width, width, bias=False)

    def forward(self, s: Tensor) -> Tensor:
        """Mixes the positions of s (B, T, W)."""
        b, t, w = s.shape
        q, k, v = (
            self.qkv(s).view(b, t, 3, self.heads, w // self.heads).permute(2, 0, 3, 1, 4)
        )  # (B, heads, T, W/heads)
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.out(mixed.transpose(1, 2).reshape(b, t, w))  # type: ignore[no-any-return]


class Block(nn.Module):
    """Attention and a dense layer with an activation, each behind an RMSNorm and beside a path that skips it."""

    def __init__(self, width: int, heads: int, activation: nn.Module) -> None:
        super().__init__()
        self.norm1, self.attention = nn.RMSNorm(width), Attention(width, heads)
        self.norm2, self.up = nn.RMSNorm(width), nn.Linear(width, 4 * width, bias=False)
        self.act, self.down = activation, nn.Linear(4 * width, width, bias=False)

    def forward(self, s: Tensor) -> Tensor:
        """Transforms s (B, T, W)."""
        s = s + self.attention(self.norm1(s))
        hidden = self.up(self.norm2(s))  # (B, T, 4·W)
        hidden = self.act(hidden.flatten(0, 1)).view(hidden.shape)  # activations take (N, C)
        return s + self.down(hidden)  # type: ignore[no-any-return]


class GPT(nn.Module):
    """A decoder: token and position embeddings, blocks, a norm and a linear head."""

    def __init__(self, context: int, vocabulary: int, activations: list[nn.Module], width: int, heads: int) -> None:
        super().__init__()
        self.token, self.position = nn.Embedding(vocabulary, width), nn.Embedding(context, width)
        self.blocks = nn.ModuleList(Block(width, heads, act) for act in activations)
        self.norm, self.head = nn.RMSNorm(width), nn.Linear(width, vocabulary, bias=False)
        for module in self.modules():
            if isinstance(module, nn.Embedding | nn.Linear):
                nn.init.normal_(module.weight, std=0.02)

    def forward(self, x: Tensor) -> Tensor:
        """Predicts the token behind each of x (B, T): (B, vocabulary, T)."""
        s = self.token(x) + self.position(torch.arange(x.shape[1], device=x.device))  # (B, T, W)
        for block in self.blocks:
            s = block(s)
        return self.head(self.norm(s)).transpose(1, 2)  # type: ignore[no-any-return]


def gpt(
    shape: tuple[int], outputs: int, activation: MakeActivation, depth: int = 2, width: int = 64, heads: int = 4
) -> nn.Module:
    """Builds a pre-norm decoder with RMSNorm and without biases; its dense layers take any activation."""
    (context,) = shape
    return GPT(context, outputs, [activation(4 * width) for _ in range(depth)], width, heads)
