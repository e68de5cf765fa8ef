"""Small networks: the thread's, a dense one, and the KAF authors' demo."""

from collections.abc import Callable

from torch import nn

from decaybench.errors import UsageError

Shape = tuple[int, int, int]
MakeActivation = Callable[[int], nn.Module]


def forum(shape: Shape, classes: int, activation: MakeActivation, width: int = 16, norm: bool = False) -> nn.Module:
    """Builds Conv-act-Conv-act-Conv, as in the thread; ``norm`` puts batch normalization before each activation.

    The first two halve the image; the last one spans what is left of it and so is the classifier.
    """
    c, h, w = shape
    left = -(-h // 4), -(-w // 4)
    layers: list[nn.Module] = []
    for out in (width, 2 * width):  # (N, width, ⌈H/2⌉, ⌈W/2⌉), (N, 2·width, ⌈H/4⌉, ⌈W/4⌉)
        layers.append(nn.Conv2d(c, out, 3, stride=2, padding=1, bias=not norm))
        layers += [nn.BatchNorm2d(out), activation(out)] if norm else [activation(out)]
        c = out
    return nn.Sequential(*layers, nn.Conv2d(c, classes, left), nn.Flatten())  # (N, classes)


def mlp(
    shape: Shape,
    classes: int,
    activation: MakeActivation,
    width: int = 128,
    depth: int = 2,
    dropout: float = 0.0,
    norm: bool = False,
) -> nn.Module:
    """Builds ``depth`` dense layers of ``width``, each with its activation, and a linear classifier.

    ``norm`` puts batch normalization before each activation.
    """
    layers: list[nn.Module] = [nn.Flatten()]
    features = shape[0] * shape[1] * shape[2]
    for _ in range(depth):
        layers.append(nn.Linear(features, width, bias=not norm))
        layers += [nn.BatchNorm1d(width), activation(width)] if norm else [activation(width)]
        if dropout:
            layers.append(nn.Dropout(dropout))
        features = width
    return nn.Sequential(*layers, nn.Linear(features, classes))


def kafnet(shape: Shape, classes: int, activation: MakeActivation) -> nn.Module:
    """Builds the network of the KAF authors' convolutional demo.

    Raises:
        UsageError: For images under 9×9, of which the two poolings leave nothing.
    """
    c, h, w = shape
    if min(h, w) < 9:
        raise UsageError(f"The network kafnet pools 3×3 twice and needs images of at least 9×9, not {h}×{w}.")
    return nn.Sequential(
        nn.Conv2d(c, 20, 5, padding=2),
        nn.MaxPool2d(3),  # (N, 20, H/3, W/3)
        activation(20),
        nn.Conv2d(20, 20, 5, padding=2),
        nn.MaxPool2d(3),  # (N, 20, H/9, W/9)
        activation(20),
        nn.Flatten(),
        nn.Linear(20 * (h // 3 // 3) * (w // 3 // 3), classes),
    )
