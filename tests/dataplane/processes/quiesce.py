"""An application's quiesce script: one command to a writer's socket. `quiesce.py SOCKET COMMAND`."""

import socket
import sys

with socket.socket(socket.AF_UNIX) as connection:
    connection.settimeout(9.0)
    connection.connect(sys.argv[1])
    connection.sendall(sys.argv[2].encode() + b"\n")
    answer = connection.recv(200).decode().split()[0]
print(answer)
sys.exit(0 if answer in {"quiesced", "resumed"} else 1)
