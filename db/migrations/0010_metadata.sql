-- What an application attaches to a job, repeated in answers and notifications.
ALTER TABLE jobs ADD COLUMN metadata jsonb NOT NULL DEFAULT '{}' CHECK (jsonb_typeof(metadata) = 'object');
