-- Vacuum after 1 % of a large table has changed, not 20 %: dead rows slow down every index of due rows.
DO $$ BEGIN EXECUTE (SELECT string_agg(format('ALTER TABLE %s SET (autovacuum_vacuum_scale_factor = 0.01,
    autovacuum_analyze_scale_factor = 0.01)', name), ';')
    FROM unnest('{deliveries,jobs,predictions,outputs,notifications,dead_letters,events}'::text[]) name); END $$;
