"""Per-sample gradients from Opacus's hooks on layers: ghost clipping, or all gradients in memory."""

from __future__ import annotations

import warnings
from collections import ChainMap
from collections.abc import Iterable
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from empirical._opacus import (
    GradSampleModule,
    GradSampleModuleFastGradientClipping,
    create_or_accumulate_grad_sample,
    ft_compute_per_sample_gradient,
    promote_current_grad_sample,
)
from empirical.networks.subsets import Mask
from empirical.train.gradients import convolutions
from empirical.train.gradients.convolutions import product_norms
from empirical.train.gradients.plain import joined, row_norms
from empirical.train.losses import Loss


class Ghost:
    """Opacus's ghost clipping: norms in a first backward pass, the weighted sum in a second."""

    def __init__(self, model: nn.Module, loss: Loss) -> None:
        self._loss, self._model = loss, model
        self.params = [p for p in model.parameters() if p.requires_grad]
        self._module = _GhostModule(model, loss_reduction="sum")
        self._losses: Tensor | None = None

    def norms(self, x: Tensor, y: Tensor) -> Tensor:
        try:
            self._losses = self._loss.value(self._module(x), y)
            self._module.enable_hooks()
            with _quietly():
                torch.autograd.grad(self._losses.sum(), self.params, retain_graph=True)
        except NotImplementedError as error:
            raise ValueError(
                f"engine must not be 'ghost' for a network with a layer that is called twice ({error}): use "
                "'hooks'"
            ) from None
        return joined(
            (p._norm_sample.detach().double() for p in self.params),  # type: ignore[attr-defined]
            self._losses.dtype,
        )

    def parts(self) -> list[Tensor | None]:
        """Norms over each parameter, for the batch that `norms` saw; None if there are none."""
        return [getattr(p, "_norm_sample", None) for p in self.params]

    def total(self, factors: Tensor | None) -> list[Tensor]:
        assert self._losses is not None
        self._module.disable_hooks()
        weighted = self._losses if factors is None else factors * self._losses
        with _quietly():
            sums = torch.autograd.grad(weighted.sum(), self.params)
        self._module.enable_hooks()
        self._losses = None
        return list(sums)

    def close(self) -> None:
        self._module.to_standard_module()
        _forget(self._model)


def _linear_norms(layer: nn.Linear, activations: list[Tensor], backprops: Tensor) -> dict[Tensor, Tensor]:
    """Norms of a linear layer's per-sample gradients, for inputs with any number of axes."""
    a = activations[0].to(backprops.dtype)
    found: dict[Tensor, Tensor] = {}
    if backprops.ndim > 2:
        # any axes between the first and the last count tokens
        a, backprops = a.flatten(1, -2), backprops.flatten(1, -2)
    if layer.weight.requires_grad:
        if backprops.ndim == 2:
            found[layer.weight] = row_norms(backprops) * row_norms(a)
        else:
            found[layer.weight] = product_norms(a, backprops)
    if layer.bias is not None and layer.bias.requires_grad:
        found[layer.bias] = row_norms(backprops if backprops.ndim == 2 else backprops.sum(1))
    return found


# entries of a parameter
_SHORT = 4096
_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_OWN_SAMPLERS: dict[Any, Any] = dict.fromkeys(_CONVOLUTIONS, convolutions.grad_sample)


def _seen(
    hooked: Any, module: nn.Module, output: Any, loss_reduction: str, batch_first: bool
) -> tuple[list[Tensor], Tensor]:
    """Inputs of a layer and gradients at its output, sample by sample."""
    return hooked.rearrange_grad_samples(
        module=module,
        backprops=output[0].detach(),
        loss_reduction=loss_reduction,
        batch_first=batch_first,
    )


class _HookModule(GradSampleModule):
    """Opacus's module with rules of our own for convolutions."""

    GRAD_SAMPLERS: ClassVar[Any] = ChainMap(_OWN_SAMPLERS, GradSampleModule.GRAD_SAMPLERS)

    def capture_backprops_hook(
        self,
        module: nn.Module,
        _forward_input: Any,
        forward_output: Any,
        loss_reduction: str,
        batch_first: bool,
    ) -> None:
        trained = [p for p in module.parameters() if p.requires_grad]
        sampler = None if self.force_functorch else self.GRAD_SAMPLERS.get(type(module))
        if not self.hooks_enabled or sampler is None or not _called_once(trained):
            super().capture_backprops_hook(
                module, _forward_input, forward_output, loss_reduction, batch_first
            )
            return
        # as in Opacus, without a copy for the sum over calls
        activations, backprops = _seen(self, module, forward_output, loss_reduction, batch_first)
        for p, sample in sampler(module, activations, backprops).items():
            p.grad_sample = sample
        for p in trained:
            p._forward_counter -= 1  # type: ignore[attr-defined]
        del module.max_batch_len


class _GhostModule(GradSampleModuleFastGradientClipping):
    """Opacus's module with norms summed in double precision, and rules of our own for convolutions."""

    GRAD_SAMPLERS: ClassVar[Any] = ChainMap(_OWN_SAMPLERS, GradSampleModuleFastGradientClipping.GRAD_SAMPLERS)
    NORM_SAMPLERS: ClassVar[Any] = ChainMap(
        {nn.Linear: _linear_norms}, GradSampleModuleFastGradientClipping.NORM_SAMPLERS
    )

    def capture_backprops_hook(
        self,
        module: nn.Module,
        _forward_input: Any,
        forward_output: Any,
        loss_reduction: str,
        batch_first: bool,
    ) -> None:
        if not self.hooks_enabled or type(module) in self.NORM_SAMPLERS:
            super().capture_backprops_hook(
                module, _forward_input, forward_output, loss_reduction, batch_first
            )
            return
        # as in Opacus, except for the norm
        activations, backprops = _seen(self, module, forward_output, loss_reduction, batch_first)
        trained = [p for p in module.parameters() if p.requires_grad]
        # subclasses may compute something else
        if type(module) in _CONVOLUTIONS and _called_once(trained):
            for p, norm in convolutions.norms(module, activations, backprops).items():  # type: ignore[arg-type]
                p._norm_sample = norm  # type: ignore[attr-defined]
                p._forward_counter -= 1  # type: ignore[attr-defined]
            if hasattr(module, "max_batch_len"):
                del module.max_batch_len
            return
        sampler: Any = self.GRAD_SAMPLERS.get(type(module), ft_compute_per_sample_gradient)
        for p, sample in sampler(module, activations, backprops).items():
            create_or_accumulate_grad_sample(
                param=p,
                grad_sample=sample,
                max_batch_len=module.max_batch_len,  # type: ignore[arg-type]
            )
        for p in trained:
            p._forward_counter -= 1  # type: ignore[attr-defined]
            if p._forward_counter == 0:  # type: ignore[attr-defined]
                promote_current_grad_sample(p)
                p._norm_sample = row_norms(p.grad_sample)  # type: ignore[attr-defined]
                p.grad_sample = None  # type: ignore[attr-defined]
        if not module.activations and hasattr(module, "max_batch_len"):
            del module.max_batch_len


def _called_once(trained: list[nn.Parameter]) -> bool:
    """Whether a layer has no other call in the batch, whose gradients would have to be added."""
    return all(p._forward_counter == 1 and not hasattr(p, "_current_grad_sample") for p in trained)  # type: ignore[attr-defined]


class PerSample:
    """Per-sample gradients, all in memory at once: by Opacus's hooks, or by functorch."""

    def __init__(self, model: nn.Module, loss: Loss, masks: Mask, *, functorch: bool = False) -> None:
        self._loss, self._model, self._masks = loss, model, masks
        self.params = [p for p in model.parameters() if p.requires_grad]
        self._functorch = functorch
        self._module = self._hooked()
        # where all layers train, a pass back to the input calls their hooks, and sums no gradients of weights
        self._to_input = all(p.requires_grad for p in model.parameters())

    def _hooked(self) -> _HookModule:
        return _HookModule(self._model, loss_reduction="sum", force_functorch=self._functorch)

    def norms(self, x: Tensor, y: Tensor) -> Tensor:
        to_input = self._to_input and x.is_floating_point()
        if to_input:
            x = x.detach().requires_grad_()
        with _quietly():
            losses = self._loss.value(self._module(x), y)
            torch.autograd.grad(losses.sum(), [x] if to_input else self.params, allow_unused=to_input)
        if to_input and any(p.grad_sample is None for p in self.params):  # type: ignore[attr-defined]
            # a layer does not depend on the input
            self._to_input = False
            self.close()
            self._module = self._hooked()
            return self.norms(x.detach(), y)
        samples = list(self._samples())
        # one norm of all that are short: most of a network's parameters, few of its numbers
        short = [g.flatten(1) for g in samples if g[0].numel() <= _SHORT]
        long = [g for g in samples if g[0].numel() > _SHORT]
        return joined(map(row_norms, [*long, *([torch.cat(short, 1)] if short else [])]), samples[0].dtype)

    def _samples(self) -> Iterable[Tensor]:
        """Per-sample gradients of each parameter, masked, in single precision at least."""
        for p in self.params:
            sample: Tensor = p.grad_sample  # type: ignore[attr-defined]
            if sample.dtype not in (torch.float32, torch.float64):
                sample = sample.float()
            yield sample * self._masks[p] if p in self._masks else sample

    def parts(self) -> list[Tensor | None]:
        """Norms over each parameter, for the batch that `norms` saw; None if there are none."""
        samples = [getattr(p, "grad_sample", None) for p in self.params]
        return [
            None if g is None else row_norms(g * self._masks[p] if p in self._masks else g)
            for p, g in zip(self.params, samples, strict=True)
        ]

    def total(self, factors: Tensor | None) -> list[Tensor]:
        sums = [g.sum(0) if factors is None else torch.tensordot(factors, g, 1) for g in self._samples()]
        for p in self.params:
            p.grad_sample = None  # type: ignore[attr-defined]
        return sums

    def close(self) -> None:
        self._module.to_standard_module()
        _forget(self._model)


def _forget(model: nn.Module) -> None:
    """Remove what Opacus left on parameters and, after an unfinished pass, on layers."""
    for p in model.parameters():
        for name in ("grad_sample", "_norm_sample", "_forward_counter"):
            if hasattr(p, name):
                delattr(p, name)
    for layer in model.modules():
        # a layer may have children or methods of the same name
        own = vars(layer)
        if type(own.get("activations")) is list:
            del own["activations"]
            own.pop("max_batch_len", None)


def _quietly() -> warnings.catch_warnings:
    """Suppress warnings about hooks of a first layer, whose inputs need no gradients."""
    return warnings.catch_warnings(action="ignore", category=UserWarning)
