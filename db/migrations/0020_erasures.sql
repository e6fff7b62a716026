-- Erasing an owner, and what retention reads of uploads and dead letters.
CREATE TABLE erasures (
    id           uuid PRIMARY KEY,
    owner        text UNIQUE CHECK (owner <> ''),
    requested_at timestamptz NOT NULL DEFAULT moment(),
    finished_at  timestamptz,
    removed      jsonb NOT NULL DEFAULT '{}',
    CHECK ((owner IS NULL) = (finished_at IS NOT NULL))
);
CREATE TABLE erased_predictions (
    provider  text NOT NULL,
    name      text NOT NULL,
    erased_at timestamptz NOT NULL DEFAULT moment(),
    PRIMARY KEY (provider, name)
);
CREATE INDEX uploads_created ON uploads (created_at) WHERE deleted_at IS NULL;
CREATE INDEX uploads_deleted ON uploads (deleted_at) WHERE deleted_at IS NOT NULL;
CREATE INDEX dead_letters_oldest ON dead_letters (created_at) WHERE state = 'open';
