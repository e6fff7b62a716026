-- The host of a URL with its port, in which downloads are limited and circuit breakers open; '' if it is no URL.
CREATE FUNCTION source_host(url text) RETURNS text LANGUAGE sql IMMUTABLE PARALLEL SAFE AS $$
    SELECT lower(split_part(split_part(split_part(coalesce(split_part(url, '://', 2), ''), '/', 1), '?', 1), '@', -1))
$$;
CREATE INDEX outputs_by_host
    ON outputs ((CASE WHEN quarantine_key IS NULL THEN source_host(source) ELSE '' END), expires_at, run_at)
    WHERE state = 'waiting' AND lease_token IS NULL;

-- Attempts at a download host ('host NAME') or at a provider's API ('api NAME') within the last minute: every one that
-- failed as in an outage, and one in ten seconds of those that succeeded, from each process.
CREATE TABLE target_attempts (
    target    text NOT NULL,
    job_id    uuid,                              -- null: it succeeded
    at        timestamptz NOT NULL DEFAULT moment()
);
CREATE INDEX target_attempts_of ON target_attempts (target, at);
CREATE INDEX target_attempts_at ON target_attempts (at);

-- Open circuit breakers; a target without a row is closed. At `probe_at` the most urgent row of the target is tried.
CREATE TABLE breakers (
    target    text PRIMARY KEY CHECK (target ~ '^(host|api) .'),
    opened_at timestamptz NOT NULL DEFAULT moment(),
    probe_at  timestamptz NOT NULL,
    reason    text NOT NULL                      -- the error of the attempt that opened it
);
