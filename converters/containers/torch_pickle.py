# SPDX-License-Identifier: Apache-2.0
"""The pickles inside torch files, read without torch and without running what they contain.

The instructions are followed here, not by the pickle module, which would follow a hostile file into any call,
any depth and any amount of memory. This interpreter

- builds dicts, lists, tuples, numbers, words, tensor entries and placeholders, nothing else;
- refuses every global that `GLOBALS` does not name, and imports none: the functions behind the names are ours;
- changes only dicts, lists and placeholders that the same pickle made;
- hashes and compares nothing but plain keys, so that no nesting costs more than the bytes that describe it;
- does work, and takes memory, in proportion to the bytes it reads, for at most `MAX_STEPS` instructions.
"""

import pickle
import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path

import numpy as np

from converters.errors import ConversionError
from converters.stream import AGAIN, DTYPES, PART, TensorEntry, releaser

STORAGES = {
    "F64": "DoubleStorage",
    "F32": "FloatStorage",
    "F16": "HalfStorage",
    "BF16": "BFloat16Storage",
    "I64": "LongStorage",
    "I32": "IntStorage",
    "I16": "ShortStorage",
    "I8": "CharStorage",
    "U8": "ByteStorage",
    "BOOL": "BoolStorage",
}
RESAVE = (
    "with torch, which then runs the code in the file: saved = torch.load(PATH, weights_only=False); "
    'torch.save(saved.get("ema", saved), NEW_PATH)'
)

MAX_STEPS = 1 << 21  # a tensor takes about 40
MAX_LINE = 200  # bytes of a module or a name
MAX_KEY = 64  # letters of a storage key
MAX_LONG = 255  # bytes of an integer; states of random generators take 17
MAX_COUNT = 1 << 48  # numbers in a storage
MAX_DIMS = 32  # numpy's limit


@dataclass(frozen=True)
class Storage:
    """A flat run of numbers in a file; several tensors may share it.

    raw    its bytes, count * itemsize of them; asked for only when a tensor is read
    order  "<" or ">"
    """

    dtype: str
    count: int
    raw: Callable[[], np.ndarray]
    order: str = "<"


@dataclass(frozen=True)
class Reference:
    """What a pickle says of a storage: the place is for the container to know."""

    dtype: str
    key: str
    count: int


Locate = Callable[[Reference], Storage]


class Placeholder:
    """Something beside the weights that is not rebuilt. It has the attributes that the file gives, no behaviour."""

    __slots__ = ("__dict__", "what")  # a slot cannot be shadowed by an attribute from the file

    def __init__(self, what: str):
        self.what = what

    def __repr__(self) -> str:
        return f"<{self.what}: not rebuilt>"


@dataclass(frozen=True)
class Global:
    """A name that a pickle may use, and what calling it gives here."""

    name: str
    call: Callable[["_Machine", tuple], object]
    dtype: str | None = None  # of a storage type


def load_pickle(path: Path, data: np.ndarray, locate: Locate, first: int, what: str) -> tuple[object, int]:
    """The object pickled at byte `first` of `data`, with `TensorEntry` for tensors, and the byte after it.

    path, what  name the file and its part in errors
    locate      gives the storage that a tensor refers to
    """
    machine = _Machine(path, memoryview(data), first, locate)
    try:
        return machine.run(), machine.at
    except (ValueError, IndexError, KeyError, TypeError) as error:
        if isinstance(error, ConversionError):
            raise
        raise ConversionError(
            f"{path}: {what} is damaged", got=f"{type(error).__name__}: {error}", remedy=AGAIN
        ) from error


class _Machine:
    """The state of one pickle that is being read."""

    def __init__(self, path: Path, program: memoryview, first: int, locate: Locate):
        self.path, self.program, self.first, self.locate = path, program, first, locate
        self.at = first
        self.stack: list = []
        self.marks: list[int] = []  # heights of the stack
        self.memo: dict[int, object] = {}
        self.copied = 0

    def run(self) -> object:
        for _ in range(MAX_STEPS):
            code = self.take(1)
            if code == pickle.STOP:
                return self.pop()
            step = STEPS.get(code)
            if step is None:
                raise ValueError(f"instruction {code!r} at byte {self.at - 1}, which torch.save does not use")
            step(self)
        raise ValueError(f"more than {MAX_STEPS} instructions")

    # What instructions read

    def take(self, count: int) -> bytes:
        end = self.at + count
        if end > len(self.program):
            raise ValueError(f"it is cut: {count} bytes are claimed at byte {self.at} of {len(self.program)}")
        part = bytes(self.program[self.at : end])
        self.at = end
        return part

    def number(self, size: int, signed: bool = False) -> int:
        return int.from_bytes(self.take(size), "little", signed=signed)

    def line(self) -> str:
        text, newline, _ = bytes(self.program[self.at : self.at + MAX_LINE]).partition(b"\n")
        if not newline:
            raise ValueError(f"a name at byte {self.at} has no end")
        self.at += len(text) + 1
        return text.decode()

    def text(self, size: int) -> str:
        return self.take(size).decode("utf-8", "surrogatepass")

    def old_text(self, size: int) -> str | bytes:
        """A `str` of Python 2: mostly words, sometimes bytes."""
        raw = self.take(size)
        try:
            return raw.decode()
        except UnicodeDecodeError:
            return raw

    def long(self, size: int) -> int:
        if size > MAX_LONG:
            raise ValueError(f"an integer of {size} bytes")
        return pickle.decode_long(self.take(size))

    # What they do

    def pop(self) -> object:
        if len(self.stack) <= (self.marks[-1] if self.marks else 0):
            raise ValueError(f"nothing to take at byte {self.at}")
        return self.stack.pop()

    def top(self) -> object:
        self.stack.append(value := self.pop())
        return value

    def pop_mark(self) -> list:
        first = self.marks.pop()
        items = self.stack[first:]
        del self.stack[first:]
        return items

    def tuple_of(self, count: int) -> None:
        items = [self.pop() for _ in range(count)]
        self.stack.append(tuple(reversed(items)))

    def remember(self, number: int) -> None:
        if number > self.at - self.first:
            raise ValueError(f"memo number {number} at byte {self.at}")
        self.memo[number] = self.top()

    def append(self, items: list) -> None:
        target = self.top()
        if type(target) is list:
            target.extend(items)
        elif type(target) is not Placeholder:  # which keeps no items
            raise ValueError(f"items for a {type(target).__name__}")

    def set_items(self, items: list) -> None:
        target = self.top()
        if type(target) is not dict:
            raise ValueError(f"entries for a {type(target).__name__}")
        for key, value in zip(items[::2], items[1::2], strict=True):
            target[_key(key)] = value

    def build(self) -> None:
        """Give an object its attributes; those of an OrderedDict (`_metadata`) are of no use here."""
        state, target = self.pop(), self.top()
        if type(target) is Placeholder:
            if type(state) is dict:
                self.spend(len(state))
                vars(target).update(state)
        elif type(target) is not dict:
            raise ValueError(f"attributes for a {type(target).__name__}")

    def find(self, module: object, name: object) -> Global:
        if type(module) is not str or type(name) is not str:
            raise ValueError(f"a global without a name at byte {self.at}")
        if (module, name) not in GLOBALS:
            shown = f"{module[:MAX_LINE]}.{name[:MAX_LINE]}"
            raise ConversionError(
                f"{self.path} wants to call {shown if shown.isprintable() else ascii(shown)}: "
                "refused, nothing was run",
                expected="a plain dict of tensors",
                remedy=f"if you trust the file, keep only its weights, {RESAVE}",
            )
        return GLOBALS[module, name]

    def call(self, args: object) -> None:
        function = self.pop()
        if type(function) is not Global or type(args) is not tuple:
            raise ValueError(f"a call of a {type(function).__name__} with a {type(args).__name__}")
        self.stack.append(function.call(self, args))

    def spend(self, count: int) -> None:
        """Copying `count` items: an honest pickle copies each about once, a hostile one the same list often."""
        self.copied += count
        if self.copied > 2 * (self.at - self.first) + 1000:
            raise ValueError(f"it copies {self.copied} items by byte {self.at}")

    def storage(self, pid: object) -> Storage:
        """("storage", type, key, device, count[, None or (view key, offset, count)]) -> the storage."""
        fits = type(pid) is tuple and len(pid) in (5, 6)
        kind, storage, key, _, count, view = [*pid, None][:6] if fits else [None] * 6
        view_fits = view is None or (type(view) is tuple and len(view) == 3)
        _, offset, part = view if view is not None and view_fits else (None, 0, 0)
        is_storage = kind == "storage" and type(storage) is Global and storage.dtype
        has_key = type(key) is str and len(key) <= MAX_KEY
        if not (is_storage and has_key and view_fits and _are_counts([count, offset, part])):
            raise ConversionError(
                f"{self.path} holds an unknown kind of storage",
                got=f"a {type(pid).__name__} at byte {self.at}",
                expected="a storage type, a key and a count",
                remedy=AGAIN,
            )
        whole = self.locate(Reference(storage.dtype, key, count))
        if view is None:
            return whole
        if offset + part > count:
            raise ConversionError(
                f"{self.path}: a view reaches outside storage {key}",
                got=f"{part} numbers from {offset} on",
                expected=f"at most {count}",
                remedy=AGAIN,
            )
        size = DTYPES[whole.dtype].itemsize
        return Storage(
            whole.dtype, part, lambda: whole.raw()[offset * size : (offset + part) * size], whole.order
        )


def _key(key: object) -> object:
    """The key of a dict. Only plain ones are hashed: the hash of nested tuples may take forever."""
    if type(key) in (str, bytes, float, bool, type(None)) or (type(key) is int and abs(key) < 1 << 63):
        return key
    return Placeholder(f"a key of type {type(key).__name__}")


def _are_counts(numbers: Sequence[object]) -> bool:
    return all(type(n) is int and 0 <= n < MAX_COUNT for n in numbers)


# ---------------------------------------------------------------------------------------------- instructions


def _push(read: Callable[[_Machine], object]) -> Callable[[_Machine], None]:
    return lambda m: m.stack.append(read(m))


# Everything that torch.save writes with protocols 2 to 5. Missing on purpose: EXT (a registry of the process),
# INST and OBJ (classes of Python 2), PERSID, buffers outside the file, and the text forms of protocol 0.
STEPS: dict[bytes, Callable[[_Machine], object]] = {
    pickle.PROTO: lambda m: m.take(1),
    pickle.FRAME: lambda m: m.take(8),
    # values
    pickle.NONE: _push(lambda m: None),
    pickle.NEWTRUE: _push(lambda m: True),
    pickle.NEWFALSE: _push(lambda m: False),
    pickle.BININT: _push(lambda m: m.number(4, signed=True)),
    pickle.BININT1: _push(lambda m: m.number(1)),
    pickle.BININT2: _push(lambda m: m.number(2)),
    pickle.LONG1: _push(lambda m: m.long(m.number(1))),
    pickle.LONG4: _push(lambda m: m.long(m.number(4))),
    pickle.BINFLOAT: _push(lambda m: struct.unpack(">d", m.take(8))[0]),
    pickle.SHORT_BINUNICODE: _push(lambda m: m.text(m.number(1))),
    pickle.BINUNICODE: _push(lambda m: m.text(m.number(4))),
    pickle.BINUNICODE8: _push(lambda m: m.text(m.number(8))),
    pickle.SHORT_BINSTRING: _push(lambda m: m.old_text(m.number(1))),
    pickle.BINSTRING: _push(lambda m: m.old_text(m.number(4))),
    pickle.SHORT_BINBYTES: _push(lambda m: m.take(m.number(1))),
    pickle.BINBYTES: _push(lambda m: m.take(m.number(4))),
    pickle.BINBYTES8: _push(lambda m: m.take(m.number(8))),
    pickle.BYTEARRAY8: _push(lambda m: m.take(m.number(8))),
    # containers
    pickle.MARK: lambda m: m.marks.append(len(m.stack)),
    pickle.EMPTY_TUPLE: _push(lambda m: ()),
    pickle.EMPTY_LIST: _push(lambda m: []),
    pickle.EMPTY_DICT: _push(lambda m: {}),
    pickle.EMPTY_SET: _push(lambda m: Placeholder("set")),
    pickle.FROZENSET: _push(lambda m: (m.pop_mark(), Placeholder("frozenset"))[1]),
    pickle.TUPLE: _push(lambda m: tuple(m.pop_mark())),
    pickle.TUPLE1: lambda m: m.tuple_of(1),
    pickle.TUPLE2: lambda m: m.tuple_of(2),
    pickle.TUPLE3: lambda m: m.tuple_of(3),
    pickle.APPEND: lambda m: m.append([m.pop()]),
    pickle.APPENDS: lambda m: m.append(m.pop_mark()),
    pickle.ADDITEMS: lambda m: m.append(m.pop_mark()),
    pickle.SETITEM: lambda m: m.set_items([m.pop(), m.pop()][::-1]),
    pickle.SETITEMS: lambda m: m.set_items(m.pop_mark()),
    # memory of the pickle
    pickle.BINPUT: lambda m: m.remember(m.number(1)),
    pickle.LONG_BINPUT: lambda m: m.remember(m.number(4)),
    pickle.MEMOIZE: lambda m: m.remember(len(m.memo)),
    pickle.BINGET: _push(lambda m: m.memo[m.number(1)]),
    pickle.LONG_BINGET: _push(lambda m: m.memo[m.number(4)]),
    # calls
    pickle.GLOBAL: _push(lambda m: m.find(m.line(), m.line())),
    pickle.STACK_GLOBAL: _push(lambda m: m.find(*[m.pop(), m.pop()][::-1])),
    pickle.REDUCE: lambda m: m.call(m.pop()),
    pickle.NEWOBJ: lambda m: m.call(m.pop()),
    pickle.NEWOBJ_EX: lambda m: m.call([m.pop(), m.pop()][1]),  # keywords matter to no one
    pickle.BUILD: lambda m: m.build(),
    pickle.BINPERSID: _push(lambda m: m.storage(m.pop())),
}


# --------------------------------------------------------------------------------------------------- globals


def _tensor(m: _Machine, args: tuple) -> TensorEntry:
    """A view of a storage: `shape` numbers, `stride` numbers apart, from number `offset` on.

    args  storage, offset, shape, stride[, requires_grad, hooks[, flags]]
    """
    if not 4 <= len(args) <= 7 or type(args[0]) is not Storage:
        raise ValueError(f"a tensor of {len(args)} arguments")
    storage, offset, shape, stride = args[:4]
    if type(shape) not in (tuple, list) or type(stride) not in (tuple, list) or len(shape) != len(stride):
        raise ValueError("a tensor without shape and stride")
    if len(shape) > MAX_DIMS or not _are_counts([offset, *shape, *stride]):
        raise ConversionError(
            f"{m.path}: a tensor reaches outside its storage",
            got=f"{len(shape)} axes, or numbers that are negative, huge or not integers",
            expected=f"at most {MAX_DIMS} axes and {storage.count} elements",
            remedy=AGAIN,
        )
    shape, stride = tuple(shape), tuple(stride)
    end = offset + sum((n - 1) * step for n, step in zip(shape, stride, strict=True)) + 1
    if 0 in shape:
        offset = end = 0
    elif end > storage.count:
        raise ConversionError(
            f"{m.path}: a tensor reaches outside its storage",
            got=f"offset {offset}, shape {shape}, stride {stride}",
            expected=f"at most {storage.count} elements",
            remedy=AGAIN,
        )
    size = DTYPES[storage.dtype].itemsize
    # Repeated numbers (stride 0) take nothing in the file and may take everything in memory.
    largest = max(storage.count, PART // size) if 0 not in shape else MAX_COUNT
    if prod(n or 1 for n in shape) > largest:
        raise ConversionError(
            f"{m.path}: a tensor is much larger than its storage",
            got=f"shape {shape}, stride {stride}",
            expected=f"about {storage.count} elements",
            remedy="with torch: save a copy made with .contiguous()",
        )
    if len(args) == 7 and args[6]:
        raise ConversionError(
            f"{m.path}: a tensor carries flags this reader does not know (conjugate, negative)", remedy=RESAVE
        )
    dtype = DTYPES[storage.dtype].newbyteorder(storage.order)

    def span() -> np.ndarray:
        return storage.raw()[offset * size : end * size]

    def bits() -> np.ndarray:
        view = np.ndarray(shape, dtype, span(), strides=[step * size for step in stride])
        return view.astype(DTYPES[storage.dtype], copy=False)

    return TensorEntry(storage.dtype, shape, bits, release=lambda: releaser(span())())


def _parameter(m: _Machine, args: tuple) -> TensorEntry:
    """tensor, requires_grad, hooks[, attributes] -> the tensor"""
    if not 3 <= len(args) <= 4 or type(args[0]) is not TensorEntry:
        raise ValueError("a parameter without a tensor")
    return args[0]


def _subclass(m: _Machine, args: tuple) -> TensorEntry:
    """function, class, arguments, attributes -> the tensor"""
    if len(args) != 4 or type(args[0]) is not Global or args[0].call is not _tensor:
        raise ValueError("a kind of tensor that is not made from a tensor")
    return _tensor(m, args[2])


def _unknown_dtype(m: _Machine, args: tuple) -> object:
    """storage, offset, shape, stride, requires_grad, hooks, dtype: dtypes that never had a storage type."""
    name = args[6].name if len(args) > 6 and type(args[6]) is Global else "none"
    raise ConversionError(
        f"{m.path}: the dtype of a tensor is not supported",
        got=name,
        expected=", ".join(DTYPES),
        remedy="with torch: convert it and save again",
    )


def _ordered_dict(m: _Machine, args: tuple) -> dict:
    """Nothing, or a list of pairs (Python 2)."""
    found: dict = {}
    if args:
        (pairs,) = args
        if type(pairs) is not list:
            raise ValueError(f"an OrderedDict of a {type(pairs).__name__}")
        m.spend(len(pairs))
        for pair in pairs:
            if type(pair) not in (tuple, list) or len(pair) != 2:
                raise ValueError("an OrderedDict without pairs")
            found[_key(pair[0])] = pair[1]
    return found


def _size(m: _Machine, args: tuple) -> tuple:
    (shape,) = args
    if type(shape) not in (tuple, list) or len(shape) > MAX_DIMS:
        raise ValueError("a torch.Size without a shape")
    return tuple(shape)


def _encode(m: _Machine, args: tuple) -> bytes:
    """How protocol 2 writes bytes: as text, letter by letter."""
    text, encoding = args
    if type(text) is not str or encoding != "latin1":
        raise ValueError("bytes in an unknown encoding")
    m.spend(len(text))
    return text.encode("latin-1")


# What stands beside the weights in training checkpoints and is of no use here: names, never imported.
INERT = {
    "argparse": "Namespace",
    "types": "SimpleNamespace",
    "builtins": "set frozenset bytearray complex slice range dict list tuple int float str bool bytes",
    "__builtin__": "set frozenset bytearray complex slice xrange dict list tuple int long float str unicode bool",
    "collections": "Counter deque",
    "datetime": "datetime date time timedelta timezone",
    "pathlib": "Path PosixPath WindowsPath PurePath PurePosixPath PureWindowsPath",
    "pathlib._local": "Path PosixPath WindowsPath PurePath PurePosixPath PureWindowsPath",
    "numpy": "dtype ndarray bool_ int8 int16 int32 int64 uint8 uint16 uint32 uint64 float16 float32 float64",
    "numpy.core.multiarray": "scalar _reconstruct",
    "numpy._core.multiarray": "scalar _reconstruct",
    "numpy.core.numeric": "_frombuffer",
    "numpy._core.numeric": "_frombuffer",
    "numpy.random._pickle": "__generator_ctor __bit_generator_ctor __randomstate_ctor",
    "torch": "Tensor device float64 float32 float16 bfloat16 int64 int32 int16 int8 uint8 bool complex64 complex128 "
    "uint16 uint32 uint64 float8_e4m3fn float8_e5m2 float8_e4m3fnuz float8_e5m2fnuz float8_e8m0fnu",
    "omegaconf.dictconfig": "DictConfig",
    "omegaconf.listconfig": "ListConfig",
    "omegaconf.base": "ContainerMetadata Metadata",
    "omegaconf.nodes": "AnyNode BooleanNode BytesNode EnumNode FloatNode IntegerNode PathNode StringNode",
    "typing": "Any",
    "torch.nn.parameter": "Parameter Buffer",
    "torch.serialization": "_get_layout",
    "torch.storage": "TypedStorage",
}


def _inert(name: str) -> Global:
    return Global(name, lambda m, args: Placeholder(name))


GLOBALS: dict[tuple[str, str], Global] = {
    **{
        (module, name): _inert(f"{module}.{name}")
        for module, names in INERT.items()
        for name in names.split()
    },
    **{("torch", name): Global(f"torch.{name}", _inert(name).call, word) for word, name in STORAGES.items()},
    ("torch.storage", "UntypedStorage"): Global("torch.UntypedStorage", _inert("storage").call, "U8"),
    ("torch._utils", "_rebuild_tensor"): Global("_rebuild_tensor", _tensor),
    ("torch._utils", "_rebuild_tensor_v2"): Global("_rebuild_tensor_v2", _tensor),
    ("torch._utils", "_rebuild_tensor_v3"): Global("_rebuild_tensor_v3", _unknown_dtype),
    ("torch._utils", "_rebuild_parameter"): Global("_rebuild_parameter", _parameter),
    ("torch._utils", "_rebuild_parameter_with_state"): Global("_rebuild_parameter_with_state", _parameter),
    ("torch._tensor", "_rebuild_from_type_v2"): Global("_rebuild_from_type_v2", _subclass),
    ("torch", "Size"): Global("torch.Size", _size),
    ("collections", "OrderedDict"): Global("OrderedDict", _ordered_dict),
    ("collections", "defaultdict"): Global("defaultdict", lambda m, args: {}),
    ("_codecs", "encode"): Global("encode", _encode),
}
