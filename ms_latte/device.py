# SPDX-License-Identifier: Apache-2.0
"""The one place that selects a device, forces and reads back its precision, and chooses formulations.

A *formulation* is one way to write an operation; all of an operation's formulations are the same mathematics
and stand in one table, FORMULATIONS, of `ms_latte.models.layers` or `ms_latte.encoders.vae_layers`. A device selects
one of each; nothing else in the code depends on it.
"""

import os
import re
import time
from contextlib import contextmanager
from dataclasses import dataclass, field

DEVICES = ("CPU", "Ascend")

# MindSpore's CPU kernels copy a reshaped view for every consumer, broadcast and transpose element by element,
# and run LayerNorm and GELU on one thread; the CPU column avoids that. The Ascend column is the plain
# documented operator. The Ascend column has not yet run on the device.
BY_DEVICE = {
    "CPU": {
        "linear": "matmul_bias_add",
        "layer_norm": "composed",
        "gelu_tanh": "sigmoid",
        "patch_conv": "unfold",
        "heads": "gather",
        "spread": "gather",
        "attention": "composed",
        "half_grid": "cast",
        "conv2d": "im2col",
        "conv2d_upsampled": "phases",
        "group_norm": "composed",
    },
    "Ascend": {
        "linear": "dense",
        "layer_norm": "native",
        "gelu_tanh": "native",
        "patch_conv": "native",
        "heads": "transpose",
        "spread": "broadcast",
        "attention": "kernel",
        "half_grid": "cast",
        "conv2d": "native",
        "conv2d_upsampled": "native",
        "group_norm": "native",
    },
}

_selected = dict(BY_DEVICE["CPU"])
_device = "CPU"


class DeviceError(RuntimeError):
    """The environment cannot run what was asked; the message names the remedy."""


@dataclass
class DeviceReport:
    """What the process runs on, as read back from MindSpore."""

    device: str
    mindspore: str
    numpy: str
    settings: dict = field(default_factory=dict)


def check_environment():
    """Raise DeviceError if NumPy 2 is installed: MindSpore 2.10 is compiled against NumPy 1 and fails inside
    operators."""
    import numpy

    if int(numpy.__version__.split(".")[0]) >= 2:
        raise DeviceError(
            f"numpy {numpy.__version__} is installed, but MindSpore 2.10 is compiled against NumPy 1.x and fails with "
            "'SystemError: returned a result with an exception set' (its own metadata does not say so). "
            'Remedy: pip install "numpy>=1.26,<2"'
        )


def select(device_target="Ascend", device_id=None):
    """Make `device_target` the device of this process, before the first operator, and read the setting back.

    CPU: kernels are launched blockingly, so that errors surface where they arise and two cores are not spent
    on waiting; each of MindSpore's compute threads has a core of its own. Ascend: float32 stays float32 (HF32 off for
    convolution and matmul, original types kept), deterministic on; not yet run on the device. Returns DeviceReport.
    Raises DeviceError for an absent or unsupported device.
    """
    check_environment()
    if device_target not in DEVICES:
        reason = "this port has no GPU formulations" if device_target == "GPU" else "unknown device"
        raise DeviceError(f"device {device_target!r}: {reason}; expected one of {', '.join(DEVICES)}")
    os.environ.setdefault("GLOG_v", "3")  # before MindSpore is imported, or it has no effect
    try:
        import mindspore as ms
    except ImportError as error:
        raise DeviceError(
            f"MindSpore cannot be imported ({error}). Remedy: pip install mindspore==2.10.0"
        ) from error
    try:
        ms.set_device(device_target, device_id) if device_id is not None else ms.set_device(device_target)
    except (RuntimeError, ValueError) as error:
        first_line = (str(error).strip().splitlines() or ["no reason given"])[0]
        remedy = (
            "install CANN and run on an Ascend host"
            if device_target == "Ascend"
            else "select it before any operator"
        )
        raise DeviceError(
            f"device {device_target} is not available: {first_line}. Remedy: {remedy}"
        ) from error
    settings = {}
    if device_target == "CPU":
        ms.runtime.launch_blocking()
        settings["launch"] = "blocking"
        settings["compute threads"] = _spread_compute_threads(ms)
    else:
        settings = _force_ascend_precision(ms)
    actual = ms.get_context("device_target")
    if actual != device_target:
        raise DeviceError(
            f"asked for {device_target}, MindSpore runs on {actual} (it falls back silently); "
            "remedy: select the device first in a fresh process"
        )
    global _device
    _device = device_target
    _selected.update(BY_DEVICE[device_target])
    import numpy

    return DeviceReport(actual, ms.__version__, numpy.__version__, settings)


def _spread_compute_threads(ms):
    """One core for each of MindSpore's compute threads, if there are as many of both; returns what holds.

    The thread that waits for an operator yields in a loop, so one more thread is ready than there are cores, and Linux
    often lets two compute threads share one while the other core only waits: decoding by a VAE took 1.2 times as long.
    Fewer or more threads than cores are left to the system.
    """
    import numpy

    if not hasattr(os, "sched_setaffinity") or not os.path.isdir("/proc/self/task"):
        return "placed by the system"
    started = ms.Tensor(numpy.zeros(1, numpy.float32))
    started + started  # the first operator starts the threads
    cores, threads = sorted(os.sched_getaffinity(0)), []
    for _ in range(100 if len(cores) > 1 else 0):  # a thread gives itself its name, when it first runs
        threads = [task for task in sorted(map(int, os.listdir("/proc/self/task"))) if _computes(task)]
        if len(threads) == len(cores):
            break
        time.sleep(0.001)
    if not 1 < len(threads) == len(cores):
        return "placed by the system"
    try:
        for task, core in zip(threads, cores, strict=True):
            os.sched_setaffinity(task, {core})
    except OSError:  # a container may refuse it: slower, not wrong
        return "placed by the system"
    return "one a core"


def _computes(task):
    """Whether a thread of this process is one of those that MindSpore's CPU operators run in."""
    name = _first_match(f"/proc/self/task/{task}/comm", r"^(.*)$")
    return re.fullmatch(r"(Actor|Kernel)Thread_\d+", name) is not None


def _force_ascend_precision(ms):
    """Ask for true float32 and determinism, then read back what MindSpore holds. Not yet run on the device.

    MindSpore accepts each setting once in a process and ignores some on devices that lack them: what does not read back
    as asked is an error, not an assumption. Returns name -> value as read.
    """
    from mindspore.device_context.ascend import op_precision

    wanted = {
        "precision_mode": "must_keep_origin_dtype",
        "conv_allow_hf32": False,
        "matmul_allow_hf32": False,
    }
    held = op_precision.AscendOpPrecisionConf.get_instance()
    settings = {}
    try:
        for name, value in wanted.items():
            getattr(op_precision, name)(value)
            settings[name] = getattr(held, name)()
        if ms.get_context("deterministic") != "ON":
            ms.set_deterministic(True)
        settings["deterministic"] = ms.get_context("deterministic")
    except RuntimeError as error:
        raise DeviceError(
            f"Ascend refused a precision setting: {error}. Remedy: select the device once, first, in a fresh process"
        ) from error
    read = {name: {"0": False, "1": True}.get(value, value) for name, value in settings.items()}
    wrong = {name: read[name] for name, value in wanted.items() if read[name] != value}
    if wrong or settings["deterministic"] != "ON":
        raise DeviceError(f"precision settings read back as {settings}, asked for {wanted} and determinism")
    return settings


def platform(device_target):
    """What measured arithmetic depends on besides MindSpore: {"soc": chip, "cann": version or "none"}.

    On the CPU the chip is the architecture and its widest vector unit, which choose the kernels. On Ascend it is the
    name that MindSpore reads from the driver, and CANN's version stands in compiler/version.info below
    ASCEND_HOME_PATH, where MindSpore itself looks for it; not yet run on the device.
    """
    import platform as host

    if device_target == "CPU":
        flags = _first_match("/proc/cpuinfo", r"^(?:flags|Features)\s*:\s*(.*)$").split()
        widest = next((name for name in ("avx512f", "avx2", "sve", "asimd") if name in flags), "")
        return {"soc": "-".join(filter(None, ("cpu", host.machine(), widest))), "cann": "none"}
    from mindspore._c_expression import MSContext

    home = os.environ.get("ASCEND_HOME_PATH", "")
    cann = _first_match(os.path.join(home, "compiler", "version.info"), r"^[Vv]ersion=(\S+)$")
    return {"soc": MSContext.get_instance().get_ascend_soc_version(), "cann": cann or "unknown"}


def _first_match(path, pattern):
    """Group 1 of the first match of a line pattern in a file; "" without one."""
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            found = re.search(pattern, file.read(), re.MULTILINE)
    except OSError:
        return ""
    return found.group(1) if found else ""


def require_selected():
    """Raise DeviceError if MindSpore runs on another device than the formulations were selected for."""
    import mindspore as ms

    actual = ms.get_context("device_target")
    if actual != _device:
        raise DeviceError(
            f"MindSpore runs on {actual}, the formulations are those of {_device}. "
            f'Remedy: ms_latte.device.select("{actual}") before building a model, instead of mindspore.set_device'
        )


def formulation(operation):
    """Name of the selected formulation of an operation."""
    return _selected[operation]


@contextmanager
def formulations(device=None, **choices):
    """Select other formulations for cells built and called inside: all of a device's, and single operations
    by name."""
    wrong = sorted(set(choices) - set(_selected))
    if wrong:
        raise ValueError(
            f"no operation {', '.join(wrong)}; operations with formulations: {', '.join(_selected)}"
        )
    before = dict(_selected)
    _selected.update(BY_DEVICE[device] if device else {})
    _selected.update(choices)
    try:
        yield
    finally:
        _selected.update(before)
