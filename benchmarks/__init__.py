"""Programs that print figures; none of them asserts a time. Started by `scripts/bench`."""
