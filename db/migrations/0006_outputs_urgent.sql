-- Step keep claims, and dispatch wakes, the most urgent due outputs.
CREATE INDEX outputs_urgent ON outputs (expires_at, run_at) WHERE state = 'waiting' AND lease_token IS NULL;
