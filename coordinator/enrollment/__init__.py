"""How a server gets in: registration keys, and what is done with one."""
