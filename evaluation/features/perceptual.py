"""PERCEPTUAL: the networks of LPIPS, a row each (Zhang et al. 2018, arXiv 1801.03924; linear layers of version 0.1). No torch.

A distance is of a network trained on ImageNet and of linear layers that were trained on people's judgements of its layers.
"""

from dataclasses import dataclass

from fiducial.evaluation.features.weights import Weights

TORCHVISION = "https://download.pytorch.org/models"
LPIPS = "https://raw.githubusercontent.com/richzhang/PerceptualSimilarity/master/lpips/weights/v0.1"
PACKAGE = "lpips"  # a package that has the linear layers in it, where it is installed
IN_PACKAGE = "weights/v0.1"


@dataclass(frozen=True)
class PerceptualSpec:
    """A network of LPIPS before it is loaded.

    `backbone` are torchvision's weights of the model that it calls `model`, `heads` the linear layers'. `layers` are the places
    in that model's `features` after whose ReLU the two images are compared, `channels` how many they have there. Images have at
    least `least` pixels a side.
    """

    name: str
    title: str
    model: str
    backbone: Weights
    heads: Weights
    layers: tuple[int, ...]
    channels: tuple[int, ...]
    least: int

    @property
    def weights(self) -> tuple[Weights, Weights]:
        return self.backbone, self.heads


def _backbone(name: str, title: str, sha256: str, file: str) -> Weights:
    return Weights(
        name,
        title,
        f"{TORCHVISION}/{file}-{sha256}.pth",
        f"torchvision's {title} for LPIPS",
        sha256,
        "; --metrics rfid,psnr,ssim needs none",
    )


def _heads(net: str, title: str, sha256: str) -> Weights:
    return Weights(
        f"lpips-{net}",
        f"LPIPS-{title} linear layers'",
        f"{LPIPS}/{net}.pth",
        f"its {title} layers of version 0.1",
        sha256,
        "; pip install lpips brings it too; --metrics rfid,psnr,ssim needs none",
        saved_as=f"lpips-v0.1-{net}.pth",
    )


PERCEPTUAL = {
    spec.name: spec
    for spec in (
        PerceptualSpec(
            "lpips",
            "AlexNet",
            "alexnet",
            _backbone("alexnet", "AlexNet", "7be5be79", "alexnet-owt"),
            _heads("alex", "AlexNet", "df73285e35b22355a2df87cdb6b70b343713b667eddbda73e1977e0c860835c0"),
            (1, 4, 7, 9, 11),
            (64, 192, 384, 256, 256),
            31,
        ),
        PerceptualSpec(
            "lpips-vgg",
            "VGG16",
            "vgg16",
            _backbone("vgg16", "VGG16", "397923af", "vgg16"),
            _heads("vgg", "VGG16", "a78928a0af1e5f0fcb1f3b9e8f8c3a2a5a3de244d830ad5c1feddc79b8432868"),
            (3, 8, 15, 22, 29),
            (64, 128, 256, 512, 512),
            16,
        ),
    )
}
