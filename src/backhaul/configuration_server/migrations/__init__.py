"""Migrations of the records; each is one step from one version to the next and is never changed again."""
