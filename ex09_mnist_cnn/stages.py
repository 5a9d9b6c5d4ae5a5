"""The four stages from a photographed page to images like MNIST's: paper, threshold, blobs, normalise."""

import numpy as np
from PIL import Image
from scipy import ndimage


def find_ink(page, local=True):
    """Return how dark each point of a page (H, W) is, from 0 as the paper around it to 1.

    The paper is what a closing leaves: the lightest point near, and of those the darkest. It follows the light and the
    edge of a shadow, however it runs, and drops what is dark and narrow. Where the ink is light, the page is a board.
    """
    page = ndimage.gaussian_filter(page, 1)  # (H, W)
    if not local:
        return 1 - page
    window = max(3, max(page.shape) // 16)  # wider than any stroke
    coarse = page[::8, ::8] + 0.02
    away = np.log(coarse / ndimage.median_filter(coarse, window // 4 + 1))  # from what most points around are
    page = page if (away**3).sum() <= 0 else 1 - page
    paper = ndimage.grey_closing(page, size=(window, window))  # (H, W)
    return (1 - page / np.maximum(paper, 0.02)).clip(0, 1)


def otsu(ink):
    """Return the threshold of Otsu (1979), which tells two groups of points apart best; infinity where there is one."""
    counts, edges = np.histogram(ink, 256, (0, 1))
    values, total = (edges[1:] + edges[:-1]) / 2, counts.sum()
    below, sums, squares = (np.cumsum(counts * values**power)[:-1] for power in (0, 1, 2))  # (255,) each
    above = np.maximum(total - below, 1e-9)
    paper, dark = sums / np.maximum(below, 1e-9), ((counts * values).sum() - sums) / above
    best = (below * above * (dark - paper) ** 2).argmax()
    noise = max(squares[best] / max(below[best], 1) - paper[best] ** 2, 1e-6) ** 0.5  # of the paper
    return edges[best + 1] if dark[best] - paper[best] > 5 * noise else np.inf  # half of a noise lies 2.6 apart


def find_blobs(ink, threshold, clean=True):
    """Return box and ink of each blob of ink that may be a digit.

    A blob begins where the ink is above the threshold, goes on where it is a little fainter, and over small gaps. Out
    go those of another size than most, and those that the border cuts.
    """
    touching = np.ones((3, 3))
    blobs, _ = ndimage.label(ink > (0.6 if clean else 1) * threshold, touching)  # (H, W)
    if clean:
        strong = np.isin(blobs, np.unique(blobs[ink > threshold]))  # (H, W)
        places = ndimage.find_objects(ndimage.label(strong, touching)[0])
        heights = np.sort([rows.stop - rows.start for rows, _ in places] or [0])
        usual = heights[np.searchsorted(heights.cumsum(), heights.sum() / 2)]  # half of all, where specks weigh less
        gap = max(1, round(0.06 * usual))
        blobs = ndimage.label(ndimage.binary_dilation(strong, touching, gap), touching)[0] * strong  # (H, W)
    found = []
    for number, (rows, columns) in enumerate(ndimage.find_objects(blobs), 1):
        h, w = rows.stop - rows.start, columns.stop - columns.start
        cut = min(rows.start, columns.start) == 0 or rows.stop == len(ink) or columns.stop == len(ink[0])
        if clean and (cut or h < 8 or not 0.45 * usual <= h <= 2.5 * usual or w > 2.5 * usual):
            continue
        around = slice(max(rows.start - 2, 0), rows.stop + 2), slice(max(columns.start - 2, 0), columns.stop + 2)
        near = ndimage.binary_dilation(blobs[around] == number, touching, 2)  # its edge, too, but no neighbour's
        found.append(((rows.start, columns.start, rows.stop, columns.stop), ink[around] * near))
    return found


def normalise(ink, longest=20, how="mass"):
    """Return ink (h, w) as MNIST's makers had it, (28, 28): the longer side 20, the centre of mass at (14, 14)."""
    if max(ink.shape) < longest:  # few points: a smooth line through them
        ink = ndimage.zoom(np.pad(ink, 1), 4, order=3, mode="grid-constant", grid_mode=True).clip(0)  # (4h + 8, 4w + 8)
    lines, columns = (np.flatnonzero(ink.max(axis) > 0.2 * ink.max()) for axis in (1, 0))
    ink = ink[lines[0] : lines[-1] + 1, columns[0] : columns[-1] + 1]  # (h, w)
    h, w = (28, 28) if how == "stretch" else (max(1, round(n * longest / max(ink.shape))) for n in ink.shape)
    small = np.asarray(Image.fromarray(ink.astype(np.float32)).resize((w, h), Image.Resampling.BILINEAR))  # (h, w)
    middle = ndimage.center_of_mass(small) if how == "mass" else (h / 2, w / 2)
    top, left = (round(min(max(14 - m, 0), 28 - n)) for m, n in zip(middle, (h, w)))
    image = np.zeros((28, 28), np.float32)
    image[top : top + h, left : left + w] = small
    return image / image.max()


def in_lines(boxes):
    """Return the order of boxes (n, 4) as one reads them, line by line, on a page that may be turned by 10 degrees."""
    middle, height = (boxes[:, :2] + boxes[:, 2:]) / 2, np.median(boxes[:, 2] - boxes[:, 0])  # (n, 2), ()

    def lines(slope):
        down = middle[:, 0] - slope * middle[:, 1]  # (n,): how far down the page, along lines of this slope
        order = np.argsort(down)
        return order, np.diff(down[order])  # (n,), (n - 1,)

    slopes = sorted(np.linspace(-0.18, 0.18, 73), key=abs)
    order, gaps = lines(min(slopes, key=lambda slope: np.minimum(lines(slope)[1], height / 2).sum()))
    parts = np.split(order, np.flatnonzero(gaps > height / 2) + 1)
    return [part[np.argsort(middle[part, 1])] for part in parts]
