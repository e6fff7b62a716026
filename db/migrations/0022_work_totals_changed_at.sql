-- Totals of a host that is not used any more are forgotten.
ALTER TABLE work_totals ADD COLUMN changed_at timestamptz NOT NULL DEFAULT moment();
