"""The data sets and their options."""

from collections.abc import Mapping
from typing import Annotated

from pydantic import Field, NonNegativeFloat

from decaybench.registry.entry import Entry, Options

_PACKAGE = "decaybench.datasets."


class SyntheticOptions(Options):
    """Options of synthetic data: `noise` is the standard deviation around prototypes of variance 1."""

    samples: Annotated[int, Field(ge=40)] = 640
    classes: Annotated[int, Field(ge=2, le=20)] = 4
    size: Annotated[int, Field(ge=1, le=64)] = 8
    noise: NonNegativeFloat = 3.0


DATASETS: Mapping[str, Entry] = {
    "digits": Entry("UCI digits, 1,797 images of 8×8, inside scikit-learn", _PACKAGE + "embedded:digits"),
    "fashion-mnist": Entry("70,000 images of 28×28 (Debian's package, or download)", _PACKAGE + "files:fashion_mnist"),
    "mnist": Entry("70,000 images of 28×28, through torchvision", _PACKAGE + "files:mnist"),
    "cifar10": Entry("60,000 colour images of 32×32, through torchvision", _PACKAGE + "files:cifar10"),
    "cifar100": Entry("the same with 100 classes, through torchvision", _PACKAGE + "files:cifar100"),
    "svhn": Entry("99,289 house numbers of 32×32, through torchvision", _PACKAGE + "files:svhn"),
    "synthetic": Entry("seeded noisy prototypes, for tests", _PACKAGE + "embedded:synthetic", SyntheticOptions),
}
