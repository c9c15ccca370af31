# SPDX-License-Identifier: Apache-2.0
"""From numpy batches to the training step: frames through the VAE, columns onto the device."""

import mindspore as ms
from mindspore import nn, ops


class FrameEncoder(nn.Cell):
    """Pixels to the moments of the VAE's posterior, `chunk` frames at a time; nothing of it is trained.

    pixels (N, F, 3, H, W) -> mean and logvar, float32 (N, F, C, h, w).
    """

    def __init__(self, vae, chunk):
        super().__init__(auto_prefix=False)
        self.vae, self.chunk = vae, chunk
        for parameter in vae.get_parameters():
            parameter.requires_grad = False

    def construct(self, pixels):
        N, F = pixels.shape[:2]
        frames = pixels.reshape((N * F,) + pixels.shape[2:])
        means, logvars = [], []
        for i in range(0, N * F, self.chunk):
            mean, logvar = self.vae.encode(frames[i : i + self.chunk])
            means.append(mean.astype(ms.float32))
            logvars.append(logvar.astype(ms.float32))
        mean, logvar = ops.cat(means), ops.cat(logvars)
        shape = (N, F) + mean.shape[1:]
        return mean.reshape(shape), logvar.reshape(shape)


class Columns(nn.Cell):
    """The training step with one argument for each of `names` instead of a dictionary of them.

    A compiled step takes tensors among its arguments as variables, but the entries of a dictionary as constants, so
    that it would be compiled anew for every batch. encoder: encodes the column "pixels" inside, or None; fixed: name
    -> tensor, the same in every step.
    """

    def __init__(self, step, names, encoder=None, fixed=None):
        super().__init__(auto_prefix=False)
        self.step, self.names, self.encoder = step, tuple(names), encoder
        self.fixed_names, self.fixed = tuple(fixed or {}), tuple((fixed or {}).values())

    def construct(self, *columns):
        batch = {}
        for i in range(len(self.names)):
            batch[self.names[i]] = columns[i]
        for i in range(len(self.fixed_names)):
            batch[self.fixed_names[i]] = self.fixed[i]
        if self.encoder is not None:
            mean, logvar = self.encoder(batch["pixels"])
            batch["mean"], batch["logvar"] = mean, logvar
        return self.step(batch)


class Feeding:
    """Batches of a loader to the training step, one call a step; the frames are encoded before it.

    step: TrainingStep; names: keys of a batch that it takes, "mean" and "logvar" included; encoder: FrameEncoder or
    None; fixed: name -> array; renew(): called when the batches of an epoch begin.
    """

    def __init__(self, step, names, encoder=None, fixed=None, renew=None):
        self.names, self.encoder, self.renew = tuple(names), encoder, renew or (lambda: None)
        self.cell = Columns(step, self.names, fixed=_tensors(fixed))

    def batches(self, loader, position, plan):
        """Batches of the position's epoch from its step on, with the scalars of each step."""
        total = position.total
        for batch in loader.batches(position.epoch, position.step):
            if total == position.total:
                self.renew()  # after the loader's threads have begun
            yield {**batch, **plan.scalars(total)}
            total += 1

    def __call__(self, batch):
        """One step; returns its metrics, tensors."""
        if self.encoder is not None:
            mean, logvar = self.encoder(ms.Tensor(batch["pixels"]))
            batch = {**batch, "mean": mean, "logvar": logvar}
        columns = [batch[name] for name in self.names]
        return self.cell(*[x if isinstance(x, ms.Tensor) else ms.Tensor(x) for x in columns])


class SunkFeeding:
    """Batches through the device's own queue, which is filled while it computes; arguments as of `Feeding`.

    Every call takes one batch off the queue and returns that step's metrics without waiting for them, so none is lost
    between two readings. MindSpore has such queues on accelerators alone; not yet run on the device.
    """

    def __init__(self, step, names, encoder=None, fixed=None, renew=None):
        taken = [name for name in names if encoder is None or name not in ("mean", "logvar")]
        self.names = tuple(["pixels", *taken] if encoder is not None else taken)
        self.renew = renew or (lambda: None)
        self.cell = Columns(step, self.names, encoder, _tensors(fixed))
        self.process = self.loader = None

    def batches(self, loader, position, plan):
        """One turn for every step of the position's epoch that is left; the queue runs on over all epochs."""
        if self.process is None:
            epochs = -(-plan.steps // plan.steps_per_epoch) - position.epoch
            dataset = loader.dataset(
                position.epoch, position.step, epochs, scalars=plan.scalars, columns=list(self.names)
            )
            self.process, self.loader = ms.data_sink(self.cell, dataset, sink_size=1), loader
            self.renew()
        yield from range(position.step, plan.steps_per_epoch)

    def __call__(self, _):
        """One step; returns its metrics, tensors. What went wrong while a batch was loaded is raised as it was."""
        try:
            return self.process()
        except RuntimeError as error:  # MindSpore's own, which does not name the file
            raise self.loader.failure or error from error


def _tensors(fixed):
    return {name: ms.Tensor(value) for name, value in (fixed or {}).items()}
