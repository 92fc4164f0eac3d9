// The protocol that every Node adapter speaks: `peer_x.mjs COMMAND DSN [JSON options]`.
//
// An adapter gives main() one async function per command; what it returns is printed as the one
// line of JSON. Times are seconds of CLOCK_MONOTONIC, the clock of Python's time.monotonic().

import { existsSync, writeFileSync } from "node:fs";
import { setTimeout as sleep } from "node:timers/promises";

const MARK_EVERY = 500;
const SETTLE = 1.0;
const TICK = 20;
// Where pick-up or an idle worker is measured: the harness is to cost nothing there.
const QUIET_TICK = 500;

export const now = () => Number(process.hrtime.bigint()) / 1e9;

/** Run the command of the command line, print its answer, and leave. */
export async function main(commands) {
  const [name, dsn, text] = process.argv.slice(2);
  const answers = process.stdout.write.bind(process.stdout);
  process.stdout.write = process.stderr.write.bind(process.stderr);
  try {
    const answer = await commands[name](withHost(dsn), text ? JSON.parse(text) : {});
    answers(`${JSON.stringify(answer)}\n`, () => process.exit(0));
  } catch (error) {
    console.error(error);
    process.exit(1);
  }
}

/** The same URL with a host, which WHATWG URLs need beside a user; `?host=` still wins. */
function withHost(dsn) {
  return dsn.replace(/^(\w+:\/\/[^/?#@]*@)(?=[/?#]|$)/, "$1localhost");
}

/** A job's argument, whose JSON has `arg_bytes` bytes. */
export function argument(options) {
  return { x: "a".repeat((options.arg_bytes ?? 20) - '{"x":""}'.length) };
}

/** The answer of `enqueue`: one committed job after the other. */
export async function oneByOne({ jobs, ...options }, send) {
  const value = argument(options);
  const started = now();
  for (let number = 0; number < jobs; number += 1) await send(value);
  return { seconds: now() - started, jobs };
}

/** The answer of `bulk`; making the list of arguments is not measured. */
export async function atOnce({ jobs, ...options }, send) {
  const values = Array.from({ length: jobs }, () => argument(options));
  const started = now();
  await send(values);
  return { seconds: now() - started, jobs };
}

/** The answer of `pulse`: a job each interval, on a schedule that does not drift. */
export async function paced({ jobs, interval = 0.05 }, send) {
  const sent = [];
  const started = now();
  for (let number = 0; number < jobs; number += 1) {
    await sleep(Math.max(0, (started + number * interval - now()) * 1000));
    const before = now();
    await send({ n: number });
    sent.push([number, before, now()]);
  }
  return { sent };
}

/** What the handlers of one worker saw. */
export class Recorder {
  count = 0;
  first = null;
  last = null;
  marks = [];
  picked = [];

  /** Note a handler's call; `number` is the job's, when its argument has one. */
  seen(number) {
    const time = now();
    this.count += 1;
    this.first ??= time;
    this.last = time;
    if (this.count % MARK_EVERY === 0) this.marks.push([this.count, time]);
    if (number !== undefined) this.picked.push([number, time]);
  }

  /** Note a call with a whole batch; `done` jobs of this worker were done before it. */
  seenBatch(numbers, done) {
    const time = now();
    this.count += numbers.length;
    this.first ??= time;
    this.last = time;
    this.marks.push([done, time]);
    for (const number of numbers) if (number !== undefined) this.picked.push([number, time]);
  }

  answer() {
    const { count, first, last, marks, picked } = this;
    return { count, first, last, marks, picked };
  }
}

/** Tell that the worker runs, and return when it shall stop. */
export async function untilStopped(options) {
  if (options.latency) await sleep(SETTLE * 1000);
  writeFileSync(options.ready_file, "");
  const tick = options.latency ? QUIET_TICK : TICK;
  while (!existsSync(options.stop_file)) await sleep(tick);
}
