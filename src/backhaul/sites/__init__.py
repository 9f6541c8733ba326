"""Where machines live: one package per kind of site, one contract (`contract.py`), one test suite.

`local` simulates a home and a cloud on one machine, with real processes, disks and networks. A site knows nothing of
replication: it offers machines, disks, networks, servers and power, and reads back what it did.
"""
