-- Level viewer, acknowledged dead letters, events of pauses.
ALTER TABLE api_tokens DROP CONSTRAINT api_tokens_role_check;
ALTER TABLE api_tokens ADD CONSTRAINT api_tokens_role_check CHECK (role IN ('application', 'viewer', 'admin'));
ALTER TABLE dead_letters ADD acknowledged_at timestamptz, ADD acknowledged_by text, ADD note text;
ALTER TABLE events DROP CONSTRAINT events_subject_check;
ALTER TABLE events ADD CONSTRAINT events_subject_check
    CHECK (subject IN ('delivery', 'job', 'prediction', 'output', 'notification', 'dead_letter', 'render', 'pause'));
-- By the end, which retention reads, too.
DROP INDEX deliveries_unapplied;
CREATE INDEX deliveries_unapplied ON deliveries (state, ended_at) WHERE state IN ('ignored', 'dead');
