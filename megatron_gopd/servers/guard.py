"""Runs a command, and ends the whole session when whoever started it is gone.

    python guard.py COMMAND ARGUMENT...

Standard library only: it is started by its path, as leader of a session. The starter holds the other end of stdin,
which the kernel closes also when the starter is killed: a server never outlives its run.
"""

import os
import signal
import subprocess
import sys
import threading


def main() -> int:
    child = subprocess.Popen(sys.argv[1:], stdin=subprocess.DEVNULL)
    signal.signal(signal.SIGTERM, lambda *_: child.terminate())  # the command's own way to end comes first

    def until_abandoned():
        os.read(0, 1)
        os.killpg(0, signal.SIGKILL)

    threading.Thread(target=until_abandoned, daemon=True).start()
    return child.wait()


if __name__ == "__main__":
    sys.exit(main())
