"""Azure Resource Manager's shapes of Site Recovery: plain dictionaries, as reference/site-recovery-api.md has them."""
