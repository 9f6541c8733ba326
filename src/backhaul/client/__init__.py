"""The API's client: what command line and portal show and do goes through it. Imports nothing of the product."""
