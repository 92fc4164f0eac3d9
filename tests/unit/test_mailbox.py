"""What a process's main thread waits on: nothing that comes goes unnoticed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import threading
import time

from sqlalchemy_bgjob._process.mailbox import Mailbox


def test_events_come_in_order_and_none_means_late() -> None:
    with Mailbox[str]() as mailbox:
        mailbox.put("a")
        mailbox.put("b")
        assert [mailbox.get(), mailbox.get(0.0), mailbox.get(0.0), mailbox.get(-1.0)] == [
            "a",
            "b",
            None,
            None,
        ]

        threading.Timer(0.05, mailbox.put, ["c"]).start()
        begun = time.monotonic()
        assert mailbox.get(30.0) == "c"
        assert time.monotonic() - begun < 10.0


def test_more_events_than_the_socket_holds_are_kept() -> None:
    with Mailbox[int]() as mailbox:
        for number in range(10_000):
            mailbox.put(number)
        assert [mailbox.get(0.0) for _ in range(10_000)] == list(range(10_000))


def test_a_file_that_can_be_read_is_an_event() -> None:
    """Again and again, as long as nobody reads it; also when it has ended."""
    reader, writer = os.pipe()
    with Mailbox[str]() as mailbox:
        mailbox.watch(reader, "file")
        assert mailbox.get(0.01) is None
        os.write(writer, b"x")
        assert [mailbox.get(30.0), mailbox.get(30.0)] == ["file"] * 2
        os.read(reader, 1)
        assert mailbox.get(0.01) is None
        os.close(writer)
        assert mailbox.get(30.0) == "file"
        mailbox.unwatch(reader)
        assert mailbox.get(0.01) is None
    os.close(reader)


def test_an_event_after_the_end_harms_nobody() -> None:
    with Mailbox[str]() as mailbox:
        pass
    mailbox.put("late")


def test_it_leaves_the_wake_up_file_as_it_was() -> None:
    with Mailbox[str](), Mailbox[str]():
        pass
    assert signal.set_wakeup_fd(-1) == -1


def test_no_signal_goes_unnoticed_while_threads_are_busy() -> None:
    """The instant between the last look and the wait: with a SimpleQueue about 7 of 200 were lost.

    A signal that is noticed late is one that a supervisor has to kill for.
    """
    code = """
        import os, random, signal, subprocess, sys, threading, time
        from sqlalchemy_bgjob._process.mailbox import Mailbox

        def busy():
            while True:
                sum(range(500))

        for _ in range(4):
            threading.Thread(target=busy, daemon=True).start()
        reader, writer = os.pipe()
        sender = (
            f"import os\\n"
            f"while b := os.read({reader}, 1):\\n"
            f"    for _ in range(b[0] * 50): pass\\n"
            f"    os.kill({os.getpid()}, {int(signal.SIGUSR1)})"
        )
        subprocess.Popen([sys.executable, "-c", sender], pass_fds=[reader])
        os.close(reader)
        with Mailbox() as mailbox:
            signal.signal(signal.SIGUSR1, lambda number, frame: mailbox.put("signal"))
            for _ in range(200):
                os.write(writer, bytes([random.randrange(256)]))
                begun = time.monotonic()
                mailbox.get(20.0)
                if time.monotonic() - begun > 10.0:
                    os._exit(9)
        os._exit(0)
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], check=False, timeout=120)
    assert done.returncode == 0
