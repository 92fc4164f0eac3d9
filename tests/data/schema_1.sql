BEGIN;

CREATE TABLE bgjob_job (
    id TEXT NOT NULL,
    queue TEXT NOT NULL,
    type TEXT NOT NULL,
    arg BYTEA,
    priority SMALLINT DEFAULT '0' NOT NULL,
    attempt INTEGER DEFAULT '0' NOT NULL,
    crashes INTEGER DEFAULT '0' NOT NULL,
    lease BIGINT DEFAULT ((EXTRACT(epoch FROM clock_timestamp()) * (1000000)::numeric))::bigint NOT NULL,
    claimed_by BIGINT,
    last_error TEXT,
    headers JSONB,
    next_run_at TIMESTAMP WITH TIME ZONE DEFAULT now() NOT NULL,
    created_at TIMESTAMP WITH TIME ZONE DEFAULT now() NOT NULL,
    updated_at TIMESTAMP WITH TIME ZONE DEFAULT now() NOT NULL,
    unknown_since TIMESTAMP WITH TIME ZONE,
    CONSTRAINT bgjob_job_pkey PRIMARY KEY (id),
    CONSTRAINT bgjob_job_queue_check CHECK (length(queue) BETWEEN 1 AND 128),
    CONSTRAINT bgjob_job_type_check CHECK (length(type) BETWEEN 1 AND 128),
    CONSTRAINT bgjob_job_id_check CHECK (length(id) BETWEEN 1 AND 255),
    CONSTRAINT bgjob_job_attempt_check CHECK (attempt >= 0),
    CONSTRAINT bgjob_job_crashes_check CHECK (crashes >= 0),
    CONSTRAINT bgjob_job_times_check CHECK (next_run_at BETWEEN '1970-01-01 00:00:00+00:00' AND '9999-01-01 00:00:00+00:00' AND created_at BETWEEN '1970-01-01 00:00:00+00:00' AND '9999-01-01 00:00:00+00:00' AND updated_at BETWEEN '1970-01-01 00:00:00+00:00' AND '9999-01-01 00:00:00+00:00')
);

CREATE INDEX bgjob_job_claim_idx ON bgjob_job (queue, priority, next_run_at, id) WHERE queue IS NOT NULL;

ALTER TABLE bgjob_job SET (fillfactor = 50, autovacuum_vacuum_scale_factor = 0.02, autovacuum_vacuum_threshold = 1000);

CREATE TABLE bgjob_dead_job (
    id TEXT NOT NULL,
    job_id TEXT NOT NULL,
    queue TEXT NOT NULL,
    type TEXT NOT NULL,
    arg BYTEA,
    priority SMALLINT DEFAULT '0' NOT NULL,
    attempt INTEGER DEFAULT '0' NOT NULL,
    crashes INTEGER DEFAULT '0' NOT NULL,
    lease BIGINT NOT NULL,
    last_error TEXT,
    headers JSONB,
    next_run_at TIMESTAMP WITH TIME ZONE NOT NULL,
    job_created_at TIMESTAMP WITH TIME ZONE NOT NULL,
    job_updated_at TIMESTAMP WITH TIME ZONE NOT NULL,
    moved_at TIMESTAMP WITH TIME ZONE DEFAULT now() NOT NULL,
    CONSTRAINT bgjob_dead_job_pkey PRIMARY KEY (id)
);

CREATE INDEX bgjob_dead_job_job_id_idx ON bgjob_dead_job (job_id);

CREATE INDEX bgjob_dead_job_moved_at_idx ON bgjob_dead_job (moved_at);

CREATE TABLE bgjob_worker (
    id BIGINT NOT NULL,
    hostname TEXT NOT NULL,
    pid INTEGER NOT NULL,
    version TEXT NOT NULL,
    queues JSONB NOT NULL,
    waits_for JSONB DEFAULT '[]' NOT NULL,
    lease_timeout FLOAT(53) NOT NULL,
    started_at TIMESTAMP WITH TIME ZONE DEFAULT now() NOT NULL,
    beat_at TIMESTAMP WITH TIME ZONE DEFAULT now() NOT NULL,
    lost_at TIMESTAMP WITH TIME ZONE,
    listener_pid INTEGER,
    listener_started_at TIMESTAMP WITH TIME ZONE,
    CONSTRAINT bgjob_worker_pkey PRIMARY KEY (id)
);

ALTER TABLE bgjob_worker SET (fillfactor = 50);

COMMENT ON TABLE bgjob_job IS 'sqlalchemy-bgjob schema 1 (workers since 1)';

COMMIT;

