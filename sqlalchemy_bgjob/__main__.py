"""The command line: ``python -m sqlalchemy_bgjob``, and what its scripts run.

Python makes an exception of SIGINT, wherever it stands. Within imports, which take most of a
second, that prints a traceback; within a callback of theirs it is printed and lost, and so is the
signal. So until a command has begun SIGINT ends the process as SIGTERM does.

``python -m`` puts the working directory before everything, where a ``json.py`` or ``sqlalchemy.py``
of the application would be imported instead of the library. A worker adds it again, last.
"""

import sys

if __name__ == "__main__" and not sys.flags.safe_path:
    del sys.path[0]

import signal

if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # not where it is ignored
    signal.signal(signal.SIGINT, signal.SIG_DFL)

from .cli import main

if __name__ == "__main__":
    main()
