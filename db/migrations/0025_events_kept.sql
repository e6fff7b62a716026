CREATE INDEX events_kept ON events (at) WHERE subject = 'output' AND to_state = 'kept';
