"""The command line: ``python -m sqlalchemy_bgjob``, and what its scripts run.

Python makes an exception of SIGINT, wherever it stands. Within imports, which take most of a
second, that prints a traceback; within a callback of theirs it is printed and lost, and so is the
signal. So until a command has begun SIGINT ends the process as SIGTERM does.
"""

import signal

if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # not where it is ignored
    signal.signal(signal.SIGINT, signal.SIG_DFL)

from .cli import main

if __name__ == "__main__":
    main()
