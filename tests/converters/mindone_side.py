# SPDX-License-Identifier: Apache-2.0
"""What mindone's own classes say, in a process of their own: python mindone_side.py < jobs.json > answers.json

A job is {"class": ..., "config": ..., "folder": path} or {..., "ckpt": path}; its answer holds the names and
shapes of the constructed class, the parameters' bytes (hashed) after loading, and what the loader reports.
"""

import contextlib
import hashlib
import json
import sys
from unittest import mock


def main() -> None:
    jobs = json.load(sys.stdin)
    with contextlib.redirect_stdout(sys.stderr):  # mindone prints when it is imported
        answers = [answer(job) for job in jobs]
    json.dump(answers, sys.stdout)


def answer(job: dict) -> dict:
    import mindspore as ms

    ms.set_device("CPU")
    with constructible():
        net = build(job["class"], job["config"])
        shapes = {name: list(p.shape) for name, p in net.parameters_and_names()}
        report = None
        if "folder" in job:
            options = {"output_loading_info": True} if job["class"].startswith("diffusers.") else {}
            net = type(net).from_pretrained(job["folder"], **options)
            if options:
                net, report = net
                report = [len(report[key]) for key in ("missing_keys", "unexpected_keys", "mismatched_keys")]
        else:
            found = ms.load_checkpoint(job["ckpt"])
            report = [list(names) for names in ms.load_param_into_net(net, found, strict_load=True)]
    digests = {
        name: hashlib.sha256(p.asnumpy().tobytes()).hexdigest() for name, p in net.parameters_and_names()
    }
    return {"shapes": shapes, "digests": digests, "report": report}


def build(name: str, config: dict):
    from mindone import diffusers, transformers
    from mindone.models.latte import Latte

    if name == "transformers.T5EncoderModel":
        from transformers import T5Config

        return transformers.T5EncoderModel(T5Config(**config))
    if name == "models.latte.Latte":
        return Latte(**config)
    return getattr(diffusers, name.removeprefix("diffusers."))(**config)


@contextlib.contextmanager
def constructible():
    """MindSpore 2.10 has no CPU kernels for functions that constructors of mindone 0.5.0 call, and its
    Latte(condition="class") asks mint.nn.Embedding for the attribute of nn.Embedding."""
    import mindspore as ms
    import numpy as np
    from mindspore import mint
    from mindspore.nn.layer.embedding import EmbeddingExt

    def arange(start=0, end=None, step=1, *, dtype=None):
        start, end = (0, start) if end is None else (start, end)
        return ms.Tensor(np.arange(start, end, step), dtype)

    stand_ins = {
        "arange": arange,
        "stack": lambda tensors, dim=0: ms.Tensor(np.stack([t.asnumpy() for t in tensors], dim)),
        "outer": lambda a, b: ms.Tensor(np.outer(a.asnumpy(), b.asnumpy())),
        "randn": lambda *size, dtype=None: ms.Tensor(np.zeros(size, np.float32), dtype),
    }
    alias = property(lambda self: self.weight)
    with (
        mock.patch.multiple(mint, **stand_ins),
        mock.patch.object(EmbeddingExt, "embedding_table", alias, create=True),
    ):
        yield


if __name__ == "__main__":
    main()
