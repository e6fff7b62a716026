"""What a fresh machine lacks: real PostgreSQL, Valkey and SeaweedFS from wheels, under one supervisor."""
