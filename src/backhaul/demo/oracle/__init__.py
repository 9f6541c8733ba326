"""The oracle: proof of the prefix property on any set of disk images.

`stamps` is what writers put into blocks, `acklog` what they log before they go on, `checker` the judge over both;
`transactions` is the same for SQLite. Here are the names that tests, demo and command line use.
"""

from backhaul.demo.oracle.barrier import Barrier
from backhaul.demo.oracle.checker import check
from backhaul.demo.oracle.command import check_command
from backhaul.demo.oracle.history import History, Incarnation, load_history
from backhaul.demo.oracle.report import CheckReport, Newest, Violation, ViolationKind, true_rpo_s
from backhaul.demo.oracle.transactions import check_transactions

__all__ = [
    "Barrier",
    "CheckReport",
    "History",
    "Incarnation",
    "Newest",
    "Violation",
    "ViolationKind",
    "check",
    "check_command",
    "check_transactions",
    "load_history",
    "true_rpo_s",
]
