-- Owners take turns at a provider: the next one is found without the jobs of all that waits.
ALTER TABLE predictions ADD COLUMN owner text NOT NULL DEFAULT '-';
UPDATE predictions p SET owner = j.owner FROM jobs j
 WHERE j.id = p.job_id AND p.entry IS NOT NULL AND p.state IN ('planned', 'submitting', 'running');
CREATE INDEX predictions_waiting ON predictions (provider, owner, id) WHERE state = 'planned' AND lease_token IS NULL;
DROP INDEX predictions_in_flight;
CREATE INDEX predictions_in_flight ON predictions (provider) WHERE entry IS NOT NULL
    AND (state IN ('submitting', 'running') OR state = 'planned' AND lease_token IS NOT NULL);
