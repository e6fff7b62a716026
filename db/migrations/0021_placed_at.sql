-- Nothing reads when a file was placed.
ALTER TABLE placements DROP COLUMN placed_at;
