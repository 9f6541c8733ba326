"""Which blocks changed: one contract (`contract.Tracker`), one module for each way to know."""
