"""Why features degrade in private fine-tuning: the noise, the new head, or both together."""

from __future__ import annotations

import math

import xarray as xr


def causes(
    run: xr.Dataset,
    zero_head: xr.Dataset,
    noiseless: xr.Dataset,
    *,
    neither: xr.Dataset | None = None,
    measure: str = "knn_accuracy",
) -> xr.Dataset:
    """Change of a measure since the start, and the parts caused by the noise and by the new head.

    A random head sends gradients into the body that distort it even without noise; noise moves the body even
    under a head of zeros, which at first sends none. Two controls tell them apart. Where training improves
    the features, so do both controls, and the sum of their changes counts that twice: a third control, with
    neither cause, takes it apart.

    Parameters
    ----------
    run : Dataset
        The fine-tuning: random head, noise. ``measure`` over ``step``, and over ``seed`` if there are more.
    zero_head : Dataset
        The same with a head of zeros: the same noise, steps and seeds.
    noiseless : Dataset
        The same with the random head and no noise.
    neither : Dataset, optional
        The same with a head of zeros and no noise.
    measure : str
        The variable.

    Returns
    -------
    Dataset
        Over ``step``: ``total``, ``from_noise`` (that of ``zero_head``), ``from_head`` (that of
        ``noiseless``) and ``interaction``, the total less both. With ``neither``, its change is
        ``from_training``, the parts of noise and head are differences to it, and all four parts sum to the
        total. Over seeds, these are means, with the standard errors of paired differences in ``total_error``
        and so on, nan for a single seed.

    Raises
    ------
    ValueError
        If the runs do not have the measure at the same steps and seeds.

    Examples
    --------
    >>> import numpy as np
    >>> def of(values): return xr.Dataset({"knn_accuracy": ("step", values)}, {"step": [0, 10]})
    >>> found = causes(of([0.9, 0.5]), of([0.9, 0.6]), of([0.9, 0.85]))
    >>> {name: round(float(found[name][-1]), 2) for name in found}
    {'total': -0.4, 'from_noise': -0.3, 'from_head': -0.05, 'interaction': -0.05}
    >>> found = causes(of([0.9, 0.5]), of([0.9, 0.6]), of([0.9, 0.85]), neither=of([0.9, 0.95]))
    >>> {name: round(float(found[name][-1]), 2) for name in found}
    {'total': -0.4, 'from_noise': -0.35, 'from_head': -0.1, 'interaction': 0.0, 'from_training': 0.05}
    """
    given = {"run": run, "zero_head": zero_head, "noiseless": noiseless}
    if neither is not None:
        given["neither"] = neither
    for name, dataset in given.items():
        if measure not in dataset or "step" not in dataset[measure].dims:
            raise ValueError(
                f"{name} must hold {measure!r} over step, got {list(dataset.data_vars)} over "
                f"{dict(dataset.sizes)}: watch features in each run"
            )
        if set(dataset[measure].dims) - {"step", "seed"}:
            raise ValueError(
                f"{name} must hold {measure!r} over step and seed alone, got {dataset[measure].dims}: select "
                "one of the rest"
            )
    try:
        aligned = xr.align(*(dataset[measure] for dataset in given.values()), join="exact")
    except xr.AlignmentError as error:
        raise ValueError(
            f"{', '.join(given)} must have the same steps and seeds, got {error}: repeat the controls with "
            "those of the run"
        ) from None
    if len({frozenset(a.dims) for a in aligned}) > 1:
        raise ValueError(
            f"{', '.join(given)} must all be over seeds or none, got {[a.dims for a in aligned]}"
        )
    total, noise, head, *rest = (a - a.isel(step=0, drop=True) for a in aligned)
    gain = rest[0] if rest else xr.zeros_like(total)
    parts = {"total": total, "from_noise": noise - gain, "from_head": head - gain}
    parts["interaction"] = total - noise - head + gain
    if rest:
        parts["from_training"] = gain
    found = xr.Dataset(parts)
    meanings = {
        "total": f"change of {measure} since the start",
        "from_noise": f"change of {measure} since the start with a head of zeros",
        "from_head": f"change of {measure} since the start without noise",
        "interaction": "total less what the noise and the head change alone",
    }
    if rest:
        for name in ("from_noise", "from_head"):
            meanings[name] += ", less that with neither"
        meanings["interaction"] += ", and training with neither"
        meanings["from_training"] = f"change of {measure} since the start with a head of zeros, without noise"
    units = aligned[0].attrs.get("units", "1")
    for name, meaning in meanings.items():
        found[name].attrs = {"long_name": meaning, "units": units}
    if "seed" not in found.dims:
        return found
    seeds = found.sizes["seed"]
    means = found.mean("seed", keep_attrs=True)
    # one seed has no spread to tell an error from
    errors = found.std("seed", ddof=1) / math.sqrt(seeds) if seeds > 1 else means * math.nan
    for name, meaning in meanings.items():
        means[f"{name}_error"] = errors[name].assign_attrs(
            long_name=f"standard error of: {meaning}", units=units
        )
    return means
