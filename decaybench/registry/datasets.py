"""The data sets and their options."""

from collections.abc import Mapping
from dataclasses import dataclass
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


class PythonSourceOptions(Options):
    """Options of python-source: bytes of a window, and windows of the training part."""

    context: Annotated[int, Field(ge=4, le=4096)] = 64
    windows: Annotated[int, Field(ge=100, le=10_000_000)] = 8000


@dataclass(frozen=True)
class DataSetEntry(Entry):
    """A data set, and the task that it is for."""

    task: str = "classification"


DATASETS: Mapping[str, DataSetEntry] = {
    "digits": DataSetEntry("UCI digits, 1,797 images of 8×8, inside scikit-learn", _PACKAGE + "embedded:digits"),
    "fashion-mnist": DataSetEntry(
        "70,000 images of 28×28 (Debian's package, or download)", _PACKAGE + "files:fashion_mnist"
    ),
    "mnist": DataSetEntry("70,000 images of 28×28, through torchvision", _PACKAGE + "files:mnist"),
    "cifar10": DataSetEntry("60,000 colour images of 32×32, through torchvision", _PACKAGE + "files:cifar10"),
    "cifar100": DataSetEntry("the same with 100 classes, through torchvision", _PACKAGE + "files:cifar100"),
    "svhn": DataSetEntry("99,289 house numbers of 32×32, through torchvision", _PACKAGE + "files:svhn"),
    "mnist1d": DataSetEntry("5,000 signals of 40 numbers, 10 classes (extra: data)", _PACKAGE + "vectors:mnist1d"),
    "letter": DataSetEntry(
        "UCI Letter, 20,000 × 16, 26 classes (Debian's r-cran-mlbench)", _PACKAGE + "vectors:letter"
    ),
    "diabetes": DataSetEntry(
        "442 × 10 and a number to predict, inside scikit-learn", _PACKAGE + "embedded:diabetes", task="regression"
    ),
    "python-source": DataSetEntry(
        "bytes of the standard library's modules, the next one to predict",
        _PACKAGE + "vectors:python_source",
        PythonSourceOptions,
        "next-token",
    ),
    "synthetic": DataSetEntry("seeded noisy prototypes, for tests", _PACKAGE + "embedded:synthetic", SyntheticOptions),
}
