"""The agent on a machine: which blocks changed, still images, reading and sending.

Imports nothing here: `freezer` and `guard` start as processes of their own and must start quickly.
"""
