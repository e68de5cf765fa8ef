"""The networks and their options."""

from collections.abc import Mapping
from typing import Annotated

from pydantic import Field, PositiveInt

from decaybench.registry.entry import Entry, Fraction, Options

_PACKAGE = "decaybench.networks."


class ForumOptions(Options):
    """Options of the forum network: channels of the first layer; the second has twice as many."""

    width: PositiveInt = 16


class MLPOptions(Options):
    """Options of the dense network: `dropout` follows each activation."""

    width: PositiveInt = 128
    depth: PositiveInt = 2
    dropout: Fraction = 0.0


class VGGOptions(Options):
    """Options of vgg: `depth` convolutions from `width` channels on, `norm` for batch normalization."""

    depth: Annotated[int, Field(ge=2, le=32)] = 8
    width: PositiveInt = 32
    norm: bool = False


NETWORKS: Mapping[str, Entry] = {
    "forum": Entry("the thread's Conv-act-Conv-act-Conv, any image size", _PACKAGE + "small:forum", ForumOptions),
    "mlp": Entry("dense layers", _PACKAGE + "small:mlp", MLPOptions),
    "kafnet": Entry("the KAF authors' demo: two conv 20@5×5 with pooling", _PACKAGE + "small:kafnet"),
    "vgg": Entry("a plain 3×3 stack after He et al., depth is an option", _PACKAGE + "vgg:vgg", VGGOptions),
    "resnet18": Entry("torchvision's, small-image stem, no activation shared", _PACKAGE + "resnet:resnet18"),
}
