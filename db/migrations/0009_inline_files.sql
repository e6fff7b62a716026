-- Bytes of a webhook are in the private bucket now; retention removes those of dead outputs, as it did in the table.
DROP INDEX outputs_leftover;
CREATE INDEX outputs_leftover ON outputs (ended_at)
    WHERE state = 'dead' AND (source_data IS NOT NULL OR source_kind = 'object' AND source IS NOT NULL);
