"""A LeNet-style network, pretrained on one half of the digits and fine-tuned on the other."""

from models.simplenet.network import SimpleNet

__all__ = ["SimpleNet"]
