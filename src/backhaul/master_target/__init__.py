"""Undo journal, replica, recovery points, views: where replicated blocks end up.

From below: `records`, `segment`, `index`, `journal` (the file format, docs/spec/journal.md); `batch`, `applying`,
`undo`, `thinning`, `view`, `restart` (what is done with it); `replica` (the whole, behind `contract`). Services are
above.
"""
