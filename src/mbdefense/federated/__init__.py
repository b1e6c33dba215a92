"""Clients who train one model together: a round of it, attacks by clients, and rules by which a server stands them."""
