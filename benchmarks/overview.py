"""Summarise the measured steps: how far from the floor, and how many times as long peers take.

``python -m benchmarks.overview`` measures nothing. It reads the records of `benchmarks.step` and
`benchmarks.step_outputs` in ``benchmarks/results`` and writes sentences and a dot plot next to them.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from benchmarks.harness.tables import RESULTS, US, table
from langevin.store import atomic
from langevin.support import plots

MACHINE = "amd-epyc"
RECORDS = {"one output": f"step-{MACHINE}", "ten outputs": f"step-outputs-{MACHINE}"}
NAME = f"overview-{MACHINE}"
SAME, DEFAULT = "on the same data", "by default"
COLOURS = {SAME: plots.PURPLE, DEFAULT: plots.GOLD}
# the aim for each peer
AIM = 5.0

# by comparison and peer: its time over ours, case by case
Ratios = dict[str, dict[str, list[float]]]


def records() -> dict[str, dict[str, Any]]:
    """Return the records of steps with one output and with ten."""
    return {
        title: json.loads((RESULTS / f"{name}.json").read_text(encoding="utf8"))
        for title, name in RECORDS.items()
    }


def ratios(record: Mapping[str, Any]) -> Ratios:
    """Return the time of each peer over ours: on the same data, and where we reduce data and peers do not."""
    found: Ratios = {SAME: defaultdict(list), DEFAULT: defaultdict(list)}
    for case in record["cases"]:
        seconds = {name: entry["seconds"] for name, entry in case["contestants"].items()}
        for name, time in seconds.items():
            peer, _, data = name.rpartition(", ")
            if peer == US:
                continue
            found[SAME][peer].append(time / seconds[f"{US}, {data}"])
            if data == "full" and f"{US}, reduced" in seconds:
                found[DEFAULT][peer].append(time / seconds[f"{US}, reduced"])
    return {kind: dict(peers) for kind, peers in found.items()}


def floors(record: Mapping[str, Any]) -> Iterator[float]:
    """Yield our time over the machine's floor."""
    for case in record["cases"]:
        contestants = case["contestants"]
        if "floors" in case:
            for data, floor in case["floors"].items():
                yield contestants[f"{US}, {data}"]["seconds"] / floor["floor"]
        else:
            ours = contestants.get(f"{US}, reduced") or contestants[f"{US}, full"]
            yield ours["seconds"] / sum(case["floor"].values())


def summary(found: Mapping[str, Mapping[str, Any]]) -> str:
    """Return the conclusions in Markdown: sentences and a table."""
    over = {title: sorted(floors(record)) for title, record in found.items()}
    steps = "; ".join(
        f"with {title} {np.median(values):.2f} times as long ({values[0]:.2f} to {values[-1]:.2f})"
        for title, values in over.items()
    )
    processor = next(iter(found.values()))["processor"]
    by_title = {title: ratios(record) for title, record in found.items()}
    columns = {f"{title}, {kind}": peers for title, of in by_title.items() for kind, peers in of.items()}
    names = dict.fromkeys(name for peers in columns.values() for name, _ in _ordered(peers))
    rows = [[name, *(_spread(peers.get(name, [])) for peers in columns.values())] for name in names]
    return "\n".join(
        [
            f"**A step compared with the machine's floor**, on one thread of an {processor}: {steps}.",
            "",
            f"**The aim is a factor of {AIM:g} on the same data.**",
            *(_aim(title, by_kind) for title, by_kind in by_title.items()),
            "Most of a step is products, which all libraries compute at similar speed.",
            "",
            "**Peers compared with us.** Time of a step over ours, as median (and range) over all cases.",
            "",
            table(["peer", *columns], rows),
            "",
        ]
    )


def _aim(title: str, by_kind: Ratios) -> str:
    """Say against whom the aim is met in the median, and against whom not."""
    short = [peer for peer, values in _ordered(by_kind[SAME]) if np.median(values) < AIM]
    met = [peer for peer, values in _ordered(by_kind[SAME]) if np.median(values) >= AIM]
    against, others = "; ".join(short), "; ".join(met)
    return f"With {title} the median misses it against {against}, and meets it against {others}."


def draw(found: Mapping[str, Mapping[str, Any]]) -> Any:
    """Draw the ratios: a row per peer, a dot per shape and precision."""
    import matplotlib.pyplot as plt

    with plt.style.context(plots.STYLE):
        rows = [len(ratios(record)[SAME]) for record in found.values()]
        figure, axes = plt.subplots(len(found), 1, figsize=(6.4, 4.4), sharex=True, height_ratios=rows)
        for ax, (title, record) in zip(axes, found.items(), strict=True):
            by_kind = ratios(record)
            names = [peer for peer, _ in _ordered(by_kind[SAME])][::-1]
            for shift, (kind, colour) in zip((0.14, -0.14), COLOURS.items(), strict=True):
                for row, name in enumerate(names):
                    values = by_kind[kind].get(name, [])
                    place = np.full(len(values), row + shift)
                    ax.plot(values, place, "o", color=colour, alpha=0.6, markersize=4, markeredgewidth=0)
                ax.plot(
                    [],
                    [],
                    "o",
                    color=colour,
                    label=f"{kind}: we reduce, they do not" if kind == DEFAULT else kind,
                )
            ax.axvline(1, color="0.3", linewidth=0.8)
            ax.axvline(AIM, color="0.6", linewidth=0.8, linestyle=":")
            ax.set(
                xscale="log",
                yticks=range(len(names)),
                yticklabels=names,
                title=title,
                ylim=(-0.6, len(names) - 0.4),
            )
            ax.tick_params(axis="y", length=0)
            ax.grid(axis="y", color="0.92")
        ticks = [1, 2, 5, 10, 20, 50, 100, 200, 500]
        axes[-1].set_xticks(ticks, [str(tick) for tick in ticks])
        axes[-1].minorticks_off()
        axes[-1].set_xlabel("time of a step over ours; the dotted line is the aim")
        plots.letters(axes)
        handles, labels = axes[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=2)
    return figure


def _ordered(peers: Mapping[str, list[float]]) -> list[tuple[str, list[float]]]:
    """Peers from the fastest to the slowest."""
    return sorted(peers.items(), key=lambda item: float(np.median(item[1])))


def _spread(values: list[float]) -> str:
    def short(x: float) -> str:
        return f"{x:.0f}" if x >= 10 else f"{x:.1f}"

    if not values:
        return "-"
    return f"**{short(float(np.median(values)))}** ({short(min(values))} to {short(max(values))})"


def main() -> None:
    """Write the sentences and the plot."""
    found = records()
    atomic.write_text(RESULTS / f"{NAME}.md", summary(found))
    with atomic.replacing(RESULTS / f"{NAME}.png") as temporary:
        draw(found).savefig(temporary)
    print(summary(found))


if __name__ == "__main__":
    main()
