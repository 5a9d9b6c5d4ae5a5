"""MNIST as torchvision gives it: an image and its label at a time, the image through a transform."""

from common import data

from torch.utils.data import Dataset


class MNIST(Dataset):
    def __init__(self, root=None, train=True, download=False, transform=None):
        self.images, self.labels = data.mnist()[0 if train else 1]
        self.transform = transform

    def __len__(self):
        return len(self.labels)

    def __getitem__(self, index):
        return self.transform(self.images[index]), int(self.labels[index])
