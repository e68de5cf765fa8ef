"""A plain deep stack, for reading what the activations learn layer by layer."""

from torch import nn

from decaybench.networks.small import MakeActivation, Shape


def vgg(
    shape: Shape,
    classes: int,
    activation: MakeActivation,
    depth: int = 8,
    width: int = 32,
    norm: bool = False,
) -> nn.Module:
    """Builds ``depth`` 3×3 convolutions, each with its activation, in three stages of doubling width.

    A stage ends with 2×2 pooling while the image allows it; global average pooling and a linear classifier
    follow. Weights are initialized after He et al. 2015 (arXiv 1502.01852, section 2.2), so that depth trains
    without batch normalization; ``norm`` adds it.
    """
    channels, h, w = shape
    layers: list[nn.Module] = []
    for layer in range(depth):
        stage = 3 * layer // depth
        out = width * 2**stage
        conv = nn.Conv2d(channels, out, 3, padding=1, bias=not norm)
        nn.init.kaiming_normal_(conv.weight)
        layers += [conv, nn.BatchNorm2d(out), activation(out)] if norm else [conv, activation(out)]
        if 3 * (layer + 1) // depth > stage and min(h, w) >= 2:
            layers.append(nn.MaxPool2d(2))
            h, w = h // 2, w // 2
        channels = out
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, classes))
