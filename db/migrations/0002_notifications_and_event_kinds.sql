-- Renames notices to notifications and jobs.chain to jobs.fallback_chain.
-- An older process would fail on the new names, so nothing is renamed while one may be at work.

LOCK TABLE deliveries, jobs, predictions, outputs, notices, dead_letters, events IN ACCESS EXCLUSIVE MODE;

DO $$
DECLARE
    holders text;
BEGIN
    SELECT string_agg(DISTINCT split_part(leased_by, '/', 1), ', ') INTO holders
      FROM (SELECT leased_by, lease_token, leased_until FROM deliveries
            UNION ALL SELECT leased_by, lease_token, leased_until FROM predictions
            UNION ALL SELECT leased_by, lease_token, leased_until FROM outputs
            UNION ALL SELECT leased_by, lease_token, leased_until FROM notices) work
     WHERE lease_token IS NOT NULL AND leased_until > moment();
    IF holders IS NOT NULL THEN
        RAISE EXCEPTION 'rows are leased by % of the previous version: stop its processes, then run moorage migrate again',
                        holders;
    END IF;
END
$$;

ALTER TABLE notices RENAME TO notifications;
DO $$
DECLARE
    old_name text;
BEGIN
    FOR old_name IN SELECT conname FROM pg_constraint WHERE conrelid = 'notifications'::regclass LOOP
        EXECUTE format('ALTER TABLE notifications RENAME CONSTRAINT %I TO %I', old_name,
                       replace(old_name, 'notices', 'notifications'));
    END LOOP;
    FOR old_name IN SELECT c.relname FROM pg_index i JOIN pg_class c ON c.oid = i.indexrelid
                     WHERE i.indrelid = 'notifications'::regclass AND starts_with(c.relname, 'notices') LOOP
        EXECUTE format('ALTER INDEX %I RENAME TO %I', old_name, replace(old_name, 'notices', 'notifications'));
    END LOOP;
END
$$;
ALTER INDEX predictions_at_work RENAME TO predictions_in_flight;

ALTER TABLE jobs RENAME COLUMN chain TO fallback_chain;
ALTER TABLE jobs RENAME CONSTRAINT jobs_chain_check TO jobs_fallback_chain_check;

ALTER TABLE dead_letters DROP CONSTRAINT dead_letters_subject_check;
UPDATE dead_letters SET subject = 'notification' WHERE subject = 'notice';
ALTER TABLE dead_letters ADD CONSTRAINT dead_letters_subject_check
    CHECK (subject IN ('delivery', 'prediction', 'output', 'notification', 'message'));

ALTER TABLE events DROP CONSTRAINT events_subject_check;
UPDATE events SET subject = 'notification' WHERE subject = 'notice';
ALTER TABLE events ADD CONSTRAINT events_subject_check
    CHECK (subject IN ('delivery', 'job', 'prediction', 'output', 'notification', 'dead_letter', 'render'));

-- The position of an interrupted audit names its findings by the old table: the next audit starts at the beginning.
DELETE FROM cursors WHERE sweep = 'audit';
