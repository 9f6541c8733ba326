"""Tests of `backhaul.disks`."""
