"""All days from 1950 to 2049, as people write them and in ISO 8601: what translate.py translates."""

import datetime

import numpy as np
import torch

FORMS = ("{B} {d}, {Y}", "{d}. {b} '{y}", "the {d}{th} of {b} {Y}", "{m}/{d}/{Y}", "{d} {B} {Y}")
LETTERS = "\0=" + "".join(sorted(set("0123456789-/,.' JanFebrMarAprilMayJuneJulyAugustSeptemberOctNovDechndstrf")))
S, T = 20, 10  # characters of a date as written, at most, and in ISO 8601


def write(date, form):
    """Return a date as people write it, and first and last place there of the year's last two digits and of the day."""
    th = "th" if 10 < date.day < 20 else {1: "st", 2: "nd", 3: "rd"}.get(date.day % 10, "th")
    fields = {"B": f"{date:%B}", "b": f"{date:%b}", "m": str(date.month), "th": th}
    fields |= {"d": str(date.day), "Y": str(date.year), "y": f"{date:%y}"}
    year = form.format(**fields | {"Y": f"{date.year // 100}??", "y": "??"})
    day = form.format(**fields | {"d": "?" * len(fields["d"])})
    return form.format(**fields), [[marked.index("?"), marked.rindex("?")] for marked in (year, day)]


def encode(texts, size):
    """Return texts as ids (N, size) of their characters, filled up with 0."""
    return torch.tensor([[LETTERS.index(char) for char in text.ljust(size, "\0")] for text in texts])


def decode(ids):
    """Return ids (L,) as the text that they stand for."""
    return "".join(LETTERS[i] for i in ids).rstrip("\0")


def make_data(seed):
    """Return all 36,525 days in random order: as people write them (N, S), "=" and ISO 8601 (N, 1 + T), and places.

    The places (N, 2, 2) are the first and the last, in what is written, of the year's last two digits and of the day.
    """
    rng = np.random.default_rng(seed)
    dates = [datetime.date(1950, 1, 1) + datetime.timedelta(days=int(day)) for day in rng.permutation(36_525)]
    written, places = zip(*(write(date, FORMS[rng.integers(len(FORMS))]) for date in dates))
    return encode(written, S), encode([f"={date}" for date in dates], 1 + T), torch.tensor(places)
