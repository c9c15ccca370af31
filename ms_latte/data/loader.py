# SPDX-License-Identifier: Apache-2.0
"""Batches of one rank, loaded ahead by mindspore.dataset, the same whatever the number of workers.

A row of the pipeline is a whole batch: the source gives (epoch, step), and a map with several workers loads it. The
workers are threads: reading, decoding and resizing release Python's lock, nothing is copied between processes, and a
process that runs MindSpore need not be forked.
"""

import contextlib
import multiprocessing
import time

import numpy as np

from ms_latte.data.order import epoch_order, generator, positions, steps_per_epoch


class Loader:
    """Batches of a data set.

    dataset: has len, get(index, rng) -> dict, name(index); batch_size: N of one rank; draws: Draws, or None; seed,
    shuffle, drop_last: see ms_latte.data.order; rank, world: this process among those that share an epoch; workers:
    threads that load ahead (at most as many as the host has cores, which MindSpore demands), 0 to load when asked;
    prefetch: length of each queue; about 2 x workers x prefetch + 2 batches are held at a time. `waited`: seconds
    spent waiting for batches.
    Raises ValueError if the settings leave no step.
    """

    def __init__(
        self,
        dataset,
        batch_size,
        draws,
        seed,
        rank=0,
        world=1,
        workers=2,
        shuffle=True,
        drop_last=True,
        prefetch=1,
    ):
        if workers < 0 or prefetch < 1:
            raise ValueError(f"workers {workers}, prefetch {prefetch}: expected at least 0 and 1")
        self.samples, self.draws, self.seed = dataset, draws, seed
        self.batch_size, self.rank, self.world, self.shuffle = batch_size, rank, world, shuffle
        self.steps_per_epoch = steps_per_epoch(len(dataset), batch_size, world, drop_last)
        positions(0, batch_size, rank, world)
        self.workers, self.prefetch = min(workers, multiprocessing.cpu_count()), prefetch
        self.waited = 0.0
        self.failure = None  # what a worker raised; mindspore.dataset makes a page of text of it
        self._order = (None, None)
        self._layout = None

    def indices(self, epoch, step):
        """Indices (N,) in the data set of the samples of this rank's batch."""
        known, order = self._order
        if known != epoch:
            order = epoch_order(len(self.samples), self.seed, epoch, self.shuffle)
            self._order = (epoch, order)
        places = positions(step, self.batch_size, self.rank, self.world)
        return order[places % len(order)]  # a filled-up batch goes on at the start

    def names(self, epoch, step):
        """Names of the samples of this rank's batch, for messages."""
        return [self.samples.name(int(index)) for index in self.indices(epoch, step)]

    def batch(self, epoch, step):
        """One batch, loaded now: key -> array (N, ...)."""
        places = positions(step, self.batch_size, self.rank, self.world)
        batch = {}
        for n, (place, index) in enumerate(zip(places.tolist(), self.indices(epoch, step), strict=True)):
            sample = self._sample(epoch, place, int(index))
            if not batch:
                batch = {key: _column(value, self.batch_size) for key, value in sample.items()}
            self._check(sample, batch, index)
            for key, value in sample.items():
                batch[key][n] = value
        return {
            key: value if isinstance(value, np.ndarray) else np.array(value) for key, value in batch.items()
        }

    @property
    def layout(self):
        """key -> (shape, dtype) of a batch's columns, in their order, as the first sample of the set tells; the
        shape of a text column is (N,)."""
        if self._layout is None:
            sample = self._sample(0, 0, 0)
            self._layout = {
                key: ((self.batch_size, *np.shape(value)), np.asarray(value).dtype)
                for key, value in sample.items()
            }
        return self._layout

    def batches(self, epoch, first_step=0, epochs=1):
        """Batches of an epoch (and of those after it) from a step on: key -> array (N, ...).

        Raises what the data set raises, when the batch concerned is due. Leaving the loop early ends the workers.
        """
        places = self._places(epoch, first_step, epochs)
        if not self.workers:
            for place in places:
                begin = time.perf_counter()
                batch = self.batch(*place.tolist())
                self.waited += time.perf_counter() - begin
                yield batch
            return
        failures = {}

        def load(place):
            place = tuple(place.tolist())
            try:
                return tuple(self.batch(*place).values())
            except Exception as error:
                # Raised in the consumer at its place; a row must have all columns meanwhile.
                failures[place] = error
                return tuple(np.zeros(shape, dtype) for shape, dtype in self.layout.values())

        rows = None
        begin = time.perf_counter()
        try:
            rows = self._pipeline(places, load, list(self.layout))
            with self._queues():
                rows = rows.create_dict_iterator(num_epochs=1, output_numpy=True, do_copy=False)
            for place, batch in zip(places, rows, strict=True):
                self.waited += time.perf_counter() - begin
                if tuple(place) in failures:
                    raise failures[tuple(place)]
                yield batch
                begin = time.perf_counter()
        finally:
            if hasattr(rows, "stop"):
                rows.stop()

    def dataset(self, epoch, first_step=0, epochs=1, scalars=None, columns=None):
        """A mindspore.dataset object with the same batches, for dataset sink mode.

        scalars: function of the global step (epoch * steps_per_epoch + step) that returns a dict of NumPy scalars,
        which become further columns; columns: which ones and in which order. By default those of `layout` without
        texts and columns of no elements, then the scalars in the order of their dict. Raises ValueError for unknown
        columns. What a worker raises is in `failure`; mindspore.dataset itself raises a RuntimeError. Sets the prefetch
        size of mindspore.dataset for the process.
        """
        places = self._places(epoch, first_step, epochs)
        count = self.steps_per_epoch
        extra = list(scalars(epoch * count + first_step)) if scalars else []
        known = [
            key for key, (shape, dtype) in self.layout.items() if dtype.kind not in "US" and 0 not in shape
        ] + extra
        columns = known if columns is None else list(columns)
        if set(columns) - set(known) or len(set(columns)) < len(columns):
            raise ValueError(f"columns {', '.join(columns)}: expected some of {', '.join(known)}, each once")

        def load(place):
            epoch, step = place.tolist()
            try:
                row = self.batch(epoch, step)
                row.update(scalars(epoch * count + step) if scalars else {})
                return tuple(row[key] for key in columns)
            except Exception as error:
                self.failure = self.failure or error
                raise

        # The queues are made when the object is consumed, by others: the setting has to stay.
        _config().set_prefetch_size(self.prefetch)
        return self._pipeline(places, load, columns)

    def _places(self, epoch, first_step, epochs):
        if not 0 <= first_step < self.steps_per_epoch or epochs < 1 or epoch < 0:
            raise ValueError(
                f"epoch {epoch}, first_step {first_step}, epochs {epochs}: expected a step below "
                f"{self.steps_per_epoch} and at least one epoch"
            )
        return _Places(epoch, first_step, epochs, self.steps_per_epoch)

    def _sample(self, epoch, place, index):
        sample = self.samples.get(index, generator(self.seed, "clip", epoch, place))
        drawn = self.draws.sample(self.seed, epoch, place) if self.draws else {}
        return {**sample, **drawn}

    def _check(self, sample, batch, index):
        shapes = {key: np.shape(value) for key, value in sample.items()}
        wanted = {k: v.shape[1:] if isinstance(v, np.ndarray) else () for k, v in batch.items()}
        if shapes != wanted:
            raise ValueError(
                f"{self.samples.name(int(index))}: columns {shapes}, but others of its batch have {wanted}; samples of "
                "one batch must have one shape"
            )

    def _pipeline(self, places, load, columns):
        import mindspore.dataset as ds

        source = ds.GeneratorDataset(places, ["place"], shuffle=False, python_multiprocessing=False)
        return source.map(
            load, ["place"], columns, num_parallel_workers=max(self.workers, 1), python_multiprocessing=False
        )

    @contextlib.contextmanager
    def _queues(self):
        """MindSpore's queues hold 16 rows each unless told otherwise when iteration begins: too many whole batches."""
        config = _config()
        before = config.get_prefetch_size()
        config.set_prefetch_size(self.prefetch)
        try:
            yield
        finally:
            config.set_prefetch_size(before)


class _Places:
    """(epoch, step) of the batches to come, as arrays (2,), made when asked for: there may be millions."""

    def __init__(self, epoch, first_step, epochs, steps):
        self.first, self.steps = epoch * steps + first_step, steps
        self.count = epochs * steps - first_step

    def __len__(self):
        return self.count

    def __getitem__(self, i):
        if not 0 <= i < self.count:
            raise IndexError(i)
        return np.array(divmod(self.first + int(i), self.steps))


def _config():
    from mindspore.dataset import config

    return config


def _column(value, count):
    """Room for one value of every sample; texts, whose lengths differ, go to a list."""
    value = np.asarray(value)
    return [""] * count if value.dtype.kind == "U" else np.empty((count, *value.shape), value.dtype)
