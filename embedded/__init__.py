"""PostgreSQL, Valkey and SeaweedFS from wheels, run as child processes of one supervisor."""
