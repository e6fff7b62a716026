-- Files that are still downloaded while their job no longer waits for them.
ALTER TABLE outputs ADD COLUMN deferred_at timestamptz;
ALTER TABLE events DROP CONSTRAINT events_kind_check;
ALTER TABLE events
    ADD CONSTRAINT events_kind_check
    CHECK (kind IN ('worker_died', 'lease_expired', 'worker_stopping', 'storage_failed', 'disk_failed',
                    'source_unavailable', 'source_interrupted', 'attempt_failed', 'deferred', 'resumed'));
