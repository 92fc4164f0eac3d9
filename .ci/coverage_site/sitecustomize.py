"""Lets threads end while coverage measures them: without it CPython 3.11 may hang for ever.

Coverage keeps what it knows of each greenlet in a ``weakref.WeakKeyDictionary``, whose callback is
a function in Python. When a thread has ended, greenlet frees its objects from a pending call of the
interpreter. If one more thread ends at that moment, the interpreter never gets past the start of
a *traced* function that a pending call runs: it sees a call pending, may not run it inside of
another, and looks again, with the GIL held and deaf to signals (3.12 traces in another way).
A callback that is no Python function is not traced. Python imports this module at its start in
every process that has this folder on its PYTHONPATH.
"""

import sys
import weakref

if sys.version_info < (3, 12):

    class WeakKeyDictionary(weakref.WeakKeyDictionary):
        def __init__(self, dict=None):
            super().__init__()
            self._remove = self.data.pop
            if dict is not None:
                self.update(dict)

    weakref.WeakKeyDictionary = WeakKeyDictionary
