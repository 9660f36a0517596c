"""Adam for a single tensor: torch's own arithmetic without its optimiser class, whose first step loads torch's compiler (1.5 s)."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.optim.adam import adam


class Adam:
    """Adam (arXiv 1412.6980) on one leaf tensor, fused; the same numbers as ``torch.optim.Adam([tensor], ..., fused=True)``.

    lr may be set before any step; weight_decay is L2: it is added to the gradient.
    """

    def __init__(self, tensor: Tensor, lr: float, betas: tuple[float, float] = (0.9, 0.999), weight_decay: float = 0.0) -> None:
        self.tensor, self.lr, self.betas, self.weight_decay = tensor, lr, betas, weight_decay
        self._mean, self._square = torch.zeros_like(tensor), torch.zeros_like(tensor)
        self._steps = torch.zeros((), dtype=torch.float32, device=tensor.device)

    @torch.no_grad()
    def minimise(self, loss: Tensor) -> None:
        """Take one step against the gradient of a loss; ValueError if the loss doesn't depend on the tensor."""
        (gradient,) = torch.autograd.grad(loss, self.tensor, allow_unused=True)
        if gradient is None:
            raise ValueError("the loss doesn't depend on the tensor that is fitted")
        adam(
            [self.tensor], [gradient], [self._mean], [self._square], [], [self._steps], fused=True,
            amsgrad=False, beta1=self.betas[0], beta2=self.betas[1], lr=self.lr, weight_decay=self.weight_decay, eps=1e-8, maximize=False,
        )  # fmt: skip
