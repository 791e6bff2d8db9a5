"""The coordinator: the vault. Identities, inventory, policy, protection, durable jobs, audit and the admin API.

Holds metadata only, never a disk block. `app.py` is the only module that builds adapters and wires services.
"""
