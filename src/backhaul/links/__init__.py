"""Links between servers and agents: certificates, TLS connections dialled or accepted, enrolment, the tunnel.

Nothing of a connection is parsed before its TLS handshake is over and its peer is known. Who opened the TCP
connection is the TLS client; both ends then speak the same protocol, so who dials is a setting.
"""
