"""The process server: an opaque, ordered, durable relay between agents and their targets.

It holds no key that opens a frame. What it stores it has acknowledged as *spooled*; losing it costs the unapplied
blocks sent again, never a resync. Parts: `spool` (the log, synchronous), `relay` (who may send what to whom, pure),
`service` (connections and tasks), `health` (what it tells the configuration server), `run` (the entry).
"""
