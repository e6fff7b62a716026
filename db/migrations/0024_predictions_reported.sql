ALTER TABLE predictions ADD was_without_files boolean NOT NULL DEFAULT false, ADD is_announced boolean NOT NULL DEFAULT false;
UPDATE predictions SET was_without_files = true, raw_status = left(raw_status, -length(' without files'))
 WHERE raw_status LIKE '% without files';
