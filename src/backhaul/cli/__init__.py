"""The command line: one verb per file. What it shows and does goes through `backhaul.client`."""
