-- A project's id belongs to its owner, so that another owner may use the same one.
ALTER TABLE jobs DROP CONSTRAINT jobs_project_id_fkey;
ALTER TABLE placements DROP CONSTRAINT placements_project_id_fkey;
ALTER TABLE projects DROP CONSTRAINT projects_pkey;
ALTER TABLE projects ADD PRIMARY KEY (owner, id);
CREATE INDEX projects_by_id ON projects (id);
DROP INDEX projects_overwritten;
CREATE INDEX projects_overwritten ON projects (owner, id) WHERE computed_md5 IS DISTINCT FROM document_md5;

ALTER TABLE jobs ADD FOREIGN KEY (owner, project_id) REFERENCES projects (owner, id);
DROP INDEX jobs_by_project;
CREATE INDEX jobs_by_project ON jobs (project_id, owner) WHERE project_id IS NOT NULL;
DROP INDEX jobs_live_of_project;
CREATE INDEX jobs_live_of_project ON jobs (project_id, owner) WHERE settled_at IS NULL;

ALTER TABLE placements ADD COLUMN owner text;
UPDATE placements p SET owner = j.owner FROM jobs j WHERE j.id = p.render_id;
ALTER TABLE placements ALTER COLUMN owner SET NOT NULL;
ALTER TABLE placements ADD FOREIGN KEY (owner, project_id) REFERENCES projects (owner, id);
DROP INDEX placements_by_project;
CREATE INDEX placements_by_project ON placements (owner, project_id, render_id, idx);

-- The cursor named an id; the next run begins with the first project.
DELETE FROM cursors WHERE sweep = 'progress';
