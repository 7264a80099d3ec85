"""Batch norms whose statistics are those of the whole batch, of which every rank holds a part.

torch's own SyncBatchNorm is for CUDA only.
"""

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from robust_models.classifier import RobustClassifier
from robust_models.errors import UserError

CHANNELS = (1, -1, 1, 1)


def share_batch_norms(model: RobustClassifier) -> None:
    """Every batch norm of the network becomes a shared one, in place. UserError for kinds that cannot."""
    for name, module in model.network.named_modules():
        if type(module) is nn.BatchNorm2d:
            module.__class__ = SharedBatchNorm2d  # the same parameters and buffers, another training forward
        elif isinstance(module, nn.modules.batchnorm._BatchNorm):
            raise UserError(
                f"arch: ranks cannot share the statistics of {name}, a {type(module).__name__}, in "
                f"{model.description.arch}; train it with one process"
            )


def freeze_batch_norms(model: nn.Module) -> None:
    """Every batch norm normalises by its running statistics, and keeps them: for a network that is trained further."""
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.eval()


class SharedBatchNorm2d(nn.BatchNorm2d):
    """In training mode, normalises by the statistics of all ranks' images, of which each brings equally many."""

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002  (its name in torch)
        """x [N,C,H,W] -> the same shape; in training mode every rank must call it equally often."""
        if not self.training:
            return super().forward(input)
        y, mean, var, count = _normalized(input, self.weight, self.bias, self.eps)
        if self.running_mean is not None and self.running_var is not None and self.num_batches_tracked is not None:
            self.num_batches_tracked.add_(1)
            share = 1 / int(self.num_batches_tracked) if self.momentum is None else self.momentum
            self.running_mean.lerp_(mean, share)
            self.running_var.lerp_(var * (count / (count - 1)), share)
        return y


@torch.compiler.disable()  # a compiled graph cannot hold the messages
def _normalized(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float
) -> tuple[Tensor, Tensor, Tensor, int]:
    return _Normalize.apply(x, weight, bias, eps)


class _Normalize(torch.autograd.Function):
    """x [N,C,H,W] -> normalised x; mean [C], biased variance [C] and number of values per channel, over all ranks."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float
    ) -> tuple[Tensor, Tensor, Tensor, int]:
        """See the class; one message of [2,C] from each rank to all."""
        mean_type = torch.promote_types(x.dtype, torch.float32)
        own_var, own_mean = torch.var_mean(x.to(mean_type), dim=(0, 2, 3), correction=0)
        own = torch.stack([own_mean, own_var])
        of_ranks = [torch.empty_like(own) for _ in range(dist.get_world_size())]
        dist.all_gather(of_ranks, own)
        means, variances = torch.stack(of_ranks, dim=1)
        mean, var = means.mean(0), variances.mean(0) + means.var(0, correction=0)
        count = len(of_ranks) * x.numel() // x.shape[1]
        ctx.save_for_backward(x, weight, mean, var)
        ctx.eps, ctx.count = eps, count
        ctx.mark_non_differentiable(mean, var)
        return nn.functional.batch_norm(x, mean, var, weight, bias, training=False, eps=eps), mean, var, count

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        """The gradients of x [N,C,H,W], weight [C] and bias [C]; one message of [2,C] for all ranks."""
        x, weight, mean, var = ctx.saved_tensors
        # The gradient as if mean and variance were constants; what these two add to it follows from the same two sums.
        grad_x, grad_weight, grad_bias = torch.ops.aten.native_batch_norm_backward(
            gradients[0], x, weight, mean, var, None, None, False, ctx.eps, [True, True, True]
        )
        of_all = torch.stack([grad_weight, grad_bias])
        dist.all_reduce(of_all)
        inverse = (var + ctx.eps).rsqrt()
        scale = inverse if weight is None else weight * inverse
        slope = scale * inverse * of_all[0] / ctx.count
        offset = scale * of_all[1] / ctx.count - slope * mean
        through_statistics = torch.addcmul(offset.view(CHANNELS), x, slope.view(CHANNELS)).to(grad_x.dtype)
        affine = (None, None) if weight is None else (grad_weight, grad_bias)
        return grad_x - through_statistics, *affine, None
