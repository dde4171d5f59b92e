"""EfficientNet-Lite0 with ImageNet weights, fine-tuned on handwritten digits."""

from models.efficientnet_lite.network import efficientnet_lite0

__all__ = ["efficientnet_lite0"]
