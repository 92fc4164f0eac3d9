BEGIN;

ALTER TABLE bgjob_job ADD COLUMN IF NOT EXISTS unique_key TEXT, ADD COLUMN IF NOT EXISTS group_key TEXT, ADD COLUMN IF NOT EXISTS turn BIGINT, ADD COLUMN IF NOT EXISTS waits BOOLEAN, ADD COLUMN IF NOT EXISTS batch_id TEXT, ADD COLUMN IF NOT EXISTS cancel_at TIMESTAMP WITH TIME ZONE, ADD COLUMN IF NOT EXISTS expires_at TIMESTAMP WITH TIME ZONE, ADD COLUMN IF NOT EXISTS errors JSONB;

ALTER TABLE bgjob_dead_job ADD COLUMN IF NOT EXISTS unique_key TEXT, ADD COLUMN IF NOT EXISTS group_key TEXT, ADD COLUMN IF NOT EXISTS turn BIGINT, ADD COLUMN IF NOT EXISTS batch_id TEXT, ADD COLUMN IF NOT EXISTS errors JSONB;

CREATE TABLE IF NOT EXISTS bgjob_control (
    queue TEXT NOT NULL,
    key TEXT DEFAULT '' NOT NULL,
    paused_at TIMESTAMP WITH TIME ZONE,
    paused_by TEXT,
    pause_reason TEXT,
    resume_at TIMESTAMP WITH TIME ZONE,
    max_running INTEGER,
    slots INTEGER,
    rate FLOAT(53),
    rate_per FLOAT(53),
    updated_at TIMESTAMP WITH TIME ZONE DEFAULT now() NOT NULL,
    CONSTRAINT bgjob_control_pkey PRIMARY KEY (queue, key)
);

CREATE TABLE IF NOT EXISTS bgjob_seat (
    queue TEXT NOT NULL,
    key TEXT NOT NULL,
    n INTEGER NOT NULL,
    job_id TEXT,
    lease BIGINT,
    until TIMESTAMP WITH TIME ZONE,
    CONSTRAINT bgjob_seat_pkey PRIMARY KEY (queue, key, n)
);

ALTER TABLE bgjob_seat SET (fillfactor = 50);

CREATE TABLE IF NOT EXISTS bgjob_unique_period (
    key TEXT NOT NULL,
    job_id TEXT NOT NULL,
    until TIMESTAMP WITH TIME ZONE NOT NULL,
    CONSTRAINT bgjob_unique_period_pkey PRIMARY KEY (key)
);

CREATE TABLE IF NOT EXISTS bgjob_schedule (
    name TEXT NOT NULL,
    source TEXT NOT NULL,
    type TEXT NOT NULL,
    queue TEXT NOT NULL,
    priority SMALLINT DEFAULT '0' NOT NULL,
    arg BYTEA,
    headers JSONB,
    cron TEXT NOT NULL,
    timezone TEXT DEFAULT 'UTC' NOT NULL,
    missed TEXT DEFAULT 'one' NOT NULL,
    overlap TEXT DEFAULT 'skip' NOT NULL,
    next_at TIMESTAMP WITH TIME ZONE,
    last_at TIMESTAMP WITH TIME ZONE,
    paused_at TIMESTAMP WITH TIME ZONE,
    paused_by TEXT,
    pause_reason TEXT,
    created_at TIMESTAMP WITH TIME ZONE DEFAULT now() NOT NULL,
    updated_at TIMESTAMP WITH TIME ZONE DEFAULT now() NOT NULL,
    missed_from TIMESTAMP WITH TIME ZONE,
    missed_until TIMESTAMP WITH TIME ZONE,
    CONSTRAINT bgjob_schedule_pkey PRIMARY KEY (name)
);

CREATE INDEX IF NOT EXISTS bgjob_schedule_missed_until_idx ON bgjob_schedule (missed_until) WHERE missed_until IS NOT NULL;

CREATE INDEX IF NOT EXISTS bgjob_schedule_next_at_idx ON bgjob_schedule (next_at);

CREATE TABLE IF NOT EXISTS bgjob_batch (
    id TEXT NOT NULL,
    total INTEGER DEFAULT '0' NOT NULL,
    created_at TIMESTAMP WITH TIME ZONE DEFAULT now() NOT NULL,
    closed_at TIMESTAMP WITH TIME ZONE,
    finished_at TIMESTAMP WITH TIME ZONE,
    then_type TEXT,
    then_queue TEXT,
    then_arg BYTEA,
    then_headers JSONB,
    on_dead TEXT DEFAULT 'continue' NOT NULL,
    CONSTRAINT bgjob_batch_pkey PRIMARY KEY (id)
);

CREATE INDEX IF NOT EXISTS bgjob_batch_unfinished_idx ON bgjob_batch (id) WHERE finished_at IS NULL;

DO $bgjob$ BEGIN IF EXISTS (SELECT FROM pg_index WHERE indexrelid = to_regclass('bgjob_job_due_idx') AND NOT indisvalid) THEN DROP INDEX bgjob_job_due_idx; END IF; END $bgjob$;

CREATE INDEX IF NOT EXISTS bgjob_job_due_idx ON bgjob_job (queue, priority, next_run_at, id) WHERE priority >= -32768;

DO $bgjob$ BEGIN IF EXISTS (SELECT FROM pg_index WHERE indexrelid = to_regclass('bgjob_job_unique_key_idx') AND NOT indisvalid) THEN DROP INDEX bgjob_job_unique_key_idx; END IF; END $bgjob$;

CREATE UNIQUE INDEX IF NOT EXISTS bgjob_job_unique_key_idx ON bgjob_job (unique_key) WHERE unique_key IS NOT NULL;

DO $bgjob$ BEGIN IF EXISTS (SELECT FROM pg_index WHERE indexrelid = to_regclass('bgjob_job_waits_idx') AND NOT indisvalid) THEN DROP INDEX bgjob_job_waits_idx; END IF; END $bgjob$;

CREATE INDEX IF NOT EXISTS bgjob_job_waits_idx ON bgjob_job (queue, group_key, priority, turn) WHERE waits;

DO $bgjob$ BEGIN IF EXISTS (SELECT FROM pg_index WHERE indexrelid = to_regclass('bgjob_job_batch_id_idx') AND NOT indisvalid) THEN DROP INDEX bgjob_job_batch_id_idx; END IF; END $bgjob$;

CREATE INDEX IF NOT EXISTS bgjob_job_batch_id_idx ON bgjob_job (batch_id) WHERE batch_id IS NOT NULL;

DO $bgjob$ BEGIN IF EXISTS (SELECT FROM pg_index WHERE indexrelid = to_regclass('bgjob_dead_job_batch_id_idx') AND NOT indisvalid) THEN DROP INDEX bgjob_dead_job_batch_id_idx; END IF; END $bgjob$;

CREATE INDEX IF NOT EXISTS bgjob_dead_job_batch_id_idx ON bgjob_dead_job (batch_id) WHERE batch_id IS NOT NULL;

DO $bgjob$ BEGIN IF NOT EXISTS (SELECT FROM bgjob_worker) THEN DROP INDEX IF EXISTS bgjob_job_claim_idx; END IF; END $bgjob$;

COMMENT ON TABLE bgjob_job IS 'sqlalchemy-bgjob schema 2 (workers since 1)';

COMMIT;

