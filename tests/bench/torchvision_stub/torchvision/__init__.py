"""The little of torchvision that other people's MNIST programs use, fed from memory (see peers_mnist.py)."""
