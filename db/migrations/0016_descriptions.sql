-- What users say about renders, where a job's notification goes, and projects without a document.
ALTER TABLE renders ADD COLUMN title text, ADD COLUMN favourite boolean NOT NULL DEFAULT false;
ALTER TABLE jobs ADD COLUMN notify_url text;
ALTER TABLE projects ADD COLUMN is_implicit boolean NOT NULL DEFAULT false;
