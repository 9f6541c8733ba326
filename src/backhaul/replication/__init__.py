"""Pure: what a block is on its way, and the rules of the stream that carries it.

Imports nothing of ours. No module here opens a socket or a disk; `ports` holds the only calls to the operating
system, behind protocols that faulty worlds implement as well.
"""
