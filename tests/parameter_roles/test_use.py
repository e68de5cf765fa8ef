"""Modules as people write them, by what uses each parameter: the role that each should get."""

import copy
import math
import random
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.utils import parametrize
from torch.optim.swa_utils import AveragedModel

from decaybench import mark_activation, param_groups, roles
from decaybench.errors import UsageError
from decaybench.parameter_roles.inference import observe

A, W, B, N, S, E, U = "activation", "weight", "bias", "norm", "scale", "embedding", "unknown"
CASES: list[Any] = []


def P(*shape: int, v: float = 1.0) -> nn.Parameter:
    """A constant parameter."""
    return nn.Parameter(torch.full(shape, v))


def R(*shape: int) -> nn.Parameter:
    """A random parameter."""
    return nn.Parameter(torch.randn(*shape) * 0.3)


def L(i: int = 4, o: int = 4) -> nn.Linear:
    return nn.Linear(i, o)


def add(name: str, members: Callable[[], dict[str, Any]], forward: Any, shape: Any, **wanted: str | set[str]) -> None:
    """Adds a module with these members and this forward; the example has this shape, or is three token ids."""

    class Written(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            for key, value in members().items():
                setattr(self, key, value)

        def forward(self, *inputs: Any) -> Any:
            return forward(self, *inputs)

    expected = {k: {v} if isinstance(v, str) else v for k, v in wanted.items()}
    CASES.append(pytest.param(Written, shape, expected, id=name))


# activations in blocks
add(
    "leaky by where",
    lambda: {"fc": L(), "a": P(4)},
    lambda s, x: (lambda y: torch.where(y > 0, y, s.a * y))(s.fc(x)),
    (2, 4),
    a=A,
)
add(
    "max min",
    lambda: {"fc": L(), "a": P(4)},
    lambda s, x: (lambda y: y.clamp(min=0) + s.a * y.clamp(max=0))(s.fc(x)),
    (2, 4),
    a=A,
)
add(
    "max(x,ax)",
    lambda: {"fc": L(), "a": P(4, v=0.2)},
    lambda s, x: (lambda y: torch.max(y, s.a * y))(s.fc(x)),
    (2, 4),
    a=A,
)
add("softplus beta", lambda: {"fc": L(), "b": P()}, lambda s, x: F.softplus(s.b * s.fc(x)) / s.b, (2, 4), b=A)
add(
    "snake",
    lambda: {"fc": L(), "b": P(4)},
    lambda s, x: (lambda y: y + torch.sin(s.b * y) ** 2 / s.b)(s.fc(x)),
    (2, 4),
    b=A,
)
add(
    "snake log",
    lambda: {"fc": nn.Conv1d(4, 4, 1), "b": P(1, 4, 1, v=0.0)},
    lambda s, x: (lambda y: y + (1 / (s.b.exp() + 1e-9)) * torch.pow(torch.sin(s.b.exp() * y), 2))(s.fc(x)),
    (2, 4, 5),
    b=A,
)
add(
    "APL",
    lambda: {"fc": L(), "a": R(3, 4), "b": R(3, 4)},
    lambda s, x: (lambda y: F.relu(y) + sum(s.a[i] * F.relu(-y + s.b[i]) for i in range(3)))(s.fc(x)),
    (2, 4),
    a=A,
    b=A,
)
add(
    "mix of acts",
    lambda: {"fc": L(), "w": P(3)},
    lambda s, x: (lambda y, w: w[0] * torch.relu(y) + w[1] * torch.tanh(y) + w[2] * y)(s.fc(x), s.w.softmax(0)),
    (2, 4),
    w=A,
)
add(
    "poly",
    lambda: {"fc": L(), "c": R(4)},
    lambda s, x: (lambda y: sum(s.c[i] * y**i for i in range(4)))(s.fc(x)),
    (2, 4),
    c=A,
)
add(
    "horner",
    lambda: {"fc": L(), "c": R(4)},
    lambda s, x: (lambda y: ((s.c[3] * y + s.c[2]) * y + s.c[1]) * y + s.c[0])(s.fc(x)),
    (2, 4),
    c=A,
)
add(
    "rational",
    lambda: {"fc": L(), "n": R(4), "d": R(3)},
    lambda s, x: (
        lambda y: sum(s.n[i] * y**i for i in range(4)) / (1 + sum(s.d[i] * y ** (i + 1) for i in range(3)).abs())
    )(s.fc(x)),
    (2, 4),
    n=A,
    d=A,
)
add(
    "rational stack",
    lambda: {"fc": L(), "n": R(4)},
    lambda s, x: (lambda y: torch.stack([y**i for i in range(4)], -1) @ s.n)(s.fc(x)),
    (2, 4),
    n=A,
)
add(
    "kaf inline",
    lambda: {"fc": L(), "alpha": R(4, 5)},
    lambda s, x: (lambda y: (torch.exp(-((y[..., None] - torch.linspace(-1, 1, 5)) ** 2)) * s.alpha).sum(-1))(s.fc(x)),
    (2, 4),
    alpha=A,
)
add(
    "piecewise gather",
    lambda: {"fc": L(), "v": R(7)},
    lambda s, x: (lambda y: s.v[(y.clamp(-1, 1) * 3 + 3).long()] * 1.0)(s.fc(x)),
    (2, 4),
    v={A, E, U},
)
add(
    "fourier kan",
    lambda: {"c": R(2, 3, 4, 5)},
    lambda s, x: (
        lambda k: (
            torch.einsum("big,oig->bo", torch.cos(x[..., None] * k), s.c[0])
            + torch.einsum("big,oig->bo", torch.sin(x[..., None] * k), s.c[1])
        )
    )(torch.arange(1, 6.0)),
    (2, 4),
    c=A,
)


def cheby(s, x):
    x = torch.tanh(x).view(-1, 4, 1).expand(-1, -1, 5)
    x = x.acos()
    x = x * torch.arange(5.0)
    x = x.cos()
    return torch.einsum("bid,iod->bo", x, s.c)


add("cheby", lambda: {"c": R(4, 3, 5)}, cheby, (2, 4), c=A)


def cheby2(s, x):
    x = torch.tanh(x)
    T = [torch.ones_like(x), x]
    for _ in range(3):
        T.append(2 * x * T[-1] - T[-2])
    return torch.einsum("bid,iod->bo", torch.stack(T, -1), s.c)


add("cheby recursion", lambda: {"c": R(4, 3, 5)}, cheby2, (2, 4), c=A)


def bspl(s, x):
    g = torch.linspace(-2, 2, 12).expand(4, -1)
    x = x.unsqueeze(-1)
    b = ((x >= g[:, :-1]) & (x < g[:, 1:])).to(x.dtype)
    for k in range(1, 4):
        b = ((x - g[:, : -(k + 1)]) / (g[:, k:-1] - g[:, : -(k + 1)]) * b[:, :, :-1]) + (
            (g[:, k + 1 :] - x) / (g[:, k + 1 :] - g[:, 1:-k]) * b[:, :, 1:]
        )
    return F.linear(F.silu(x[..., 0]), s.bw) + F.linear(
        b.contiguous().view(x.size(0), -1), (s.sw * s.sc.unsqueeze(-1)).view(3, -1)
    )


add("efficient kan", lambda: {"bw": R(3, 4), "sw": R(3, 4, 8), "sc": R(3, 4)}, bspl, (2, 4), bw=W, sw=A, sc={A, S})
add(
    "fastkan inline",
    lambda: {"w": R(3, 20)},
    lambda s, x: F.linear(torch.exp(-(((x[..., None] - torch.linspace(-2, 2, 5)) / 0.5) ** 2)).view(2, -1), s.w),
    (2, 4),
    w=A,
)
add(
    "wavkan",
    lambda: {"sc": P(3, 4), "tr": P(3, 4, v=0.0), "w": R(3, 4)},
    lambda s, x: (lambda u: ((2 / (math.sqrt(3) * math.pi**0.25)) * (u**2 - 1) * torch.exp(-0.5 * u**2) * s.w).sum(2))(
        (x.unsqueeze(1) - s.tr) / s.sc
    ),
    (2, 4),
    w={A},
    sc={A},
    tr={A},
)
add(
    "SwiGLU beta",
    lambda: {"fc": L(4, 8), "beta": P()},
    lambda s, x: (lambda a, b: a * F.silu(s.beta * b))(*s.fc(x).chunk(2, -1)),
    (2, 4),
    beta=A,
)
add(
    "GLU power",
    lambda: {"fc": L(4, 8), "p": P()},
    lambda s, x: (lambda a, b: a * torch.relu(b) ** s.p)(*s.fc(x).chunk(2, -1)),
    (2, 4),
    p=A,
)
add(
    "learned softthreshold",
    lambda: {"fc": L(), "t": P(4, v=0.1)},
    lambda s, x: (lambda y: torch.sign(y) * torch.relu(y.abs() - s.t))(s.fc(x)),
    (2, 4),
    t=A,
)
add(
    "CReLU slope conv",
    lambda: {"c": nn.Conv2d(3, 3, 1), "a": P(1, 3, 1, 1)},
    lambda s, x: (lambda y: torch.cat((y.relu(), s.a * (-y).relu()), 1))(s.c(x)),
    (2, 3, 4, 4),
    a=A,
)
add(
    "returns dict",
    lambda: {"fc": L(), "a": P()},
    lambda s, x: (lambda y: {"out": torch.where(y > 0, y, s.a * (y.exp() - 1)), "aux": y})(s.fc(x)),
    (2, 4),
    a=A,
)
add(
    "PELU",
    lambda: {"fc": L(), "a": P(), "b": P()},
    lambda s, x: (lambda y: torch.where(y > 0, (s.a / s.b) * y, s.a * (torch.exp(y / s.b) - 1)))(s.fc(x)),
    (2, 4),
    a=A,
    b=A,
)
add(
    "transposing act",
    lambda: {"fc": L(), "a": P(4, v=0.3)},
    lambda s, x: (lambda y: (y.relu() - s.a * (-y).relu()).t())(s.fc(x)),
    (2, 4),
    a=A,
)
add(
    "FReLU-like",
    lambda: {"c": nn.Conv2d(3, 3, 3, padding=1, groups=3)},
    lambda s, x: torch.max(x, s.c(x)),
    (2, 3, 4, 4),
)
add(
    "xielu",
    lambda: {"fc": L(), "ap": P(1), "an": P(1)},
    lambda s, x: (
        lambda y, p, n: torch.where(
            y > 0, p * y * y + 0.5 * y, (torch.expm1(torch.min(y, torch.tensor(-1e-6))) - y) * n + 0.5 * y
        )
    )(s.fc(x), F.softplus(s.ap), 0.5 + F.softplus(s.an)),
    (2, 4),
    ap=A,
    an=A,
)
add(
    "maxout slopes",
    lambda: {"fc": L(), "k": R(4, 3), "b": R(4, 3)},
    lambda s, x: (lambda y: (y[..., None] * s.k + s.b).max(-1)[0])(s.fc(x)),
    (2, 4),
    k={A},
    b={A},
)
add(
    "dyrelu static",
    lambda: {"fc": L(), "k": R(2, 4)},
    lambda s, x: (lambda y: torch.maximum(y * s.k[0], y * s.k[1]))(s.fc(x)),
    (2, 4),
    k=A,
)
add("tanh alpha inline", lambda: {"fc": L(), "al": P(v=0.5)}, lambda s, x: torch.tanh(s.al * s.fc(x)), (2, 4), al=A)
add(
    "logistic pos",
    lambda: {"fc": L(), "k": P(4)},
    lambda s, x: (lambda y: y * (s.k * y).sigmoid())(s.fc(x)),
    (2, 4),
    k=A,
)
add(
    "acon",
    lambda: {"fc": L(), "p1": R(4), "p2": R(4), "b": P(4)},
    lambda s, x: (lambda y: (s.p1 * y - s.p2 * y) * torch.sigmoid(s.b * (s.p1 * y - s.p2 * y)) + s.p2 * y)(s.fc(x)),
    (2, 4),
    p1=A,
    p2=A,
    b=A,
)
add(
    "functional elu",
    lambda: {"fc": L(), "a": P(4)},
    lambda s, x: (lambda y: F.relu(y) - s.a * F.relu(1 - y.exp()))(s.fc(x)),
    (2, 4),
    a=A,
)
add(
    "gain of swish",
    lambda: {"fc": L(), "g": P(4)},
    lambda s, x: (lambda y: (s.g * y) * torch.sigmoid(y))(s.fc(x)),
    (2, 4),
    g=S,
)
add(
    "in place",
    lambda: {"fc": L(), "a": P(4)},
    lambda s, x: (lambda y: y.mul_(torch.sigmoid(y * s.a)))(s.fc(x)),
    (2, 4),
    a=A,
)
# norms
add(
    "layer norm",
    lambda: {"g": P(4), "b": P(4, v=0.0)},
    lambda s, x: (x - x.mean(-1, keepdim=True)) / (x.var(-1, keepdim=True, unbiased=False) + 1e-5).sqrt() * s.g + s.b,
    (2, 4),
    g=N,
    b=N,
)
add(
    "layer norm in block",
    lambda: {"fc": L(), "g": P(4), "b": P(4, v=0.0)},
    lambda s, x: (
        lambda y: (
            x + torch.relu((y - y.mean(-1, keepdim=True)) * torch.rsqrt(y.var(-1, keepdim=True) + 1e-5) * s.g + s.b)
        )
    )(s.fc(x)),
    (2, 4),
    g=N,
    b=N,
)
add(
    "F.layer_norm",
    lambda: {"g": P(4), "b": P(4, v=0.0)},
    lambda s, x: F.layer_norm(x, (4,), s.g, s.b),
    (2, 4),
    g=N,
    b=N,
)
add(
    "rms weight first",
    lambda: {"w": P(4)},
    lambda s, x: s.w * (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6)),
    (2, 4),
    w=N,
)
add(
    "rms 1+w",
    lambda: {"w": P(4, v=0.0)},
    lambda s, x: (x.float() * torch.rsqrt(x.float().pow(2).mean(-1, keepdim=True) + 1e-6)).type_as(x) * (1 + s.w),
    (2, 4),
    w=N,
)
add("rms lucid", lambda: {"g": P(4)}, lambda s, x: F.normalize(x, dim=-1) * 2.0 * s.g, (2, 4), g=N)
add(
    "rms norm method",
    lambda: {"g": P(4)},
    lambda s, x: s.g * x / (x.norm(2, dim=-1, keepdim=True) * 0.5 + 1e-8),
    (2, 4),
    g=N,
)
add(
    "channel LN",
    lambda: {"g": P(1, 3, 1, 1), "b": P(1, 3, 1, 1)},
    lambda s, x: (lambda m, v: (x - m) / (v + 1e-5).sqrt() * s.g + s.b)(
        x.mean(1, keepdim=True), x.var(1, keepdim=True, unbiased=False)
    ),
    (2, 3, 4, 4),
    g=N,
    b=N,
)
add(
    "LN2d timm",
    lambda: {"g": P(3), "b": P(3)},
    lambda s, x: (
        lambda u: (
            s.g[:, None, None] * ((x - u) / torch.sqrt((x - u).pow(2).mean(1, keepdim=True) + 1e-6))
            + s.b[:, None, None]
        )
    )(x.mean(1, keepdim=True)),
    (2, 3, 4, 4),
    g=N,
    b=N,
)
add(
    "GRN",
    lambda: {"g": P(1, 1, 1, 3, v=0.0), "b": P(1, 1, 1, 3, v=0.0)},
    lambda s, x: (lambda gx: s.g * (x * (gx / (gx.mean(-1, keepdim=True) + 1e-6))) + s.b + x)(
        torch.norm(x, p=2, dim=(1, 2), keepdim=True)
    ),
    (2, 4, 4, 3),
    g=N,
    b=N,
)
add(
    "instance norm",
    lambda: {"w": P(3), "b": P(3)},
    lambda s, x: F.instance_norm(x, weight=s.w, bias=s.b),
    (2, 3, 4, 4),
    w=N,
    b=N,
)
add(
    "scale norm",
    lambda: {"g": P()},
    lambda s, x: s.g * x / x.norm(dim=-1, keepdim=True).clamp(min=1e-5),
    (2, 4),
    g={N, S},
)
add(
    "group norm hand",
    lambda: {"w": P(1, 4, 1, 1)},
    lambda s, x: (lambda y: ((y - y.mean(-1, keepdim=True)) / (y.std(-1, keepdim=True) + 1e-5)).view(2, 4, 3, 3) * s.w)(
        x.view(2, 2, -1)
    ),
    (2, 4, 3, 3),
    w=N,
)
add(
    "qk norm",
    lambda: {"q": L(), "k": L(), "qs": P(4)},
    lambda s, x: (F.normalize(s.q(x), dim=-1) * s.qs) @ F.normalize(s.k(x), dim=-1).t(),
    (3, 4),
    qs={N, S},
)
add(
    "batch norm hand",
    lambda: {"g": P(4), "b": P(4)},
    lambda s, x: (x - x.mean(0)) / torch.sqrt(x.var(0) + 1e-5) * s.g + s.b,
    (3, 4),
    g=N,
    b=N,
)
# scales
add(
    "layerscale",
    lambda: {"fc": L(), "gamma": P(4, v=1e-5)},
    lambda s, x: x + s.gamma * F.gelu(s.fc(x)),
    (2, 4),
    gamma=S,
)
add(
    "rezero 2",
    lambda: {"a": L(), "b": L(), "alpha": P(v=0.0)},
    lambda s, x: x + s.b(F.gelu(s.a(x))) * s.alpha,
    (2, 4),
    alpha=S,
)
add(
    "fixup",
    lambda: {"c": nn.Conv2d(3, 3, 3, padding=1), "b1": P(1, v=0.0), "b2": P(1, v=0.0), "sc": P(1)},
    lambda s, x: F.relu(s.c(x + s.b1) * s.sc + s.b2 + x),
    (2, 3, 4, 4),
    b1=B,
    sc=S,
    b2=B,
)
add(
    "siglip",
    lambda: {"a": L(), "b": L(), "t": P(), "bias": P(v=-10.0)},
    lambda s, x: torch.sigmoid(F.normalize(s.a(x)) @ F.normalize(s.b(x)).t() * s.t.exp() + s.bias),
    (3, 4),
    t=S,
    bias=B,
)
add(
    "siglip no bias",
    lambda: {"a": L(), "b": L(), "t": P()},
    lambda s, x: torch.sigmoid((F.normalize(s.a(x)) @ F.normalize(s.b(x)).t()) * s.t),
    (3, 4),
    t=S,
)
add(
    "attn temp",
    lambda: {"q": L(), "k": L(), "temp": P(1)},
    lambda s, x: ((s.q(x) @ s.k(x).t()) * s.temp).softmax(-1) @ x,
    (3, 4),
    temp=S,
)
add(
    "attn temp div",
    lambda: {"q": L(), "k": L(), "temp": P(1)},
    lambda s, x: ((s.q(x) @ s.k(x).t()) / s.temp).softmax(-1) @ x,
    (3, 4),
    temp=S,
)
add("logits / T", lambda: {"fc": L(), "T": P(1)}, lambda s, x: s.fc(x) / s.T, (2, 4), T=S)
add("softmax T", lambda: {"fc": L(), "T": P(1)}, lambda s, x: F.softmax(s.fc(x) / s.T, -1), (2, 4), T=S)
add(
    "arcface s",
    lambda: {"w": R(5, 4), "s_": P(v=30.0)},
    lambda s, x: s.s_ * F.linear(F.normalize(x), F.normalize(s.w)),
    (2, 4),
    s_=S,
    w=W,
)
add("gated residual tanh", lambda: {"fc": L(), "g": P(v=0.0)}, lambda s, x: x + torch.tanh(s.g) * s.fc(x), (2, 4), g=S)
add(
    "skip weights",
    lambda: {"fc": L(), "w": P(2)},
    lambda s, x: (lambda w: w[0] * x + w[1] * torch.relu(s.fc(x)))(s.w.softmax(0)),
    (2, 4),
    w=S,
)
add(
    "bifpn",
    lambda: {"c": nn.Conv2d(3, 3, 1), "d": nn.Conv2d(3, 3, 1), "w": P(2)},
    lambda s, x: (lambda w: F.silu((w[0] * s.c(x) + w[1] * s.d(x)) / (w.sum() + 1e-4)))(F.relu(s.w)),
    (2, 3, 4, 4),
    w=S,
)
add(
    "scalar mix",
    lambda: {"a": L(), "b": L(), "w": P(3)},
    lambda s, x: (
        lambda h1: (lambda h2: sum(w * h for w, h in zip(s.w.softmax(0), [x, h1, h2], strict=False)))(s.b(h1))
    )(torch.relu(s.a(x))),
    (2, 4),
    w=S,
)
add(
    "token shift mu",
    lambda: {"mu": P(4, v=0.5), "fc": L()},
    lambda s, x: s.fc(x * s.mu + F.pad(x, (0, 0, 1, -1)) * (1 - s.mu)),
    (2, 5, 4),
    mu=S,
)
add(
    "affine relu", lambda: {"fc": L(), "g": P(4), "b": P(4)}, lambda s, x: F.relu(s.fc(x) * s.g + s.b), (2, 4), g=S, b=B
)
add(
    "affine gelu", lambda: {"fc": L(), "g": P(4), "b": P(4)}, lambda s, x: F.gelu(s.fc(x) * s.g + s.b), (2, 4), g=S, b=B
)
add(
    "weight norm hand",
    lambda: {"v": R(4, 4), "g": P(4, 1)},
    lambda s, x: F.linear(x, s.g * s.v / s.v.norm(dim=1, keepdim=True)),
    (2, 4),
    v=W,
    g={S, W},
)
add(
    "wstd gain",
    lambda: {"w": R(4, 3, 3, 3), "gain": P(4, 1, 1, 1)},
    lambda s, x: F.conv2d(x, (s.w - s.w.mean((1, 2, 3), keepdim=True)) / s.w.std((1, 2, 3), keepdim=True) * s.gain),
    (2, 3, 5, 5),
    w=W,
    gain=S,
)


class Rd(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x.round()

    @staticmethod
    def backward(ctx, g):
        return g


add(
    "lsq weight",
    lambda: {"w": R(4, 4), "s_": P(v=0.05)},
    lambda s, x: F.linear(x, Rd.apply((s.w / s.s_).clamp(-8, 7)) * s.s_),
    (2, 4),
    w=W,
    s_=S,
)
add(
    "lsq detach",
    lambda: {"w": R(4, 4), "s_": P(v=0.05)},
    lambda s, x: (lambda q: F.linear(x, ((q.round() - q).detach() + q) * s.s_))((s.w / s.s_).clamp(-8, 7)),
    (2, 4),
    w=W,
    s_=S,
)
add(
    "lsq activation",
    lambda: {"fc": L(), "s_": P(v=0.05)},
    lambda s, x: s.fc((x / s.s_).clamp(0, 15).round() * s.s_),
    (2, 4),
    s_=S,
)
add(
    "lsq zero point",
    lambda: {"fc": L(), "s_": P(v=0.05), "z": P(v=1.0)},
    lambda s, x: s.fc((((x / s.s_) + s.z).clamp(0, 15).round() - s.z) * s.s_),
    (2, 4),
    s_=S,
    z={B, S},
)
add("twn alpha", lambda: {"w": R(4, 4), "al": P()}, lambda s, x: F.linear(x, torch.sign(s.w) * s.al), (2, 4), w=W, al=S)


# state spaces
def mamba(outer: Any, read: Any) -> Any:
    """A selective scan, with its products written in one way or another."""

    def forward(s: Any, x: torch.Tensor) -> torch.Tensor:
        u = s.inp(x)
        dt = F.softplus(s.dt(u) + s.dtb)
        dA = torch.exp(outer(dt, -torch.exp(s.A_log)))
        dB = dt.unsqueeze(-1) * s.b(u).unsqueeze(2) * u.unsqueeze(-1)
        h, ys = torch.zeros(len(x), 8, 4), []
        for t in range(x.shape[1]):
            h = dA[:, t] * h + dB[:, t]
            ys.append(read(h, s.c(u)[:, t]))
        return s.out((torch.stack(ys, 1) + u * s.D) * F.silu(s.z(x)))

    return forward


def selective() -> dict[str, Any]:
    layers = {
        "inp": L(8, 8),
        "dt": nn.Linear(8, 8, bias=False),
        "b": L(8, 4),
        "c": L(8, 4),
        "out": L(8, 8),
        "z": L(8, 8),
    }
    return {**layers, "dtb": P(8), "A_log": R(8, 4), "D": P(8)}


WRITTEN = {
    "mamba": (lambda a, b: a.unsqueeze(-1) * b, lambda h, c: (h * c.unsqueeze(1)).sum(-1)),
    "mamba einsum": (
        lambda a, b: torch.einsum("bld,dn->bldn", a, b),
        lambda h, c: torch.einsum("bdn,bn->bd", h, c),
    ),
}
for name, ways in WRITTEN.items():
    add(name, selective, mamba(*ways), (2, 5, 8), A_log=S, D=S, dtb=B)


def s4d(s, u):
    dt = s.log_dt.exp()
    A_ = -s.A_log.exp()
    K = (
        (
            s.C
            * torch.exp(dt[:, None, None] * A_[..., None] * torch.arange(6.0))[:, :, :].mean(1, keepdim=False)[:, None]
        ).sum(1)
        if False
        else (s.C[..., None] * torch.exp((dt[:, None] * A_)[..., None] * torch.arange(6.0))).sum(1)
    )
    y = torch.fft.irfft(torch.fft.rfft(u, n=12) * torch.fft.rfft(K, n=12), n=12)[..., :6]
    return y + u * s.D[:, None]


add(
    "s4d",
    lambda: {"log_dt": R(4), "A_log": R(4, 3), "C": R(4, 3), "D": P(4)},
    s4d,
    (2, 4, 6),
    log_dt={S},
    A_log={S},
    C={S, W, U},
    D={S},
)


def lru(s, x):
    lam = torch.exp(-torch.exp(s.nu))
    h = torch.zeros(2, 4)
    o = []
    for t in range(x.shape[1]):
        h = lam * h + s.gamma * s.fc(x[:, t])
        o.append(h)
    return torch.stack(o, 1) + s.D * x


add("lru", lambda: {"nu": R(4), "gamma": P(4), "fc": L(), "D": P(4)}, lru, (2, 5, 4), nu=S, gamma=S, D=S)
add(
    "rwkv decay",
    lambda: {"w": R(4), "u": R(4), "k": L(), "v": L()},
    lambda s, x: (
        lambda k, v, d: torch.stack(
            [
                (torch.exp(s.u + k[:, 1]) * v[:, 1] + (torch.exp(k[:, 0]) * v[:, 0]) * d)
                / (torch.exp(s.u + k[:, 1]) + torch.exp(k[:, 0]) * d)
            ],
            1,
        )
    )(s.k(x), s.v(x), torch.exp(-torch.exp(s.w))),
    (2, 5, 4),
    w={S},
    u={B, S},
)
# tokens
add(
    "registers",
    lambda: {"reg": R(3, 8), "proj": L(4, 8), "head": L(8, 2)},
    lambda s, x: s.head(torch.cat([s.proj(x), s.reg.unsqueeze(0).repeat(len(x), 1, 1)], 1).mean(1)),
    (2, 4, 4),
    reg=E,
)
add(
    "mask token",
    lambda: {"mask": P(8, v=0.0), "proj": L(4, 8)},
    lambda s, x: torch.where((torch.arange(4) % 2 == 0)[None, :, None], s.mask, s.proj(x)),
    (2, 4, 4),
    mask=E,
)
add(
    "mask setitem",
    lambda: {"mask": P(8, v=0.0), "proj": L(4, 8)},
    lambda s, x: (lambda y: (y.__setitem__((slice(None), 0), s.mask), y)[1])(s.proj(x)),
    (2, 4, 4),
    mask=E,
)
add(
    "queries",
    lambda: {"q": R(3, 8), "proj": L(4, 8), "wq": L(8, 8)},
    lambda s, x: (lambda k: (s.wq(s.q) @ k.transpose(1, 2)).softmax(-1) @ k)(s.proj(x)),
    (2, 4, 4),
    q=E,
)
add(
    "queries mha",
    lambda: {"q": R(1, 3, 8), "proj": L(4, 8), "mha": nn.MultiheadAttention(8, 2, batch_first=True)},
    lambda s, x: (lambda k: s.mha(s.q.expand(len(x), -1, -1), k, k)[0])(s.proj(x)),
    (2, 4, 4),
    q=E,
)
add("pos 2d", lambda: {"c": nn.Conv2d(3, 8, 1), "pos": R(1, 8, 4, 4)}, lambda s, x: s.c(x) + s.pos, (2, 3, 4, 4), pos=E)
add(
    "rel bias table",
    lambda: {"t": R(7, 2), "q": L(4, 8)},
    lambda s, x: (
        lambda q: (
            q @ q.transpose(-1, -2) + s.t[(torch.arange(4)[:, None] - torch.arange(4)) + 3].permute(2, 0, 1)
        ).softmax(-1)
    )(s.q(x).view(2, 4, 2, 4).transpose(1, 2)),
    (2, 4, 4),
    t=E,
)
add("lookup", lambda: {"t": R(9, 4)}, lambda s, i: s.t[i], "ids", t=E)
add("F.embedding", lambda: {"t": R(9, 4)}, lambda s, i: F.embedding(i, s.t), "ids", t=E)
add("tied", lambda: {"t": R(9, 4)}, lambda s, i: F.linear(F.embedding(i, s.t), s.t), "ids", t=E)
add(
    "codebook",
    lambda: {"cb": R(6, 4)},
    lambda s, x: (lambda d: F.embedding(d.argmin(-1), s.cb))(
        (x**2).sum(-1, keepdim=True) - 2 * x @ s.cb.t() + (s.cb**2).sum(-1)
    ),
    (2, 4),
    cb=E,
)
add(
    "prompt",
    lambda: {"p": R(1, 3, 4), "fc": L()},
    lambda s, x: s.fc(torch.concat((s.p.expand(2, -1, -1), x), dim=1)),
    (2, 4, 4),
    p=E,
)
add(
    "class concat list",
    lambda: {"cls": P(1, 1, 4), "fc": L()},
    lambda s, x: s.fc(torch.hstack([s.cls.expand(2, -1, -1), x])),
    (2, 4, 4),
    cls=E,
)
# biases
for nm, f in {"relu": F.relu, "gelu": F.gelu, "tanh": torch.tanh, "sig": torch.sigmoid, "softplus": F.softplus}.items():
    add(
        "bias " + nm,
        lambda: {"fc": nn.Linear(4, 4, bias=False), "b": P(4, v=0.0)},
        (lambda f: lambda s, x: f(s.fc(x) + s.b))(f),
        (2, 4),
        b=B,
    )
add(
    "bias then swish",
    lambda: {"fc": nn.Linear(4, 4, bias=False), "b": P(4, v=0.0)},
    lambda s, x: (lambda y: y * torch.sigmoid(y))(s.fc(x) + s.b),
    (2, 4),
    b=B,
)
add(
    "bias module swish",
    lambda: {"b": P(4, v=0.0)},
    lambda s, x: (lambda y: y * torch.sigmoid(y))(x + s.b),
    (2, 4),
    b=B,
)
add("bias sub", lambda: {"fc": L(), "b": P(4)}, lambda s, x: F.leaky_relu(s.fc(x) - s.b), (2, 4), b=B)
add(
    "conv bias hand",
    lambda: {"w": R(4, 3, 3, 3), "b": P(4)},
    lambda s, x: F.conv2d(x, s.w) + s.b.view(1, -1, 1, 1),
    (2, 3, 5, 5),
    w=W,
    b=B,
)
add(
    "stylegan bias act",
    lambda: {"w": R(4, 3, 1, 1), "b": P(4)},
    lambda s, x: F.leaky_relu(F.conv2d(x, s.w) + s.b[None, :, None, None], 0.2) * math.sqrt(2),
    (2, 3, 5, 5),
    w=W,
    b=B,
)
add("addmm", lambda: {"w": R(4, 3), "b": P(3)}, lambda s, x: torch.addmm(s.b, x, s.w), (2, 4), w=W, b=B)
# weights
add("einsum", lambda: {"w": R(2, 4, 3)}, lambda s, x: torch.einsum("bi,hio->bho", x, s.w), (2, 4), w=W)
add(
    "lora inline",
    lambda: {"w": R(4, 4), "A_": R(2, 4), "B_": R(4, 2)},
    lambda s, x: F.linear(x, s.w) + F.linear(F.linear(x, s.A_), s.B_) * 2,
    (2, 4),
    w=W,
    A_=W,
    B_=W,
)
add(
    "lora merged",
    lambda: {"w": R(4, 4), "A_": R(2, 4), "B_": R(4, 2)},
    lambda s, x: F.linear(x, s.w + s.B_ @ s.A_ * 0.5),
    (2, 4),
    w=W,
    A_=W,
    B_=W,
)
add(
    "dora",
    lambda: {"w": R(4, 4), "A_": R(2, 4), "B_": R(4, 2), "m": P(4, 1)},
    lambda s, x: (lambda v: F.linear(x, s.m * v / v.norm(dim=1, keepdim=True)))(s.w + s.B_ @ s.A_),
    (2, 4),
    w=W,
    A_=W,
    B_=W,
    m={S, W},
)
add(
    "experts",
    lambda: {"w1": R(3, 4, 8), "w2": R(3, 8, 4), "g": L(4, 3)},
    lambda s, x: torch.einsum(
        "bed,be->bd", torch.bmm(F.gelu(torch.bmm(x.expand(3, -1, -1), s.w1)), s.w2).transpose(0, 1), s.g(x).softmax(-1)
    ),
    (2, 4),
    w1=W,
    w2=W,
)
add(
    "locally connected",
    lambda: {"w": R(4, 3, 2)},
    lambda s, x: (x.unsqueeze(-1).unsqueeze(-1) * s.w).sum((1, 2)),
    (2, 4),
    w={W, S},
)
add("glu weights", lambda: {"w": R(8, 4), "b": P(8)}, lambda s, x: F.glu(F.linear(x, s.w, s.b)), (2, 4), w=W, b=B)
add(
    "complex mul",
    lambda: {"w": R(4, 3, 2)},
    lambda s, x: torch.fft.irfft(torch.fft.rfft(x, dim=-1) * torch.view_as_complex(s.w), n=4),
    (2, 4, 4),
    w={W, S},
)
add(
    "bayes",
    lambda: {"mu": R(4, 4), "rho": R(4, 4)},
    lambda s, x: F.linear(x, s.mu + F.softplus(s.rho) * torch.randn_like(s.mu)),
    (2, 4),
    mu=W,
    rho={W, S},
)
add(
    "nalu",
    lambda: {"w": R(4, 4), "m": R(4, 4)},
    lambda s, x: F.linear(x, torch.tanh(s.w) * torch.sigmoid(s.m)),
    (2, 4),
    w=W,
    m=W,
)
add("fno", lambda: {"w": R(4, 4, 3)}, lambda s, x: torch.einsum("bix,iox->box", x, s.w), (2, 4, 3), w=W)
add(
    "crelu linear",
    lambda: {"w": R(3, 8)},
    lambda s, x: F.linear(torch.cat([x.relu(), (-x).relu()], -1), s.w),
    (2, 4),
    w=W,
)
add("lowrank poly feats", lambda: {"w": R(3, 4)}, lambda s, x: F.linear(x**2, s.w), (2, 4), w=W)
add("never used", lambda: {"fc": L(), "z": P(3)}, lambda s, x: s.fc(x), (2, 4), z=U)
add("item", lambda: {"fc": L(), "z": P(v=0.2)}, lambda s, x: F.leaky_relu(s.fc(x), s.z.item()), (2, 4), z=U)


REVIEWED: list[Any] = []
RN, o, x, xk = torch.randn, torch.ones(4), torch.randn(2, 4), torch.randn(6, 4)


def reviewed(name: str, forward: Any, learned: dict[str, Any], example: torch.Tensor, **wanted: Any) -> None:
    """Adds a network with two linear layers and these parameters."""

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc, self.fc2 = nn.Linear(4, 4), nn.Linear(4, 4)
            for key, value in learned.items():
                setattr(self, key, nn.Parameter(torch.as_tensor(value).clone().float()))

        def forward(self, *inputs: Any) -> Any:
            return forward(self, *inputs)

    expected = {k: {v} if isinstance(v, str) else v for k, v in wanted.items()}
    REVIEWED.append(pytest.param(Net(), example, expected, id=name))


class RMS(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(o.clone())

    def forward(self, x):
        return self.weight * (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6))


class Blk(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc, self.n, self.b = nn.Linear(4, 4), RMS(), nn.Parameter(o.clone())

    def forward(self, x):
        h = self.n(self.fc(x))
        return h * torch.sigmoid(self.b * h)


REVIEWED.append(pytest.param(Blk(), x, {"b": {A}, "n.weight": {N}}, id="rms then swish"))


def ln(h):
    return F.layer_norm(h, (4,))


reviewed("swish after layer norm", lambda s, x: (lambda h: h * torch.sigmoid(s.b * h))(ln(s.fc(x))), {"b": o}, x, b=A)
reviewed(
    "leaky after layer norm", lambda s, x: (lambda h: torch.where(h > 0, h, s.b * h))(ln(s.fc(x))), {"b": o}, x, b=A
)
reviewed("max after layer norm", lambda s, x: (lambda h: torch.max(h, s.b * h))(ln(s.fc(x))), {"b": o}, x, b=A)
reviewed(
    "scalar swish after layer norm",
    lambda s, x: (lambda h: h * torch.sigmoid(s.b * h))(ln(s.fc(x))),
    {"b": 1.0},
    x,
    b=A,
)


def f(s, x):
    h = s.fc(x)
    m = (h > 0).float()
    return s.fc2(m * h + (1 - m) * s.slope * h)


reviewed("by a float mask", f, {"slope": 0.1 * o}, x, slope=A)


def f(s, x):
    h = s.fc(x).clone()
    m = h < 0
    h[m] = h[m] * s.slope
    return h


reviewed("by a boolean index", f, {"slope": 0.1}, x, slope=A)


def f(s, x):
    h = s.fc(x)
    y = h.clone()
    m = h < 0
    y[m] = (s.slope * h)[m]
    return s.fc2(y)


reviewed("by indexed assignment", f, {"slope": 0.1 * o}, x, slope=A)
reviewed(
    "by masked_scatter",
    lambda s, x: (lambda h: h.clone().masked_scatter(h < 0, (h * s.slope)[h < 0]))(s.fc(x)),
    {"slope": 0.1 * o},
    x,
    slope=A,
)


def f(s, x):
    h = s.fc(x)
    p = torch.sigmoid((h - h.mean(0)) / h.std(0))
    return s.fc2(s.alpha * (1 - p) * h + p * h)


reviewed("Dice", f, {"alpha": 0 * o}, x, alpha=A)


def f(s, x):
    h = s.fc(x)
    return s.fc2(torch.stack([h, s.a * h]).amax(0))


reviewed("stack and largest", f, {"a": 0.1 * o}, x, a=A)


def f(s, x):
    h = s.fc(x)
    return s.fc2(h / (1 + s.a * h.abs()))


reviewed("learned softsign", f, {"a": o}, x, a=A)
reviewed("logistic's coefficient", lambda s, x: s.fc2(1 / (1 + s.b * torch.exp(-s.fc(x)))), {"b": o}, x, b=A)
reviewed("Gompertz", lambda s, x: s.fc2(torch.exp(-s.b * torch.exp(-s.fc(x)))), {"b": o}, x, b=A)


def f(s, x):
    x = torch.tanh(x)
    T = torch.ones(len(x), 4, 5)
    T[:, :, 1] = x
    for n in range(2, 5):
        T[:, :, n] = 2 * x * T[:, :, n - 1].clone() - T[:, :, n - 2].clone()
    return torch.einsum("bid,iod->bo", T, s.c)


reviewed("Chebyshev written into a table", f, {"c": RN(4, 3, 5)}, xk, c=A)


def f(s, x):
    T = torch.zeros(len(x), 4, 5)
    for n in range(5):
        T[..., n] = torch.sin((n + 1) * x)
    return torch.einsum("bid,iod->bo", T, s.c)


reviewed("sines written into a table", f, {"c": RN(4, 3, 5)}, xk, c=A)


def f(s, x):
    T = [torch.ones_like(x), x]
    for _n in range(2, 5):
        T.append(2 * x * T[-1] - T[-2])
    return torch.einsum("bid,iod->bo", torch.stack(T, -1), s.c)


reviewed("Chebyshev of x itself", f, {"c": RN(4, 3, 5)}, xk, c=A)


def f(s, x):
    x = torch.tanh(x)
    T = [torch.ones_like(x), x]
    for n in range(1, 4):
        T.append(((2 * n + 1) * x * T[n] - n * T[n - 1]) / (n + 1))
    return F.linear(torch.cat(T, -1), s.c)


reviewed("Legendre joined", f, {"c": RN(3, 20)}, xk, c=A)
reviewed(
    "powers joined",
    lambda s, x: F.linear(torch.cat([torch.tanh(x) ** k for k in range(4)], -1), s.c),
    {"c": RN(3, 16)},
    xk,
    c=A,
)
reviewed(
    "sine by sine",
    lambda s, x: sum(torch.sin((k + 1) * x) @ s.c[..., k] for k in range(5)),
    {"c": RN(4, 3, 5)},
    xk,
    c=A,
)
reviewed("power by power", lambda s, x: sum(x**k @ s.c[..., k] for k in range(5)), {"c": RN(4, 3, 5)}, xk, c=A)
reviewed(
    "learned frequencies",
    lambda s, x: torch.einsum("bik,iok->bo", torch.sin(x[..., None] * s.freq + s.ph), s.c),
    {"freq": torch.arange(1.0, 6), "ph": RN(5), "c": RN(4, 3, 5)},
    xk,
    freq=A,
    ph=A,
    c=A,
)
reviewed(
    "sines on edges",
    lambda s, x: (s.a * torch.sin(s.w * x[:, None] + s.ph)).sum(-1),
    {"a": RN(3, 4), "w": RN(3, 4), "ph": RN(3, 4)},
    xk,
    a=A,
    w=A,
    ph=A,
)


def f(s, x):
    x = x[:, None, :]
    p = s.a[..., 0] + s.a[..., 1] * x + s.a[..., 2] * x**2
    return (p / (1 + (s.b[..., 0] * x + s.b[..., 1] * x**2).abs())).sum(-1)


reviewed("rational per edge", f, {"a": RN(3, 4, 3), "b": RN(3, 4, 2)}, xk, a=A, b=A)
reviewed(
    "rational denominator", lambda s, x: (lambda h: s.a * h / (1 + (s.b * h) ** 2))(s.fc(x)), {"a": o, "b": o}, x, b=A
)


def f(s, x):
    h = s.fc(x)
    st = 0.2
    i = torch.floor(h.clamp(-2, 1.8) / st)
    fr = h / st - i
    j = torch.arange(4) * 21 + 10 + i.long()
    return s.coef[j + 1] * fr + s.coef[j] * (1 - fr)


reviewed("spline by lookup", f, {"coef": torch.linspace(-2, 2, 21).repeat(4)}, x, coef={A, U})
reviewed(
    "GATv2",
    lambda s, x: (F.leaky_relu(s.fc(x)[:, None] + s.fc2(x)[None], 0.2) * s.att).sum(-1).softmax(-1),
    {"att": o},
    x,
    att={S, W},
)
reviewed(
    "GATv2 as a product",
    lambda s, x: (F.leaky_relu(s.fc(x)[:, None] + s.fc2(x)[None], 0.2) @ s.att).softmax(-1),
    {"att": o},
    x,
    att={S, W},
)


def f(s, u):
    dt, v, A_, st, ys = F.softplus(s.fc(u) + s.dt_bias), s.fc2(u), -torch.exp(s.A_log), torch.zeros(2, 4), []
    for t_ in range(5):
        st = st * torch.exp(dt[:, t_] * A_) + dt[:, t_] * v[:, t_]
        ys.append(st)
    return torch.stack(ys, 1)


reviewed("Mamba-2's decay", f, {"dt_bias": 0 * o, "A_log": 0 * o}, RN(2, 5, 4), A_log=S, dt_bias=B)


def g(s, u):
    k, v, w, a, b, y = s.fc(u), s.fc2(u), -torch.exp(s.time_decay), torch.zeros(2, 4), torch.zeros(2, 4), []
    for t_ in range(5):
        e = torch.exp(k[:, t_])
        a = torch.exp(w) * a + e * v[:, t_]
        b = torch.exp(w) * b + e
        y.append(a / b)
    return torch.stack(y, 1)


reviewed("RWKV's decay", g, {"time_decay": 0 * o}, RN(2, 5, 4), time_decay=S)


class LSQ(nn.Module):
    def __init__(self):
        super().__init__()
        self.step = nn.Parameter(torch.tensor(0.1))

    def forward(self, x):
        q = (x / self.step).clamp(0, 15)
        return ((q.round() - q).detach() + q) * self.step


REVIEWED.append(
    pytest.param(
        nn.Sequential(nn.Linear(4, 4), nn.ReLU(), LSQ(), nn.Linear(4, 4)),
        x,
        {"2.step": {S}},
        id="quantizer of activations",
    )
)


class AQ(nn.Module):
    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(0.1))
        self.zp = nn.Parameter(torch.tensor(3.0))

    def forward(self, x):
        q = torch.clamp(torch.round(x / self.scale + self.zp), 0, 255)
        return (q - self.zp) * self.scale


REVIEWED.append(
    pytest.param(nn.Sequential(nn.Linear(4, 4), AQ()), x, {"1.scale": {S}, "1.zp": {S, B}}, id="affine quantizer")
)
reviewed(
    "quantizer in a block",
    lambda s, x: (lambda h: ((h / s.s).round() - h / s.s).detach() * s.s + h)(s.fc(x)),
    {"s": 0.1},
    x,
    s=S,
)


def f(s, x):
    c = s.fc2(x)
    return torch.sigmoid(s.fc(x) + s.v * c + s.b) * c


reviewed("peephole", f, {"v": o, "b": 0 * o}, x, v={S, W}, b=B)
reviewed(
    "maxout's bias",
    lambda s, x: (torch.einsum("bi,iko->bko", x, s.w) + s.b).max(1).values,
    {"w": RN(4, 3, 5), "b": torch.zeros(3, 5)},
    x,
    b=B,
    w=W,
)
reviewed(
    "ordinal biases", lambda s, x: torch.sigmoid(s.fc(x).sum(-1, keepdim=True) + s.b), {"b": torch.zeros(5)}, x, b=B
)
reviewed(
    "kernel bandwidth",
    lambda s, x: torch.exp(-torch.cdist(s.fc(x), s.fc2(x)).pow(2) / (2 * s.bw**2)),
    {"bw": 1.0},
    x,
    bw=S,
)
reviewed(
    "length scales",
    lambda s, x: torch.exp(-((x[:, None] - x[None]) / s.ls.exp()).pow(2).sum(-1) / 2),
    {"ls": 0 * o},
    x,
    ls=S,
)
reviewed(
    "bias of every head",
    lambda s, x: F.relu(torch.einsum("bd,hde->bhe", x, s.w) + s.b),
    {"w": RN(2, 4, 3), "b": torch.zeros(2, 3)},
    x,
    b=B,
    w=W,
)
reviewed("addcmul", lambda s, x: torch.addcmul(s.beta, s.alpha, x), {"beta": o, "alpha": o}, x, beta=B, alpha=S)


def h(f):
    return lambda s, x: f(s, s.fc(x))


add(
    "arelu",
    lambda: {"fc": L(), "a": P(1, v=0.9), "b": P(1, v=2.0)},
    h(lambda s, y: F.relu(y) * (1 + torch.sigmoid(s.b)) - torch.clamp(s.a, 0.01, 0.99) * F.relu(-y)),
    (2, 4),
    a=A,
    b=A,
)
add("mish beta", lambda: {"fc": L(), "b": P()}, h(lambda s, y: y * torch.tanh(F.softplus(s.b * y))), (2, 4), b=A)
add(
    "erfact",
    lambda: {"fc": L(), "a": P(), "b": P()},
    h(lambda s, y: y * torch.erf(s.a * torch.exp(s.b * y))),
    (2, 4),
    a=A,
    b=A,
)
add("squareplus", lambda: {"fc": L(), "b": P()}, h(lambda s, y: (y + torch.sqrt(y * y + s.b)) / 2), (2, 4), b=A)
add("thresholded", lambda: {"fc": L(), "t": P(4)}, h(lambda s, y: y * (y > s.t)), (2, 4), t=A)
add("siren", lambda: {"fc": L(), "w": P()}, h(lambda s, y: torch.sin(s.w * y)), (2, 4), w=A)
add(
    "hermite",
    lambda: {"fc": L(), "c": R(4)},
    h(lambda s, y: s.c[0] + s.c[1] * y + s.c[2] * (y**2 - 1) + s.c[3] * (y**3 - 3 * y)),
    (2, 4),
    c=A,
)
add(
    "paf dict",
    lambda: {"fc": L(), "c": nn.ParameterDict({"a": P(v=0.3), "b": P(v=0.1)})},
    h(lambda s, y: torch.where(y > 0, s.c["a"] * y, s.c["b"] * y)),
    (2, 4),
    **{},
)
add(
    "list apl",
    lambda: {"fc": L(), "a": nn.ParameterList([P(4) for _ in range(2)])},
    h(lambda s, y: F.relu(y) + sum(a * F.relu(-y) for a in s.a)),
    (2, 4),
)
add(
    "shared slope",
    lambda: {"fc": L(), "fc2": L(), "a": P(v=0.2)},
    lambda s, x: (lambda g: g(s.fc2(g(s.fc(x)))))(lambda y: torch.where(y >= 0, y, y * s.a)),
    (2, 4),
    a=A,
)
add(
    "abs prelu",
    lambda: {"fc": L(), "a": P(4, v=0.2)},
    h(lambda s, y: 0.5 * (1 + s.a) * y + 0.5 * (1 - s.a) * y.abs()),
    (2, 4),
    a=A,
)
add(
    "leaky inplace",
    lambda: {"fc": L(), "a": P(4, v=0.2)},
    h(lambda s, y: y.clamp_min(0).add_(y.clamp_max(0).mul_(s.a))),
    (2, 4),
    a=A,
)
add("minus", lambda: {"fc": L(), "a": P(4, v=0.2)}, h(lambda s, y: F.relu(y) - F.relu(-y) * s.a), (2, 4), a=A)
add(
    "chan view",
    lambda: {"c": nn.Conv2d(3, 4, 1), "a": P(4, v=0.2)},
    lambda s, x: (lambda y: F.relu(y) + s.a.view(1, -1, 1, 1) * torch.clamp(y, max=0))(s.c(x)),
    (2, 3, 4, 4),
    a=A,
)
add(
    "exp slope",
    lambda: {"fc": L(), "a": P(4, v=-2.0)},
    h(lambda s, y: torch.where(y > 0, y, torch.exp(s.a) * y)),
    (2, 4),
    a=A,
)
add(
    "geglu beta",
    lambda: {"fc": L(4, 8), "b": P()},
    lambda s, x: (lambda u, v: u * (v * torch.sigmoid(s.b * v)))(*s.fc(x).chunk(2, -1)),
    (2, 4),
    b=A,
)
add(
    "glu temp",
    lambda: {"fc": L(4, 8), "b": P(4)},
    lambda s, x: (lambda u, v: u * torch.sigmoid(v * s.b))(*s.fc(x).split(4, -1)),
    (2, 4),
    b=A,
)
add(
    "bilinear gate",
    lambda: {"fc": L(4, 8), "g": P(4)},
    lambda s, x: (lambda u, v: u * v * s.g)(*s.fc(x).chunk(2, -1)),
    (2, 4),
    g=S,
)
add("hardswish alpha", lambda: {"fc": L(), "a": P()}, h(lambda s, y: y * F.relu6(s.a * y + 3) / 6), (2, 4), a=A)
add(
    "rbf kan learned grid",
    lambda: {"grid": R(5), "w": R(3, 20)},
    lambda s, x: F.linear(torch.exp(-(((x[..., None] - s.grid) / 0.5) ** 2)).flatten(1), s.w),
    (2, 4),
    grid=A,
    w=A,
)
add(
    "learned bandwidth kaf",
    lambda: {"fc": L(), "g": P(4), "al": R(4, 5)},
    h(lambda s, y: (s.al * torch.exp(-s.g[:, None] * (y[..., None] - torch.linspace(-1, 1, 5)) ** 2)).sum(-1)),
    (2, 4),
    al=A,
    g={A, S},
)
add(
    "relu kan",
    lambda: {"lo": R(4, 5), "hi": R(4, 5), "w": R(3, 20)},
    lambda s, x: (F.relu(x[..., None] - s.lo) * F.relu(s.hi - x[..., None])).pow(2).flatten(1) @ s.w.t(),
    (2, 4),
    w=A,
    lo=A,
    hi=A,
)
add(
    "bspline bmm",
    lambda: {"c": R(4, 5, 3)},
    lambda s, x: torch.bmm(F.relu(1 - (x[..., None] * 2 - torch.arange(5.0)).abs()).transpose(0, 1), s.c).sum(0),
    (2, 4),
    c=A,
)
add(
    "tensordot basis",
    lambda: {"c": R(4, 5, 3)},
    lambda s, x: torch.tensordot(torch.cos(x[..., None] * torch.arange(5.0)), s.c, dims=([1, 2], [0, 1])),
    (2, 4),
    c=A,
)
# norms
add(
    "rms eps inside",
    lambda: {"w": P(4)},
    lambda s, x: x / torch.sqrt((x * x).mean(-1, keepdim=True) + 1e-6) * s.w,
    (2, 4),
    w=N,
)
add(
    "rms float",
    lambda: {"w": P(4)},
    lambda s, x: (lambda n: s.w * n.to(x.dtype))(
        x.float() * torch.rsqrt(x.float().square().mean(-1, keepdim=True) + 1e-6)
    ),
    (2, 4),
    w=N,
)
add(
    "ln var_mean",
    lambda: {"w": P(4), "b": P(4)},
    lambda s, x: (lambda vm: (x - vm[1]) * torch.rsqrt(vm[0] + 1e-5) * s.w + s.b)(
        torch.var_mean(x, -1, keepdim=True, correction=0)
    ),
    (2, 4),
    w=N,
    b=N,
)
add(
    "ln einsum",
    lambda: {"w": P(4), "b": P(4)},
    lambda s, x: (lambda m: torch.addcmul(s.b, (x - m) / (x - m).pow(2).mean(-1, keepdim=True).add(1e-5).sqrt(), s.w))(
        x.mean(-1, keepdim=True)
    ),
    (2, 4),
    w=N,
    b=N,
)
add(
    "channels last",
    lambda: {"w": P(3), "b": P(3)},
    lambda s, x: F.layer_norm(x.permute(0, 2, 3, 1), (3,), s.w, s.b, 1e-6).permute(0, 3, 1, 2),
    (2, 3, 4, 4),
    w=N,
    b=N,
)
add(
    "adaLN zero",
    lambda: {"m": L(4, 8), "g": P(4)},
    lambda s, x: (lambda sc, sh: F.layer_norm(x, (4,)) * (1 + sc) + sh)(*s.m(x).chunk(2, -1)) * s.g,
    (2, 4),
    g={N, S},
)
add("scale norm", lambda: {"g": P()}, lambda s, x: F.normalize(x, dim=-1) * s.g, (2, 4), g={N, S})
add(
    "qk norm heads",
    lambda: {"q": L(), "k": L(), "qs": P(2, 1, 2), "ks": P(2, 1, 2)},
    lambda s, x: (lambda q, k: (F.normalize(q, dim=-1) * s.qs) @ (F.normalize(k, dim=-1) * s.ks).transpose(-1, -2))(
        s.q(x).view(2, 3, 2, 2).transpose(1, 2), s.k(x).view(2, 3, 2, 2).transpose(1, 2)
    ),
    (2, 3, 4),
    qs={N, S},
    ks={N, S},
)
# scale etc
add(
    "skipinit",
    lambda: {"c": nn.Conv2d(3, 3, 3, padding=1), "a": P(v=0.0)},
    lambda s, x: x + s.a * F.relu(s.c(x)),
    (2, 3, 4, 4),
    a=S,
)
add(
    "layerscale conv",
    lambda: {"c": nn.Conv2d(3, 3, 1), "g": P(3)},
    lambda s, x: x + s.c(x) * s.g.view(-1, 1, 1),
    (2, 3, 4, 4),
    g=S,
)
add(
    "mix alpha sigmoid",
    lambda: {"a": L(), "b": L(), "al": P(v=0.0)},
    lambda s, x: torch.sigmoid(s.al) * s.a(x) + (1 - torch.sigmoid(s.al)) * s.b(x),
    (2, 4),
    al=S,
)
add(
    "moco T",
    lambda: {"q": L(), "T": P(v=0.07)},
    lambda s, x: torch.mm(F.normalize(s.q(x)), F.normalize(x).t()) / s.T,
    (3, 4),
    T=S,
)
add(
    "cosine head",
    lambda: {"w": R(5, 4), "s_": P(v=10.0)},
    lambda s, x: s.s_ * (F.normalize(x) @ F.normalize(s.w, dim=1).t()),
    (2, 4),
    s_=S,
    w=W,
)
add(
    "T softplus",
    lambda: {"fc": L(), "t": P(v=0.0)},
    lambda s, x: F.log_softmax(s.fc(x) / F.softplus(s.t), -1),
    (2, 4),
    t=S,
)
add(
    "head temperature",
    lambda: {"q": L(), "t": P(2, 1, 1)},
    lambda s, x: (lambda q: ((q @ q.transpose(-1, -2)) * s.t).softmax(-1) @ q)(s.q(x).view(2, 3, 2, 2).transpose(1, 2)),
    (2, 3, 4),
    t=S,
)
add(
    "dorefa alpha",
    lambda: {"w": R(4, 4), "al": P()},
    lambda s, x: F.linear(x, s.al * torch.tanh(s.w) / torch.tanh(s.w).abs().max()),
    (2, 4),
    w=W,
    al=S,
)
add(
    "xnor alpha",
    lambda: {"c": nn.Conv2d(3, 3, 1), "al": P(3, 1, 1)},
    lambda s, x: s.c(torch.sign(x)) * s.al,
    (2, 3, 4, 4),
    al=S,
)
add(
    "lora alpha",
    lambda: {"w": R(4, 4), "A_": R(2, 4), "B_": R(4, 2), "al": P()},
    lambda s, x: F.linear(x, s.w) + s.al * (x @ s.A_.t() @ s.B_.t()),
    (2, 4),
    A_=W,
    B_=W,
    al=S,
)
add(
    "vera",
    lambda: {"w": R(4, 4), "d": P(2), "b": P(4)},
    lambda s, x: (
        F.linear(x, s.w) + s.b * (s.d * (x @ torch.ones(4, 2))) @ torch.ones(2, 4)
        if False
        else F.linear(x, s.w) + s.b * F.linear(s.d * F.linear(x, torch.ones(2, 4)), torch.ones(4, 2))
    ),
    (2, 4),
    d=S,
    b=S,
)
add("ia3", lambda: {"k": L(), "l": P(4)}, lambda s, x: torch.relu(s.k(x) * s.l), (2, 4), l=S)
add(
    "prefix",
    lambda: {"pk": R(1, 3, 4), "k": L(), "q": L()},
    lambda s, x: (lambda k: (s.q(x) @ k.transpose(1, 2)).softmax(-1) @ k)(
        torch.cat([s.pk.expand(2, -1, -1), s.k(x)], 1)
    ),
    (2, 3, 4),
    pk=E,
)
add(
    "rotary freqs",
    lambda: {"fr": R(2)},
    lambda s, x: (lambda a: x * torch.cat([a.cos(), a.cos()], -1) + x.roll(2, -1) * torch.cat([a.sin(), a.sin()], -1))(
        torch.arange(3.0)[:, None] * s.fr
    ),
    (2, 3, 4),
    fr={S, E, U, W},
)
add(
    "masked token where",
    lambda: {"t": P(1, 1, 4, v=0.0), "p": L()},
    lambda s, x: torch.where((x.sum(-1, keepdim=True) > 0), s.t.expand_as(x), s.p(x)),
    (2, 3, 4),
    t=E,
)
add("pos slice", lambda: {"p": L(), "pos": R(1, 10, 4)}, lambda s, x: s.p(x) + s.pos[:, : x.shape[1]], (2, 3, 4), pos=E)
add(
    "pos interp",
    lambda: {"c": nn.Conv2d(3, 4, 1), "pos": R(1, 4, 8, 8)},
    lambda s, x: s.c(x) + F.interpolate(s.pos, size=x.shape[-2:]),
    (2, 3, 4, 4),
    pos=E,
)
add(
    "pos factor",
    lambda: {"c": nn.Conv2d(3, 4, 1), "h": R(1, 4, 4, 1), "w": R(1, 4, 1, 4)},
    lambda s, x: s.c(x) + s.h + s.w,
    (2, 3, 4, 4),
    h=E,
    w=E,
)
add("vq cdist", lambda: {"cb": R(6, 4)}, lambda s, x: s.cb[torch.cdist(x, s.cb).argmin(-1)], (2, 4), cb=E)
add(
    "bias shift gelu",
    lambda: {"c": nn.Conv2d(3, 4, 1, bias=False), "b": P(1, 4, 1, 1, v=0.0)},
    lambda s, x: F.gelu(s.c(x) + s.b),
    (2, 3, 4, 4),
    b=B,
)
add(
    "einsum bias",
    lambda: {"w": R(4, 2, 3), "b": P(2, 3, v=0.0)},
    lambda s, x: torch.einsum("btd,dhk->bthk", x, s.w) + s.b,
    (2, 5, 4),
    w=W,
    b=B,
)
add(
    "gru functional",
    lambda: {"wi": R(12, 4), "wh": R(12, 4), "bi": P(12), "bh": P(12)},
    lambda s, x: torch.gru_cell(x, torch.zeros(2, 4), s.wi, s.wh, s.bi, s.bh),
    (2, 4),
    wi=W,
    wh=W,
    bi=B,
    bh=B,
)
add(
    "s5",
    lambda: {"Lre": R(4), "Bm": R(4, 4), "Cm": R(4, 4), "D": P(4), "step": R(4)},
    lambda s, x: (
        lambda lam: (
            lambda bu: (
                torch.stack([sum(lam ** (t - k) * bu[:, k] for k in range(t + 1)) for t in range(x.shape[1])], 1)
                @ s.Cm.t()
                + s.D * x
            )
        )((x @ s.Bm.t()) * s.step.exp())
    )(torch.exp(-torch.exp(s.Lre) * s.step.exp())),
    (2, 3, 4),
    D=S,
    Bm=W,
    Cm=W,
    step={S},
    Lre={S},
)
add(
    "rglru",
    lambda: {"r": L(), "i": L(), "lam": P(4)},
    lambda s, x: (
        lambda la: (
            lambda a: (lambda u: torch.stack([u[:, 0], a[:, 1] * u[:, 0] + u[:, 1]], 1))(
                torch.sqrt(1 - a**2) * torch.sigmoid(s.i(x)) * x
            )
        )(torch.exp(la))
    )(-8.0 * F.softplus(s.lam) * torch.sigmoid(s.r(x))),
    (2, 2, 4),
    lam=S,
)
add(
    "retnet decay",
    lambda: {"q": L(), "g": P(2)},
    lambda s, x: (
        lambda q: (
            (
                q
                @ q.transpose(-1, -2)
                * (torch.sigmoid(s.g)[:, None, None] ** (torch.arange(3)[:, None] - torch.arange(3)).abs())
            )
            @ q
        )
    )(s.q(x).view(2, 3, 2, 2).transpose(1, 2)),
    (2, 3, 4),
    g=S,
)
add(
    "alibi slopes",
    lambda: {"q": L(), "m": P(2)},
    lambda s, x: (
        lambda q: (
            (q @ q.transpose(-1, -2) - s.m[:, None, None] * (torch.arange(3)[:, None] - torch.arange(3)).abs()).softmax(
                -1
            )
            @ q
        )
    )(s.q(x).view(2, 3, 2, 2).transpose(1, 2)),
    (2, 3, 4),
    m={S, B},
)


def recurrent(s: Any, x: torch.Tensor) -> torch.Tensor:
    h = s.h0.expand(len(x), -1)
    for t in range(x.shape[1]):
        h = torch.tanh(s.a(x[:, t]) + s.b(h))
    return h


add("first state of a loop", lambda: {"h0": R(1, 4), "a": L(), "b": L()}, recurrent, (2, 3, 4), h0=E)


@pytest.mark.parametrize(("make", "shape", "wanted"), CASES)
def test_what_uses_a_parameter_decides_its_role(make: Any, shape: Any, wanted: dict[str, set[str]]) -> None:
    torch.manual_seed(0)
    example = torch.randint(9, (2, 3)) if shape == "ids" else torch.randn(shape)
    found = roles(make(), example)
    assert {k: found[k] for k, good in wanted.items() if found[k] not in good} == {}


def test_by_use_agrees_with_torchs_own_types() -> None:
    """Roles by type, and by use alone, of a network of torch's layers."""
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.PReLU(4), nn.Flatten(), nn.Linear(36, 5))
    observed = observe(net, torch.randn(2, 3, 5, 5)).by_use
    assert observed == roles(net)


class LowRank(nn.Module):
    """LoRA as a parametrization."""

    def __init__(self) -> None:
        super().__init__()
        self.A, self.B = R(2, 4), P(4, 2, v=0.0)

    def forward(self, w: torch.Tensor) -> torch.Tensor:
        return w + self.B @ self.A


def test_a_parametrization_has_the_role_of_what_it_parametrizes() -> None:
    layer, slopes = nn.Linear(4, 4), nn.PReLU(4)
    parametrize.register_parametrization(layer, "weight", LowRank())
    parametrize.register_parametrization(slopes, "weight", nn.PReLU())
    found = roles(nn.Sequential(layer, slopes))
    assert {v for k, v in found.items() if k.startswith("0.parametrizations")} == {W}
    assert {v for k, v in found.items() if k.startswith("1.parametrizations")} == {A}


class Marked(nn.Module):
    """A block that owns a slope, which it marks."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.fc = nn.Linear(4, 4)
        if how == "parameter":
            self.slope = mark_activation(P(4, v=0.25))
        else:
            self.slope = P(4, v=0.25)
            mark_activation(self, "slope")

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.prelu(self.fc(x), self.slope)


def assigned(model: nn.Module) -> nn.Module:
    model.load_state_dict({k: v.clone() for k, v in model.state_dict().items()}, assign=True)
    return model


def overwritten(model: nn.Module) -> nn.Module:
    torch.__future__.set_overwrite_module_params_on_conversion(True)
    try:
        return model.double()
    finally:
        torch.__future__.set_overwrite_module_params_on_conversion(False)


WAYS = {
    "deepcopy": copy.deepcopy,
    "AveragedModel": lambda m: AveragedModel(m).module,
    "assign": assigned,
    "to_empty": lambda m: copy.deepcopy(m).to("meta").to_empty(device="cpu"),
    "overwrite": overwritten,
}


@pytest.mark.parametrize("how", ["parameter", "name"])
@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
def test_marks_survive(how: str, way: Callable[[nn.Module], nn.Module]) -> None:
    model = way(Marked(how))
    assert roles(model)["slope"] == A
    decayed = {n for g in param_groups(model, 0.1) if g["weight_decay"] for n in g["param_names"]}
    assert decayed == {"fc.weight", "fc.bias"}
    assert roles(nn.Sequential(nn.Linear(4, 4), way(Marked(how))))["1.slope"] == A


def test_a_name_that_is_no_parameter_is_an_error() -> None:
    with pytest.raises(UsageError, match="Marked has no parameter 'slop'"):
        mark_activation(Marked("name"), "slop")
    with pytest.raises(UsageError, match="with a module only"):
        mark_activation(Marked, "slope")


def test_a_model_of_several_inputs_by_position_and_by_name() -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table, self.slope = R(9, 4), P(4)

        def forward(self, image: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
            return F.prelu(image, self.slope) + self.table[ids]

    image, ids = torch.randn(2, 4), torch.tensor([1, 2])
    wanted = {"table": E, "slope": A}
    assert roles(Two(), (image, ids)) == roles(Two(), {"ids": ids, "image": image}) == wanted
    with pytest.raises(UsageError, match=r"given an example input of \(2, 4\), fails"):
        roles(Two(), image)


@pytest.mark.parametrize(("model", "example", "wanted"), REVIEWED)
def test_what_a_reviewer_found(model: nn.Module, example: torch.Tensor, wanted: dict[str, set[str]]) -> None:
    found = roles(model.eval(), example)
    assert {k: found[k] for k, good in wanted.items() if found[k] not in good} == {}


def test_a_role_does_not_depend_on_the_random_start() -> None:
    class Threshold(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc, self.theta = nn.Linear(4, 4), nn.Parameter(torch.zeros(4))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.relu(self.fc(x) - self.theta)

    assert {roles(Threshold(), torch.randn(2, 4))["theta"] for _ in range(20)} == {B}


def test_a_run_changes_nothing_in_the_model() -> None:
    class Lazy(nn.Module):
        """Calibrates itself on its first batch, counts, remembers, and draws."""

        def __init__(self) -> None:
            super().__init__()
            self.fc, self.step = nn.Linear(4, 4), nn.Parameter(torch.tensor(1.0))
            self.register_buffer("flag", torch.zeros(1))
            self.calls, self.seen = 0, []

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            if self.flag == 0:
                with torch.no_grad():
                    self.step.copy_(x.abs().mean())
                    self.flag.fill_(1)
            self.calls += 1
            self.seen.append(x)
            self.last = x + random.random() + float(np.random.rand())
            return self.fc((x / self.step).round() * self.step)

    model = Lazy()
    random.seed(0)
    np.random.seed(0)
    expected = random.random(), np.random.rand()
    random.seed(0)
    np.random.seed(0)
    assert roles(model, torch.randn(2, 4) * 10)["step"] == S
    assert (float(model.step.detach()), float(model.flag), model.calls, model.seen) == (1.0, 0.0, 0, [])
    assert not hasattr(model, "last")
    assert (random.random(), np.random.rand()) == expected
    assert model.training


def test_models_that_are_run_in_odd_ways() -> None:
    class Force(nn.Module):
        """Computes a gradient in its forward pass."""

        def __init__(self) -> None:
            super().__init__()
            self.fc, self.a = nn.Linear(4, 1), P(4)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = x.clone().requires_grad_()
            (force,) = torch.autograd.grad(self.fc(F.prelu(x, self.a)).sum(), x, create_graph=True)
            return force

    model = Force()
    assert roles(model, torch.randn(2, 4))["a"] == A
    assert all(p.grad is None for p in model.parameters())
    lazy = nn.Sequential(nn.LazyLinear(3), Marked("name"))
    del lazy[1]
    assert roles(lazy, torch.randn(2, 4)) == {"0.weight": W, "0.bias": B}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        scripted = torch.jit.script(nn.Sequential(nn.Linear(4, 4), nn.PReLU(4)))
    assert set(roles(scripted, torch.randn(2, 4))) == {"0.weight", "0.bias", "1.weight"}


def test_what_cannot_be_marked_is_an_error() -> None:
    for thing in (torch.ones(3), "slope"):
        with pytest.raises(UsageError, match="mark_activation takes a module, its class or a parameter"):
            mark_activation(thing)


def test_a_batch_norm_of_ones_own_is_a_norm_in_evaluation_too() -> None:
    class OwnNorm(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.g, self.b = P(4), P(4, v=0.0)
            self.register_buffer("mean", torch.zeros(4))
            self.register_buffer("var", torch.ones(4))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            mean, var = (x.mean(0), x.var(0)) if self.training else (self.mean, self.var)
            if self.training:
                self.mean = 0.9 * self.mean + 0.1 * mean.detach()
            return (x - mean) / torch.sqrt(var + 1e-5) * self.g + self.b

    model = nn.Sequential(nn.Linear(4, 4), OwnNorm(), nn.ReLU())
    found = roles(model, torch.randn(8, 4))
    assert (found["1.g"], found["1.b"]) == (N, N)
    assert torch.equal(model[1].mean, torch.zeros(4))
