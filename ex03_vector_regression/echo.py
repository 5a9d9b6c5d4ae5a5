"""Can a linear regression hear a room?

    python ex03_vector_regression/echo.py

Predicted: yes, if the sound is noise, which is nearly white; with music, whose loss is a long valley, the weights are
ten times further off after 300 steps, unless it is whitened. Measured: on echoes of 32 taps. 9 CPU seconds.
"""

from dataclasses import dataclass
from pathlib import Path

from common.plotting import SAFE, label, panels
from common.program import check_config, clean_exit
from common.record import answer

import numpy as np
import torch
import train as ex03
import tyro

RATE = 8_000  # samples a second


@dataclass
class Config:
    num_samples: int = 30_000  # samples of the sound, N
    taps: int = 32  # samples that the room remembers, D
    steps: int = 3_000  # training steps
    seed: int = 0  # random seed of sounds, room and batches
    out: Path = Path(__file__).parent / "out"  # folder for the picture and the numbers
    dry_run: bool = False  # few steps, to check that everything works

    def __post_init__(self):
        check_config(self, num_samples=(10_000, 10**7), taps=(2, 500), steps=301)


def sounds(rng, n):
    """Return white noise and music, each (n,) with standard deviation 1: tones that die away, with five harmonics."""
    music, time = np.zeros(n), np.arange(RATE) / RATE  # (n,), (RATE,): a tone lasts a second
    for start in range(0, n, RATE // 4):
        pitch = 220 * 2 ** (rng.choice([0, 2, 4, 7, 9, 12, 14, 16]) / 12)  # a pentatonic scale from A
        tone = sum(np.sin(2 * np.pi * k * pitch * time) / k for k in range(1, 6)) * np.exp(-4 * time)
        music[start : start + RATE] += tone[: n - start]
    music += 0.01 * music.std() * rng.normal(size=n)
    return {"noise": rng.normal(size=n), "music": music / music.std()}


def learn(x, y, room, back, steps, seed):
    """Return the relative error (steps,) of the taps that exercise 3's loop learns, and those of step 300 (D,).

    `back` (D, D) turns weights into taps: the identity, or what whitening has done to the inputs."""
    params, taps = [torch.zeros(x.shape[1], requires_grad=True), torch.zeros((), requires_grad=True)], []
    rate = 0.1 / np.linalg.eigvalsh(np.cov(x.numpy().T))[-1]  # the same share of the largest stable step for all
    for _, index in zip(range(steps), ex03.batches(np.random.default_rng(seed), len(x), 500)):
        ex03.loss_fn(ex03.forward(params, x[index]), y[index]).backward()
        with torch.no_grad():
            for param in params:
                param -= rate * param.grad
                param.grad = None
        taps.append(back @ params[0].detach().numpy())
    return np.linalg.norm(np.array(taps) - room, axis=1) / np.linalg.norm(room), taps[299]


def spectrum(sound, size):
    """Return the power (size // 2 + 1,) of a sound by frequency, over frames of `size` samples."""
    frames = sound[: len(sound) // size * size].reshape(-1, size) * np.hanning(size)  # (frames, size)
    return (abs(np.fft.rfft(frames)) ** 2).mean(0)


def draw(curves, spectra, room, taps):
    """Return the picture: the room and what was learnt of it, the error over steps, the two spectra."""
    figure, (left, middle, right) = panels("After 300 steps", "Error of the taps", "The sounds", height=3.3)
    left.plot(room, "o", color="black", markersize=4)  # the taps of the room
    for up, color, name in ((0.9, SAFE[2], "music"), (0.75, SAFE[3], "music, whitened")):
        left.plot(taps[name], color=color, linewidth=1.2)
        label(left, len(room) * 0.4, room.max() * up, f"learnt from {name}", color)
    for color, place, up, (name, off) in zip(SAFE, (1, 100, 400, 3), (-18, 18, 12, 0), curves.items()):
        middle.plot(np.arange(1, len(off) + 1), off, color=color)
        label(middle, place, off[min(place, len(off)) - 1], name, color, (8, up))
    middle.axvline(300, color="0.6", linestyle=":")
    middle.set(xscale="log", yscale="log", xlabel="steps", ylabel="relative error of the taps")
    for color, (name, power) in zip((SAFE[0], SAFE[2]), spectra.items()):
        hertz = np.linspace(0, RATE / 2, len(power))
        right.plot(hertz, power / power.mean(), color=color)
        label(right, hertz[-1] * 0.7, np.median(power[len(power) // 2 :] / power.mean()), name, color, (0, 12))
    left.set(xlabel="samples ago (dots: the room)", ylabel="loudness of the echo")
    right.set(yscale="log", xlabel="frequency (Hz)", ylabel="power, as a multiple of the mean")
    return figure


def main(config: Config) -> dict[str, float]:
    rng = np.random.default_rng(config.seed)
    torch.set_default_dtype(torch.float64)
    steps = 301 if config.dry_run else config.steps
    room = rng.normal(size=config.taps) * np.exp(-np.arange(config.taps) / 8)  # (D,): the echoes die away
    curves, taps, spread, condition, spectra = {}, {}, {}, {}, {}
    for name, sound in sounds(rng, config.num_samples).items():
        x = np.lib.stride_tricks.sliding_window_view(sound, config.taps)[:, ::-1].copy()  # (N, D): the newest first
        y = torch.from_numpy(x @ room + rng.normal(0.0, 0.01, len(x)))  # (N,)
        white = ex03.whiten(x)  # (N, D)
        back = np.linalg.lstsq(x[:5_000] - x.mean(0), white[:5_000], rcond=None)[0]  # (D, D)
        for title, inputs, way in ((name, x, np.eye(config.taps)), (f"{name}, whitened", white, back)):
            curves[title], taps[title] = learn(torch.from_numpy(inputs), y, room, way, steps, config.seed)
        variances = np.linalg.eigvalsh(np.cov(x.T))  # (D,)
        spectra[name] = spectrum(sound, 2 * config.taps)
        condition[name], spread[name] = variances[-1] / variances[0], spectra[name].max() / spectra[name].min()
    after = {name: off[299] for name, off in curves.items()}
    return answer(
        config,
        draw(curves, spectra, room, taps),
        worse_for_noise=(after["noise"] / after["noise, whitened"], None, 2),
        worse_for_music=(after["music"] / after["music, whitened"], 10, None),
        error_music_whitened=(curves["music, whitened"][-1], None, 0.01),
        condition_over_spread=(condition["music"] / spread["music"], 0.33, 3),
    )


if __name__ == "__main__":
    with clean_exit():
        main(tyro.cli(Config, description=__doc__))
