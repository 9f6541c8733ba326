"""Tests of `backhaul.sites`."""
