CREATE TABLE schema_migrations (
    version    integer PRIMARY KEY,
    name       text NOT NULL,
    sha256     text NOT NULL,
    applied_at timestamptz NOT NULL DEFAULT clock_timestamp()
);
CREATE FUNCTION moment() RETURNS timestamptz LANGUAGE sql STABLE PARALLEL SAFE AS $$
    SELECT clock_timestamp() + coalesce(nullif(current_setting('moorage.clock_shift', true), ''), '0')::interval
$$;
CREATE TABLE deliveries (
    id            uuid PRIMARY KEY,
    provider      text NOT NULL,
    webhook_id    text NOT NULL,
    received_at   timestamptz NOT NULL DEFAULT moment(),
    headers       jsonb NOT NULL DEFAULT '{}',
    body          bytea,
    body_sha256   text NOT NULL,
    key_sha256    text,
    external_id   text,
    prediction_id uuid,
    reason        text,
    state         text NOT NULL DEFAULT 'new' CHECK (state IN ('new', 'unmatched', 'applied', 'ignored', 'dead')),
    unmatched_until timestamptz,
    run_at        timestamptz DEFAULT moment(),
    woken_at      timestamptz,
    attempt       integer NOT NULL DEFAULT 0 CHECK (attempt >= 0),
    crashes       integer NOT NULL DEFAULT 0 CHECK (crashes >= 0),
    lease_token   uuid,
    leased_by     text,
    leased_until  timestamptz,
    ended_at      timestamptz,
    UNIQUE (provider, webhook_id),
    CHECK ((state IN ('new', 'unmatched')) = (run_at IS NOT NULL)),
    CHECK ((state IN ('new', 'unmatched')) = (ended_at IS NULL)),
    CHECK (lease_token IS NULL OR (leased_by IS NOT NULL AND leased_until IS NOT NULL AND run_at IS NOT NULL)),
    CHECK (state <> 'unmatched' OR (external_id IS NOT NULL AND unmatched_until IS NOT NULL))
);
CREATE INDEX deliveries_due ON deliveries (run_at) WHERE state IN ('new', 'unmatched') AND lease_token IS NULL;
CREATE INDEX deliveries_leased ON deliveries (leased_until) WHERE lease_token IS NOT NULL;
CREATE INDEX deliveries_unmatched ON deliveries (provider, external_id) WHERE state = 'unmatched';
CREATE INDEX deliveries_by_prediction ON deliveries (prediction_id) WHERE prediction_id IS NOT NULL;
CREATE INDEX deliveries_received ON deliveries (provider, received_at);
CREATE INDEX deliveries_ended ON deliveries (ended_at) WHERE ended_at IS NOT NULL;
CREATE INDEX deliveries_bodies ON deliveries (ended_at) WHERE ended_at IS NOT NULL AND body IS NOT NULL;
CREATE TABLE projects (
    id         text PRIMARY KEY CHECK (id <> ''),
    owner      text NOT NULL,
    document   jsonb NOT NULL DEFAULT '{"scenes": []}' CHECK (jsonb_typeof(document) = 'object'),
    created_at timestamptz NOT NULL DEFAULT moment(),
    updated_at timestamptz NOT NULL DEFAULT moment(),
    status     text NOT NULL DEFAULT 'open' CHECK (status IN ('open', 'assets_generated')),
    document_md5 text GENERATED ALWAYS AS (md5(document::text)) STORED,
    computed_md5 text
);
CREATE INDEX projects_overwritten ON projects (id) WHERE computed_md5 IS DISTINCT FROM document_md5;
CREATE TABLE jobs (
    id           uuid PRIMARY KEY,
    owner        text NOT NULL CHECK (owner <> ''),
    kind         text NOT NULL CHECK (kind IN ('image', 'video', 'mixed')),
    mode         text,
    room_type    text,
    style        text,
    prompt       text,
    project_id   text REFERENCES projects (id),
    scene        jsonb CHECK (jsonb_typeof(scene) IN ('string', 'number')),
    partial      text NOT NULL DEFAULT 'keep' CHECK (partial IN ('keep', 'discard')),
    variants     integer CHECK (variants > 0),
    chain        jsonb CHECK (jsonb_typeof(chain) = 'array' AND jsonb_array_length(chain) > 0),
    placeholder  boolean NOT NULL DEFAULT false,
    notify       boolean NOT NULL DEFAULT false,
    idempotency_key text,
    request_sha256  text,
    chosen_id    uuid,
    state        text NOT NULL DEFAULT 'open'
                 CHECK (state IN ('open', 'keeping', 'succeeded', 'partial', 'failed', 'cancelled')),
    category     text,
    reason       text,
    created_at   timestamptz NOT NULL DEFAULT moment(),
    deadline_at  timestamptz NOT NULL,
    run_at       timestamptz,
    settled_at   timestamptz,
    reopened     integer NOT NULL DEFAULT 0 CHECK (reopened >= 0),
    CHECK ((state IN ('open', 'keeping')) = (run_at IS NOT NULL)),
    CHECK ((state IN ('open', 'keeping')) = (settled_at IS NULL)),
    CHECK (state <> 'keeping' OR chosen_id IS NOT NULL),
    CHECK (scene IS NULL OR project_id IS NOT NULL),
    CHECK (state <> 'failed' OR category IS NOT NULL),
    CHECK ((idempotency_key IS NULL) = (request_sha256 IS NULL)),
    CHECK (NOT placeholder OR chain IS NOT NULL)
);
CREATE UNIQUE INDEX jobs_idempotent ON jobs (owner, idempotency_key) WHERE idempotency_key IS NOT NULL;
CREATE INDEX jobs_due ON jobs (run_at) WHERE state IN ('open', 'keeping');
CREATE INDEX jobs_by_owner ON jobs (owner, id);
CREATE INDEX jobs_by_project ON jobs (project_id) WHERE project_id IS NOT NULL;
CREATE INDEX jobs_settled ON jobs (settled_at) WHERE settled_at IS NOT NULL;
CREATE INDEX jobs_failed ON jobs (settled_at) WHERE state IN ('failed', 'cancelled');
CREATE INDEX jobs_by_chosen ON jobs (chosen_id) WHERE chosen_id IS NOT NULL;
CREATE TABLE predictions (
    id            uuid PRIMARY KEY,
    job_id        uuid NOT NULL REFERENCES jobs (id),
    seq           integer NOT NULL DEFAULT 0 CHECK (seq >= 0),
    entry         integer CHECK (entry >= 0),
    provider      text NOT NULL,
    external_id   text,
    model         text,
    key_sha256    text UNIQUE,
    submitted_at  timestamptz,
    cancel_reason text,
    state         text NOT NULL CHECK (state IN ('planned', 'submitting', 'running', 'abandoned',
                                                 'succeeded', 'failed', 'cancelled', 'lost')),
    category      text,
    reason        text,
    raw_status    text,
    created_at    timestamptz NOT NULL DEFAULT moment(),
    deadline_at   timestamptz NOT NULL,
    output_until  timestamptz,
    polls         integer NOT NULL DEFAULT 0 CHECK (polls >= 0),
    ended_by      text CHECK (ended_by IN ('webhook', 'poll', 'deadline', 'us')),
    run_at        timestamptz,
    woken_at      timestamptz,
    attempt       integer NOT NULL DEFAULT 0 CHECK (attempt >= 0),
    crashes       integer NOT NULL DEFAULT 0 CHECK (crashes >= 0),
    lease_token   uuid,
    leased_by     text,
    leased_until  timestamptz,
    ended_at      timestamptz,
    UNIQUE (provider, external_id),
    UNIQUE (job_id, seq),
    CHECK ((state IN ('planned', 'submitting', 'running', 'abandoned')) = (run_at IS NOT NULL)),
    CHECK ((state IN ('planned', 'submitting', 'running', 'abandoned')) = (ended_at IS NULL)),
    CHECK (lease_token IS NULL OR (leased_by IS NOT NULL AND leased_until IS NOT NULL AND run_at IS NOT NULL)),
    CHECK (state IN ('planned', 'submitting', 'abandoned', 'failed', 'cancelled', 'lost') OR external_id IS NOT NULL),
    CHECK (state = 'planned' OR entry IS NULL OR submitted_at IS NOT NULL OR ended_at IS NOT NULL),
    CHECK (state <> 'abandoned' OR output_until IS NOT NULL)
);
CREATE INDEX predictions_due ON predictions (run_at)
    WHERE state IN ('planned', 'submitting', 'running', 'abandoned') AND lease_token IS NULL;
CREATE INDEX predictions_at_work ON predictions (provider) WHERE state IN ('submitting', 'running');
CREATE INDEX predictions_leased ON predictions (leased_until) WHERE lease_token IS NOT NULL;
CREATE INDEX predictions_ended ON predictions (ended_at) WHERE ended_at IS NOT NULL;
ALTER TABLE jobs ADD FOREIGN KEY (chosen_id) REFERENCES predictions (id);
ALTER TABLE deliveries ADD FOREIGN KEY (prediction_id) REFERENCES predictions (id);
CREATE TABLE outputs (
    id            uuid PRIMARY KEY,
    job_id        uuid NOT NULL REFERENCES jobs (id),
    prediction_id uuid NOT NULL REFERENCES predictions (id),
    idx           integer NOT NULL CHECK (idx >= 0),
    path          text NOT NULL,
    is_placeholder boolean NOT NULL DEFAULT false,
    source_kind   text NOT NULL CHECK (source_kind IN ('url', 'inline', 'object')),
    source        text,
    source_data   bytea,
    expires_at    timestamptz,
    refreshed_at  timestamptz,
    state         text NOT NULL CHECK (state IN ('waiting', 'discarding', 'kept', 'dead', 'discarded')),
    category      text,
    reason        text,
    created_at    timestamptz NOT NULL DEFAULT moment(),
    run_at        timestamptz,
    woken_at      timestamptz,
    attempt       integer NOT NULL DEFAULT 0 CHECK (attempt >= 0),
    crashes       integer NOT NULL DEFAULT 0 CHECK (crashes >= 0),
    lease_token   uuid,
    leased_by     text,
    leased_until  timestamptz,
    ended_at      timestamptz,
    media         text CHECK (media IN ('image', 'video')),
    format        text,
    content_type  text,
    bytes         bigint CHECK (bytes > 0),
    sha256        text CHECK (sha256 ~ '^[0-9a-f]{64}$'),
    width_px      integer CHECK (width_px > 0),
    height_px     integer CHECK (height_px > 0),
    frames        integer CHECK (frames > 0),
    duration_s    double precision,
    key           text UNIQUE,
    thumb_key     text UNIQUE,
    thumb_bytes   bigint CHECK (thumb_bytes > 0),
    thumb_sha256  text CHECK (thumb_sha256 ~ '^[0-9a-f]{64}$'),
    thumb_width_px  integer CHECK (thumb_width_px > 0),
    thumb_height_px integer CHECK (thumb_height_px > 0),
    color         text CHECK (color ~ '^#[0-9a-f]{6}$'),
    thumb_missing text,
    notes         text,
    UNIQUE (job_id, idx),
    UNIQUE (prediction_id, path),
    CHECK ((state IN ('waiting', 'discarding')) = (run_at IS NOT NULL)),
    CHECK ((state IN ('waiting', 'discarding')) = (ended_at IS NULL)),
    CHECK (lease_token IS NULL OR (leased_by IS NOT NULL AND leased_until IS NOT NULL AND run_at IS NOT NULL)),
    CHECK (state NOT IN ('kept', 'discarding') OR num_nulls(media, format, content_type, bytes, sha256, key) = 0),
    CHECK (state NOT IN ('kept', 'discarding') OR media = 'video' OR thumb_key IS NOT NULL),
    CHECK (num_nulls(thumb_key, thumb_bytes, thumb_sha256) IN (0, 3)),
    CHECK (state <> 'kept' OR (thumb_key IS NULL) = (thumb_missing IS NOT NULL)),
    CHECK (state <> 'dead' OR category IS NOT NULL)
);
CREATE INDEX outputs_due ON outputs (run_at) WHERE state = 'waiting' AND lease_token IS NULL;
CREATE INDEX outputs_discarding ON outputs (run_at) WHERE state = 'discarding' AND lease_token IS NULL;
CREATE INDEX outputs_leased ON outputs (leased_until) WHERE lease_token IS NOT NULL;
CREATE INDEX outputs_live ON outputs (job_id) WHERE state IN ('waiting', 'discarding');
CREATE INDEX outputs_ended ON outputs (ended_at) WHERE ended_at IS NOT NULL;
CREATE INDEX outputs_spooled ON outputs (ended_at) WHERE source_kind = 'object' AND source IS NOT NULL;
CREATE INDEX outputs_by_source ON outputs (source) WHERE source_kind = 'object' AND source IS NOT NULL;
CREATE INDEX outputs_leftover ON outputs (ended_at) WHERE state = 'dead' AND source_data IS NOT NULL;
CREATE TABLE renders (
    id           uuid PRIMARY KEY REFERENCES jobs (id),
    owner        text NOT NULL,
    cover_idx    integer NOT NULL,
    published_at timestamptz NOT NULL DEFAULT moment(),
    deleted_at   timestamptz
);
CREATE INDEX renders_by_owner ON renders (owner, id) WHERE deleted_at IS NULL;
CREATE INDEX renders_published ON renders (published_at) WHERE deleted_at IS NULL;
CREATE INDEX renders_deleted ON renders (deleted_at) WHERE deleted_at IS NOT NULL;
CREATE TABLE render_variants (
    render_id uuid NOT NULL REFERENCES renders (id),
    idx       integer NOT NULL,
    output_id uuid NOT NULL UNIQUE REFERENCES outputs (id),
    PRIMARY KEY (render_id, idx)
);
CREATE VIEW variants AS
SELECT v.render_id, v.idx, v.output_id, r.owner, o.media, o.format, o.content_type, o.bytes, o.sha256,
       o.width_px, o.height_px, o.frames, o.duration_s, o.key, o.thumb_key, o.thumb_bytes, o.thumb_sha256,
       o.thumb_width_px, o.thumb_height_px, o.thumb_missing, o.color, o.is_placeholder, v.idx = r.cover_idx AS is_cover
  FROM render_variants v
  JOIN renders r ON r.id = v.render_id
  JOIN outputs o ON o.id = v.output_id
 WHERE r.deleted_at IS NULL
   AND (NOT o.is_placeholder
        OR NOT EXISTS (SELECT FROM render_variants w JOIN outputs q ON q.id = w.output_id
                        WHERE w.render_id = v.render_id AND NOT q.is_placeholder));
CREATE TABLE uploads (
    id           uuid PRIMARY KEY,
    owner        text NOT NULL CHECK (owner <> ''),
    key          text COLLATE "C" NOT NULL UNIQUE,
    media        text NOT NULL CHECK (media IN ('image', 'video')),
    format       text NOT NULL,
    content_type text NOT NULL,
    bytes        bigint NOT NULL CHECK (bytes > 0),
    sha256       text NOT NULL CHECK (sha256 ~ '^[0-9a-f]{64}$'),
    width_px     integer CHECK (width_px > 0),
    height_px    integer CHECK (height_px > 0),
    duration_s   double precision,
    created_at   timestamptz NOT NULL DEFAULT moment(),
    deleted_at   timestamptz
);
CREATE INDEX uploads_by_owner ON uploads (owner, id) WHERE deleted_at IS NULL;
CREATE TABLE notices (
    id            uuid PRIMARY KEY,
    event_id      bigint NOT NULL UNIQUE,
    job_id        uuid NOT NULL REFERENCES jobs (id),
    type          text NOT NULL
                  CHECK (type IN ('job.succeeded', 'job.partial', 'job.failed', 'job.cancelled')),
    state         text NOT NULL DEFAULT 'waiting' CHECK (state IN ('waiting', 'sent', 'dead')),
    category      text,
    reason        text,
    created_at    timestamptz NOT NULL DEFAULT moment(),
    run_at        timestamptz DEFAULT moment(),
    woken_at      timestamptz,
    attempt       integer NOT NULL DEFAULT 0 CHECK (attempt >= 0),
    crashes       integer NOT NULL DEFAULT 0 CHECK (crashes >= 0),
    lease_token   uuid,
    leased_by     text,
    leased_until  timestamptz,
    ended_at      timestamptz,
    CHECK ((state = 'waiting') = (run_at IS NOT NULL)),
    CHECK ((state = 'waiting') = (ended_at IS NULL)),
    CHECK (lease_token IS NULL OR (leased_by IS NOT NULL AND leased_until IS NOT NULL AND run_at IS NOT NULL)),
    CHECK (state <> 'dead' OR category IS NOT NULL)
);
CREATE INDEX notices_due ON notices (run_at) WHERE state = 'waiting' AND lease_token IS NULL;
CREATE INDEX notices_leased ON notices (leased_until) WHERE lease_token IS NOT NULL;
CREATE INDEX notices_of_job ON notices (job_id);
CREATE INDEX notices_ended ON notices (ended_at) WHERE ended_at IS NOT NULL;
CREATE TABLE api_tokens (
    id           uuid PRIMARY KEY,
    name         text NOT NULL CHECK (name <> ''),
    role         text NOT NULL CHECK (role IN ('application', 'admin')),
    token_sha256 text NOT NULL UNIQUE CHECK (token_sha256 ~ '^[0-9a-f]{64}$'),
    created_at   timestamptz NOT NULL DEFAULT moment(),
    revoked_at   timestamptz
);
CREATE TABLE placements (
    render_id  uuid NOT NULL,
    idx        integer NOT NULL,
    project_id text NOT NULL REFERENCES projects (id),
    scene      jsonb,
    scene_key  text,
    placed_at  timestamptz NOT NULL DEFAULT moment(),
    PRIMARY KEY (render_id, idx),
    FOREIGN KEY (render_id, idx) REFERENCES render_variants (render_id, idx)
);
CREATE INDEX placements_by_project ON placements (project_id, render_id, idx);
CREATE TABLE dead_letters (
    id         uuid PRIMARY KEY,
    subject    text NOT NULL CHECK (subject IN ('delivery', 'prediction', 'output', 'notice', 'message')),
    subject_id uuid NOT NULL,
    job_id     uuid,
    provider   text,
    step       text NOT NULL,
    category   text NOT NULL CHECK (category IN ('DOWNLOAD_FAILED', 'VALIDATION_FAILED', 'STORAGE_FAILED',
                                                 'DATABASE_FAILED', 'PROVIDER_FAILED', 'BILLING_FAILED', 'TIMED_OUT',
                                                 'UNKNOWN_PREDICTION', 'NOTIFY_FAILED', 'POISON', 'INTERNAL')),
    error      text NOT NULL,
    reason     text NOT NULL,
    retryable  boolean NOT NULL,
    facts      jsonb NOT NULL DEFAULT '{}',
    state      text NOT NULL DEFAULT 'open' CHECK (state IN ('open', 'replayed', 'discarded')),
    created_at timestamptz NOT NULL DEFAULT moment(),
    closed_at  timestamptz,
    closed_by  text,
    CHECK ((state = 'open') = (closed_at IS NULL))
);
CREATE UNIQUE INDEX dead_letters_open ON dead_letters (subject, subject_id) WHERE state = 'open';
CREATE INDEX dead_letters_newest ON dead_letters (created_at);
CREATE INDEX dead_letters_of ON dead_letters (subject, subject_id);
CREATE INDEX dead_letters_closed ON dead_letters (closed_at) WHERE closed_at IS NOT NULL;
CREATE TABLE events (
    id         bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    subject    text NOT NULL
               CHECK (subject IN ('delivery', 'job', 'prediction', 'output', 'notice', 'dead_letter', 'render')),
    subject_id uuid NOT NULL,
    job_id     uuid,
    from_state text,
    to_state   text NOT NULL,
    reason     text,
    actor      text NOT NULL,
    at         timestamptz NOT NULL DEFAULT moment()
);
CREATE INDEX events_of ON events (subject, subject_id, id);
CREATE INDEX events_of_job ON events (job_id, id) WHERE job_id IS NOT NULL;
CREATE INDEX events_at ON events (at);
CREATE TABLE ticks (
    sweep       text NOT NULL,
    slot        bigint NOT NULL,
    started_at  timestamptz NOT NULL DEFAULT moment(),
    finished_at timestamptz,
    result      jsonb,
    PRIMARY KEY (sweep, slot)
);
CREATE TABLE pauses (
    target    text PRIMARY KEY CHECK (target <> ''),
    paused_at timestamptz NOT NULL DEFAULT moment(),
    paused_by text NOT NULL,
    reason    text
);
CREATE TABLE cursors (
    sweep     text PRIMARY KEY,
    place     text NOT NULL,
    after_key text NOT NULL,
    moved_at  timestamptz NOT NULL DEFAULT moment(),
    facts     jsonb NOT NULL DEFAULT '{}'
);
CREATE TABLE storage_use (
    bucket      text NOT NULL CHECK (bucket IN ('public', 'private')),
    owner       text NOT NULL,
    objects     bigint NOT NULL CHECK (objects >= 0),
    bytes       bigint NOT NULL CHECK (bytes >= 0),
    rank        integer NOT NULL CHECK (rank >= 0),
    computed_at timestamptz NOT NULL DEFAULT moment(),
    PRIMARY KEY (bucket, owner)
);
CREATE INDEX storage_use_most ON storage_use (rank);
