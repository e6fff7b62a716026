-- Owner tokens can be revoked before they expire.
CREATE TABLE owner_token_revocations (
    subject    text PRIMARY KEY,
    revoked_at timestamptz NOT NULL,
    expires_at timestamptz NOT NULL
);
