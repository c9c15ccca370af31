# SPDX-License-Identifier: Apache-2.0
"""Cases are unique data; messages between processes arrive whole or not at all; traces are compared by the contract."""

import io
from types import SimpleNamespace

import numpy as np
import pytest

from parity.harness import case, trace
from parity.harness.case import Case, collect
from parity.harness.gates import CaseResult
from parity.harness.inputs import Input, Layout, Seed
from parity.harness.runner import _contract_of_traces
from parity.harness.trace import Record, Spilled


def test_collected_cases_are_unique_and_filed():
    cases = collect()
    ids = [item.id for item in cases]
    assert len(ids) == len(set(ids)) > 90
    assert {item.file.partition(".")[0] for item in cases} == set(case.FOLDERS)
    assert all(item.size in case.SIZES for item in cases)
    assert {item.net for item in cases} == {"", "Latte", "LatteT2V"}
    assert "layers.LayerNorm-probe_small" in ids and "mlp.Mlp" in ids


def test_cases_are_data_that_travels():
    for item in collect():
        stream = io.BytesIO()
        trace.send(stream, item)
        stream.seek(0)
        again = trace.receive(stream)
        assert again.id == item.id and set(again.inputs) == set(item.inputs)
        plain = (int, float, str, bool, type(None), tuple, list, dict, Input, Layout, Seed)
        assert all(isinstance(value, plain) for value in item.inputs.values()), item.id


def test_doubles_are_refused(monkeypatch):
    from parity.models import mlp

    monkeypatch.setattr(mlp, "CASES", [Case("Mlp"), Case("Mlp", name="b"), Case("Mlp")])
    with pytest.raises(ValueError, match=r"share an id: mlp\.Mlp; give each a `name`"):
        collect()


# ------------------------------------------------------------------------------------------------- messages


def test_messages_arrive_in_order():
    stream = io.BytesIO()
    messages = [("ok", {"a": np.arange(3)}), None, Record((1,), {}, [np.ones(2)], ["float32"])]
    for message in messages:
        trace.send(stream, message)
    stream.seek(0)
    assert np.array_equal(trace.receive(stream)[1]["a"], np.arange(3))
    assert trace.receive(stream) is None
    assert trace.receive(stream).dtypes == ["float32"]
    with pytest.raises(EOFError, match="the other process ended"):
        trace.receive(stream)


class Dribble(io.BytesIO):
    """A pipe that hands out three bytes at a time behind the head."""

    def read(self, size=-1):
        return super().read(size if size == 8 else min(size, 3))


def test_a_message_in_pieces_is_put_together():
    stream = io.BytesIO()
    trace.send(stream, list(range(100)))
    assert trace.receive(Dribble(stream.getvalue())) == list(range(100))


@pytest.mark.parametrize("kept", [0, 1, 7])
def test_a_truncated_head(kept):
    stream = io.BytesIO()
    trace.send(stream, "message")
    with pytest.raises(EOFError, match=r"the other process ended$"):
        trace.receive(io.BytesIO(stream.getvalue()[:kept]))


@pytest.mark.parametrize("lost", [1, 5])
def test_a_truncated_body(lost):
    stream = io.BytesIO()
    trace.send(stream, "message")
    with pytest.raises(EOFError, match="in the middle of a message"):
        trace.receive(io.BytesIO(stream.getvalue()[:-lost]))


# ------------------------------------------------------------------------------------------------- spilling


def test_large_arrays_go_through_files(tmp_path, monkeypatch):
    monkeypatch.setattr(trace, "SPILL_BYTES", 80)
    large, small = np.arange(10.0).reshape(2, 5).T, np.arange(9.0)
    kept = trace.stow(large, str(tmp_path))
    assert isinstance(kept, Spilled)
    assert trace.stow(small, str(tmp_path)) is small
    assert trace.stow(large, None) is large
    assert np.array_equal(trace.fetch(kept), large) and trace.fetch(kept).dtype == large.dtype
    assert trace.fetch(small) is small and trace.fetch("word") == "word"
    assert len(list(tmp_path.iterdir())) == 1
    trace.discard(kept, small, "word", None)
    trace.discard(kept)  # twice is once
    assert list(tmp_path.iterdir()) == []


# --------------------------------------------------------------------------------------- the contract of traces


def traces(**changes):
    """A reference trace of three taps, and the same with changes: tap -> Record, or None to remove it."""
    names = {"a": "a#0", "b": "b#0", "net": "#0", "again": "a#1"}
    reference = {tap: Record((), {}, [np.ones(2)], ["float32"]) for tap in ("a#0", "b#0", "#0")}
    answer = {**reference, **{names[name]: record for name, record in changes.items()}}
    return reference, {tap: record for tap, record in answer.items() if record is not None}


def broken(reference, answer, ends=None, native=""):
    """Names of the failed checks -> detail."""
    result = CaseResult("case", "G2", "fp32", "CPU")
    _contract_of_traces(reference, answer, reference if ends is None else ends, result, native)
    return {check.name: check.detail for check in result.broken}


def record(*dtypes):
    return Record((), {}, [np.ones(2) for _ in dtypes], list(dtypes))


def test_equal_traces_keep_the_contract():
    assert broken(*traces()) == {}


def test_a_missing_tap():
    failed = broken(*traces(b=None))
    assert "lacks ['b#0']" in failed["taps of port"] and "order" in failed


def test_a_surplus_tap_and_a_second_call():
    assert "has in addition ['a#1']" in broken(*traces(again=record("float32")))["taps of port"]


def test_the_truth_must_have_the_taps_too():
    reference, shorter = traces(b=None)
    assert "truth lacks ['b#0']" in broken(reference, reference, shorter)["taps of truth"]


def test_an_empty_trace():
    failed = broken({}, {})
    assert "outputs" in failed


def test_a_tap_without_tensors():
    reference, answer = traces()
    reference = {**reference, "a#0": record()}
    failed = broken(reference, answer)
    assert "['a#0']" in failed["outputs"] and "dtypes" in failed


def test_another_order():
    reference, answer = traces()
    moved = {tap: answer[tap] for tap in ("b#0", "a#0", "#0")}
    assert broken(reference, moved) == {"order": "modules run in another order from a#0 on"}


@pytest.mark.parametrize(
    ("dtypes", "native", "fails"),
    [
        (("float32",), "", False),
        (("float16",), "", True),  # where both emulate, or in fp32, half precision is a silent change of type
        (("float16",), "fp16", False),  # the control emulates, a device is native
        (("bfloat16",), "bf16", False),
        (("bfloat16",), "fp16", True),  # another half type than the tested one
        (("float64",), "fp16", True),
        (("int32",), "", True),
        (("float32", "float32"), "", True),
        ((), "", True),
    ],
)
def test_dtypes(dtypes, native, fails):
    assert ("dtypes" in broken(*traces(b=record(*dtypes)), native=native)) is fails


def test_a_reference_in_float64_admits_nothing_else():
    reference, answer = traces()
    reference = {tap: record("float64") for tap in reference}
    assert "dtypes" in broken(reference, answer)
    assert broken(reference, reference) == {}


def test_spilled_records_can_be_judged():
    result = SimpleNamespace(contract=[], net="")
    reference, answer = traces()
    answer["a#0"] = Record((), {}, [Spilled("/nowhere.npy")], ["float32"])
    _contract_of_traces(reference, answer, reference, result)
    assert all(check.passed for check in result.contract)  # names and dtypes need no data
