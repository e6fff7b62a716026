-- What pool children of workers have counted, added up: series of Prometheus with their labels as JSON. For /metrics.
CREATE TABLE work_totals (
    name   text NOT NULL,
    labels text NOT NULL,
    value  double precision NOT NULL,
    PRIMARY KEY (name, labels)
) WITH (fillfactor = 50);
