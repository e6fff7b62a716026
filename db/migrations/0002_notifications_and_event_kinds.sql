-- Renames notices to notifications and jobs.chain to jobs.fallback_chain.
-- An older process would fail on the new names, so nothing is renamed while one may be running.

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

-- Types of errors that were renamed, so that old and new dead letters are counted together.
UPDATE dead_letters SET error = new_name
  FROM (VALUES ('Busy', 'BytesInFlightExceeded'), ('Invalid', 'InvalidMedia'), ('NotifyFailed', 'NotificationFailed'),
               ('NotifyRefused', 'NotificationRefused'), ('Unexpected', 'UnexpectedError'),
               ('Unreadable', 'MalformedPayload')) AS renamed (old_name, new_name)
 WHERE error = old_name;

ALTER TABLE events DROP CONSTRAINT events_subject_check;
UPDATE events SET subject = 'notification' WHERE subject = 'notice';
ALTER TABLE events ADD CONSTRAINT events_subject_check
    CHECK (subject IN ('delivery', 'job', 'prediction', 'output', 'notification', 'dead_letter', 'render'));

-- An audit is no longer resumed.
DELETE FROM cursors WHERE sweep = 'audit';
ALTER TABLE cursors DROP COLUMN facts;

-- Columns for what was decided by the text of a reason until now; the old texts are read here for the last time.
ALTER TABLE predictions ADD COLUMN submit_uncertain boolean NOT NULL DEFAULT false;
UPDATE predictions p SET submit_uncertain = true
 WHERE submitted_at IS NOT NULL
   AND (starts_with(reason, 'submit uncertain: ')
        OR EXISTS (SELECT FROM events e
                    WHERE e.subject = 'prediction' AND e.subject_id = p.id AND e.from_state = 'submitting'
                      AND starts_with(e.reason, 'submit uncertain: ')));
ALTER TABLE predictions ADD CHECK (NOT submit_uncertain OR submitted_at IS NOT NULL);

ALTER TABLE outputs ADD COLUMN source_expired boolean NOT NULL DEFAULT false;
UPDATE outputs SET source_expired = true
 WHERE state = 'dead' AND reason LIKE '%; the source expired before it could be kept';
ALTER TABLE outputs ADD CHECK (NOT source_expired OR state = 'dead');

ALTER TABLE events ADD COLUMN kind text, ADD COLUMN lease text;
UPDATE events
   SET kind = CASE WHEN reason LIKE 'its process died%' THEN 'worker_died'
                   WHEN reason ~ '^the lease [0-9a-f]{8} expired' THEN 'lease_expired'
                   WHEN reason LIKE '%the worker is stopping' THEN 'worker_stopping'
                   WHEN reason ~ '^(copy|delete|get|head|list|presign|put|read) of ' THEN 'storage_failed'
                   WHEN reason ~ '^(the temporary folder|reading the temporary file): ' THEN 'disk_failed'
                   WHEN reason LIKE 'the server answered %' THEN 'source_unavailable'
                   WHEN reason LIKE 'the download broke: %' THEN 'source_interrupted'
                   ELSE 'attempt_failed' END,
       lease = CASE WHEN reason LIKE 'its process died%' THEN substring(reason FROM '\(lease ([0-9a-f]{8})\)$')
                    ELSE substring(reason FROM '^the lease ([0-9a-f]{8}) expired') END
 WHERE (subject IN ('delivery', 'prediction', 'output', 'notification') AND from_state = to_state)
    OR (subject = 'prediction' AND from_state = 'submitting' AND to_state = 'planned');
ALTER TABLE events
    ADD CHECK (kind IN ('worker_died', 'lease_expired', 'worker_stopping', 'storage_failed', 'disk_failed',
                        'source_unavailable', 'source_interrupted', 'attempt_failed')),
    ADD CHECK (lease ~ '^[0-9a-f]{8}$'),
    ADD CHECK (lease IS NULL OR kind IN ('worker_died', 'lease_expired'));
