"""The optimizer of all networks."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor


class Adam(torch.optim.Adam):
    """Adam with beta1 0.5, beta2 0.999 and Keras' place for epsilon, in torch's fused kernel.

    Keras' update is ``lr * sqrt(1 - b2**t) / (1 - b1**t) * m / (sqrt(v) + eps)``. Torch's adds epsilon after the bias
    correction of ``v``. There are two ways to make them agree:

    - on a CPU each step gets ``eps / sqrt(1 - b2**t)``;
    - on a card, where a number that changes from step to step has to be in memory of the card, the learning rate gets
      the bias corrections, epsilon stays, and the kernel counts its steps from so many on that its own corrections
      are 1. Those learning rates are computed on the host, sent with the minibatch, and taken up by :meth:`schedule`.

    A saved state is the same for both.

    Parameters
    ----------
    parameters : iterable of Tensor
    learning_rate : float
    updates : int, default=0
        Of each training step, for which learning rates come from the device; 0: they are numbers of the host.
    """

    BETAS = (0.5, 0.999)
    EPSILON = 1e-7
    LATE = 2.0**23  # steps after which betas to that power are 0; float32 counts on by one from there

    def __init__(self, parameters: Iterable[Tensor], learning_rate: float, updates: int = 0) -> None:
        super().__init__(
            parameters, lr=learning_rate, betas=self.BETAS, eps=self.EPSILON, fused=True, capturable=updates > 0
        )
        self.updates = updates
        self._rates: Sequence[Tensor] = ()  # of the updates that this training step has still to do
        self._warned_capturable_if_run_uncaptured = True  # PyTorch advises against capturable without a capture
        for group in self.param_groups:
            group["n_steps"] = 0
        self._is_made = False  # whether the state is there; on a CPU torch makes it

    def _make_state(self) -> None:
        """Make what of the state is missing, and let the kernel count from `LATE` on."""
        for group in self.param_groups:
            for parameter in group["params"]:
                state = self.state[parameter]
                for name in ("exp_avg", "exp_avg_sq"):
                    found = state.get(name)
                    # Of a checkpoint in another layout, which torch's kernel for cards refuses.
                    if found is None or found.stride() != parameter.stride():
                        state[name] = torch.zeros_like(parameter, memory_format=torch.preserve_format)
                        if found is not None:
                            state[name].copy_(found)
                if "step" not in state:
                    state["step"] = torch.zeros((), dtype=torch.float32, device=parameter.device)
                state["step"].fill_(self.LATE)
        self._is_made = True

    def restart(self, learning_rate: float) -> None:
        """Forget the moments, in place, and go on as a new optimizer of the same parameters would."""
        self.learning_rate, self._rates = learning_rate, ()
        for group in self.param_groups:
            group["n_steps"] = 0
        for state in self.state.values():
            torch._foreach_zero_(list(state.values()))
        if self._is_made:
            self._make_state()

    def is_of(self, parameters: Sequence[Tensor]) -> bool:
        """Return whether these are the parameters that are optimised."""
        own = [parameter for group in self.param_groups for parameter in group["params"]]
        return len(own) == len(parameters) and all(a is b for a, b in zip(own, parameters, strict=True))

    def coming(self) -> list[float]:
        """Return the learning rates of the updates of the next training step, bias corrections included."""
        (group,) = self.param_groups
        steps = range(group["n_steps"] + 1, group["n_steps"] + 1 + self.updates)
        first, second = self.BETAS
        return [group["lr"] * (1.0 - second**t) ** 0.5 / (1.0 - first**t) for t in steps]

    def schedule(self, rates: Sequence[Tensor]) -> None:
        """Take up what :meth:`coming` returned, as tensors without axes on the device."""
        self._rates = rates
        if self.updates and not self._is_made:
            self._make_state()

    def step(self, closure: None = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            group["n_steps"] += 1
            if not self.updates:
                group["eps"] = self.EPSILON / (1.0 - self.BETAS[1] ** group["n_steps"]) ** 0.5
        if not self.updates:
            super().step(closure)
            return
        if not self._rates:
            raise RuntimeError(f"an optimizer of {self.updates} updates per step was asked for more")
        (group,) = self.param_groups
        on_host, group["lr"], self._rates = group["lr"], self._rates[0], self._rates[1:]
        try:
            super().step(closure)
        finally:
            group["lr"] = on_host

    def state_dict(self) -> dict[str, Any]:
        """Return the state as a CPU has it, whatever the device."""
        found = super().state_dict()
        if self.updates:
            (group,) = found["param_groups"]
            group["capturable"] = False
            steps = torch.tensor(float(group["n_steps"]))
            found["state"] = {key: {**state, "step": steps} for key, state in found["state"].items()}
        return found

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take up what :meth:`state_dict` returned, on this device or another."""
        super().load_state_dict(state_dict)
        for group in self.param_groups:
            group["capturable"] = self.updates > 0
        self._is_made = False

    @property
    def learning_rate(self) -> float:
        return float(self.param_groups[0]["lr"])

    @learning_rate.setter
    def learning_rate(self, learning_rate: float) -> None:
        for group in self.param_groups:
            group["lr"] = learning_rate
