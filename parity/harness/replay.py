# SPDX-License-Identifier: Apache-2.0
"""Workers that record and workers that were recorded: the judge notices no difference.

Recording is judging torch against itself with every question and answer kept; comparing is judging the port with
the kept answers in the place of torch. There is one judge, `run_case` and `run_gradients`, for both.
"""

import os
from dataclasses import replace
from fnmatch import fnmatchcase
from functools import lru_cache
from pathlib import Path
from typing import Any

from converters import load
from converters.stream import content_hash
from parity.harness.backends import ROOT, Pool, Worker, WorkerError
from parity.harness.bundle import RENEW, Bundle, BundleError, Writer, described, key_of
from parity.harness.sample import Sampled, sample
from parity.harness.trace import Record, discard, fetch

SILENT = ("set_spill",)  # requests without an answer of interest
MIRRORED = ("build", "load", "lint", "config", "sources")  # what the mirror repeats instead of doing it again


class Sampler:
    """Which results are kept at `count` fixed positions only: those of all taps but the net and `full`.

    count: 0 keeps every value. full: names of taps, or patterns. consume: delete the file behind a large result
    that was sampled. Sampling is part of an answer, so that recorded and live results are sampled alike.
    seen: names of all results so far.
    """

    def __init__(self, count: int = 0, full: tuple[str, ...] = (), consume: bool = False):
        self.count, self.full, self.consume = count, tuple(full), consume
        self.seen: dict[str, None] = {}

    def __call__(self, verb: str, arguments: dict[str, Any], answer: Any) -> Any:
        """The answer with its results sampled; arguments of layers stay whole, they are inputs of the port."""
        if not self.count or verb not in ("trace", "local", "gradients"):
            return answer
        if verb == "trace":
            return {tap: self._record(tap.rpartition("#")[0], record) for tap, record in answer.items()}
        if verb == "local":
            names = [name for name, _, _ in arguments["requests"]]
            return [self._results(name, results) for name, results in zip(names, answer, strict=True)]
        return {name: self._results(name, [value])[0] for name, value in answer.items()}

    def _record(self, name: str, record: Record) -> Record:
        return replace(record, outputs=self._results(name, record.outputs)) if name else record

    def _results(self, name: str, results: list[Any]) -> list[Any]:
        self.seen[name] = None
        if any(fnmatchcase(name, pattern) for pattern in self.full):
            return results
        kept = []
        for value in results:
            short = sample(fetch(value), self.count)
            kept.append(short if isinstance(short, Sampled) else value)
            if self.consume and kept[-1] is not value:
                discard(value)
        return kept


class Questions:
    """Names of questions to one torch worker: hashes of the request and of what was built and loaded before it."""

    def __init__(self, dtype: str):
        self.start = self.built = self.state = key_of("torch", dtype)
        self.case: Any = None
        self.weights = ""

    def key(self, verb: str, arguments: dict[str, Any]) -> str:
        """The name of a request; building and loading change the state on which later ones depend."""
        arguments = dict(sorted(arguments.items()))
        if verb == "build":
            self.case = arguments["case"]
            self.built = self.state = key_of(self.start, verb, arguments)
        elif verb == "load":
            self.weights = weights_hash(**arguments)
            self.state = key_of(self.built, verb, self.weights, arguments.get("grid", ""))
        else:
            arguments.pop("keep_inputs", None)  # an answer with the inputs of the layers serves both
            return key_of(self.state, verb, arguments)
        return self.state

    def local(self, name: str, args: tuple, kwargs: dict[str, Any]) -> str:
        """The name of one teacher-forced layer."""
        return key_of(self.state, "local", name, tuple(args), dict(sorted(kwargs.items())))


def weights_hash(tensors=None, checkpoint: str = "", layout=None, overrides=None, **_) -> str:
    """Content hash of weights, given as arrays or as a file in any layout; the place of the file does not matter."""
    if tensors is not None:
        return key_of([(name, tensors[name]) for name in sorted(tensors)])
    stat = Path(checkpoint).stat()
    return _hash_of_file(checkpoint, stat.st_mtime_ns, stat.st_size, layout, tuple((overrides or {}).items()))


@lru_cache(maxsize=8)
def _hash_of_file(path, changed, size, layout, overrides) -> str:
    return content_hash(load(path, layout=layout, overrides=dict(overrides)).tensors.entries)


# --- recording


class Recording:
    """A torch worker whose answers are kept."""

    def __init__(self, inner: Worker, dtype: str, pool: "RecordingPool"):
        self.inner, self.pool = inner, pool
        self.name, self.pid, self.environment = inner.name, inner.pid, inner.environment
        self.questions = Questions(dtype)
        self.said: dict[str, Any] = {}
        pool.writer.answer(key_of("environment", dtype), inner.environment)

    def __call__(self, verb: str, **arguments: Any) -> Any:
        """Ask the worker and keep what it says."""
        answer = self.inner(verb, **arguments)
        kept = self.pool.sampler(verb, arguments, answer)
        if verb == "sources":
            kept = {name: _portable(place) for name, place in kept.items()}
        if verb == "local":
            for request, results in zip(arguments["requests"], kept, strict=True):
                self.pool.writer.answer(self.questions.local(*request), results)
        elif verb not in SILENT:
            self.pool.writer.answer(self.questions.key(verb, arguments), kept)
        self.said[verb] = answer if verb in MIRRORED else None
        if verb == "load":
            self("sources")  # asked when something fails
        if verb == "trace" and arguments["stages"] and arguments["keep_inputs"]:
            self.pool.foresee(self, answer)
        return answer

    def stop(self) -> None:
        """End the worker."""
        self.inner.stop()


def _portable(place: str) -> str:
    """file:line below the root of the project or of the installed packages, wherever they are on this machine."""
    path = Path(os.path.abspath(place))
    if path.is_relative_to(ROOT):
        return path.relative_to(ROOT).as_posix()
    parts = path.parts
    return (
        Path(*parts[parts.index("site-packages") + 1 :]).as_posix() if "site-packages" in parts else path.name
    )


class Mirror:
    """The port's part in a recording: torch once more, in the tested dtype. It shows that torch repeats itself."""

    def __init__(self, control: Recording):
        self.control = control
        self.name, self.pid, self.environment = control.name, control.pid, control.environment

    def __call__(self, verb: str, **arguments: Any) -> Any:
        """Repeat what the control said, or let its process run again without keeping the answer."""
        if verb in MIRRORED:
            return self.control.said[verb]
        return self.control.inner(verb, **arguments)


class RecordingPool(Pool):
    """Torch workers only, every answer kept by a `Writer`.

    sampler: what is kept of the results. inside: stages (patterns) whose inner layers are kept too, for nets that
    are compared stage by stage: a failure inside them can then be named on the other machine.
    """

    live = False  # every question is kept, or answered from what was kept, in its order

    def __init__(self, writer: Writer, sampler: Sampler, inside: tuple[str, ...] = ()):
        super().__init__()
        self.writer, self.sampler, self.inside = writer, sampler, tuple(inside)
        self._recordings: dict[Worker, Recording] = {}

    def get(self, framework: str, device: str, dtype: str) -> Any:
        """A torch worker that records; for "mindspore" the mirror of the one of that dtype."""
        if framework != "torch":
            return Mirror(self.get("torch", "CPU", dtype))
        inner = super().get(framework, device, dtype)
        if inner not in self._recordings:
            self._recordings[inner] = Recording(inner, dtype, self)
        return self._recordings[inner]

    def drop(self, worker: Any) -> None:
        """End the process behind a worker or its mirror."""
        worker = getattr(worker, "control", worker)
        if self._recordings.pop(worker.inner, None):
            super().drop(worker.inner)

    def foresee(self, control: Recording, traced: dict[str, Record]) -> None:
        """Ask what the judge will ask if one of the stages named by `inside` fails."""
        truth = self.get("torch", "CPU", "fp64")
        for tap, record in traced.items():
            name = tap.rpartition("#")[0]
            if not any(fnmatchcase(name, pattern) for pattern in self.inside):
                continue
            here = dict(inputs=record.kwargs, args=record.args, method="", stages=False, inside=name)
            inner = control("trace", keep_inputs=True, **here)
            if truth is not control:
                truth("trace", keep_inputs=False, **here)
                requests = [(part.rpartition("#")[0], one.args, one.kwargs) for part, one in inner.items()]
                truth("local", requests=requests)


# --- comparing


class Replayed:
    """A torch worker that answers from a bundle."""

    def __init__(self, bundle: Bundle, dtype: str):
        self.bundle, self.dtype = bundle, dtype
        self.name = f"recorded torch/{dtype}"
        self.questions = Questions(dtype)
        self._traced: dict[str, Record] = {}
        try:
            self.environment = bundle.recall(key_of("environment", dtype))
        except KeyError:
            raise BundleError(f"{bundle.path} has no {dtype}", remedy=RENEW) from None

    def __call__(self, verb: str, **arguments: Any) -> Any:
        """The recorded answer.

        Raises BundleError where case, weights or inputs are not those of the recording, and WorkerError of the
        kind "NotRecorded" for a request that nobody foresaw.
        """
        if verb in SILENT:
            return None
        if verb == "local":
            return [self._local(*request) for request in arguments["requests"]]
        key = self.questions.key(verb, arguments)
        try:
            answer = self.bundle.recall(key)
        except KeyError:
            raise self._unknown(verb, arguments) from None
        if verb in ("build", "load"):
            self._traced = {}
        if verb == "trace":
            self._traced.update(answer)
        return answer

    def _local(self, name: str, args: tuple, kwargs: dict[str, Any]) -> list[Any]:
        key = self.questions.local(name, args, kwargs)
        try:
            return self.bundle.recall(key)
        except KeyError:
            pass
        # A layer of the run gives the same on the same input.
        same = (one for tap, one in self._traced.items() if tap.rpartition("#")[0] == name)
        for record in same:
            if self.questions.local(name, record.args, record.kwargs) == key:
                return record.outputs
        raise WorkerError(
            "NotRecorded", f"{self.name} has no answer of layer {name!r} on this input; {RENEW}"
        )

    def _unknown(self, verb: str, arguments: dict[str, Any]) -> Exception:
        case = self.questions.case
        if verb == "build":
            return BundleError(
                f"{self.bundle.path} has no {case.id} as it is here", got=described(case), remedy=RENEW
            )
        if verb == "load":
            return BundleError(
                f"{case.id}: the weights are not those of the recording",
                got=f"content hash {self.questions.weights}",
                expected="those of the manifest: same seed, same --checkpoint, same version",
                remedy=RENEW,
            )
        if verb == "trace" and arguments.get("inside"):
            inside = arguments["inside"]
            return WorkerError(
                "NotRecorded",
                f"the layers inside {inside} were not recorded; record again with --inside {inside}",
            )
        if verb in ("trace", "gradients"):
            what = "its gradients were not recorded, or " if verb == "gradients" else ""
            return BundleError(
                f"{case.id} {self.dtype}: {what}its inputs are not those of the recording", remedy=RENEW
            )
        return WorkerError("NotRecorded", f"{self.name} was not asked for {verb!r}; {RENEW}")

    def stop(self) -> None:
        """There is no process."""


class Thinned:
    """The port, its results sampled as those of the recording."""

    def __init__(self, inner: Worker, sampler: Sampler):
        self.inner, self.sampler = inner, sampler
        self.name, self.pid, self.environment = inner.name, inner.pid, inner.environment

    def __call__(self, verb: str, **arguments: Any) -> Any:
        """Ask the port."""
        return self.sampler(verb, arguments, self.inner(verb, **arguments))


class ReplayPool(Pool):
    """Recorded torch workers beside living ones of MindSpore."""

    live = False  # every question is kept, or answered from what was kept, in its order

    def __init__(self, bundle: Bundle):
        super().__init__()
        self.bundle = bundle
        self.sampler = Sampler(bundle.manifest["sample"], tuple(bundle.manifest["full"]), consume=True)
        self._replayed: dict[str, Replayed] = {}
        self._thinned: dict[Worker, Thinned] = {}

    def get(self, framework: str, device: str, dtype: str) -> Any:
        """The worker. Raises BundleError for a dtype that was not recorded, WorkerError if the port cannot start."""
        if framework == "torch":
            if dtype not in self._replayed:
                self._replayed[dtype] = Replayed(self.bundle, dtype)
            return self._replayed[dtype]
        inner = super().get(framework, device, dtype)
        if inner not in self._thinned:
            self._thinned[inner] = Thinned(inner, self.sampler)
        return self._thinned[inner]

    def drop(self, worker: Any) -> None:
        """End a living worker; a recorded one starts anew."""
        if isinstance(worker, Replayed):
            self._replayed.pop(worker.dtype, None)
        elif self._thinned.pop(worker.inner, None):
            super().drop(worker.inner)
