-- Files that were refused are stored in quarantine, and named by their output.
ALTER TABLE outputs
    ADD COLUMN quarantine_key text COLLATE "C",
    ADD COLUMN quarantine_bytes bigint CHECK (quarantine_bytes > 0),
    ADD COLUMN quarantine_sha256 text CHECK (quarantine_sha256 ~ '^[0-9a-f]{64}$'),
    ADD COLUMN quarantine_type text,
    ADD COLUMN quarantined_at timestamptz,
    ADD CONSTRAINT outputs_quarantine_complete
        CHECK (num_nulls(quarantine_key, quarantine_bytes, quarantine_sha256, quarantined_at) IN (0, 4));
CREATE UNIQUE INDEX outputs_quarantine_key ON outputs (quarantine_key) WHERE quarantine_key IS NOT NULL;
CREATE INDEX outputs_quarantined ON outputs (quarantined_at) WHERE quarantine_key IS NOT NULL;
