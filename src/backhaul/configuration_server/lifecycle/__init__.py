"""The lifecycle of a replicated item: failover, change of point, commit, cancel, reprotect, failback.

Read in this order: `values` (what is kept of an item), `ports` (what is needed of the world), `machines` and
`targets` (how the world is changed, each change once), the steps (`moving`, `changing_point`, `committing`,
`canceling`, `reprotecting`, `integrity`), `workflows` (which steps make which job), and what ties them to the
configuration server (`store`, `core`).

Invariant: a step reads the world again before it acts, so that a kill inside it leaves exactly one effect; nothing a
step is given or answers is a secret.
"""
