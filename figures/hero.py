"""The moving picture of the front page: neurons in the plane, with and without probing first.

Twelve ReLU neurons and two classes of samples in the plane, which satisfy Assumptions 3.1 and 3.2 of the
paper; half of the neurons start with a head of the wrong sign. Each side is one path of the Euler-Maruyama
chain, with the same noise, clipping and total time. ``python -m figures.hero`` writes ``docs/hero.svg``: one
file without scripts, whose motion is CSS. For readers who prefer reduced motion it shows the end of the run.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from langevin.store import atomic
from langevin.support import plots

if TYPE_CHECKING:
    from langevin import Problem, Schedule, Weights

OUT = Path(__file__).resolve().parents[1] / "docs" / "hero.svg"
# in degrees around the mean of the neuron's class; signs of heads
ANGLES, ALIGNED, HEAD = (-33.0, -15.0, 2.0, 20.0, 38.0, 56.0), (-1, 1, -1, 1, 1, -1), 0.5
TIME, SHARE, SIGMA, CLIP, PATH = 6.0, 0.5, 0.05, 1.0, 0
# seconds of motion and of rest at the end; pictures of the motion
SECONDS, REST, FRAMES = 12.0, 3.0, 75
# in units of the picture: a panel, its plane's origin, one unit of length
WIDTH, HEIGHT, PANEL, ORIGIN, UNIT = 720, 376, 360, (180, 186), 94
NAMES = {"fft": "FFT: all at once", "lp-fft": "LP-FFT: probing first"}
TRAINS = {"lp": "head alone trains", "fft": "everything trains"}


class Walk(NamedTuple):
    """One side of the picture.

    Attributes
    ----------
    method : str
    schedule : Schedule
    features : ndarray, shape (FRAMES, 12, 2)
    aligned, distorted : ndarray of bool, shape (FRAMES, 12)
    """

    method: str
    schedule: Schedule
    features: np.ndarray
    aligned: np.ndarray
    distorted: np.ndarray


def scene() -> tuple[Problem, Weights]:
    """Return the data of the figure of neurons, and twelve neurons in the cones of their classes."""
    from figures.theory import fig_neurons
    from langevin import Weights

    problem, _ = fig_neurons.scene()
    turns = np.radians(np.concatenate([ANGLES, 180.0 - np.array(ANGLES)]))
    W = np.stack([np.cos(turns), np.sin(turns)], axis=-1)
    return problem, Weights(W, HEAD * np.concatenate([ALIGNED, -np.array(ALIGNED)]))


def walks() -> list[Walk]:
    """Simulate both sides, and say at each frame which neurons are aligned and which are distorted."""
    import bounds
    from figures.theory import fig_neurons
    from langevin import Schedule
    from langevin.engine import noise

    problem, weights = scene()
    classes = bounds.distortion(problem, weights, clip=CLIP).classes
    means = np.stack([problem.X[problem.y == s].mean(0) for s in classes])
    noisy = dict(sigma=SIGMA, clip=CLIP)
    schedules = {
        "fft": Schedule.fft(time=TIME, **noisy),
        "lp-fft": Schedule.lp_fft(lp_time=SHARE * TIME, fft_time=(1 - SHARE) * TIME, **noisy),
    }
    found = []
    for method, schedule in schedules.items():
        W, v = fig_neurons.walk(problem, weights, schedule, noise.key(0), PATH)
        shown = np.rint(np.linspace(0, len(W) - 1, FRAMES)).astype(int)
        own = (W * means).sum(-1)
        found.append(Walk(method, schedule, W[shown], (classes * v >= 0)[shown], (own < own[0])[shown]))
    return found


def svg(sides: list[Walk]) -> str:
    """Return the picture."""
    problem, _ = scene()
    rules: list[str] = []
    panels = [_panel(problem, walk, k, rules) for k, walk in enumerate(sides)]
    style = f"""text {{ font-family: "DejaVu Sans", Verdana, sans-serif; font-size: 20px; fill: #333 }}
.title {{ font-size: 23px; font-weight: bold }}
.n, .r, .t, .s, #now {{ animation: {SECONDS + REST:g}s linear infinite }}
.s {{ animation-timing-function: step-end }}
@media (prefers-reduced-motion: reduce) {{ .n, .r, .t, .s, #now {{ animation: none }} }}
"""
    rules.append(_keyframes("now", [f"transform:translateX({WIDTH * p:.1f}px)" for p in _fractions()]))
    title = (
        "Neurons of a two-layer ReLU network in the plane. In full fine-tuning, neurons with misaligned "
        "heads move away from their class; after linear probing all heads are aligned, and they do not."
    )
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" role="img">',
            f"<title>{title}</title>",
            f"<style>\n{style}{''.join(rules)}</style>",
            f'<rect width="{WIDTH}" height="{HEIGHT}" fill="white"/>',
            *panels,
            f'<path d="M{PANEL} 16V310" stroke="#ddd"/>',
            _legend(),
            f'<g id="now" style="animation-name:now" transform="translate({WIDTH})">'
            f'<path d="M-{WIDTH} {HEIGHT - 3}H0" stroke="#999" stroke-width="6"/></g>',
            "</svg>\n",
        ]
    )


def _panel(problem: Problem, walk: Walk, place: int, rules: list[str]) -> str:
    """Return one side, and add the motion of its parts to the rules."""
    x, y = PANEL * place + ORIGIN[0], ORIGIN[1]
    colour = plots.METHODS[walk.method]
    parts = [f'<text class="title" x="{x}" y="30" text-anchor="middle" style="fill:{colour}">']
    parts[0] += f"{NAMES[walk.method]}</text>"
    parts += _said(walk, place, x, rules)
    # mathematical axes: y upwards, in pixels
    parts.append(f'<g transform="translate({x} {y})">')
    parts += _samples(problem)
    points = walk.features * [UNIT, -UNIT]
    for neuron in range(points.shape[1]):
        parts.append(_neuron(points[:, neuron], walk.aligned[:, neuron], neuron, f"{place}-{neuron}", rules))
    return "\n".join([*parts, "</g>"])


def _samples(problem: Problem) -> Iterator[str]:
    """Yield the samples, as thin arrows of the colours of their classes, and their labels."""
    for (x, y), label in zip(problem.X * [UNIT, -UNIT], problem.y, strict=True):
        colour = plots.CLASSES[int(label)]
        yield f'<path d="M0 0L{x:.1f} {y:.1f}" stroke="{colour}" stroke-width="5" opacity=".16"/>'


def _neuron(points: np.ndarray, aligned: np.ndarray, neuron: int, name: str, rules: list[str]) -> str:
    """Return a neuron, the ray to it and its trail; hollow while its head is misaligned."""
    colour = plots.CLASSES[1 if neuron < len(ANGLES) else -1]
    lengths = np.concatenate([[0.0], np.cumsum(np.hypot(*np.diff(points, axis=0).T))])
    drawn, fills = 1 - lengths / lengths[-1], np.where(aligned, colour, "white")
    angles = np.degrees(np.unwrap(np.arctan2(points[:, 1], points[:, 0])))
    radii = np.hypot(*points.T)
    rules.append(_keyframes(f"n{name}", [f"transform:translate({x:.1f}px,{y:.1f}px)" for x, y in points]))
    turns = zip(angles, radii, strict=True)
    rules.append(_keyframes(f"r{name}", [f"transform:rotate({a:.1f}deg) scaleX({r:.1f})" for a, r in turns]))
    rules.append(_keyframes(f"t{name}", [f"stroke-dashoffset:{d:.3f}" for d in drawn]))
    rules.append(_keyframes(f"s{name}", [f"fill:{fill}" for fill in fills]))
    trail = "M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in points)
    end, stroke = points[-1], f'stroke="{colour}"'
    return "\n".join(
        [
            f'<path class="r" style="animation-name:r{name}" d="M0 0H1" {stroke} opacity=".45" '
            f'vector-effect="non-scaling-stroke" transform="rotate({angles[-1]:.1f}) '
            f'scale({radii[-1]:.1f} 1)"/>',
            f'<path class="t" style="animation-name:t{name}" d="{trail}" {stroke} fill="none" '
            'stroke-width="2" pathLength="1" stroke-dasharray="1 1"/>',
            f'<g class="n" style="animation-name:n{name}" transform="translate({end[0]:.1f} {end[1]:.1f})">'
            f'<circle class="s" style="animation-name:s{name}" r="7" fill="{fills[-1]}" {stroke} '
            'stroke-width="2.5"/></g>',
        ]
    )


def _said(walk: Walk, place: int, x: int, rules: list[str]) -> Iterator[str]:
    """Yield the number of distorted neurons and what trains, each visible while it is so."""
    counts = walk.distorted.sum(1)
    ends = np.cumsum([phase.time for phase in walk.schedule]) / walk.schedule.duration
    phases = [walk.schedule.phases[min(int(np.searchsorted(ends, p)), len(ends) - 1)] for p in _fractions()]
    width = walk.distorted.shape[1]
    lines = (
        ("c", 304, [f"{count} of {width} neurons distorted" for count in counts]),
        ("p", 56, [TRAINS[phase.method] for phase in phases]),
    )
    for kind, y, texts in lines:
        for k, text in enumerate(dict.fromkeys(texts)):
            name = f"{kind}{place}-{k}"
            rules.append(_keyframes(name, [f"opacity:{int(text == now)}" for now in texts]))
            yield (
                f'<text class="s" style="animation-name:{name}" opacity="{int(text == texts[-1])}" '
                f'x="{x}" y="{y}" text-anchor="middle">{text}</text>'
            )


def _legend() -> str:
    """Return the key below the panels."""
    grey, y = "#333", 347
    return (
        f'<circle cx="66" cy="{y - 6}" r="7" fill="white" stroke="{grey}" stroke-width="2.5"/>'
        f'<text x="82" y="{y}">head misaligned</text>'
        f'<circle cx="312" cy="{y - 6}" r="7" fill="{grey}" stroke="{grey}" stroke-width="2.5"/>'
        f'<text x="328" y="{y}">head aligned</text>'
        f'<path d="M524 {y - 6}h30" stroke="{grey}" stroke-width="5" opacity=".3"/>'
        f'<text x="564" y="{y}">samples</text>'
    )


def _fractions() -> np.ndarray:
    """Share of the run that has passed at each frame."""
    return np.linspace(0.0, 1.0, FRAMES)


def _progress() -> np.ndarray:
    """Share of the animation that has passed at each frame."""
    return _fractions() * SECONDS / (SECONDS + REST)


def _keyframes(name: str, states: list[str]) -> str:
    """Return the rule of an animation; a state equal to both of its neighbours is left out."""
    last = len(states) - 1
    kept = [
        (p, state)
        for k, (p, state) in enumerate(zip(_progress(), states, strict=True))
        if k in (0, last) or not states[k - 1] == state == states[k + 1]
    ]
    steps = "".join(f"{100 * p:.2f}%{{{state}}}" for p, state in kept)
    return f"@keyframes {name}{{{steps}100%{{{states[-1]}}}}}\n"


def main() -> None:
    """Write the picture."""
    with atomic.replacing(OUT) as temporary:
        temporary.write_text(svg(walks()), encoding="utf8")


if __name__ == "__main__":
    main()
