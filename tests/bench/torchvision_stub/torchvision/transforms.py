"""ToTensor, Normalize and Compose for images (H, W) of uint8."""

import torch


class ToTensor:
    def __call__(self, image):
        return torch.from_numpy(image).float().div(255)[None]  # (1, H, W)


class Normalize:
    def __init__(self, mean, std):
        self.mean, self.std = mean[0], std[0]

    def __call__(self, image):
        return (image - self.mean) / self.std


class Compose:
    def __init__(self, transforms):
        self.transforms = transforms

    def __call__(self, image):
        for transform in self.transforms:
            image = transform(image)
        return image
