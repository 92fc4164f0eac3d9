"""Every fault again and again, against a fleet at work: ``python -m tests.soak --minutes 20``.

Six worker processes of all kinds work off what a producer enqueues, two of them through a proxy and
one through PgBouncer, while faults hit them and the server in random order. At the end the history
of each job is checked, and the record that a trigger has kept of each row. The seed, which is
printed first, decides which fault comes when, and what it hits.

It goes on until the time is over, enough jobs were enqueued, and each fault came often enough. The
exit code is 1 if anything was lost, was done twice, or did not come to its end.
"""

from __future__ import annotations

import argparse
import random
import signal
import sys
import tempfile
import threading
import time
import traceback
from collections import Counter
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

sys.path.insert(0, str(Path(__file__).parent))

from sqlalchemy import create_engine, text
from sqlalchemy.exc import DBAPIError

from sqlalchemy_bgjob import enqueue_many
from support.databases import private_server
from support.pooler import PgBouncer
from support.processes import FAST, Fleet, Variant, WorkerProcess
from support.proxy import Proxy
from support.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Callable

    from sqlalchemy_bgjob._dev.embedded import EmbeddedPostgres

LEASE = 4.0
SETTINGS: dict[str, Any] = FAST | {"lease_timeout": LEASE, "shutdown_timeout": 1.0}
BACKLOG = 3_000
"""Jobs that may wait before the producer pauses."""
MOST_FAULTS_OF_A_JOB = 8
"""More starts than that cannot be put down to faults, which come a few seconds apart."""
END_OF_DEATHS = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE "
OURS = "(application_name LIKE 'bgjob/%' OR query LIKE 'LISTEN%') AND pid <> pg_backend_pid()"


@dataclass
class Member:
    """A place in the fleet: which worker, how it connects, and the process that it has now."""

    variant: Variant
    way: str = "direct"
    process: WorkerProcess | None = None


@dataclass
class Produced:
    """What the producer knows of the jobs."""

    committed: list[str] = field(default_factory=list)
    rolled_back: list[str] = field(default_factory=list)
    with_effects: list[str] = field(default_factory=list)


class Soak:
    """One run.

    Args:
        fleet: With its tables made.
        server: That the fleet works on.
        proxy: Before the server.
        pooler: Before the server.
        seed: Of all choices.
        jobs: How many at least.
        minutes: For how long at least.
        each: How often each fault comes at least.
    """

    def __init__(
        self,
        fleet: Fleet,
        server: EmbeddedPostgres,
        proxy: Proxy,
        pooler: PgBouncer,
        *,
        seed: int,
        jobs: int,
        minutes: float,
        each: int,
    ) -> None:
        self.fleet, self.server, self.proxy, self.pooler = fleet, server, proxy, pooler
        self.dice, self.jobs, self.seconds, self.each = (
            random.Random(seed),
            jobs,
            minutes * 60,
            each,
        )
        self.pace = 1.1 * jobs / self.seconds
        """Jobs a second."""
        self.members = [
            Member(Variant("sync", "psycopg")),
            Member(Variant("async", "asyncpg")),
            Member(Variant("sync", "psycopg"), "proxy"),
            Member(Variant("async", "asyncpg"), "proxy"),
            Member(Variant("async", "psycopg")),
            Member(Variant("sync", "psycopg"), "pooler"),
        ]
        self.doomed: list[WorkerProcess] = []
        self.produced = Produced()
        self.counts: Counter[str] = Counter()
        self.ended: Counter[str] = Counter()
        self.enough, self.stop = threading.Event(), threading.Event()
        self.failures: list[str] = []
        self.lock = threading.Lock()
        self.faults: dict[str, Callable[[], None]] = {
            "SIGKILL": self.kill,
            "SIGTERM": lambda: self.signal(signal.SIGTERM),
            "SIGTERM twice": lambda: self.signal(signal.SIGTERM, signal.SIGTERM),
            "SIGSTOP for longer than the lease": self.freeze,
            "death after a claim": lambda: self.dies("claim"),
            "death after a handler": lambda: self.dies("handler"),
            "death after a write": lambda: self.dies("write"),
            "death in a settlement": lambda: self.dies("settle"),
            "death at a heartbeat": lambda: self.dies("beat"),
            "a job that exits": lambda: self.poison("exit at once"),
            "a job that has a segmentation fault": lambda: self.poison("segmentation fault"),
            "a busy handler": self.busy,
            "fast restart": lambda: self.restart("fast"),
            "crash of the server": lambda: self.restart("immediate"),
            "outage": self.outage,
            "all sessions ended": lambda: self.end_sessions(OURS),
            "listeners ended": lambda: self.end_sessions("query LIKE 'LISTEN%'"),
            "network reset": self.proxy.reset,
            "network dead": self.blackhole,
            "COMMIT lost": lambda: self.cut(arrives=False),
            "answer to COMMIT lost": lambda: self.cut(arrives=True),
        }

    # ---- processes --------------------------------------------------------------------------

    def start(self, member: Member) -> None:
        options: dict[str, Any] = {}
        if member.way == "proxy":
            options["url"] = self.proxy.url
        if member.way == "pooler":
            url = self.fleet.engine.url.render_as_string(hide_password=False)
            options |= {"url": self.pooler.url(url), "pooled": True, "listen": False}
        member.process = self.fleet.start(
            variant=member.variant, wait=False, slots=8, **{**SETTINGS, **options}
        )

    def watch(self) -> None:
        """Note each death, and put another process in its place."""
        while not self.stop.wait(0.02):
            with self.lock:
                for member in self.members:
                    if member.process is not None and not member.process.alive:
                        self.note(member.process)
                        self.start(member)
                for process in [p for p in self.doomed if not p.alive]:
                    self.note(process)
                    self.doomed.remove(process)

    def note(self, process: WorkerProcess) -> None:
        code = process.exit_code or 0
        self.ended[f"exit code {code}"] += 1
        if code != 0:
            self.fleet.journal.note("killed", killed_pid=process.pid)
        # A signal ends a process that has not begun to listen to it.
        ends = (-signal.SIGKILL, -signal.SIGSEGV, -signal.SIGTERM, 128 + signal.SIGTERM)
        if code not in (0, 7, *ends):
            self.failures.append(f"a worker ended with {code}:\n{process.log[-4000:]}")

    def one(self, way: str | None = None) -> WorkerProcess:
        fitting = [m for m in self.members if way in (None, m.way)]
        process = self.dice.choice(fitting).process
        assert process is not None
        return process

    # ---- faults -----------------------------------------------------------------------------

    def kill(self) -> None:
        self.send(self.one(), signal.SIGKILL)

    def send(self, process: WorkerProcess, number: signal.Signals) -> None:
        with suppress(ProcessLookupError):
            process.signal(number)

    def signal(self, *numbers: signal.Signals) -> None:
        process = self.one()
        for number in numbers:
            self.send(process, number)
            self.pause(0.2)
        # One that does not end would be noticed here, and not be killed as if that were nothing.
        wait_until(lambda: not process.alive, 30, what=f"the end of {process.pid} by signal")

    def freeze(self) -> None:
        process = self.one()
        self.send(process, signal.SIGSTOP)
        self.pause(LEASE * 1.5)
        self.send(process, signal.SIGCONT)

    def dies(self, point: Any) -> None:
        # Few: it shares what there is with six others.
        skip = self.dice.randrange(3 if point == "beat" else 10)
        process = self.fleet.start(
            dies_after=point, dies_skip=skip, wait=False, slots=4, **SETTINGS
        )
        with self.lock:
            self.doomed.append(process)
        try:
            wait_until(
                lambda: not process.alive, 180, what=f"the death of {process.pid} at {point}"
            )
        except AssertionError:
            print(
                f"started {len(self.fleet.started_by(process))} jobs, skips {skip}:\n{process.log}"
            )
            raise

    def poison(self, how: Any) -> None:
        self.enqueue("crash", [how])

    def busy(self) -> None:
        self.enqueue("block", [LEASE * 1.5])

    def restart(self, mode: Any) -> None:
        self.server.restart(mode)

    def outage(self) -> None:
        self.server._halt("fast")
        self.pause(LEASE * 2)
        self.server._launch()

    def end_sessions(self, which: str) -> None:
        with suppress(DBAPIError):
            self.fleet.rows(END_OF_DEATHS + which)

    def blackhole(self) -> None:
        self.proxy.blackhole()
        self.pause(LEASE * 1.5)
        self.proxy.pass_on()

    def cut(self, *, arrives: bool) -> None:
        before = self.proxy.cuts
        # A job's id, as the statements themselves are sent but once to a connection.
        self.proxy.cut_commit("effect-", sent_by="client", arrives=arrives)
        wait_until(lambda: self.proxy.cuts > before, 60, what="a COMMIT to cut")

    def pause(self, seconds: float) -> None:
        until = time.monotonic() + seconds
        wait_until(lambda: time.monotonic() >= until, seconds + 5, what="the time")

    # ---- jobs -------------------------------------------------------------------------------

    def produce(self) -> None:
        dice = random.Random(self.dice.random())
        while not self.enough.is_set():
            if len(self.produced.committed) % 1_000 < 50 and self.backlog() > BACKLOG:
                self.enough.wait(0.5)
                continue
            kind = dice.choices(["quick", "effect", "late", "nap", "give_up"], [50, 40, 5, 4, 1])[0]
            args: list[Any] = [None] * {"quick": 100, "effect": 60}.get(kind, 3)
            if kind in ("late", "nap"):
                args = [dice.random() for _ in args]
            self.enqueue(kind, args, rolls_back=dice.random() < 0.03)
            self.enough.wait(len(args) / self.pace)

    def backlog(self) -> int:
        with suppress(DBAPIError):
            return self.fleet.jobs_left
        return BACKLOG + 1

    def enqueue(self, kind: str, args: list[Any], *, rolls_back: bool = False) -> None:
        """In a transaction with a mark: it tells what became of a COMMIT without an answer."""
        with self.lock:
            self.counts["batches"] += 1
            batch = self.counts["batches"]
        ids = [f"{kind}-{batch:06}-{n:03}" for n in range(len(args))]
        handler = getattr(self.fleet.app, kind)
        while True:
            try:
                with self.fleet.engine.connect() as connection, connection.begin() as transaction:
                    enqueue_many(connection, handler, args, ids=ids)
                    connection.execute(text("INSERT INTO mark VALUES (:n)"), {"n": batch})
                    if rolls_back:
                        transaction.rollback()
                break
            except DBAPIError:
                self.counts["enqueues that failed"] += 1
            if self.was_committed(batch):
                break
        with self.lock:
            made = self.produced.rolled_back if rolls_back else self.produced.committed
            made += ids
            if not rolls_back and kind in ("effect", "late"):
                self.produced.with_effects += ids

    def was_committed(self, batch: int) -> bool:
        while True:
            try:
                return bool(self.fleet.scalar("SELECT n FROM mark WHERE n = :n", n=batch))
            except DBAPIError:
                self.stop.wait(0.2)

    # ---- the run ----------------------------------------------------------------------------

    def run(self) -> bool:
        for member in self.members:
            self.start(member)
        threads = [
            threading.Thread(target=self.guarded(target), daemon=True)
            for target in (self.watch, self.produce)
        ]
        for thread in threads:
            thread.start()
        began = time.monotonic()
        done: Counter[str] = Counter()
        order: list[str] = []
        while not self.failures:
            late = time.monotonic() - began > self.seconds
            enough = len(self.produced.committed) >= self.jobs
            if late and enough and all(done[name] >= self.each for name in self.faults):
                break
            if not order:
                order = self.dice.sample(sorted(self.faults), len(self.faults))
            name = order.pop()
            self.guarded(self.faults[name])()
            done[name] += 1
            self.pause(self.dice.uniform(0.5, 3.0))
        return self.finish(threads, done, time.monotonic() - began)

    def guarded(self, target: Callable[[], None]) -> Callable[[], None]:
        def run() -> None:
            try:
                target()
            except Exception:
                self.failures.append(traceback.format_exc())

        return run

    def finish(self, threads: list[threading.Thread], done: Counter[str], seconds: float) -> bool:
        watcher, producer = threads
        self.enough.set()
        producer.join(60)
        # The processes are watched until all is done.
        try:
            wait_until(lambda: self.backlog() == 0, 300, what="the end of all jobs")
        except AssertionError as error:
            self.failures.append(str(error))
        self.stop.set()
        watcher.join(60)
        for member in self.members:
            assert member.process is not None
            self.send(member.process, signal.SIGTERM)
        for member in self.members:
            assert member.process is not None
            member.process.wait(60)
        problems = self.fleet.problems(
            self.produced.committed,
            with_effects=self.produced.with_effects,
            rolled_back=self.produced.rolled_back,
            faults=MOST_FAULTS_OF_A_JOB,
        )
        starts = self.fleet.journal.count("start")
        print(f"{seconds / 60:.1f} minutes, {len(self.produced.committed)} jobs committed,")
        print(f"{len(self.produced.rolled_back)} rolled back, {starts} starts,")
        print(f"{self.counts['enqueues that failed']} failed enqueues, tried again")
        for name in self.faults:
            print(f"{done[name]:5} x {name}")
        for name, count in sorted(self.ended.items()):
            print(f"{count:5} processes ended with {name}")
        for problem in [*self.failures, *problems[:50]]:
            print(problem)
        print(f"{len(problems)} problems of jobs, {len(self.failures)} of the run")
        return not problems and not self.failures


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.soak", description=__doc__)
    parser.add_argument("--minutes", type=float, default=20.0, help="at least; 20 by default")
    parser.add_argument("--jobs", type=int, default=100_000, help="at least; 100,000 by default")
    parser.add_argument("--each", type=int, default=5, help="times of each fault, at least; 5")
    parser.add_argument("--seed", type=int, help="of an earlier run; otherwise a new one")
    options = parser.parse_args()
    seed = options.seed if options.seed is not None else random.SystemRandom().randrange(10**9)
    print(f"seed {seed}", flush=True)
    with ExitStack() as stack:
        server = stack.enter_context(private_server(shared_buffers="256MB"))
        engine = create_engine(server.url, pool_pre_ping=True)
        stack.callback(engine.dispose)
        proxy = stack.enter_context(Proxy(server.url))
        pooler = stack.enter_context(PgBouncer(server.url))
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="bgjob-soak-"))
        fleet = stack.enter_context(Fleet(engine, Path(folder)))
        fleet.create_tables()
        with engine.begin() as connection:
            connection.execute(text("CREATE TABLE mark (n int PRIMARY KEY)"))
        soak = Soak(
            fleet,
            server,
            proxy,
            pooler,
            seed=seed,
            jobs=options.jobs,
            minutes=options.minutes,
            each=options.each,
        )
        passed = soak.run()
    print(f"seed {seed}: {'passed' if passed else 'FAILED'}")
    return 0 if passed else 1


if __name__ == "__main__":
    sys.exit(main())
