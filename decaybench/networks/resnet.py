"""ResNet-18 in which no activation module is used twice."""

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from decaybench.networks.small import MakeActivation, Shape
from decaybench.vision import torchvision


def resnet18(shape: Shape, classes: int, activation: MakeActivation) -> nn.Module:
    """Builds torchvision's ResNet-18 with a 3×3 stem and no first pooling, as is usual for small images.

    torchvision uses one ReLU module twice in each block; here each of the 17 places has its own activation.
    Source: He et al. 2016, arXiv 1512.03385; the stem is that of its section 4.2.
    """
    resnet = torchvision().models.resnet
    model: nn.Module = resnet.ResNet(_block(resnet.BasicBlock, activation), [2, 2, 2, 2], num_classes=classes)
    model.conv1 = nn.Conv2d(shape[0], 64, 3, padding=1, bias=False)
    nn.init.kaiming_normal_(model.conv1.weight, mode="fan_out", nonlinearity="relu")
    model.relu = activation(64)
    model.maxpool = nn.Identity()
    return model


def _block(basic: type[nn.Module], activation: MakeActivation) -> Callable[..., nn.Module]:
    """Torchvision's BasicBlock with two activations instead of one used twice."""

    class Block(basic):  # type: ignore[misc, valid-type]
        def __init__(self, inplanes: int, planes: int, *args: Any, **kwargs: Any) -> None:
            super().__init__(inplanes, planes, *args, **kwargs)
            self.relu = activation(planes)
            self.relu2 = activation(planes)

        def forward(self, x: Tensor) -> Tensor:
            out = self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x)))))
            identity = x if self.downsample is None else self.downsample(x)
            return self.relu2(out + identity)  # type: ignore[no-any-return]

    return Block
