"""The demo: a home and a cloud on this machine, the workloads that write on its machines, and the oracle.

`writers` are the guests' workloads, `oracle` proves what recovery points promise. The tests import both from here.
"""
