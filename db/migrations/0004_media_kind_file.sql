-- Files that are neither images nor videos: the kind `file`, without a thumbnail, and renders without a cover.
-- An older process reads such rows, and writes none.

ALTER TABLE outputs
    DROP CONSTRAINT outputs_media_check,
    ADD CONSTRAINT outputs_media_check CHECK (media IN ('image', 'video', 'file')),
    DROP CONSTRAINT outputs_check4,
    ADD CONSTRAINT outputs_check4
        CHECK (state NOT IN ('kept', 'discarding') OR media IN ('video', 'file') OR thumb_key IS NOT NULL),
    DROP CONSTRAINT outputs_check6,
    ADD CONSTRAINT outputs_check6
        CHECK (state <> 'kept' OR CASE WHEN media = 'file' THEN num_nonnulls(thumb_key, thumb_missing) = 0
                                       ELSE (thumb_key IS NULL) = (thumb_missing IS NOT NULL) END);
ALTER TABLE uploads
    DROP CONSTRAINT uploads_media_check,
    ADD CONSTRAINT uploads_media_check CHECK (media IN ('image', 'video', 'file'));
ALTER TABLE renders ALTER COLUMN cover_idx DROP NOT NULL;
CREATE OR REPLACE VIEW variants AS
SELECT v.render_id, v.idx, v.output_id, r.owner, o.media, o.format, o.content_type, o.bytes, o.sha256,
       o.width_px, o.height_px, o.frames, o.duration_s, o.key, o.thumb_key, o.thumb_bytes, o.thumb_sha256,
       o.thumb_width_px, o.thumb_height_px, o.thumb_missing, o.color, o.is_placeholder,
       v.idx IS NOT DISTINCT FROM r.cover_idx AS is_cover
  FROM render_variants v
  JOIN renders r ON r.id = v.render_id
  JOIN outputs o ON o.id = v.output_id
 WHERE r.deleted_at IS NULL
   AND (NOT o.is_placeholder
        OR NOT EXISTS (SELECT FROM render_variants w JOIN outputs q ON q.id = w.output_id
                        WHERE w.render_id = v.render_id AND NOT q.is_placeholder));
