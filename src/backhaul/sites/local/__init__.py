"""The local site: a home or a cloud simulated on one machine, with real processes, disks, networks and power.

A *provider* daemon (`provider.py`, `api.py`, `daemon.py`) owns everything of one site and answers its management
API; `client.py` is how everybody else reaches it. Someone reads: `definition.py`, `ledger.py`, `provider.py`, then
one module per kind of resource.
"""
