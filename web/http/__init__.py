"""HTTP for the API: problems, validation, permissions, cookies."""
