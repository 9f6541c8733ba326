"""The control plane: vault, records, jobs, identity, heartbeats, REST API. It moves no blocks.

It decides who replicates what through whom under which fence; data plane services go on when it is away.
"""
