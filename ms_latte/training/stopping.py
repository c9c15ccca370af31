# SPDX-License-Identifier: Apache-2.0
"""Ctrl-C and SIGTERM: the run ends after the present step, with a checkpoint."""

import signal
import threading


class Stopped(KeyboardInterrupt):
    """The run was asked to end and has saved its state; signum: by what."""

    def __init__(self, message, signum):
        super().__init__(message)
        self.signum = signum

    @property
    def status(self):
        """The exit status: 130 for Ctrl-C, 143 for SIGTERM."""
        return 128 + self.signum


class Signals:
    """A context manager: the first signal sets `received`, a second one ends the process at once.

    `renew` takes the handlers back, which MindSpore replaces when it starts its own threads.
    """

    def __init__(self, say=print):
        self.received, self.say, self.before = None, say, {}

    def __enter__(self):
        if threading.current_thread() is threading.main_thread():
            self.before = {one: signal.getsignal(one) for one in (signal.SIGINT, signal.SIGTERM)}
        self.renew()
        return self

    def __exit__(self, *_):
        for one, handler in self.before.items():
            signal.signal(one, handler if handler is not None else signal.SIG_DFL)

    def renew(self):
        """Handle both signals from now on."""
        for one in self.before:
            signal.signal(one, self._handle)

    def _handle(self, signum, frame):
        if self.received is not None:
            raise KeyboardInterrupt("a second time: nothing more was saved")
        self.received = signum
        self.say(f"{signal.Signals(signum).name}: the run ends after this step, with a checkpoint")
