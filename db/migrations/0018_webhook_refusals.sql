-- Webhooks that were refused within ten minutes, of a provider that moorage knows: a wrong secret, or none. Written at most
-- once a second by each receiver.
CREATE TABLE webhook_refusals (
    provider text PRIMARY KEY,
    value    bigint NOT NULL CHECK (value > 0),
    reason   text NOT NULL,                      -- of the last one
    last_at  timestamptz NOT NULL DEFAULT moment()
);
