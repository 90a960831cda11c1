"""The tour: ``python -m langevin`` lists the commands and suggests what to run next."""

from __future__ import annotations

import argparse

from langevin.support import install, streams

_TOUR = """\
Training dynamics of private fine-tuning: what DP-SGD does to a pre-trained
network, simulated as a clipped Langevin diffusion, with what the theorems
say of it (arXiv:2402.18905).

What to type first, and what you see
  python -m langevin.simulate --compare fft lp-fft --width 64 --sigma .05 --plot
      the claim in one figure: full fine-tuning (FFT) leaves 15.5 of 64
      neurons distorted; if the head is probed first (LP-FFT), 0.484.
      At such low noise epsilon is 159, and FFT still has the lower loss,
      0.255 against 0.300
  python -m langevin.simulate --width 512 --sigma 0.5 --plot
      one run at a noise that protects more: its loss and its bounds, the
      privacy spent, and in words what the noise did to the neurons

What there is
  python -m langevin.simulate    simulate one schedule, or compare several
  python -m langevin.report      show and draw a saved run again
  python -m langevin.explore     move its parameters in the browser, and see
  python -m langevin.sweep       simulate or fine-tune a grid of them, resumable
  python -m bounds.plan          split a privacy budget between the phases
  python -m empirical.finetune   fine-tune with real DP-SGD, and compare
{figures}Each says more with --help.

From Python
  from langevin import Problem, Weights, Schedule, euler_maruyama, zeroth_order
  import bounds      the theorems, on the same problem, weights and schedule
  import empirical   real DP-SGD; it needs
      {dpsgd}

To read{where}
{reading}"""
_FIGURES = "  python -m figures              make the figures and tables\n"
_CHECKOUT = """\
  README.md          five minutes
  make docs          builds the documentation: build/docs/index.html
                     (theory with proofs, how-to, API, gallery)
"""
_WHEEL = """\
  python -m pydoc langevin.euler_maruyama
                     and likewise for all that is imported above; figures,
                     tutorials and proofs come with the project's source
"""


def tour() -> str:
    """Return the tour; a checkout offers more than an installed wheel."""
    root = install.checkout()
    return _TOUR.format(
        figures="" if root is None else _FIGURES,
        dpsgd=install.command("dpsgd"),
        where="" if root is None or install.is_current(root) else f", in {root}",
        reading=_WHEEL if root is None else _CHECKOUT,
    )


def main(argv: list[str] | None = None) -> int:
    """Print the tour and return an exit status."""
    text = tour()
    parser = argparse.ArgumentParser(
        prog="python -m langevin",
        usage="python -m langevin",
        description=text.replace("%", "%%"),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.parse_args(argv)
    print(text, end="")
    return 0


if __name__ == "__main__":
    streams.run(main)
