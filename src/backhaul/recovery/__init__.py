"""Pure: what may be done with a replicated item, and whether it would succeed.

The state machine of an item, policies, retention, health, preflight findings, estimates, and the documents that
are rendered from them. Imports only the value types of `replication`; nothing here does I/O, reads a clock or
knows a site. Plain values go in, plain values come out, so that portal, command line and API say the same.
"""
