"""One owner per on-disk format. Readers check `format` and `version` first."""
