// Graphile Worker.
//
// "Performance" (https://worker.graphile.org/docs/performance) names what throughput takes: high
// concurrency, a local queue that fetches many jobs at once, and completions written in batches.
// The reference of `localQueue` names its price, latency; so for latency jobs are fetched one by
// one and each completion is written at once. LISTEN is always on.

import { readFileSync } from "node:fs";
import { createRequire } from "node:module";
import { Logger, makeWorkerUtils, run, runMigrations } from "graphile-worker";
import pg from "pg";
import { Recorder, atOnce, main, oneByOne, paced, untilStopped } from "./_common.mjs";

const CONCURRENCY = 100;
const LATENCY_CONCURRENCY = 10;
const LOCAL_QUEUE = 1000;
const BATCH_DELAY = 10;

// Without this each finished job is a line on stdout.
const logger = new Logger(() => (level, message) => {
  if (level === "error" || level === "warning") console.error(message);
});

async function withPool(dsn, max, use) {
  const pgPool = new pg.Pool({ connectionString: dsn, max });
  const complain = (error) => console.error(error);
  pgPool.on("error", complain);
  pgPool.on("connect", (client) => client.on("error", complain));
  try {
    await pgPool.query("SELECT 1");
    return await use(pgPool);
  } finally {
    await pgPool.end();
  }
}

async function withUtils(dsn, use) {
  return withPool(dsn, 1, async (pgPool) => {
    const utils = await makeWorkerUtils({ pgPool, logger });
    try {
      return await use(utils);
    } finally {
      await utils.release();
    }
  });
}

async function install(dsn) {
  await withPool(dsn, 2, (pgPool) => runMigrations({ pgPool, logger }));
  const file = createRequire(import.meta.url).resolve("graphile-worker/package.json");
  return {
    version: JSON.parse(readFileSync(file, "utf8")).version,
    settings:
      `concurrency ${CONCURRENCY}, localQueue.size ${LOCAL_QUEUE}, completeJobBatchDelay and` +
      ` failJobBatchDelay ${BATCH_DELAY} ms, a pool as large as it advises; for latency` +
      ` concurrency ${LATENCY_CONCURRENCY} and neither local queue nor batches`,
    remaining_sql: "SELECT EXISTS (SELECT 1 FROM graphile_worker._private_jobs)",
    clean_sql: ["TRUNCATE graphile_worker._private_jobs, graphile_worker._private_job_queues"],
  };
}

const enqueue = (dsn, options) =>
  withUtils(dsn, (utils) => oneByOne(options, (value) => utils.addJob("noop", value)));

const bulk = (dsn, options) =>
  withUtils(dsn, (utils) =>
    atOnce(options, (values) =>
      utils.addJobs(values.map((payload) => ({ identifier: "noop", payload }))),
    ),
  );

const pulse = (dsn, options) =>
  withUtils(dsn, (utils) => paced(options, (value) => utils.addJob("noop", value)));

async function work(dsn, options) {
  const recorder = new Recorder();
  const concurrency = options.latency ? LATENCY_CONCURRENCY : CONCURRENCY;
  const batching = {
    localQueue: { size: LOCAL_QUEUE },
    completeJobBatchDelay: BATCH_DELAY,
    failJobBatchDelay: BATCH_DELAY,
  };
  const runner = await run({
    connectionString: dsn,
    maxPoolSize: concurrency + 2,
    concurrency,
    noHandleSignals: true,
    logger,
    taskList: {
      noop: async (payload) => recorder.seen(payload.n),
    },
    preset: { worker: options.latency ? {} : batching },
  });
  await untilStopped(options);
  await runner.stop();
  return recorder.answer();
}

const remaining = (dsn) =>
  withPool(dsn, 1, async (pgPool) => {
    const { rows } = await pgPool.query(
      "SELECT count(*)::int AS remaining FROM graphile_worker._private_jobs",
    );
    return rows[0];
  });

await main({ install, enqueue, bulk, work, pulse, remaining });
