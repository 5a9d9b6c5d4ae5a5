"""Photographed pages for read_photo.py: read from a file, or made here, so that what stands there is known.

A page that is made has light that falls off to one side, a hard shadow, a slight turn, too little focus, noise, and the
marks of JPEG. The digits on it are MNIST's, enlarged, each of its own size, and written with its own pen.
"""

import io

from common import UserError
from common.checkpoint import DAMAGED

import numpy as np
from matplotlib import get_data_path
from PIL import Image, ImageDraw, ImageFont, ImageOps
from scipy import ndimage

SIDE = 1600  # most pixels of a page's longer side, as it is read
HEIGHT, WIDTH, ROWS, COLUMNS = 1000, 1400, 6, 10  # pixels of a page that is made, and its digits


def load_page(path):
    """Return the brightness (H, W), 0 to 1, of a picture, upright, at most SIDE wide and high; may raise UserError."""
    try:
        with Image.open(path) as image:
            image.draft("L", (SIDE, SIDE))  # a large JPEG is made smaller while it is decoded
            image = ImageOps.exif_transpose(image)  # phones save a picture as it was held, and say so beside it
    except (*DAMAGED, Image.DecompressionBombError) as error:
        why = getattr(error, "strerror", None) or "it is damaged, too large, or in no format that Pillow knows"
        raise UserError(f"cannot read {path} as a picture ({why}): give a JPEG or a PNG") from None
    if image.mode[0] in "IF":  # more than 8 bits
        page = np.asarray(image, np.float32)
        image = Image.fromarray(page / (65535 if image.mode[0] == "I" else max(page.max(), 1)))  # (H, W)
    else:
        if image.has_transparency_data:  # lies on white
            image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image.convert("RGBA"))
        image = Image.fromarray(np.asarray(image.convert("L")) / np.float32(255))
    image.thumbnail((SIDE, SIDE))
    return np.asarray(image)


def make_page(images, rng, shadow=True, board=False):
    """Return a photographed page (H, W) of uint8, and the centres (60, 2) of the digits on it, row and column.

    `images` (60, 28, 28) of uint8 stand on it in their order, in rows of ten. A board is dark, and the chalk is light.
    """
    ink, centres = np.zeros((HEIGHT, WIDTH), np.float32), []
    for i, image in enumerate(images / np.float32(255)):
        digit = ndimage.zoom(image, rng.uniform(2.5, 4.5), order=1)  # (h, w)
        pen = rng.integers(-2, 4)  # thinner or thicker by so many pixels
        digit = (ndimage.grey_dilation if pen > 0 else ndimage.grey_erosion)(digit, size=(abs(pen) + 1,) * 2)
        row = (i // COLUMNS + 0.8 + rng.uniform(-0.08, 0.08)) * HEIGHT / (ROWS + 0.6)
        column = (i % COLUMNS + 0.8 + rng.uniform(-0.08, 0.08)) * WIDTH / (COLUMNS + 0.6)
        top, left = int(row - len(digit) / 2), int(column - len(digit) / 2)
        place = ink[top : top + len(digit), left : left + len(digit)]
        np.maximum(place, digit, out=place)
        centres.append((row, column))
    angle = rng.uniform(-4, 4)
    ink = ndimage.rotate(ink, angle, reshape=False, order=1)  # (H, W)
    turn = np.deg2rad(angle)
    middle = np.array([HEIGHT - 1, WIDTH - 1]) / 2
    matrix = np.array([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]])
    centres = (np.array(centres) - middle) @ matrix.T + middle  # (60, 2)

    y, x = np.mgrid[-1 : 1 : HEIGHT * 1j, -1 : 1 : WIDTH * 1j]
    direction = rng.uniform(0, 2 * np.pi)
    light = 0.75 + 0.25 * (np.cos(direction) * x + np.sin(direction) * y) / 1.4  # (H, W): 0.5 to 1
    if shadow:  # of whoever takes the photograph: all beyond a line, or a corner between two
        direction, edge = rng.uniform(0, 2 * np.pi), rng.uniform(-0.4, 0.4)
        dark = np.cos(direction) * x + np.sin(direction) * y > edge
        if rng.random() < 0.5:
            dark &= np.sin(direction) * x - np.cos(direction) * y > rng.uniform(-0.6, 0.2)
        light = light * (1 - rng.uniform(0.3, 0.5) * ndimage.gaussian_filter(dark.astype(np.float32), 2))
    paper, pen = (0.15, 0.8) if board else (0.9, rng.uniform(0.1, 0.6))
    page = light * (paper + (pen - paper) * ink)
    page = ndimage.gaussian_filter(page, rng.uniform(0.5, 2)) + rng.normal(0, 0.02, page.shape)
    file = io.BytesIO()
    Image.fromarray((255 * page.clip(0, 1)).astype(np.uint8)).save(file, "JPEG", quality=int(rng.integers(50, 90)))
    return np.asarray(Image.open(file)), centres


def coarse(image):
    """Return a digit (28, 28) of uint8 as UCI's are, (8, 8), of 0 to 16: what NIST's program for forms made of it.

    That stretches every digit to 20 x 32 points, a 1 as well, thins thick lines, thickens thin ones, and sets the digit
    upright, by where its third row and its last but two begin (NISTIR 5469). Then the ink of 4 x 4 points is counted.
    """
    (box,) = ndimage.find_objects((image > 127).astype(int))
    points = np.asarray(Image.fromarray(image[box]).resize((20, 32), Image.Resampling.BICUBIC)) > 127
    points = np.pad(points, ((0, 0), (6, 6)))  # (32, 32)
    count = points.sum()
    if count > 412:
        points = ndimage.binary_erosion(points, iterations=1 + int(count > 560))
    elif count < 256:
        points = ndimage.binary_dilation(points, iterations=1 + int(count < 108))
    rows = np.flatnonzero(points.any(1))[2:-2]
    first, last = points[rows[[0, -1]]].argmax(1)
    slope = (last - first) / (rows[-1] - rows[0])
    points = np.stack([np.roll(line, -round(slope * (i - 16))) for i, line in enumerate(points)])
    return points.reshape(8, 4, 8, 4).sum((1, 3))  # (8, 8)


def letters():
    """Return images (22, 28, 28) of uint8 of the capital letters that are like no digit, in matplotlib's own font."""
    font = ImageFont.truetype(f"{get_data_path()}/fonts/ttf/DejaVuSans.ttf", 24)
    images = []
    for letter in "ACEFGHJKLMNPQRTUVWXY&@":
        image = Image.new("L", (28, 28))
        ImageDraw.Draw(image).text((14, 14), letter, 255, font, "mm")
        images.append(np.asarray(image))
    return np.stack(images)
