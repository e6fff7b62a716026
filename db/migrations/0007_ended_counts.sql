-- Counts of ended rows, and indexes that keep queries independent of the size of the history.
CREATE TABLE ended_counts (
    subject text NOT NULL, slot_at timestamptz NOT NULL, provider text NOT NULL, state text NOT NULL,
    detail text NOT NULL, category text NOT NULL, value bigint NOT NULL,
    PRIMARY KEY (subject, slot_at, provider, state, detail, category)
);
CREATE INDEX IF NOT EXISTS outputs_by_end ON outputs (state, ended_at) WHERE ended_at IS NOT NULL;
DROP INDEX outputs_ended;
CREATE INDEX IF NOT EXISTS events_storage_failed ON events (at) WHERE kind = 'storage_failed';
ALTER TABLE storage_use ALTER rank DROP NOT NULL, ALTER objects SET DEFAULT 0, ALTER bytes SET DEFAULT 0,
    ADD counted_objects bigint NOT NULL DEFAULT 0, ADD counted_bytes bigint NOT NULL DEFAULT 0;
CREATE INDEX IF NOT EXISTS jobs_by_owner_and_state ON jobs (owner, state, id);
CREATE INDEX IF NOT EXISTS jobs_by_state ON jobs (state, id);
CREATE INDEX IF NOT EXISTS jobs_by_kind ON jobs (kind, id);
CREATE INDEX IF NOT EXISTS jobs_by_style ON jobs (style, id) WHERE style IS NOT NULL;
CREATE INDEX IF NOT EXISTS jobs_reopened ON jobs (state, id) WHERE reopened > 0;
CREATE INDEX IF NOT EXISTS jobs_live_of_project ON jobs (project_id) WHERE settled_at IS NULL;
CREATE INDEX IF NOT EXISTS dead_letters_of_job ON dead_letters (job_id) WHERE job_id IS NOT NULL;
