"""The networks and their options."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Self

from pydantic import Field, PositiveInt, model_validator

from decaybench.registry.entry import Entry, Fraction, Options

_PACKAGE = "decaybench.networks."


class ForumOptions(Options):
    """Options of the forum network: channels of the first layer, the second has twice as many; `norm` as in vgg."""

    added = frozenset({"norm"})
    width: PositiveInt = 16
    norm: bool = False


class MLPOptions(Options):
    """Options of the dense network: `dropout` follows each activation, batch normalization (`norm`) precedes it."""

    added = frozenset({"norm"})
    width: PositiveInt = 128
    depth: PositiveInt = 2
    dropout: Fraction = 0.0
    norm: bool = False


class VGGOptions(Options):
    """Options of vgg: `depth` convolutions from `width` channels on, `norm` for batch normalization."""

    depth: Annotated[int, Field(ge=2, le=32)] = 8
    width: PositiveInt = 32
    norm: bool = False


class GPTOptions(Options):
    """Options of gpt: blocks, width of the stream, heads of the attention."""

    depth: PositiveInt = 2
    width: PositiveInt = 64
    heads: PositiveInt = 4

    @model_validator(mode="after")
    def _heads_divide_it(self) -> Self:
        if self.width % self.heads:
            raise ValueError("width must be a multiple of heads")
        return self


@dataclass(frozen=True)
class NetworkEntry(Entry):
    """A network, and whether it takes tokens; the others take images, and vectors as such of 1×1."""

    tokens: bool = False


NETWORKS: Mapping[str, NetworkEntry] = {
    "forum": NetworkEntry(
        "the thread's Conv-act-Conv-act-Conv, any image size", _PACKAGE + "small:forum", ForumOptions
    ),
    "mlp": NetworkEntry("dense layers", _PACKAGE + "small:mlp", MLPOptions),
    "kafnet": NetworkEntry("the KAF authors' demo: two conv 20@5×5 with pooling", _PACKAGE + "small:kafnet"),
    "vgg": NetworkEntry("a plain 3×3 stack after He et al., depth is an option", _PACKAGE + "vgg:vgg", VGGOptions),
    "resnet18": NetworkEntry("torchvision's, small-image stem, no activation shared", _PACKAGE + "resnet:resnet18"),
    "gpt": NetworkEntry("a small transformer for tokens, pre-norm", _PACKAGE + "gpt:gpt", GPTOptions, tokens=True),
}
