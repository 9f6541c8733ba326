"""The API's endpoints, by subject. Who may call each, and under which path, `route_table` says in one place.

Endpoints are plain functions in worker threads, or coroutines where they wait for servers.
"""
