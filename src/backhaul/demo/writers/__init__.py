"""Writers: processes that write on a machine's disks all the time, as its applications would.

They are the guest's workload in the demo and in the tests: `blocks` overwrites disks at random with the oracle's
stamps, `sqlite_writer` commits numbered transactions. Both log outside the disks what was acknowledged before they
go on, and both can be quiesced, for at most a limit, by an application script (`control`).
"""
