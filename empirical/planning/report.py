"""The report of a plan, as text and as a figure."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

import numpy as np

from bounds.allocation.advice import Advice
from empirical.planning.comparison import standard_error
from empirical.planning.share_plan import SharePlan
from empirical.studies.tables import Table

# that are listed
_CLASSES = 12
COST = (
    "a plan read off private data is itself a release: it costs privacy that is NOT accounted for here, and "
    "share and rates are chosen on it"
)


def privacy(plan: SharePlan) -> str:
    """Describe the privacy cost of the plan itself."""
    if plan.released is not None:
        return (
            "the choice of head and share by the private held-out rows spends epsilon "
            f"{plan.released.epsilon:g} (exponential mechanism), the training {plan.training_epsilon:g}: "
            f"{plan.epsilon:g} at delta {plan.history.delta:g} together; everything else here is read off X "
            "and y, taken to be public"
        )
    return f"the data are taken to be public, so that the plan costs none; {COST}"


def text(plan: SharePlan, command: str, *, on_file: bool = True, verbose: bool = False) -> str:
    """Return the report: the verdict, its basis, and with ``verbose`` all results.

    Parameters
    ----------
    plan : SharePlan
    command : str
        What runs the recommended plan.
    on_file : bool
        Whether it trains on the file that the plan is read off, instead of the private samples.
    verbose : bool
    """
    lines = _verdict(plan, command, _elsewhere(plan) if on_file else [])
    if verbose:
        lines += _details(plan)
    else:
        lines += [("caveats" if i == 0 else "", line) for i, line in enumerate(plan.caveats)]
    return "\n".join(f"{name:14}{line}".rstrip() for name, line in lines)


def _verdict(plan: SharePlan, command: str, elsewhere: list[tuple[str, str]]) -> list[tuple[str, str]]:
    history, (accuracy, error) = plan.history, plan.expected
    shown = ", ".join(plan.classes[:_CLASSES]) + (", ..." if len(plan.classes) > _CLASSES else "")
    lengths = ", then ".join(f"{phase['method']} for {phase['steps']} steps" for phase in plan.phases)
    return [
        ("recommended", f"lp share {plan.share:g}: {lengths}; {_flatness(plan)}"),
        ("expected", f"held-out accuracy {accuracy:.3f} ± {error:.3f} in the simulation{_by_world(plan)}"),
        ("command", command),
        *elsewhere,
        *_heads(plan),
        ("classes", f"{len(plan.classes)}: {shown}"),
        (
            "budget",
            f"epsilon {plan.epsilon:g} at delta {history.delta:g} for {history.samples} samples, one added "
            f"or removed; {history.steps} steps of an expected batch of {plan.batch:g}",
        ),
    ]


def _heads(plan: SharePlan) -> list[tuple[str, str]]:
    """List what each kind of head comes to, and say whether any run has to probe."""
    said = []
    if len(plan.runs) > 1:
        each = []
        for head, runs in plan.runs.items():
            place = runs.recommended
            accuracy, error = runs.accuracy[place].mean(), runs.error[place]
            each.append(f"{head} {accuracy:.3f} ± {error:.3f} at share {plan.shares[place]:g}")
        said.append(("head", f"{plan.head}; {', '.join(each)}"))
    if plan.unprobed is not None:
        why = ""
        if plan.unprobed == "zero" and plan.theory and all(a.assumptions.hold for a in plan.theory.values()):
            why = ", as theory says: from a zero head probing prevents no distortion (3', 4b'(a))"
        rest = f"full fine-tuning alone from a {plan.unprobed} head is no worse beyond the noise{why}"
        said.append(("probing", f"not needed: {rest}"))
    return said


def _by_world(plan: SharePlan) -> str:
    """What the recommended share reaches in each of several worlds: a user is in one, not in their mean."""
    worlds = plan.by_world
    if len(worlds) < 2:
        return ""
    return ": " + ", ".join(f"{accuracy:.3f} with {name}" for name, accuracy in worlds.items())


def _elsewhere(plan: SharePlan) -> list[tuple[str, str]]:
    """Describe how the command differs from the plan if its file has fewer training samples."""
    samples = plan.history.samples
    if plan.trained == samples:
        return []
    return [
        (
            "",
            f"trains on {plan.trained} samples of this file, in batches of the plan's sampling rate; for "
            f"{samples} private samples take --batch {plan.batch:.10g} and their file",
        )
    ]


def _details(plan: SharePlan) -> list[tuple[str, str]]:
    return [
        *(("DP-SGD" if i == 0 else "", line) for i, line in enumerate(_phases(plan))),
        *_theory(plan.theory),
        *_forecast(plan),
        ("simulation", plan.simulated),
        *(("", line) for line in _shares(plan).text().splitlines()),
        ("", f"means and standard errors of {plan.accuracy.shape[1]} draws of head, noise and batches;"),
        ("", "the errors include the choice of the rates, and leave out which samples are held out"),
        ("loss", f"lowest at share {plan.loss_share:g}, which is another question than accuracy"),
        *(("notes" if i == 0 else "", line) for i, line in enumerate(plan.notes)),
    ]


def _forecast(plan: SharePlan) -> list[tuple[str, str]]:
    """What theory alone proposes for probing."""
    found = plan.forecast
    if found is None:
        return []
    dpsgd = found.dpsgd
    said = (
        f"probing alone, features of norm 1 and the square loss: {dpsgd.steps} steps at sample rate "
        f"{dpsgd.sample_rate or 1:.4g}, learning rate {dpsgd.learning_rate:.3g}, clip {dpsgd.clip:.3g}; "
        f"expected held-out accuracy {found.test_accuracy:.3f} (8'(c))"
    )
    return [("forecast", said if found.valid else f"{said}; NOT valid: {found.reason}")]


def _flatness(plan: SharePlan) -> str:
    if plan.released is not None:
        good = ", ".join(f"{share:g}" for share in plan.as_good)
        return f"a private random choice, see below; in the simulation on X the best within noise: {good}"
    others = [f"{share:g}" for share in plan.as_good if share != plan.share]
    if not others:
        flat = "every other share was worse, beyond the noise of the comparison"
    elif len(others) == len(plan.shares) - 1:
        flat = "no other share was worse beyond the noise of the comparison: it hardly matters"
    else:
        flat = f"no worse beyond the noise of the comparison: {', '.join(others)}"
    best = plan.shares[plan.best]
    if best == plan.share:
        return flat
    return f"the largest within one standard error of {best:g}, the most accurate; {flat}"


def _shares(plan: SharePlan) -> Table:
    lost, error = plan.deficit
    runs, rows = plan.runs[plan.head], []
    worlds = list(runs.worlds) if len(runs.worlds) > 1 else []
    for k, share in enumerate(plan.shares):
        losses = runs.loss[k]
        rates = [f"{runs.lp_lr:.3g}" if share > 0 else "-", f"{runs.lr[k]:.3g}" if share < 1 else "-"]
        rows.append(
            [
                f"{share:g}",
                f"{runs.accuracy[k].mean():.3f} ± {runs.error[k]:.3f}",
                *(f"{runs.worlds[world][k].mean():.3f}" for world in worlds),
                *([f"{runs.regret[k]:.3f}"] if worlds else []),
                "-" if k == plan.best else f"{lost[k]:.3f} ± {error[k]:.3f}",
                f"{losses.mean():.3g} ± {standard_error(losses):.1g}",
                *rates,
            ]
        )
    about = [*worlds, "mean regret"] if worlds else []
    header = [
        "lp share",
        "held-out accuracy",
        *about,
        "lost to the best",
        "training loss",
        "lp rate",
        "fft rate",
    ]
    return Table(header, rows)


def _phases(plan: SharePlan) -> Iterable[str]:
    for phase in plan.phases:
        yield (
            f"{phase['method']}: {phase['steps']} steps, learning rate {phase['learning rate']:.3g}, noise "
            f"multiplier {phase['noise multiplier']:.4g}, sample rate {phase['sample rate']:.4g}, clip "
            f"{phase['clip']:g}"
        )
    prototypes = [m for m in plan.history.mechanisms if m.name == "prototypes"]
    for m in prototypes:
        yield f"prototypes: noise multiplier {m.noise_multiplier:.4g}, before the first step"
    yield "multiplier by the PRV and PLD accountants; rates of mean gradients, best in the simulation"


def _theory(theory: Mapping[str, Advice]) -> list[tuple[str, str]]:
    """Return the results of the theorems."""
    if not theory:
        return [("theory", "not asked")]
    lines = []
    for advice in theory.values():
        lines += [("assumptions", line) for line in str(advice.assumptions).splitlines()]
        lines += [
            ("minimum share", _minimum(advice)),
            ("loss-optimal", advice.loss_optimal[1]),
            ("loss bounds", _bounds(advice)),
        ]
    return [(name if i == 0 or name != lines[i - 1][0] else "", line) for i, (name, line) in enumerate(lines)]


def _minimum(advice: Advice) -> str:
    bad = next((found.reason for found in advice.minimum if not found.valid), "")
    if bad:
        return f"theory does not say (3.4, 5.1): {bad}"
    if advice.harmless:
        return "0: every head is aligned at the start, full fine-tuning distorts nothing without noise (3.3)"
    mean, error = advice.minimum_share
    attained = np.mean([found.attainable for found in advice.minimum])
    spread = "" if math.isnan(error) else f" ± {error:.2g} over {len(advice.minimum)} heads"
    missed = max(found.failure for found in advice.minimum)
    chance = f", with probability {1 - missed:.2f} over the batches and without noise" if missed else ""
    text = f"{mean:.3g}{spread} aligns every head before full fine-tuning{chance}"
    text += ", at probing's rate (3.4, 5.1)"
    if attained == 1:
        return text
    return f"{text}: NOT attainable" + (f" for {1 - attained:.0%} of the heads" if attained else "")


def _bounds(advice: Advice) -> str:
    useful = []
    for name, band in advice.curves.items():
        upper = np.where(band.valid, band.upper, np.inf)
        k = int(upper.argmin())
        if upper[k] < advice.start:
            where = (
                "" if band.valid.all() else f", valid at {int(band.valid.sum())} of {band.valid.size} shares"
            )
            useful.append(
                f"{name} ({band.source}) is least, {upper[k]:.3g}, at share {band.times[k]:g}{where}"
            )
    if useful:
        return f"{'; '.join(useful)}; {advice.start:.3g} at the start; sums over {advice.samples} samples"
    why = advice.reasons.get("sandwich", "those that apply are above the loss at the start")
    return f"none says anything: {why}"
