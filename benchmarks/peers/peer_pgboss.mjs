// pg-boss 10.
//
// Workers poll ("Workers", docs/api/workers.md): twice a second is the most it allows, and nothing
// in the database wakes a worker. What it has for throughput is `batchSize`, and more workers in
// one process; a worker polls again at once when a batch took longer than the interval. For
// latency that polling is all there is, with a smaller batch.
//
// A handler gets a whole batch, and none of its jobs is done before all are. So it is `batched`:
// each mark is the start of a batch, [jobs that were done before, time], and the harness takes the
// end of a drain from the database. A worker's batch is done when it gets the next one.

import { readFileSync } from "node:fs";
import { createRequire } from "node:module";
import PgBoss from "pg-boss";
import { Recorder, atOnce, main, oneByOne, paced, untilStopped } from "./_common.mjs";

const WORKERS = 2;
const BATCH = 5000;
const LATENCY_BATCH = 100;
const INTERVAL = 0.5;
const UNFINISHED = "FROM pgboss.job WHERE name = 'noop' AND state < 'completed'";

async function withBoss(dsn, options, use) {
  const boss = new PgBoss({ connectionString: dsn, schedule: false, ...options });
  boss.on("error", (error) => console.error(error));
  await boss.start();
  try {
    await boss.getDb().executeSql("SELECT 1", []);
    return await use(boss);
  } finally {
    await boss.stop({ graceful: true, timeout: 30000 });
  }
}

const withProducer = (dsn, use) => withBoss(dsn, { max: 1, supervise: false, migrate: false }, use);

async function install(dsn) {
  await withBoss(dsn, { supervise: false }, (boss) => boss.createQueue("noop"));
  const file = createRequire(import.meta.url).resolve("pg-boss/package.json");
  return {
    version: JSON.parse(readFileSync(file, "utf8")).version,
    settings:
      `${WORKERS} workers, batchSize ${BATCH} (${LATENCY_BATCH} for latency),` +
      ` pollingIntervalSeconds ${INTERVAL}`,
    batched: true,
    remaining_sql: `SELECT EXISTS (SELECT 1 ${UNFINISHED})`,
    clean_sql: ["TRUNCATE pgboss.job", "TRUNCATE pgboss.archive"],
  };
}

const enqueue = (dsn, options) =>
  withProducer(dsn, (boss) => oneByOne(options, (value) => boss.send("noop", value)));

const bulk = (dsn, options) =>
  withProducer(dsn, (boss) =>
    atOnce(options, (values) => boss.insert(values.map((data) => ({ name: "noop", data })))),
  );

const pulse = (dsn, options) =>
  withProducer(dsn, (boss) => paced(options, (value) => boss.send("noop", value)));

async function work(dsn, options) {
  const recorder = new Recorder();
  const batchSize = options.latency ? LATENCY_BATCH : BATCH;
  let done = 0;
  await withBoss(dsn, {}, async (boss) => {
    for (let worker = 0; worker < WORKERS; worker += 1) {
      let before = 0;
      await boss.work("noop", { batchSize, pollingIntervalSeconds: INTERVAL }, async (jobs) => {
        done += before;
        before = jobs.length;
        recorder.seenBatch(jobs.map((job) => job.data.n), done);
      });
    }
    await untilStopped(options);
  });
  return recorder.answer();
}

const remaining = (dsn) =>
  withProducer(dsn, async (boss) => {
    const { rows } = await boss.getDb().executeSql(`SELECT count(*)::int AS remaining ${UNFINISHED}`, []);
    return rows[0];
  });

await main({ install, enqueue, bulk, work, pulse, remaining });
