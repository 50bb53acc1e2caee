"""Memory that outlives the processes which compute with it, and processes that may come and go:
what an engine needs to change its width while it serves (docs/elastic.md)."""
