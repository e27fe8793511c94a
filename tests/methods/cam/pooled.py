"""What the tests know about networks that end in average pooling and one linear layer."""

from interp.model import VisionModel

POOLED = ("resnet", "resnet_bottleneck", "regnet", "efficientnet", "mobilenet_v2")


def classifier(model: VisionModel) -> str:
    """The name of the linear layer."""
    return "classifier.1" if model.family in ("resnet", "regnet") else "classifier"
