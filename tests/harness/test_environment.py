# SPDX-License-Identifier: Apache-2.0
"""The start-up guard: NumPy 2 breaks MindSpore 2.10 inside operators, so it is refused before the first one."""

import numpy
import pytest

from ms_latte import device


def test_numpy_2_is_refused_with_the_remedy(monkeypatch):
    monkeypatch.setattr(numpy, "__version__", "2.2.6")
    with pytest.raises(device.DeviceError, match=r'numpy 2\.2\.6 .*pip install "numpy>=1\.26,<2"'):
        device.check_environment()
    with pytest.raises(device.DeviceError, match="NumPy 1"):
        device.select("CPU")


def test_numpy_1_passes():
    device.check_environment()


@pytest.mark.parametrize(("name", "reason"), [("GPU", "no GPU formulations"), ("TPU", "unknown device")])
def test_other_devices_are_refused(name, reason):
    with pytest.raises(device.DeviceError, match=f"{reason}; expected one of CPU, Ascend"):
        device.select(name)
