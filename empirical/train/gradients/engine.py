"""The choice of an engine of per-sample gradients."""

from __future__ import annotations

from torch import nn

from empirical.networks.subsets import Mask
from empirical.recipe import Engine
from empirical.train.gradients.closed_form import ClosedForm, chain
from empirical.train.gradients.opacus import Ghost, PerSample
from empirical.train.gradients.plain import Gradients, Loop, Plain
from empirical.train.losses import Loss


def engine(model: nn.Module, loss: Loss, kind: Engine, *, masks: Mask | None = None, clip: bool) -> Gradients:
    """Make an engine that sums the gradients of the trainable parameters of ``model``.

    Parameters
    ----------
    model : nn.Module
        The parameters that require gradients train.
    loss : Loss
    kind : {"auto", "closed", "ghost", "hooks", "functorch", "loop"}
        "auto": the first of `candidates`.
    masks : dict, optional
        Ones and zeros for parameters of which a part trains.
    clip : bool
        Whether per-sample gradients are clipped; if not, the plain gradient suffices.

    Raises
    ------
    ValueError
        If the kind does not apply to the network, or nothing trains.

    See Also
    --------
    empirical.train.gradients.trial.choose : Tests whether the sums are right.
    """
    masks = masks or {}
    if not any(p.requires_grad for p in model.parameters()):
        raise ValueError("model must have a parameter that requires gradients, got none")
    layers = chain(model)
    if kind == "closed" and layers is None:
        raise ValueError(
            f"engine must not be 'closed' for {type(model).__name__}, which is not a chain of linear layers "
            "and known activations: use 'ghost'"
        )
    if kind == "ghost" and masks:
        raise ValueError(
            "engine must not be 'ghost' for a sparse subset, which it does not support: use 'hooks'"
        )
    kind = candidates(model, kind, masks)[0]
    if layers is not None and kind == "closed":
        return ClosedForm(layers, loss, masks)
    if not clip:
        return Plain(model, loss, masks)
    if kind == "ghost":
        return Ghost(model, loss)
    if kind == "loop":
        return Loop(model, loss, masks)
    return PerSample(model, loss, masks, functorch=kind == "functorch")


def candidates(model: nn.Module, kind: Engine, masks: Mask | None = None) -> list[Engine]:
    """Engines that may apply to a network, the fastest first; only the requested one if there is one.

    Examples
    --------
    >>> candidates(nn.Sequential(nn.Flatten(), nn.SiLU()), "auto")
    ['ghost', 'hooks', 'functorch', 'loop']
    """
    if kind != "auto":
        return [kind]
    found: list[Engine] = ["hooks", "functorch", "loop"]
    if not masks:
        # a GPU waits for the launches of ghost's second pass longer than it takes to keep the gradients
        found.insert(int(any(p.is_cuda for p in model.parameters())), "ghost")
    return found if chain(model) is None else ["closed", *found]
