"""A LeNet-style network, pretrained on the digits 0 to 4 and fine-tuned on 5 to 9."""

from models.simplenet.network import SimpleNet

__all__ = ["SimpleNet"]
