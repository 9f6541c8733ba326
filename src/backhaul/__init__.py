"""Backhaul: disaster recovery that brings machines home again.

Read the packages in the order in which a written block meets them: `replication` (what a block is on its
way), `disks`, `links`, `mobility` (the agent), `process_server` (the relay), `master_target` (the replica).
"""

__version__ = "0.1.0"
