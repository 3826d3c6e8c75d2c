import os
import signal
import subprocess
import sys

from vr1_jax.training.processes import stop_on_signal


def test_first_signal_asks():
    before = signal.getsignal(signal.SIGTERM)
    with stop_on_signal() as stop_requested:
        assert not stop_requested()
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop_requested()
        assert signal.getsignal(signal.SIGTERM) == before
    assert signal.getsignal(signal.SIGTERM) == before


def test_second_signal_kills():
    program = (
        "import os, signal\n"
        "from vr1_jax.training.processes import stop_on_signal\n"
        "with stop_on_signal() as stop_requested:\n"
        "    os.kill(os.getpid(), signal.SIGTERM)\n"
        "    assert stop_requested()\n"
        "    os.kill(os.getpid(), signal.SIGTERM)\n"
        "    raise SystemExit('survived')\n"
    )
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == -signal.SIGTERM
