"""Child processes that end with their parent, also if the parent is killed."""

import os
import sys
from collections.abc import Sequence

# A child gets a parent's-death signal before it becomes what it is to be. Done in a process of its own since nothing
# but exec is safe between fork and exec of a process with threads.
_LAUNCH = """
import ctypes, os, signal, sys
if sys.platform == "linux":
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)
    if os.getppid() != int(sys.argv[1]):
        sys.exit("the parent is gone")
os.execv(sys.argv[2], sys.argv[2:])
"""


def dying_with_us(command: Sequence[str]) -> list[str]:
    """Return the command of a child that, on Linux, dies with the *thread* that starts it. Name it by its path."""
    return [sys.executable, "-I", "-S", "-c", _LAUNCH, str(os.getpid()), *command]
