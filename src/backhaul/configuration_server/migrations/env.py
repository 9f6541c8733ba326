"""Alembic's entry; run by `database.Database` with its connection, at each start of the configuration server."""

from __future__ import annotations

from alembic import context

from backhaul.configuration_server.records import Record

connection = context.config.attributes["connection"]
context.configure(connection=connection, target_metadata=Record.metadata, render_as_batch=True)
with context.begin_transaction():
    context.run_migrations()
