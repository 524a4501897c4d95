"""The embedded stack: every service as a child process, with Valkey, blobs and SQLite on disk."""
