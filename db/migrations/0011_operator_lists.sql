-- For the lists of operators: rows that ended otherwise than usual. None of them is written on the usual path.
CREATE INDEX deliveries_unapplied ON deliveries (state, id) WHERE state IN ('ignored', 'dead');
CREATE INDEX jobs_by_category ON jobs (category, id) WHERE category IS NOT NULL;
CREATE INDEX predictions_unsuccessful ON predictions (state, id) WHERE state IN ('failed', 'cancelled', 'lost');
CREATE INDEX predictions_by_category ON predictions (category, id) WHERE category IS NOT NULL;
CREATE INDEX outputs_by_category ON outputs (category, id) WHERE category IS NOT NULL;
CREATE INDEX notifications_dead ON notifications (state, id) WHERE state = 'dead';
CREATE INDEX notifications_by_category ON notifications (category, id) WHERE category IS NOT NULL;
