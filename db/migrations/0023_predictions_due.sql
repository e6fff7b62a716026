-- Planned predictions have an index of their own: the searches for other ones read a whole backlog of them.
DROP INDEX predictions_due;
CREATE INDEX predictions_due ON predictions (run_at)
    WHERE state IN ('submitting', 'running', 'abandoned') AND lease_token IS NULL;
CREATE INDEX predictions_planned ON predictions (run_at) WHERE state = 'planned' AND lease_token IS NULL;
CREATE INDEX predictions_submitting ON predictions (run_at) WHERE state = 'submitting' AND lease_token IS NULL;
