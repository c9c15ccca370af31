# SPDX-License-Identifier: Apache-2.0
"""One training step: batch in, weights, moments and average changed in place, a few numbers out.

The order of the published loop: loss, gradients, mean over devices, accumulation, unscaling, norm, clipping, AdamW,
EMA, loss scale. Source: Vchitect/Latte `train.py`.
"""

import mindspore as ms
from mindspore import nn, ops

from ms_latte.diffusion.gaussian import to_state
from ms_latte.models.primitives import reduce_mean
from ms_latte.training.losses import posterior_sample, predict
from ms_latte.training.optim import clip_coefficient, divide, global_norm

SCALING_FACTOR = 0.18215  # of the Stable Diffusion VAE


class TrainingStep(nn.Cell):
    """A micro step of a model: `step(batch)` -> name -> scalar tensor.

    diffusion: a GaussianDiffusion with channel_axis 2. optimizer: AdamW; ema, scaler: EMA, LossScaler or None.
    accumulation_steps micro steps make one step of the optimiser: their gradients are averaged, an overflow in one of
    them drops all. max_grad_norm: limit of the global norm, None for no clipping. reduce: list of tensors -> list of
    their means over the ranks, None for one process; everything that decides is computed behind it, so all ranks
    decide alike, and accumulated gradients are equal on all. use_image_num: joint images I. drop_overflow: an update
    whose gradients are not finite is not made.

    batch: as in `losses`, and scalars "lr", "ema_decay" and "clip" (bool: whether clipping is on in this step).
    Returned: loss, mse, vb (of this micro step), grad_norm (of the accumulated gradients, before clipping), scale
    (before the step), finite, updated (bool). All state is in `state()`, name -> parameter, so that a checkpoint
    between any two micro steps is exact. Raises ValueError for arguments that do not fit together.
    """

    def __init__(
        self,
        model,
        diffusion,
        optimizer,
        ema=None,
        scaler=None,
        accumulation_steps=1,
        max_grad_norm=None,
        reduce=None,
        use_image_num=0,
        scaling_factor=SCALING_FACTOR,
        drop_overflow=True,
    ):
        super().__init__(auto_prefix=False)
        if diffusion.channel_axis != 2:
            raise ValueError(
                f"diffusion has channel_axis {diffusion.channel_axis}; a step keeps latents as (N, F, C, H, W) for "
                "both models: build GaussianDiffusion with channel_axis 2"
            )
        if accumulation_steps < 1 or (max_grad_norm is not None and max_grad_norm <= 0):
            raise ValueError(
                f"accumulation_steps {accumulation_steps} and max_grad_norm {max_grad_norm}; expected at least 1 and a "
                "number above 0, or None for no clipping"
            )
        self.model, self.diffusion, self.precision = model, diffusion, diffusion.precision
        self.optimizer, self.ema, self.scaler, self.reduce = optimizer, ema, scaler, reduce
        self.accumulation_steps, self.max_grad_norm = accumulation_steps, max_grad_norm
        self.use_image_num, self.scaling_factor, self.drop_overflow = (
            use_image_num,
            scaling_factor,
            drop_overflow,
        )
        self.accumulated, self.count = None, None
        if accumulation_steps > 1:
            self.accumulated = ms.ParameterTuple(
                ms.Parameter(ops.zeros_like(value), name=f"accumulated.{name}", requires_grad=False)
                for name, value in optimizer.masters.items()
            )
            self.count = ms.Parameter(ms.Tensor(0, ms.int32), name="accumulated.count", requires_grad=False)
        self._value_and_grad = ms.value_and_grad(self.scaled_loss, None, optimizer.parameters, has_aux=True)

    def construct(self, batch):
        scale = self.scale(batch["lr"])
        (_, mse, vb), gradients = self._value_and_grad(batch, scale)
        gradients, mse, vb = self.mean_over_ranks(gradients, mse, vb)
        total, complete = self.accumulate(gradients)
        total = [divide(gradient, scale) for gradient in total]
        norm = global_norm(total)
        finite = ops.isfinite(norm)
        updated = ops.logical_and(complete, finite) if self.drop_overflow else complete
        if self.max_grad_norm is not None:
            coefficient = ops.where(
                batch["clip"], clip_coefficient(norm, self.max_grad_norm), ops.ones_like(norm)
            )
            total = [gradient * coefficient for gradient in total]
        self.optimizer.update(total, batch["lr"], updated)
        if self.ema is not None:
            self.ema.update(batch["ema_decay"], updated)
        if self.scaler is not None:
            self.scaler.update(finite, complete)
        return dict(
            loss=mse + vb, mse=mse, vb=vb, grad_norm=norm, scale=scale, finite=finite, updated=updated
        )

    def scaled_loss(self, batch, scale):
        """The loss times its scale, for the gradients: (scaled loss, mse, vb), scalars."""
        if "latents" in batch:
            x0 = to_state(batch["latents"], self.precision)
        else:
            x0 = posterior_sample(
                batch["mean"], batch["logvar"], batch["posterior"], self.scaling_factor, self.precision
            )
        t, noise = batch["t"], to_state(batch["noise"], self.precision)
        x_t = self.diffusion.q_sample(x0, t, noise)
        output = predict(self.model, x_t, self.diffusion.map_timesteps(t), batch, self.use_image_num)
        mse, vb = self.diffusion.training_losses(output, x0, x_t, t, noise)
        mse, vb = reduce_mean(mse), reduce_mean(vb)
        return (mse + vb) * scale, mse, vb

    def scale(self, like):
        """The loss scale before the step, (); 1 without a scaler."""
        return ops.ones_like(like) if self.scaler is None else self.scaler.scale * ops.ones_like(like)

    def mean_over_ranks(self, gradients, mse, vb):
        """Gradients in the type of the masters, and the terms of the loss, as means over all ranks."""
        gradients = [to_state(gradient, self.precision) for gradient in gradients]
        if self.reduce is None:
            return gradients, mse, vb
        *gradients, mse, vb = self.reduce([*gradients, mse, vb])
        return gradients, mse, vb

    def accumulate(self, gradients):
        """Gradients so far, each micro step with its share, and whether the step is complete: (list, () bool)."""
        if self.accumulated is None:
            return gradients, ms.Tensor(True)
        count = self.count + 1
        complete = count == self.accumulation_steps
        places = range(len(gradients))
        # All are read before one is assigned: MindSpore's compiler takes minutes over reads and assigns in turn.
        total = [self.accumulated[i] + divide(gradients[i], self.accumulation_steps) for i in places]
        for i in places:
            ops.assign(self.accumulated[i], ops.where(complete, ops.zeros_like(total[i]), total[i]))
        ops.assign(self.count, ops.where(complete, ops.zeros_like(count), count))
        return total, complete

    def state(self):
        """name -> parameter of all that a step remembers beside the weights of the model."""
        state = self.optimizer.state()
        for part in (self.ema, self.scaler):
            state |= part.state() if part is not None else {}
        if self.accumulated is not None:
            names = self.optimizer.names
            state |= {f"accumulated.{n}": value for n, value in zip(names, self.accumulated, strict=True)}
            state["accumulated.count"] = self.count
        return state
