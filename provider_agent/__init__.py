"""The provider agent: one site's management plane, beside its VMM server.

Inventory up, commands down; the only program of a site that talks to the coordinator. Goes on without it.
"""
